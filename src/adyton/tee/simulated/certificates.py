"""The two certificates that the simulation's platform makes: its root, and the leaf of one enclave's hardware."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

ROOT_COMMON_NAME: Final = "Adyton simulation root: protects nothing"
LEAF_DNS_NAME: Final = "simulated.adyton.internal"
ROOT_LIFETIME: Final = timedelta(days=3652)
ROOT_BACKDATED: Final = timedelta(days=1)
LEAF_LIFETIME: Final = timedelta(hours=24)
LEAF_BACKDATED: Final = timedelta(minutes=5)
"""As far as evidence may be from the verifier's future, so a leaf is valid wherever its evidence is."""


def make_root(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    """A self-signed CA certificate that may issue leaves only, for ten years from `now`."""
    name = _name(ROOT_COMMON_NAME)
    builder = _builder(name, name, key.public_key()).not_valid_before(now - ROOT_BACKDATED)
    builder = builder.not_valid_after(now + ROOT_LIFETIME)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(key_usage(certify=True), critical=True)
    return builder.sign(key, hashes.SHA256())


def make_leaf(
    key: ec.EllipticCurvePublicKey, root_key: ec.EllipticCurvePrivateKey, root: x509.Certificate, now: datetime
) -> x509.Certificate:
    """A certificate for `key`, which may sign and not certify, for 24 hours from `now`."""
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())
    names = x509.SubjectAlternativeName([x509.DNSName(LEAF_DNS_NAME)])
    builder = _builder(_name(LEAF_DNS_NAME), root.subject, key).not_valid_before(now - LEAF_BACKDATED)
    builder = builder.not_valid_after(now + LEAF_LIFETIME)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(key_usage(certify=False), critical=True)
    builder = builder.add_extension(authority, critical=False).add_extension(names, critical=False)
    return builder.sign(root_key, hashes.SHA256())


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])


def key_usage(*, certify: bool) -> x509.KeyUsage:
    """Certify (keyCertSign and cRLSign) or sign (digitalSignature), never both."""
    return x509.KeyUsage(
        digital_signature=not certify,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certify,
        crl_sign=certify,
        encipher_only=False,
        decipher_only=False,
    )
