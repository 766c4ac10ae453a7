"""The maker of this machine's virtual TPMs: a root of its own, and a certificate for each attestation key.

A real TPM's maker vouches that a key can't leave the TPM. Here TPM, maker and host are one, so the root vouches for
nothing but that: who trusts it trusts this host.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from adyton.errors import EvidenceError
from adyton.tee._x509 import load_public_key
from adyton.tee.simulated.certificates import key_usage
from adyton.tee.simulated.platform import Clock, utc_now
from adyton.tee.simulated.root_file import SimulatedRoot, data_directory, keep_root, new_root_pem

ROOT_COMMON_NAME: Final = "Adyton virtual TPM root: trusts this host"
LEAF_COMMON_NAME: Final = "Adyton virtual TPM attestation key"
ROOT_LIFETIME: Final = timedelta(days=3652)
ROOT_BACKDATED: Final = timedelta(days=1)
LEAF_BACKDATED: Final = timedelta(minutes=5)
"""As far as evidence may be from the verifier's future."""
AIK_CERTIFICATE: Final = x509.ObjectIdentifier("2.23.133.8.3")
"""tcg-kp-AIKCertificate."""

_WHAT: Final = "the virtual TPM's root"
_SIGNS: Final = key_usage(certify=False)
_CERTIFIES: Final = key_usage(certify=True)


class VtpmAuthority:
    """Certifies attestation keys under one root. Safe in threads."""

    def __init__(self, root: SimulatedRoot, *, clock: Clock = utc_now) -> None:
        self._root = root
        self._clock = clock

    @classmethod
    def open(cls, directory: Path | None = None, *, clock: Clock = utc_now) -> Self:
        """This machine's; its root is made on first use, in `$XDG_DATA_HOME/adyton/vtpm` if no directory is given.

        A root that can't be kept, that others can read, or that does not parse: `LaunchError`, with how to mend it.
        """
        directory = directory or data_directory("vtpm", _WHAT)
        return cls(keep_root(directory, clock(), what=_WHAT, new_pem=_new_root_pem), clock=clock)

    @property
    def root(self) -> x509.Certificate:
        """What a client must be given to believe this machine's virtual TPMs."""
        return self._root.certificate

    def certify(self, spki: bytes) -> tuple[bytes, bytes]:
        """The certificate of an attestation key (DER SubjectPublicKeyInfo, P-256), and the root's, both DER.

        Valid as long as the root: it is handed over once, when the machine starts, and an enclave may run for years. A
        shorter life would protect from nothing, for who can take the key from this host can take the root's. Bytes that
        are no such key: `EvidenceError`.
        """
        key = load_public_key(spki, "the attestation key")
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise EvidenceError(f"the attestation key is a {type(key).__name__}, not one of an elliptic curve")
        leaf = _make_leaf(key, self._root, self._clock())
        return leaf.public_bytes(Encoding.DER), self.root.public_bytes(Encoding.DER)


def _new_root_pem(now: datetime) -> bytes:
    return new_root_pem(_make_root, now)


def _make_root(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    name = _name(ROOT_COMMON_NAME)
    builder = _builder(name, name, key.public_key())
    builder = builder.not_valid_before(now - ROOT_BACKDATED).not_valid_after(now + ROOT_LIFETIME)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return builder.add_extension(_CERTIFIES, critical=True).sign(key, hashes.SHA256())


def _make_leaf(key: ec.EllipticCurvePublicKey, root: SimulatedRoot, now: datetime) -> x509.Certificate:
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(root.key.public_key())
    builder = _builder(_name(LEAF_COMMON_NAME), root.certificate.subject, key)
    end = root.certificate.not_valid_after_utc
    builder = builder.not_valid_before(now - LEAF_BACKDATED).not_valid_after(end)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_SIGNS, critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([AIK_CERTIFICATE]), critical=False)
    return builder.add_extension(authority, critical=False).sign(root.key, hashes.SHA256())


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
