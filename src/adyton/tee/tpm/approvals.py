"""A signer's approvals: that a machine with certain PCR values runs a version of a product. Bytes ↔ dataclass; no I/O.

A release's PCRs hold its code, so its approvals can't be in it: they lie beside it, and whoever brings them is not
trusted. They are signed as a whole, so none can be left out, and whoever takes them compares the signer with one that
was measured. Version 1 of the format, big endian:

    "ADTA" 01 | signer's x and y (64) | product's length (1), product | version (2) | PCRs, a bit each (3)
    | SHA-256 of the PCRs' values in order (32) | r and s (64) for each version 1 … | r and s (64) over all before

The signature of number N is TPM2_PolicyAuthorize's: over the digest of the PCRs' policy and a reference that names the
product and N. It says: what was sealed for version N or later of the product, at a machine with these PCRs, is open.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from adyton.errors import ConfigurationError, EvidenceError
from adyton.tee._binary import Reader
from adyton.tee._tpm_commands import SHA256_BYTES
from adyton.tee._tpm_policies import (
    COORDINATE_BYTES,
    Approval,
    Policy,
    check_sealing_pcrs,
    decode_point,
    digest_of,
    encode_point,
    encode_signer,
    pcr_policy,
)
from adyton.tee.sealing import Binding, SealPolicy

MAX_APPROVED_VERSION: Final = 1024
MAX_PRODUCT_BYTES: Final = 64
SIGNATURE_BYTES: Final = 2 * COORDINATE_BYTES
MAX_BYTES: Final = 256 + SIGNATURE_BYTES * (MAX_APPROVED_VERSION + 1)

_MAGIC: Final = b"ADTA\x01"
_PCR_BYTES: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Approvals:
    """That PCRs of that digest are `version` of `product`; `signatures` has one for each version from 1 to it.

    `point` is the signer's key: x and y, 64 bytes. `seal` is its signature over all the rest.
    """

    point: bytes
    product: bytes
    version: int
    pcrs: tuple[int, ...]
    pcr_digest: bytes
    signatures: tuple[bytes, ...]
    seal: bytes

    @property
    def signer(self) -> bytes:
        """SHA-256 of the signer's DER SubjectPublicKeyInfo."""
        return signer_of(decode_point(self.point))

    @property
    def binding(self) -> Binding:
        """Whom a release with these approvals seals for."""
        return Binding(policy=SealPolicy.SIGNER, subject=self.signer, product=self.product, version=self.version)

    def policy(self, version: int, *, label: bytes = b"") -> Policy:
        """What lets in that version of the product and later ones; 1 to `version`."""
        approval = Approval(
            signer=encode_signer(self.point),
            reference=_reference(self.product, version),
            signature=self.signatures[version - 1],
        )
        return Policy(pcrs=self.pcrs, pcr_digest=self.pcr_digest, approval=approval, label=label)


