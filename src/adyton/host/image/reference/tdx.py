"""What a TDX quote says of a guest that QEMU started with OVMF: MRTD, and the RTMRs that its files determine.

Not compared with hardware. The computation is that of Intel's TDX Module ABI (TDH.MEM.PAGE.ADD, TDH.MR.EXTEND) in the
order of Linux 6.16 and QEMU 10.1, and of edk2's TdTcg2Dxe.c; dstack-mr computes the same, by reading.

RTMR0 is left out: it holds the TD HOB and the ACPI tables, which QEMU makes from its version and all its options.
RTMR3 is the guest's own.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final
from uuid import UUID

from adyton.errors import ConfigurationError
from adyton.host.image.reference.ovmf import (
    CALLING_APPLICATION,
    EXIT_BOOT_SERVICES,
    SEPARATOR,
    guided_table,
    load_options,
)
from adyton.host.image.reference.pe import authenticode_sha256

_METADATA_OFFSET: Final = UUID("e47a6535-984a-4798-865e-4685a7bf8ec2")
_DESCRIPTOR: Final = struct.Struct("<4sIII")
_SECTION: Final = struct.Struct("<IIQQII")
_MAX_SECTIONS: Final = 64
_MAX_PAGES: Final = 16384
"""64 MiB. OVMF has about 500 pages; who wrote the file shall not decide how long this takes."""
_PAGE_BYTES: Final = 4096
_CHUNK_BYTES: Final = 256
_MEASURED: Final = 1
"""The attribute MR.EXTEND: not only where the pages are, but also what is in them."""
_UPDATE: Final = struct.Struct("<16sQ104x")
"""What each call feeds into MRTD: its name, and the guest's physical address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Section:
    """Pages that the guest begins with. `content` is empty where only their addresses are measured."""

    address: int
    size: int
    content: bytes


def mrtd(firmware: bytes) -> bytes:
    """MRTD (48 bytes) of a TD that begins with this OVMF.fd and no other pages.

    It depends on nothing else: memory, CPUs and the kernel come later, attributes and XFAM are in the quote by
    themselves. What can't be known from the file: whether the VMM adds the pages as Linux 6.16 does, each followed by
    its content. Raises `ConfigurationError` for firmware without TDVF metadata, or with such as QEMU would refuse.
    """
    digest = hashlib.sha384()
    for section in _sections(firmware):
        for offset in range(0, section.size, _PAGE_BYTES):
            digest.update(_UPDATE.pack(b"MEM.PAGE.ADD", section.address + offset))
            page = section.content[offset : offset + _PAGE_BYTES]
            for chunk in range(0, len(page), _CHUNK_BYTES):
                digest.update(_UPDATE.pack(b"MR.EXTEND", section.address + offset + chunk))
                digest.update(page[chunk : chunk + _CHUNK_BYTES])
    return digest.digest()


def rtmrs(*, kernel: bytes, initrd: bytes, command_line: str) -> Mapping[int, bytes]:
    """RTMR1 (the kernel's start) and RTMR2 (its command line and initrd) once Linux runs, 48 bytes each.

    `kernel` is what the firmware gets: the file from QEMU 10.2 or later, `ovmf.patched_kernel` of it from QEMU 10.1.
    What can't be known from the files: which of the two it is, and whether the firmware extends a separator into
    RTMR1, as edk2 does since edk2-stable202411. An initrd must not be empty. Raises `ConfigurationError`.
    """
    if not initrd:
        raise ConfigurationError("a guest without an initrd is measured otherwise")
    start = (CALLING_APPLICATION, SEPARATOR, *EXIT_BOOT_SERVICES)
    return MappingProxyType(
        {
            1: _extended(authenticode_sha256(kernel, "sha384"), *map(_sha384, start)),
            2: _extended(_sha384(load_options(command_line)), _sha384(initrd)),
        }
    )


def _sections(firmware: bytes) -> list[_Section]:
    """The sections in the metadata's order, which is the order that they are added in."""
    pointer = guided_table(firmware).get(_METADATA_OFFSET)
    if pointer is None or len(pointer) < 4:
        raise ConfigurationError("this firmware has no TDVF metadata", mend="use a build of OVMF with TDX")
    begin = len(firmware) - int.from_bytes(pointer[-4:], "little")
    if not 0 <= begin <= len(firmware) - _DESCRIPTOR.size:
        raise ConfigurationError("the firmware's TDVF metadata lies outside of it")
    signature, length, version, count = _DESCRIPTOR.unpack_from(firmware, begin)
    if signature != b"TDVF" or version != 1:
        raise ConfigurationError("the firmware's TDVF metadata is not of version 1")
    end = begin + _DESCRIPTOR.size + count * _SECTION.size
    if not 2 <= count <= _MAX_SECTIONS or begin + length != end or end > len(firmware):
        raise ConfigurationError("the firmware's TDVF metadata has a wrong length")
    sections = list(_parsed(firmware, firmware[begin + _DESCRIPTOR.size : end]))
    if sum(section.size for section in sections) > _MAX_PAGES * _PAGE_BYTES:
        raise ConfigurationError(f"the firmware's TDVF metadata has more than {_MAX_PAGES} pages")
    return sections


def _parsed(firmware: bytes, table: bytes) -> Iterator[_Section]:
    for offset, file_size, address, size, _, attributes in _SECTION.iter_unpack(table):
        if address % _PAGE_BYTES or size % _PAGE_BYTES or file_size > size or offset + file_size > len(firmware):
            raise ConfigurationError("a section of the firmware's TDVF metadata is not of whole pages of the file")
        if address + size > 1 << 64:
            raise ConfigurationError("a section of the firmware's TDVF metadata lies beyond all memory")
        if attributes & ~_MEASURED or (attributes and file_size != size):
            raise ConfigurationError("a section of the firmware's TDVF metadata is measured in an unknown way")
        yield _Section(address=address, size=size, content=firmware[offset : offset + size] if attributes else b"")


def _extended(*digests: bytes) -> bytes:
    """A register after these digests."""
    value = bytes(48)
    for digest in digests:
        value = _sha384(value + digest)
    return value


def _sha384(data: bytes) -> bytes:
    return hashlib.sha384(data).digest()
