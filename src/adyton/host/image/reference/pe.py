"""The Authenticode digest of a PE image: what UEFI firmware measures of a program before it starts it.

Source: Windows Authenticode Portable Executable Signature Format 1.0, "Calculating the PE Image Hash", in the way that
edk2 does it (SecurityPkg, MeasureBootPeCoff.c), which is the way that counts: its digest is extended into PCR 4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final, Literal

from adyton.errors import ConfigurationError

Hash = Literal["sha256", "sha384"]

_OPTIONAL_HEADER: Final = 24
"""Where the optional header begins, counted from the PE signature as all offsets of the headers are here."""
_DIRECTORIES: Final = {0x10B: 96, 0x20B: 112}
"""The optional header's magic (PE32, PE32+) → where its data directories begin within it."""
_SECTION_BYTES: Final = 40


def authenticode_sha256(image: bytes, hash: Hash = "sha256") -> bytes:
    """The Authenticode digest of a PE32 or PE32+ image, by another `hash` for the registers that have another.

    Everything counts but the checksum, the entry that says where the signatures are, and the signatures themselves.
    What follows the sections is looked for where they would end if there were no gap before or between them. Sections
    that overlap are refused, so that no image takes longer than twice its size.

    Not checked: the signatures, and whether firmware would load the image. Raises `ConfigurationError` for what is no
    PE image or one that ends before its parts do.
    """
    digest = hashlib.new(hash)
    for begin, end in _hashed(image):
        digest.update(memoryview(image)[begin:end])
    return digest.digest()


def _hashed(image: bytes) -> Iterator[tuple[int, int]]:
    """The ranges that are hashed, in their order."""
    signature = _signature(image)
    optional = signature + _OPTIONAL_HEADER
    headers_end = _number(image, optional + 60, 4)
    checksum = optional + 64
    entry, certificates = _certificates(image, optional)
    if not entry <= headers_end <= len(image):
        raise ConfigurationError("the PE image ends inside its headers")
    yield 0, checksum
    yield checksum + 4, entry
    yield min(entry + 8, headers_end), headers_end
    hashed = headers_end
    for begin, end in _sections(image, signature, headers_end):
        yield begin, end
        hashed += end - begin
    if hashed + certificates > len(image):
        raise ConfigurationError("the PE image ends inside its signatures")
    yield hashed, len(image) - certificates


def _signature(image: bytes) -> int:
    """Where the PE signature is."""
    offset = _number(image, 0x3C, 4)
    if image[:2] != b"MZ" or image[offset : offset + 4] != b"PE\0\0":
        raise ConfigurationError("this is no PE image")
    return offset


def _certificates(image: bytes, optional: int) -> tuple[int, int]:
    """Where the directory's entry for the signatures is, and how many bytes of signatures it announces.

    An image whose directory has no such entry is refused: no Linux kernel is one, and edk2 has a case of its own.
    """
    directories = _DIRECTORIES.get(_number(image, optional, 2))
    if directories is None:
        raise ConfigurationError("the PE image is neither PE32 nor PE32+")
    if _number(image, optional + directories - 4, 4) <= 4:
        raise ConfigurationError("the PE image has no place for signatures")
    entry = optional + directories + 4 * 8
    return entry, _number(image, entry + 4, 4)


def _sections(image: bytes, signature: int, headers_end: int) -> list[tuple[int, int]]:
    """The sections that have bytes in the file, in the file's order."""
    table = signature + _OPTIONAL_HEADER + _number(image, signature + 20, 2)
    headers = [table + index * _SECTION_BYTES for index in range(_number(image, signature + 6, 2))]
    found = sorted((_number(image, header + 20, 4), _number(image, header + 16, 4)) for header in headers)
    ranges = [(begin, begin + size) for begin, size in found if size]
    previous = headers_end
    for begin, end in ranges:
        if begin < previous or end > len(image):
            raise ConfigurationError("the PE image's sections overlap, or it ends inside one")
        previous = end
    return ranges


def _number(image: bytes, offset: int, size: int) -> int:
    if offset + size > len(image):
        raise ConfigurationError("the PE image ends inside its headers")
    return int.from_bytes(image[offset : offset + size], "little")
