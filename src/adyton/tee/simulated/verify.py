"""Is simulated evidence genuine: made by the platform whose root the caller trusts? No I/O; time is an argument.

Genuine says only that the platform of that root said so, and the simulation's platform protects from nothing. *Not*
checked, because policy decides it: how old the evidence is, which measurement it has, what its report_data binds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification

from adyton.errors import EvidenceError
from adyton.tee.simulated.format import parse_simulated, signature_input
from adyton.tee.simulated.signature import verify_low_s

MAX_ISSUED_IN_FUTURE: Final = timedelta(minutes=5)
"""How far the platform's clock may be ahead of the verifier's."""

# What `cryptography` raises for a hostile certificate. It only warns about some encodings, but a process may have made
# warnings errors, and even then nothing but EvidenceError may escape.
_MALFORMED: Final = (
    ValueError,
    TypeError,
    OverflowError,
    UnsupportedAlgorithm,
    Warning,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedSimulated:
    """What genuine evidence says. `root_sha256` is the SHA-256 of the DER certificate of the root that it is under."""

    measurement: bytes
    report_data: bytes
    issued_at: datetime
    root_sha256: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Leaf:
    """A leaf certificate of which every part that is used below has been parsed."""

    certificate: x509.Certificate
    public_key: object
    extensions: x509.Extensions
    not_before: datetime
    not_after: datetime


def verify_simulated(data: bytes, *, roots: Sequence[x509.Certificate], now: datetime) -> VerifiedSimulated:
    """Verify in eight steps; the first that fails raises `EvidenceError`. A `now` without time zone is a ValueError.

    Trusted before: `roots` and `now`. Trusted after: that the owner of one of the roots' keys signed the result.
    """
    if now.utcoffset() is None:
        raise ValueError("now must have a time zone")
    evidence = parse_simulated(data)  # 1. the format, to the last byte
    leaf = _parse_leaf(evidence.leaf_certificate_der)  # 2. the leaf certificate parses
    key = _check_key(leaf)  # 3. its key is of P-256
    _check_role(leaf.extensions)  # 4. it may sign and may not certify
    _check_dates(leaf, now)  # 5. it is valid at `now`
    root = _verify_chain(leaf.certificate, roots, now)  # 6. one of the roots, valid at `now`, issued it
    verify_low_s(key, evidence.signature, signature_input(evidence.signed_part))  # 7. it signed the evidence
    if evidence.issued_at - now > MAX_ISSUED_IN_FUTURE:  # 8. not from the future; how old it may be is policy's
        raise EvidenceError(f"the simulated evidence is from the future: issued {evidence.issued_at}, now it is {now}")
    return VerifiedSimulated(
        measurement=evidence.measurement,
        report_data=evidence.report_data,
        issued_at=evidence.issued_at,
        root_sha256=root.fingerprint(hashes.SHA256()),
    )


def _parse_leaf(der: bytes) -> _Leaf:
    try:
        certificate = x509.load_der_x509_certificate(der)
        if certificate.serial_number <= 0:  # RFC 5280, 4.1.2.2; the library only warns
            raise ValueError("serial number is not positive")
        return _Leaf(
            certificate=certificate,
            public_key=certificate.public_key(),
            extensions=certificate.extensions,
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
        )
    except _MALFORMED as error:
        raise EvidenceError("the leaf certificate of the simulated evidence does not parse") from error


def _check_key(leaf: _Leaf) -> ec.EllipticCurvePublicKey:
    key = leaf.public_key
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise EvidenceError("the leaf certificate's key is not of P-256")
    return key


def _check_role(extensions: x509.Extensions) -> None:
    try:
        constraints = extensions.get_extension_for_class(x509.BasicConstraints)
        usage = extensions.get_extension_for_class(x509.KeyUsage)
    except x509.ExtensionNotFound as error:
        raise EvidenceError("the leaf certificate lacks basicConstraints or keyUsage") from error
    if constraints.value.ca:
        raise EvidenceError("the leaf certificate is a CA")
    if not usage.critical:
        raise EvidenceError("the leaf certificate's keyUsage is not critical")
    if not usage.value.digital_signature:
        raise EvidenceError("the leaf certificate's keyUsage lacks digitalSignature")


def _check_dates(leaf: _Leaf, now: datetime) -> None:
    # The chain's verifier looks at dates too, but drops fractions of a second and does not say which date was wrong.
    if now < leaf.not_before:
        raise EvidenceError(f"the leaf certificate is not yet valid: from {leaf.not_before}, now it is {now}")
    if now > leaf.not_after:
        raise EvidenceError(f"the leaf certificate has expired: on {leaf.not_after}, now it is {now}")


def _verify_chain(leaf: x509.Certificate, roots: Sequence[x509.Certificate], now: datetime) -> x509.Certificate:
    """The one of `roots` that issued `leaf` itself; it must be a CA and valid at `now`."""
    if not roots:
        raise EvidenceError("no roots are trusted, so no simulated evidence is genuine")
    policy = verification.PolicyBuilder().store(verification.Store(list(roots))).time(now).max_chain_depth(0)
    policy = policy.extension_policies(ca_policy=_ROOT_EXTENSIONS, ee_policy=verification.ExtensionPolicy.permit_all())
    try:
        chain = policy.build_client_verifier().verify(leaf, []).chain
    except (verification.VerificationError, *_MALFORMED) as error:
        message = f"the leaf certificate has no valid chain to any of the {len(roots)} trusted roots"
        raise EvidenceError(message) from error
    if len(chain) != 2:
        raise EvidenceError("the leaf certificate is itself given as a root")
    return chain[1]


def _check_may_certify(_policy: verification.Policy, _root: x509.Certificate, usage: x509.KeyUsage) -> None:
    # The library sees to the extension's presence only.
    if not usage.key_cert_sign:
        raise ValueError("the root's keyUsage lacks keyCertSign")


_ROOT_EXTENSIONS: Final = (
    verification.ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, verification.Criticality.CRITICAL, None)
    .require_present(x509.KeyUsage, verification.Criticality.CRITICAL, _check_may_certify)
)
