"""Policies of a TPM 2.0, as the digests that its keys and NV indices carry (Library, part 3, section 23). No I/O."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from adyton.tee._tpm_commands import SHA256, encode_selection, sized
from adyton.tee._tpm_quote import check_pcrs

COORDINATE_BYTES: Final = 32
"""Of a point of P-256, and of a half of an ECDSA signature by a key there."""
STATIC_PCRS: Final = range(16)
"""Those that nothing but a reset of the machine sets back; the rest, a program may."""

_SIGNER: Final = bytes.fromhex(
    "0023000b"  # ECC, named by SHA-256
    "00040000"  # sign
    "0000"  # no policy
    "0010"  # no symmetric algorithm
    "0018000b"  # ECDSA with SHA-256
    "00030010"  # P-256, no KDF
)
_START: Final = bytes(32)
_POLICY_AUTHORIZE: Final = 0x16A
_POLICY_OR: Final = 0x171
_POLICY_PCR: Final = 0x17F


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """A signer's word for PCRs: `signature` (r and s, 64 bytes) over their policy's digest and `reference` (32 bytes).

    `signer` is the TPMT_PUBLIC of the key, as `encode_signer` makes it.
    """

    signer: bytes
    reference: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Whom a TPM lets in: a machine with those PCR values, or with an `approval` any that its signer approves.

    `pcr_digest` is the SHA-256 of the values in order, as they have to be now. A `label` makes it another policy, for
    the same ones.
    """

    pcrs: tuple[int, ...]
    pcr_digest: bytes
    approval: Approval | None = None
    label: bytes = b""

    @property
    def branches(self) -> tuple[bytes, bytes]:
        """The digest without the label, and another that stands for the label and that nobody can satisfy."""
        if self.approval is None:
            unlabelled = pcr_policy(self.pcrs, self.pcr_digest)
        else:
            unlabelled = authorized_policy(self.approval.signer, self.approval.reference)
        return unlabelled, hashlib.sha256(b"adyton-tpm-label/1\0" + self.label).digest()

    @property
    def digest(self) -> bytes:
        """What the key or the index carries. With an approval it depends on the signer and the reference alone."""
        if not self.label:
            return self.branches[0]
        return _extended(_START, _POLICY_OR, b"".join(self.branches))


def check_sealing_pcrs(pcrs: Collection[int]) -> tuple[int, ...]:
    """In order, each once; `ValueError` unless they are of 0 to 15 and 0 is one: who measures the others is in it."""
    checked = check_pcrs(pcrs)
    if checked[0] != 0 or checked[-1] not in STATIC_PCRS:
        raise ValueError(f"what is sealed to is PCR 0, and others of 1 to {STATIC_PCRS[-1]}, not {list(checked)}")
    return checked


def digest_of(values: Mapping[int, bytes]) -> bytes:
    """Of PCR values, in the order of the PCRs."""
    return hashlib.sha256(b"".join(values[index] for index in sorted(values))).digest()


def pcr_policy(pcrs: Collection[int], pcr_digest: bytes) -> bytes:
    """TPM2_PolicyPCR alone: a SHA-256 over 32 zeros, the command, the selection, and the digest of the values."""
    return _extended(_START, _POLICY_PCR, encode_selection(pcrs) + pcr_digest)


def authorized_policy(signer: bytes, reference: bytes) -> bytes:
    """TPM2_PolicyAuthorize alone."""
    return hashlib.sha256(_extended(_START, _POLICY_AUTHORIZE, name_of(signer)) + reference).digest()


def encode_signer(point: bytes) -> bytes:
    """The TPMT_PUBLIC of a key that verifies approvals, from x and y (64 bytes)."""
    return _SIGNER + sized(point[:COORDINATE_BYTES]) + sized(point[COORDINATE_BYTES:])


def name_of(public: bytes) -> bytes:
    """What a TPM calls something with that public area."""
    return struct.pack(">H", SHA256) + hashlib.sha256(public).digest()


def encode_point(key: ec.EllipticCurvePublicKey) -> bytes:
    """X and y (64 bytes) of a key of P-256."""
    numbers = key.public_numbers()
    return numbers.x.to_bytes(COORDINATE_BYTES, "big") + numbers.y.to_bytes(COORDINATE_BYTES, "big")


def decode_point(point: bytes) -> ec.EllipticCurvePublicKey:
    """The key of P-256; `ValueError` if that is no point of it."""
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + point)


def _extended(digest: bytes, code: int, arguments: bytes) -> bytes:
    return hashlib.sha256(digest + struct.pack(">I", code) + arguments).digest()
