"""X.509 from strangers: what `cryptography` raises, warns about or leaves out, turned into `EvidenceError`."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509 import verification

from adyton.errors import EvidenceError

MAX_CERTIFICATE_BYTES: Final = 16 * 1024
"""Real ones have 2 KiB. Of names and extensions without bound, half a megabyte takes the library half a second."""
MAX_PATH_ISSUERS: Final = 9
"""With the root; RFC 5280 sets no limit."""

MALFORMED: Final = (
    ValueError,
    TypeError,
    OverflowError,
    UnsupportedAlgorithm,
    Warning,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises for a hostile certificate. It only warns about some encodings, but a process may have made
warnings errors, and even then nothing but `EvidenceError` may escape."""


_quiet: Final = threading.Lock()


def load_certificate(der: bytes, what: str, *, serial_zero: bool = False) -> x509.Certificate:
    """Parse one DER certificate to the end, its key, dates and extensions too, so that using them later can't fail.

    A serial number that is not positive is refused (RFC 5280, section 4.1.2.2), but AMD's, which are all 0, where
    `serial_zero` says so. The library warns of those, here and wherever their `serial_number` is asked for.
    """
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise EvidenceError(f"{what} has {len(der)} bytes; {MAX_CERTIFICATE_BYTES} are allowed")
    try:
        return _load(der, serial_zero=serial_zero)
    except MALFORMED as error:
        raise EvidenceError(f"{what} does not parse") from error


@functools.lru_cache(maxsize=64)  # a platform's come with all of its evidence, its vendor's with everybody's
def _load(der: bytes, *, serial_zero: bool) -> x509.Certificate:
    if not serial_zero:
        return _parse(der, least_serial=1)
    with _quiet, warnings.catch_warnings():  # filters belong to the process: one thread at a time changes them
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        return _parse(der, least_serial=0)


def _parse(der: bytes, *, least_serial: int) -> x509.Certificate:
    certificate = x509.load_der_x509_certificate(der)
    if certificate.serial_number < least_serial:
        raise ValueError("serial number is not positive")
    _ = certificate.public_key(), certificate.extensions, certificate.subject, certificate.issuer
    _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc, certificate.signature_hash_algorithm
    return certificate


def load_public_key(der: bytes, what: str) -> object:
    """The key of a DER SubjectPublicKeyInfo."""
    try:
        return serialization.load_der_public_key(der)
    except MALFORMED as error:
        raise EvidenceError(f"{what} does not parse") from error


@functools.lru_cache(maxsize=64)
def certificate_sha256(certificate: x509.Certificate) -> bytes:
    """What a root is pinned by."""
    return certificate.fingerprint(hashes.SHA256())


def spki(certificate: x509.Certificate) -> bytes:
    """The certificate's DER SubjectPublicKeyInfo."""
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def check_dates(certificate: x509.Certificate, now: datetime, what: str) -> None:
    """Refuse a certificate that is not valid at `now`, to the microsecond (the library drops fractions of a second)."""
    if now < certificate.not_valid_before_utc:
        raise EvidenceError(f"{what} is not yet valid: from {certificate.not_valid_before_utc}, now it is {now}")
    if now > certificate.not_valid_after_utc:
        raise EvidenceError(f"{what} has expired: on {certificate.not_valid_after_utc}, now it is {now}")


def constraints_and_usage(certificate: x509.Certificate, what: str) -> tuple[x509.BasicConstraints, x509.KeyUsage]:
    """What says what a certificate is for (RFC 5280, section 4.2.1.9 and 4.2.1.3); refused unless both are there."""
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    except x509.ExtensionNotFound as error:
        raise EvidenceError(f"{what} lacks basicConstraints or keyUsage") from error
    return constraints.value, usage.value


def check_ca(certificate: x509.Certificate, what: str) -> None:
    """Refuse an issuer that may not certify: it must have basicConstraints with CA, and keyUsage with keyCertSign."""
    constraints, usage = constraints_and_usage(certificate, what)
    if not constraints.ca:
        raise EvidenceError(f"{what} is no CA")
    if not usage.key_cert_sign:
        raise EvidenceError(f"{what} may not certify: its keyUsage lacks keyCertSign")


