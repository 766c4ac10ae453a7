"""What a build asks of an ELF object: its machine, the libraries that it needs, a kernel module's own description.

Source: the System V ABI's chapter on object files. 64 bits, little-endian: both architectures are.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from adyton.errors import ConfigurationError

MAGIC = b"\x7fELF"

_SIXTY_FOUR_LITTLE = b"\x02\x01"
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_DYNAMIC = struct.Struct("<qQ")
_DT_NEEDED = 1
_NO_BITS = 8
_READ = (".dynamic", ".dynstr", ".interp", ".modinfo")
_MOST_TEXT_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Elf:
    """An object: e_machine, and those of its sections that are asked for here, by name."""

    machine: int
    sections: Mapping[str, bytes]

    def needed(self) -> tuple[str, ...]:
        """The names of the libraries that it is linked with (DT_NEEDED)."""
        strings = self.sections.get(".dynstr", b"")
        dynamic = self.sections.get(".dynamic", b"")
        whole = len(dynamic) - len(dynamic) % _DYNAMIC.size
        pairs = _DYNAMIC.iter_unpack(dynamic[:whole])
        return tuple(_text(strings, value) for tag, value in pairs if tag == _DT_NEEDED)

    def interpreter(self) -> str | None:
        """The path of the dynamic loader that starts it, without the leading slash; None if it is not a program."""
        return _text(self.sections[".interp"], 0).lstrip("/") if ".interp" in self.sections else None

    def module_facts(self) -> dict[str, str]:
        """A kernel module's .modinfo: key → value, the last one where there are several."""
        lines = self.sections.get(".modinfo", b"").decode("utf-8", "replace").split("\0")
        return dict(line.split("=", 1) for line in lines if "=" in line)


def parse_elf(data: bytes, origin: str) -> Elf:
    """Read an object. Raises ConfigurationError, which names `origin`, for what is none of 64 bits, little-endian."""
    if not data.startswith(MAGIC + _SIXTY_FOUR_LITTLE):
        raise ConfigurationError(f"{origin} is no ELF object of 64 bits")
    try:
        header = _HEADER.unpack_from(data)
        machine, start, size, count, names_index = header[2], header[6], *header[11:14]
        if size != _SECTION.size:
            raise ConfigurationError(f"{origin} is an ELF object with sections of an unknown form")
        table = [_SECTION.unpack_from(data, start + number * size) for number in range(count)]
        names = _content(data, table[names_index]) if table else b""
    except (struct.error, IndexError, OverflowError) as problem:
        raise ConfigurationError(f"{origin} is a damaged ELF object") from problem
    named = ((_text(names, each[0]), each) for each in table)
    return Elf(machine=machine, sections={name: _content(data, each) for name, each in named if name in _READ})


def trim_elf(data: bytes, origin: str) -> bytes:
    """An object that is loaded, without what follows its segments: symbols for debuggers, and the sections' table.

    The loader reads neither. Unlike strip's, the result depends on no other program. Raises ConfigurationError.
    """
    try:
        header = list(_HEADER.unpack_from(data))
        start, size, count = header[5], *header[9:11]
        segments = [_SEGMENT.unpack_from(data, start + number * size) for number in range(count)]
        end = max(_HEADER.size, *(each[2] + each[5] for each in segments))
    except (struct.error, TypeError, OverflowError) as problem:
        raise ConfigurationError(f"{origin} is a damaged ELF object, or none to load") from problem
    header[6] = header[12] = header[13] = 0  # e_shoff, e_shnum, e_shstrndx
    return _HEADER.pack(*header) + data[_HEADER.size : end]


def _content(data: bytes, section: tuple[int, ...]) -> bytes:
    return b"" if section[1] == _NO_BITS else data[section[4] : section[4] + section[5]]


def _text(strings: bytes, start: int) -> str:
    return strings[start : start + _MOST_TEXT_BYTES].partition(b"\0")[0].decode("utf-8", "replace")
