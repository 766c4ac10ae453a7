"""The chunks of a sealed file: how it is laid out, what its keys do, and a writer and a reader of chunks.

    slot      12288  length (4, big endian) of the file's secret as a `Sealer` sealed it; that; anything
    slot      12288  the same again: one of the two is whole at each moment of a reseal
    level 0          the content, encrypted
    level 1          the tags of level 0's chunks, encrypted
    ...              until a level has one chunk
    trailer   56     size of the content (8, big endian), tag of the last level's chunk (16), identity (32)

A level is cut into chunks of 64 KiB, the last as long as it comes. Each is encrypted by AES-256-GCM-SIV with the file's
own key; the nonce is its level and number, which it is thereby bound to. Its tag is not beside it but in the level
above, so no chunk can be read without what vouches for it: this is a Merkle tree, of 4096 branches. The identity is an
HMAC-SHA256 of size and last tag, with a second key of the file.

STREAM (Hoang and others, 2015) would bind a chunk's number and the end with less. It relies on a key that writes one
file; but a host that copies a running machine has two that write with one key, and could put their chunks together.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass
from typing import BinaryIO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

from adyton.errors import SealedDataError
from adyton.sealing.header import TAG_BYTES

SECRET_BYTES: Final = 64
IDENTITY_BYTES: Final = 32
CHUNK_BYTES: Final = 64 * 1024
"""The cipher is as fast as with a MiB; smaller ones cost more calls, larger ones more for each random read."""
SLOT_BYTES: Final = 12 * 1024
"""Whole pages, so that a torn write of one slot leaves the other alone; the longest sealed secret has 9727 bytes."""
HEAD_BYTES: Final = 2 * SLOT_BYTES

_LENGTH: Final = struct.Struct(">I")
_NONCE: Final = struct.Struct(">IQ")
_SUMMARY: Final = struct.Struct(f">Q{TAG_BYTES}s")
_DOMAIN: Final = b"adyton file v1\0"
TRAILER_BYTES: Final = _SUMMARY.size + IDENTITY_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Trailer:
    """What vouches for a whole file: size of its content in bytes, tag of its last level, and their HMAC."""

    size: int
    tag: bytes
    identity: bytes

    def encode(self) -> bytes:
        """As it stands at the end of the file."""
        return _SUMMARY.pack(self.size, self.tag) + self.identity


class FileKeys:
    """The two keys of one file, from its secret of 64 random bytes."""

    def __init__(self, secret: bytes) -> None:
        """`SealedDataError` for a secret that is none."""
        if len(secret) != SECRET_BYTES:
            raise SealedDataError("what was sealed under a file's context is not the secret of a file")
        self._cipher = AESGCMSIV(secret[:32])
        self._identity_key = secret[32:]

    def encrypt(self, level: int, number: int, chunk: bytes | bytearray) -> tuple[memoryview, bytes]:
        """The chunk, as long as before, and the tag that the level above keeps."""
        sealed = memoryview(self._cipher.encrypt(_NONCE.pack(level, number), chunk, None))
        return sealed[:-TAG_BYTES], bytes(sealed[-TAG_BYTES:])

    def decrypt(self, level: int, number: int, encrypted: bytes, tag: bytes) -> bytes:
        """The reverse. `SealedDataError` if it is not the very chunk that the tag vouches for."""
        try:
            return self._cipher.decrypt(_NONCE.pack(level, number), encrypted + tag, None)
        except InvalidTag:
            raise SealedDataError(f"chunk {number} of the sealed file's level {level} was changed") from None

    def trailer(self, size: int, tag: bytes) -> Trailer:
        """The trailer of a file of that size and last tag."""
        identity = hmac.digest(self._identity_key, _DOMAIN + _SUMMARY.pack(size, tag), "sha256")
        return Trailer(size=size, tag=tag, identity=identity)

    def parse_trailer(self, data: bytes) -> Trailer:
        """The trailer in these bytes. `SealedDataError` for one that these keys did not make."""
        if len(data) == TRAILER_BYTES:
            made = self.trailer(*_SUMMARY.unpack_from(data))
            if hmac.compare_digest(made.encode(), data):
                return made
        raise SealedDataError("the sealed file's end was changed or cut off")


class ChunkWriter:
    """Writes the levels and the trailer of one file, from its content in order.

    In memory are one chunk of content, and the tags of all.
    """

    def __init__(self, file: BinaryIO, keys: FileKeys) -> None:
        """`file` stands behind the head."""
        self._file = file
        self._keys = keys
        self._size = 0
        self._pending = bytearray()
        self._tags = bytearray()

    @property
    def size(self) -> int:
        """Of the content so far, in bytes."""
        return self._size

    def write(self, content: memoryview) -> None:
        """Append these bytes to the content. OSError if the disk does not take them; then it is over."""
        self._size += len(content)
        while content:
            room = CHUNK_BYTES - len(self._pending)
            self._pending += content[:room]
            content = content[room:]
            if len(self._pending) == CHUNK_BYTES:
                self._end_chunk()

    def finish(self) -> Trailer:
        """Write all that is left, the trailer last, which is also the answer. OSError as `write`."""
        if self._pending:
            self._end_chunk()
        tags, level = bytes(self._tags), 0
        while len(tags) > TAG_BYTES:
            level += 1
            chunks = (tags[start : start + CHUNK_BYTES] for start in range(0, len(tags), CHUNK_BYTES))
            tags = b"".join(self._put(level, number, chunk) for number, chunk in enumerate(chunks))
        trailer = self._keys.trailer(self._size, tags or bytes(TAG_BYTES))
        self._file.write(trailer.encode())
        return trailer

    def _end_chunk(self) -> None:
        self._tags += self._put(0, len(self._tags) // TAG_BYTES, self._pending)
        self._pending.clear()

    def _put(self, level: int, number: int, chunk: bytes | bytearray) -> bytes:
        encrypted, tag = self._keys.encrypt(level, number, chunk)
        self._file.write(encrypted)
        return tag


class ChunkReader:
    """Reads and verifies chunks of one file. Of each level it keeps the one that was read last."""

    def __init__(self, file: BinaryIO, keys: FileKeys, trailer: Trailer) -> None:
        self._file = file
        self._keys = keys
        self._root = trailer.tag
        self._sizes = level_sizes(trailer.size)
        self._kept: dict[int, tuple[int, bytes]] = {}

    def chunk(self, number: int) -> bytes:
        """A chunk of the content. `SealedDataError` if it, or what vouches for it, was changed; OSError."""
        return self._verified(0, number)

    def _verified(self, level: int, number: int) -> bytes:
        """A chunk, verified by the one above it, which is verified by the one above that, up to the trailer."""
        kept = self._kept.get(level)
        if kept is not None and kept[0] == number:
            return kept[1]
        tag = self._root
        if level + 1 < len(self._sizes):
            above, start = divmod(number * TAG_BYTES, CHUNK_BYTES)
            tag = self._verified(level + 1, above)[start : start + TAG_BYTES]
        start = number * CHUNK_BYTES
        self._file.seek(HEAD_BYTES + sum(self._sizes[:level]) + start)
        encrypted = self._file.read(min(CHUNK_BYTES, self._sizes[level] - start))
        chunk = self._keys.decrypt(level, number, encrypted, tag)
        self._kept[level] = number, chunk
        return chunk


def level_sizes(size: int) -> tuple[int, ...]:
    """How many bytes each level has, the content first, if that has `size` bytes."""
    sizes = [size]
    while sizes[-1] > CHUNK_BYTES:
        sizes.append(-(-sizes[-1] // CHUNK_BYTES) * TAG_BYTES)
    return tuple(sizes)


def file_length(size: int) -> int:
    """How many bytes the whole file has, if its content has `size`."""
    return HEAD_BYTES + sum(level_sizes(size)) + TRAILER_BYTES


def pack_slot(sealed: bytes) -> bytes:
    """A slot with that sealed secret."""
    return (_LENGTH.pack(len(sealed)) + sealed).ljust(SLOT_BYTES, b"\0")


def parse_slot(slot: bytes) -> bytes:
    """What may be the sealed secret in it: nothing was verified. `SealedDataError` for a slot that is cut short."""
    if len(slot) != SLOT_BYTES:
        raise SealedDataError("the sealed file's head is cut short")
    (length,) = _LENGTH.unpack_from(slot)
    return slot[_LENGTH.size : _LENGTH.size + length]
