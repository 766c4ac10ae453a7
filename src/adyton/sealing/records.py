"""The records of a store, their keys, and the root that vouches for all of them at once. No I/O.

From the store's own random key come four others. A record's name becomes a keyed hash, its value an AES-256-GCM-SIV
ciphertext that names itself. The root is a sum over all records' hashes and tags (a multiset hash: Clarke et al., 2003,
MSet-Add-Hash, secret-keyed), so that a transaction changes it in proportion to what it changes; it names the root
before it by digest.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from dataclasses import dataclass
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from adyton.errors import SealedDataError
from adyton.sealing.header import NONCE_BYTES, TAG_BYTES

STORE_KEY_BYTES: Final = 32
DIGEST_BYTES: Final = 32
MAX_NAME_BYTES: Final = 1024
MAX_VALUE_BYTES: Final = 16 * 1024 * 1024

_DOMAIN: Final = b"adyton store v1 "
_ROOT: Final = struct.Struct(">QQ32s32s")
MODULUS: Final = 1 << 256
"""Sums of weights are taken modulo this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """What is true of a whole store after a transaction: its number, and count and sum of the records.

    `previous` is the digest of the root before, zeros at the first.
    """

    generation: int
    count: int
    total: int
    previous: bytes

    @classmethod
    def first(cls) -> Self:
        """Of an empty store."""
        return cls(generation=0, count=0, total=0, previous=bytes(DIGEST_BYTES))

    def after(self, digest: bytes | None, *, count: int, total: int) -> Root:
        """The next root: `digest` is this one's, `total` the sum of what `Records.weight` says of each record."""
        return Root(
            generation=self.generation + 1,
            count=count,
            total=total % MODULUS,
            previous=digest or bytes(DIGEST_BYTES),
        )


class Records:
    """The four keys of one store, and what is done with them."""

    def __init__(self, store_key: bytes) -> None:
        self._name_key = _derive(store_key, b"names")
        self._sum_key = _derive(store_key, b"sum")
        self._values = AESGCMSIV(_derive(store_key, b"values"))
        self._roots = AESGCMSIV(_derive(store_key, b"roots"))

    def hash_name(self, name: str) -> bytes:
        """What stands in the file for a name (1 to 1024 bytes of UTF-8, else ValueError); 32 bytes."""
        encoded = name.encode()
        if not 0 < len(encoded) <= MAX_NAME_BYTES:
            raise ValueError(f"a name has 1 to {MAX_NAME_BYTES} bytes, not {len(encoded)}")
        return hmac.digest(self._name_key, encoded, "sha256")

    def encrypt(self, hashed: bytes, name: str, value: bytes) -> bytes:
        """The record of a name and its value (up to 16 MiB, else ValueError)."""
        if len(value) > MAX_VALUE_BYTES:
            raise ValueError(f"a value has {MAX_VALUE_BYTES} bytes at most, not {len(value)}")
        nonce, encoded = os.urandom(NONCE_BYTES), name.encode()
        content = struct.pack(">H", len(encoded)) + encoded + value
        return nonce + self._values.encrypt(nonce, content, hashed)

    def decrypt(self, hashed: bytes, record: bytes) -> tuple[str, bytes]:
        """Name and value. `SealedDataError` for what `encrypt` did not make for that hash."""
        try:
            content = self._values.decrypt(record[:NONCE_BYTES], record[NONCE_BYTES:], hashed)
        except (InvalidTag, ValueError):
            raise SealedDataError("a record of the store was changed") from None
        (length,) = struct.unpack_from(">H", content)
        return content[2 : 2 + length].decode(), content[2 + length :]

    def weight(self, hashed: bytes, tag: bytes) -> int:
        """What a record adds to the sum."""
        return int.from_bytes(hmac.digest(self._sum_key, hashed + tag, "sha256"))

    def encrypt_root(self, root: Root) -> bytes:
        """The root as it stands in the file."""
        nonce = os.urandom(NONCE_BYTES)
        fields = _ROOT.pack(root.generation, root.count, root.total.to_bytes(DIGEST_BYTES), root.previous)
        return nonce + self._roots.encrypt(nonce, fields, None)

    def decrypt_root(self, data: bytes) -> Root:
        """The reverse. `SealedDataError` for what `encrypt_root` did not make."""
        try:
            fields = self._roots.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], None)
        except (InvalidTag, ValueError):
            raise SealedDataError("the store's root was changed") from None
        generation, count, total, previous = _ROOT.unpack(fields)
        return Root(generation=generation, count=count, total=int.from_bytes(total), previous=previous)


def tag_of(record: bytes) -> bytes:
    """What tells one record of a name from all others: its cipher's tag."""
    return record[-TAG_BYTES:]


def root_digest(sealed_key: bytes, root: bytes) -> bytes:
    """What names a store's state: the digest of its sealed key and its encrypted root."""
    return hashlib.sha256(_DOMAIN + struct.pack(">I", len(sealed_key)) + sealed_key + root).digest()


def _derive(key: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=STORE_KEY_BYTES, salt=None, info=_DOMAIN + info).derive(key)