def check_issued_by(certificate: x509.Certificate, issuer: x509.Certificate, what: str) -> None:
    """Refuse a certificate that `issuer` did not sign, or that names another issuer. Any algorithm, RSA-PSS too."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, *MALFORMED) as error:
        raise EvidenceError(f"{what} was not issued by the certificate above it") from error


def pinned(certificates: Iterable[x509.Certificate], anchors: Collection[bytes], what: str) -> x509.Certificate:
    """The one of `certificates` whose SHA-256 is among the anchors."""
    for certificate in certificates:
        if certificate_sha256(certificate) in anchors:
            return certificate
    raise EvidenceError(f"{what} does not end in a root that is trusted")


_CA: Final = (
    verification.ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, verification.Criticality.AGNOSTIC, None)
    .require_present(x509.KeyUsage, verification.Criticality.AGNOSTIC, None)
)


def verify_path(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    root: x509.Certificate,
    now: datetime,
    what: str,
) -> Sequence[x509.Certificate]:
    """Validate a path from `leaf` to `root` (RFC 5280, section 6.1) and return it, leaf first.

    Every issuer must be a CA with keyCertSign, and sign with an algorithm of the Web's PKI; RSA-PSS as AMD writes it is
    none, so AMD's chains need `check_issued_by`. `intermediates` may be more than the path needs, in any order. Not
    looked at: revocation, what the leaf is for, the signature and issuer of `root`.
    """
    check_dates(leaf, now, what)
    check_dates(root, now, f"the root of {what}")
    policy = verification.PolicyBuilder().store(verification.Store([root])).time(now)
    policy = policy.max_chain_depth(MAX_PATH_ISSUERS - 1)
    policy = policy.extension_policies(ca_policy=_CA, ee_policy=verification.ExtensionPolicy.permit_all())
    try:
        path = policy.build_client_verifier().verify(leaf, list(intermediates)).chain
    except (verification.VerificationError, *MALFORMED) as error:
        raise EvidenceError(f"{what} has no valid path to the trusted root") from error
    if len(path) < 2:
        raise EvidenceError(f"{what} is itself the trusted root")
    for issuer in path[1:]:  # the library sees to neither keyCertSign nor fractions of a second
        check_ca(issuer, f"an issuer of {what}")
        check_dates(issuer, now, f"an issuer of {what}")
    return path


def load_crl(der: bytes, what: str) -> x509.CertificateRevocationList:
    """Parse one DER CRL."""
    try:
        crl = x509.load_der_x509_crl(der)
        _ = crl.issuer, crl.last_update_utc, crl.next_update_utc, crl.extensions, crl.signature_hash_algorithm
    except MALFORMED as error:
        raise EvidenceError(f"{what} does not parse") from error
    return crl


def check_not_revoked(
    certificate: x509.Certificate,
    crl: x509.CertificateRevocationList,
    issuer: x509.Certificate,
    now: datetime,
    what: str,
) -> None:
    """Refuse unless `crl` is the issuer's own, is current at `now`, and does not list the certificate (section 6.3)."""
    _, usage = constraints_and_usage(issuer, f"the issuer of the CRL for {what}")
    if not usage.crl_sign:
        raise EvidenceError(f"the issuer of the CRL for {what} may not sign it: its keyUsage lacks cRLSign")
    check_crl_is_of(issuer, crl, certificate, what)
    if any(extension.critical for extension in crl.extensions):  # it is partial, indirect, or a delta, section 5.2
        raise EvidenceError(f"the CRL for {what} has a critical extension, of which none is known")
    if now < crl.last_update_utc:
        raise EvidenceError(f"the CRL for {what} is from the future: of {crl.last_update_utc}, now it is {now}")
    if crl.next_update_utc is None or now > crl.next_update_utc:
        raise EvidenceError(f"the CRL for {what} has expired: on {crl.next_update_utc}, now it is {now}")
    try:
        listed = crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
    except MALFORMED as error:  # the library warns of the serial number 0
        raise EvidenceError(f"the serial number of {what} can't be looked up") from error
    if listed is not None:
        raise EvidenceError(f"{what} has been revoked: on {listed.revocation_date_utc}")


def check_crl_is_of(
    issuer: x509.Certificate, crl: x509.CertificateRevocationList, certificate: x509.Certificate, what: str
) -> None:
    """Refuse a CRL that is not the issuer's own, or is not about the certificate's issuer."""
    if crl.issuer != issuer.subject or certificate.issuer != issuer.subject:
        raise EvidenceError(f"the CRL for {what} is of another issuer")
    try:
        genuine = crl.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
    except MALFORMED as error:
        raise EvidenceError(f"the CRL for {what} can't be verified with its issuer's key") from error
    if not genuine:
        raise EvidenceError(f"the signature of the CRL for {what} does not verify")
