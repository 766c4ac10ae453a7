"""Sealed data, version 1: bytes ↔ `Header`, the same for every TEE. Total, bounded, no I/O; nothing is trusted yet.

Big endian, no padding:

    magic        8    "ADYTSEAL"
    length       4    of the header, from the magic to the context
    version      1    1
    algorithm    1    1: AES-256-GCM-SIV (RFC 8452)
    policy       1    adyton.tee.sealing.SealPolicy
    least        4    the binding's version
    source     1 + n  name of the key's source, ASCII, n in 1..32
    subject    1 + n  the binding's, n in 1..64
    product    1 + n  the binding's, n in 0..64
    tcb        1 + n  security version that the key was made at, ASCII, n in 0..200
    request    2 + n  asks the source for the key again, n in 1..8192
    salt        32
    context    2 + n  what the data is for, in its owner's words, n in 0..1024; not secret

Behind the header: a nonce of 12 bytes, then the ciphertext and its tag of 16. The whole header goes into the cipher's
key, so that no bit of it can be another: key = HKDF-SHA256(source's key, salt, KEY_DOMAIN || header).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from adyton.errors import EvidenceError, SealedDataError
from adyton.tee._binary import Reader
from adyton.tee.sealing import KEY_BYTES, MAX_REQUEST_BYTES, MAX_SUBJECT_BYTES, Binding, SealPolicy

MAGIC: Final = b"ADYTSEAL"
VERSION: Final = 1
AES_256_GCM_SIV: Final = 1
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
SALT_BYTES: Final = 32
MAX_CONTEXT_BYTES: Final = 1024
MAX_SOURCE_BYTES: Final = 32
MAX_TCB_BYTES: Final = 200
KEY_DOMAIN: Final = b"adyton sealed data v1\0"

_FIXED: Final = struct.Struct(">8sI")
_MAX_HEADER_BYTES: Final = 16 * 1024
_WHAT: Final = "the sealed data's header"


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What stands before sealed data, for whoever reads it; see this module for the bounds."""

    source: str
    binding: Binding
    request: bytes
    tcb: str
    salt: bytes
    context: bytes

    def encode(self) -> bytes:
        """The bytes. `ValueError` for what is out of bounds."""
        binding = self.binding
        body = b"".join(
            (
                struct.pack(">BBBI", VERSION, AES_256_GCM_SIV, binding.policy, binding.version),
                _sized(self.source.encode("ascii"), 1, MAX_SOURCE_BYTES),
                _sized(binding.subject, 1, MAX_SUBJECT_BYTES),
                _sized(binding.product, 1, MAX_SUBJECT_BYTES),
                _sized(self.tcb.encode("ascii"), 1, MAX_TCB_BYTES),
                _sized(self.request, 2, MAX_REQUEST_BYTES),
                self.salt,
                _sized(self.context, 2, MAX_CONTEXT_BYTES),
            )
        )
        return _FIXED.pack(MAGIC, _FIXED.size + len(body)) + body

    def cipher(self, key: bytes) -> AESGCMSIV:
        """The cipher of data under exactly this header, from its source's key."""
        info = KEY_DOMAIN + self.encode()
        return AESGCMSIV(HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=self.salt, info=info).derive(key))


def split_header(sealed: bytes) -> tuple[bytes, int]:
    """The header's bytes, not parsed, and where the nonce begins. `SealedDataError` if it is not sealed data."""
    if len(sealed) < _FIXED.size:
        raise SealedDataError(f"sealed data has more than {len(sealed)} bytes")
    magic, length = _FIXED.unpack_from(sealed)
    if magic != MAGIC:
        raise SealedDataError("this is not sealed data: it begins otherwise")
    if not _FIXED.size < length <= _MAX_HEADER_BYTES or len(sealed) < length + NONCE_BYTES + TAG_BYTES:
        raise SealedDataError("the sealed data is cut short")
    return sealed[:length], length


def parse_header(data: bytes) -> Header:
    """The header in exactly these bytes. `SealedDataError` for anything else."""
    try:
        return _parse(data)
    except (EvidenceError, ValueError) as problem:
        raise SealedDataError(f"the sealed data's header does not parse: {problem}") from problem


def _parse(data: bytes) -> Header:
    reader = Reader(data, _WHAT, order="big")
    magic, length = reader.take(len(MAGIC), "magic"), reader.number(4, "length")
    version, algorithm = reader.number(1, "version"), reader.number(1, "algorithm")
    if (magic, length, version, algorithm) != (MAGIC, len(data), VERSION, AES_256_GCM_SIV):
        raise SealedDataError(f"sealed data of version {version}, algorithm {algorithm}: this code knows {VERSION}, 1")
    policy, least = SealPolicy(reader.number(1, "policy")), reader.number(4, "least version")
    source = reader.prefixed(1, "source", at_most=MAX_SOURCE_BYTES).decode("ascii")
    subject = reader.prefixed(1, "subject", at_most=MAX_SUBJECT_BYTES)
    product = reader.prefixed(1, "product", at_most=MAX_SUBJECT_BYTES)
    tcb = reader.prefixed(1, "tcb", at_most=MAX_TCB_BYTES).decode("ascii")
    request = reader.prefixed(2, "request", at_most=MAX_REQUEST_BYTES)
    salt = reader.take(SALT_BYTES, "salt")
    context = reader.prefixed(2, "context", at_most=MAX_CONTEXT_BYTES)
    reader.end()
    if not (source and subject and request and source.isprintable() and tcb.isprintable()):
        raise SealedDataError("the sealed data's header lacks its source, subject or request")
    binding = Binding(policy=policy, subject=subject, product=product, version=least)
    return Header(source=source, binding=binding, request=request, tcb=tcb, salt=salt, context=context)


def _sized(content: bytes, width: int, at_most: int) -> bytes:
    if len(content) > at_most:
        raise ValueError(f"{len(content)} bytes in a header; {at_most} are allowed")
    return len(content).to_bytes(width, "big") + content
