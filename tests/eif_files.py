"""Nitro's enclave image files, read as their specification says, and the heads of the kernels that are in them.

Nothing here shares code with the writer: it is what the writer is compared with.
"""

from __future__ import annotations

import binascii
import hashlib
from dataclasses import dataclass

HEADER_BYTES = 548
KERNEL, COMMAND_LINE, RAMDISK, METADATA = 1, 2, 3, 5


def bzimage(content: bytes = b"") -> bytes:
    """The head of an x86 kernel, by its magic number, and this content."""
    return bytes(0x202) + b"HdrS" + content


def arm64_image(content: bytes = b"", *, text_offset: int = 0x200000) -> bytes:
    """The head of an arm64 kernel, by its magic number and its text_offset, and this content."""
    return bytes(8) + text_offset.to_bytes(8, "little") + bytes(0x28) + b"ARM\x64" + content


@dataclass(frozen=True, slots=True, kw_only=True)
class EifFile:
    """What an image file says. `sections` are types with data, in the order of the file."""

    version: int
    flags: int
    sections: list[tuple[int, bytes]]

    def of(self, kind: int) -> list[bytes]:
        return [data for of, data in self.sections if of == kind]

    def pcrs(self) -> dict[int, bytes]:
        """What the hypervisor would measure, section by section, in the order of the file."""
        contents = {0: b"", 1: b"", 2: b""}
        ramdisks = 0
        for kind, data in self.sections:
            if kind == METADATA:
                continue
            contents[0] += data
            contents[1 if ramdisks == 0 else 2] += data
            ramdisks += kind == RAMDISK
            if kind != RAMDISK:
                assert ramdisks == 0, "a measured section after a ramdisk"
        return {
            index: hashlib.sha384(b"\0" * 48 + hashlib.sha384(content).digest()).digest()
            for index, content in contents.items()
        }


def read_eif(data: bytes) -> EifFile:
    """The file in these bytes. AssertionError for what is no image file of version 4 to the last byte."""

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], "big")

    assert data[:4] == b".eif"
    assert number(544, 4) == binascii.crc32(data[548:], binascii.crc32(data[:544])), "the CRC"
    count = number(0x1A, 2)
    assert 2 <= count <= 32
    sections = []
    position = HEADER_BYTES
    for index in range(count):
        assert number(0x1C + 8 * index, 8) == position, "an offset in the header"
        kind, flags, size = number(position, 2), number(position + 2, 2), number(position + 4, 8)
        assert number(0x11C + 8 * index, 8) == size, "a size in the header"
        assert flags == 0
        position += 12
        assert position + size <= len(data), "a section beyond the end"
        sections.append((kind, data[position : position + size]))
        position += size
    assert position == len(data), "bytes after the last section"
    unused = 8 * (32 - count)
    assert data[0x11C - unused : 0x11C] == data[0x21C - unused : 0x21C] == bytes(unused)
    return EifFile(version=number(4, 2), flags=number(6, 2), sections=sections)