def signer_of(key: ec.EllipticCurvePublicKey) -> bytes:
    """SHA-256 of the key's DER SubjectPublicKeyInfo: what a binding calls a signer."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def make_approvals(
    key: ec.EllipticCurvePrivateKey, *, product: bytes, version: int, pcrs: Mapping[int, bytes]
) -> Approvals:
    """Approve the PCR values (SHA-256 bank) of a release. Sign no two versions for the same values.

    `ValueError` unless the key is of P-256, the product has up to 64 bytes, the version is 1 to 1024, and the PCRs are
    0 and others up to 15, of 32 bytes. Nor may PCR 0 be zero: any system may run where nothing was measured.
    """
    if key.curve.name != ec.SECP256R1.name:
        raise ValueError(f"a TPM's signer has a key of P-256, not of {key.curve.name}")
    if len(product) > MAX_PRODUCT_BYTES or not 1 <= version <= MAX_APPROVED_VERSION:
        raise ValueError(f"a product has up to {MAX_PRODUCT_BYTES} bytes, a version is 1 to {MAX_APPROVED_VERSION}")
    if any(len(value) != SHA256_BYTES for value in pcrs.values()):
        raise ValueError(f"a PCR of the SHA-256 bank has {SHA256_BYTES} bytes")
    selected, digest = check_sealing_pcrs(pcrs), digest_of(pcrs)
    if pcrs[0] == bytes(SHA256_BYTES):
        raise ValueError("PCR 0 is zero: nothing was measured")
    approved, versions = pcr_policy(selected, digest), range(1, version + 1)
    unsealed = Approvals(
        point=encode_point(key.public_key()),
        product=product,
        version=version,
        pcrs=selected,
        pcr_digest=digest,
        signatures=tuple(_sign(key, approved + _reference(product, number)) for number in versions),
        seal=b"",
    )
    return parse_approvals(_body(unsealed) + _sign(key, _body(unsealed)))


def encode_approvals(approvals: Approvals) -> bytes:
    """One document, 67 kB at most."""
    return _body(approvals) + approvals.seal


def parse_approvals(data: bytes) -> Approvals:
    """What `encode_approvals` gives; anything else, and what its signer did not sign, is a `ConfigurationError`."""
    if len(data) > MAX_BYTES:
        raise ConfigurationError(f"the approvals have {len(data)} bytes; {MAX_BYTES} are allowed")
    try:
        approvals = _parse(Reader(data, "the document of approvals", order="big"))
        key, r_and_s = decode_point(approvals.point), approvals.seal
        halves = (int.from_bytes(half, "big") for half in (r_and_s[:COORDINATE_BYTES], r_and_s[COORDINATE_BYTES:]))
        key.verify(encode_dss_signature(*halves), data[:-SIGNATURE_BYTES], ec.ECDSA(hashes.SHA256()))
    except (EvidenceError, ValueError) as error:
        raise ConfigurationError(f"these are no approvals: {error}") from error
    except InvalidSignature:
        raise ConfigurationError("the approvals are not signed by their signer") from None
    return approvals


def _parse(reader: Reader) -> Approvals:
    if reader.take(len(_MAGIC), "magic") != _MAGIC:
        raise EvidenceError(f"the document of approvals does not begin with {_MAGIC.hex()}")
    point = reader.take(2 * COORDINATE_BYTES, "signer")
    product = reader.prefixed(1, "product", at_most=MAX_PRODUCT_BYTES)
    version = reader.number(2, "version")
    if not 1 <= version <= MAX_APPROVED_VERSION:
        raise EvidenceError(f"approvals are for versions of 1 to {MAX_APPROVED_VERSION}, not {version}")
    bits = int.from_bytes(reader.take(_PCR_BYTES, "PCRs"), "little")
    approvals = Approvals(
        point=point,
        product=product,
        version=version,
        pcrs=check_sealing_pcrs([index for index in range(8 * _PCR_BYTES) if bits >> index & 1]),
        pcr_digest=reader.take(SHA256_BYTES, "digest of PCRs"),
        signatures=tuple(reader.take(SIGNATURE_BYTES, "signature") for _ in range(version)),
        seal=reader.take(SIGNATURE_BYTES, "last signature"),
    )
    reader.end()
    return approvals


def _body(approvals: Approvals) -> bytes:
    bits = sum(1 << index for index in approvals.pcrs).to_bytes(_PCR_BYTES, "little")
    head = _MAGIC + approvals.point + bytes([len(approvals.product)]) + approvals.product
    numbers = struct.pack(">H", approvals.version) + bits + approvals.pcr_digest
    return head + numbers + b"".join(approvals.signatures)


def _reference(product: bytes, version: int) -> bytes:
    """What TPM2_PolicyAuthorize calls policyRef."""
    head = b"adyton-tpm-approval/1\0" + bytes([len(product)]) + product
    return hashlib.sha256(head + struct.pack(">I", version)).digest()


def _sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    halves = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return b"".join(half.to_bytes(COORDINATE_BYTES, "big") for half in halves)
