"""The certificates of the channel: the open client CA's, a client's for one connection, an enclave's CA and leaves.

All keys are P-256: gRPC's core takes neither Ed25519 nor P-521. Every certificate that a server shows has a dNSName,
without which the core would compare the common name, and every leaf a critical keyUsage of digitalSignature, without
which a pinned leaf could issue certificates that the core accepts.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from adyton.errors import EvidenceError

DEFAULT_AUDIENCE: Final = "atls.internal"
BACKDATED: Final = timedelta(days=1)
"""How far clocks may be apart: certificates begin so long before they are made."""
CA_LIFETIME: Final = timedelta(days=30)

Validity = tuple[datetime, datetime]
"""Not before, not after."""

_OPEN_SEED: Final = b"atls open client CA v1: this key is public; it authenticates nobody"
_OPEN_FROM, _OPEN_UNTIL = datetime(2026, 1, 1, tzinfo=UTC), datetime(2056, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate, the private key of it, and what issued it, where that is ours too."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    issuer: Issued | None = None

    @property
    def spki_sha256(self) -> bytes:
        """What names the key."""
        return spki_sha256(self.key.public_key())

    @property
    def der(self) -> bytes:
        """The certificate as it is hashed and sent."""
        return self.certificate.public_bytes(serialization.Encoding.DER)


def spki(key: ec.EllipticCurvePublicKey) -> bytes:
    """The DER SubjectPublicKeyInfo of a key."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def spki_sha256(key: ec.EllipticCurvePublicKey) -> bytes:
    """What names a key in a binding."""
    return hashlib.sha256(spki(key)).digest()


def parse_certificate(der: bytes) -> tuple[x509.Certificate, ec.EllipticCurvePublicKey]:
    """A peer's certificate and its P-256 key; `EvidenceError` for anything else."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        key = certificate.public_key()
    except Exception as problem:
        raise EvidenceError("the peer's certificate can't be read") from problem
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise EvidenceError("the peer's certificate is not for a P-256 key")
    return certificate, key


def check_issued(certificate: x509.Certificate, *, by: x509.Certificate) -> None:
    """That a CA of leaves has signed the certificate. Raises `EvidenceError`. Dates are not looked at."""
    try:
        certificate.verify_directly_issued_by(by)
        constraints = by.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound) as problem:
        raise EvidenceError("the server's certificate is not one of the CA that it names") from problem
    if not constraints.ca or constraints.path_length != 0:
        raise EvidenceError("what the server names as its CA is none, or may have others below it")


def pem(certificate: x509.Certificate) -> bytes:
    """A certificate as gRPC takes it."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as gRPC takes it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@functools.cache
def open_client_ca() -> Issued:
    """The CA that issues every client's certificate. Its private key is public: it authenticates nobody.

    gRPC can ask a client for a certificate only together with a root that the certificate is under. What TLS then
    proves, that the client holds the key of its leaf, is all that the binding needs.
    """
    scalar = int.from_bytes(hashlib.sha256(_OPEN_SEED).digest(), "big") % 2**255
    key = ec.derive_private_key(scalar, ec.SECP256R1())
    name = _name("ATLS open client CA v1")
    builder = _builder(name, name, key.public_key(), (_OPEN_FROM, _OPEN_UNTIL))
    return Issued(key=key, certificate=_sign_ca(builder, key))


def issue_open_client(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """A client's certificate for one connection, under the open client CA."""
    return sign_leaf(
        open_client_ca(),
        key.public_key(),
        subject="ATLS client",
        names=[x509.DNSName("client.atls.internal")],
        usage=ExtendedKeyUsageOID.CLIENT_AUTH,
        validity=(_OPEN_FROM, _OPEN_UNTIL),
    )


def make_ca(now: datetime, key: ec.EllipticCurvePrivateKey | None = None) -> Issued:
    """An enclave's own CA, for `CA_LIFETIME`, of a new key or of one that it had. It issues leaves only."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = _name(f"ATLS enclave CA {_short(key.public_key())}")
    builder = _builder(name, name, key.public_key(), (now - BACKDATED, now + CA_LIFETIME))
    return Issued(key=key, certificate=_sign_ca(builder, key))


def issue_leaf(
    ca: Issued, key: ec.EllipticCurvePublicKey, names: Collection[str], now: datetime, lifetime: timedelta
) -> x509.Certificate:
    """A certificate of an enclave's CA for its server's key, with DNS names; not beyond the CA's end."""
    return sign_leaf(
        ca,
        key,
        subject=f"ATLS enclave {_short(key)}",
        names=[x509.DNSName(name) for name in names],
        usage=ExtendedKeyUsageOID.SERVER_AUTH,
        validity=validity(ca, now, lifetime),
    )


def validity(ca: Issued, now: datetime, lifetime: timedelta) -> Validity:
    """From before `now`, for clocks that are apart, to its lifetime's end or the CA's."""
    return now - BACKDATED, min(now + lifetime, ca.certificate.not_valid_after_utc)


def sign_leaf(
    ca: Issued,
    key: ec.EllipticCurvePublicKey,
    *,
    subject: str,
    names: Sequence[x509.GeneralName],
    usage: x509.ObjectIdentifier,
    validity: Validity,
    more: Sequence[x509.ExtensionType] = (),
) -> x509.Certificate:
    """A certificate that can't issue others; `more` are extensions that are not critical."""
    builder = (
        _builder(_name(subject), ca.certificate.subject, key, validity)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key()), critical=False)
    )
    for extension in more:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(ca.key, hashes.SHA256())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _short(key: ec.EllipticCurvePublicKey) -> str:
    """Something of its own for a subject: of two pins with one subject gRPC finds only the first."""
    return spki_sha256(key)[:8].hex()


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, validity: Validity
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(validity[0])
        .not_valid_after(validity[1])
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _sign_ca(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
