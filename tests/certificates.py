"""Certificates for tests: a root, a CA under it, and a leaf, genuine at NOW, and wrong in any way that is asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding

from adyton.testing.forgery import NOW
from adyton.testing.simulated import CERTIFIES, NOT_CA, SIGNS

CA = (x509.BasicConstraints(ca=True, path_length=None), True)
ISSUER = (CA, CERTIFIES)
LEAF = (NOT_CA, SIGNS)
DAY = timedelta(days=1)
MICROSECOND = timedelta(microseconds=1)
SERIAL = 0x5E


@functools.cache
def key(name: str) -> Any:
    """A key for each name, of P-384 unless the name says otherwise."""
    made: dict[str, Callable[[], Any]] = {
        "ed25519": ed25519.Ed25519PrivateKey.generate,
        "x25519": x25519.X25519PrivateKey.generate,
        "rsa1024": lambda: rsa.generate_private_key(65537, 1024),
        "rsa2048": lambda: rsa.generate_private_key(65537, 2048),
        "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    }
    return made.get(name, lambda: ec.generate_private_key(ec.SECP384R1()))()


def name(common_name: str) -> x509.Name:
    """A name as short as it can be."""
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])


def certificate(
    subject: str = "root",
    issuer: str = "root",
    *extensions: tuple[x509.ExtensionType, bool],
    keys: tuple[str, str] | None = None,
    begins: datetime = NOW - DAY,
    ends: datetime = NOW + DAY,
    serial: int = SERIAL,
    pss: bool = False,
) -> x509.Certificate:
    """`keys` are the subject's and the issuer's, by default those of their names."""
    own, signer = keys or (subject, issuer)
    builder = x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer)).serial_number(serial)
    builder = builder.public_key(key(own).public_key()).not_valid_before(begins).not_valid_after(ends)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    digest = None if signer == "ed25519" else hashes.SHA384()
    scheme = padding.PSS(padding.MGF1(hashes.SHA384()), padding.PSS.DIGEST_LENGTH) if pss else None
    return builder.sign(key(signer), digest, rsa_padding=scheme)


@functools.cache
def root() -> x509.Certificate:
    return certificate("root", "root", *ISSUER)


@functools.cache
def ca() -> x509.Certificate:
    return certificate("ca", "root", *ISSUER)


@functools.cache
def leaf() -> x509.Certificate:
    return certificate("leaf", "ca", *LEAF)


def der_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def with_serial(number: int) -> bytes:
    """A certificate with the serial number of one byte, under a signature that is no longer right."""
    return der_of(root()).replace(bytes([2, 1, SERIAL]), bytes([2, 1, number]), 1)
