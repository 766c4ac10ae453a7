"""Small real pieces of images: objects, packages and wheels made in memory, and a reader of what the build writes."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import struct
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adyton.host.image.cache import default_cache

IMAGE_CACHE = Path(os.environ.get("ADYTON_IMAGE_CACHE") or default_cache())
"""Where the suite has what images are made of, so that it is fetched once. Looked up before HOME is a test's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CpioEntry:
    mode: int
    inode: int
    links: int
    content: bytes
    other: tuple[int, ...]
    """uid, gid, mtime, and the numbers of devices."""


def read_cpio(data: bytes) -> dict[str, CpioEntry]:
    """The entries in their order, as Linux would read them."""
    entries: dict[str, CpioEntry] = {}
    position = 0
    while True:
        assert data[position : position + 6] == b"070701"
        fields = [int(data[start : start + 8], 16) for start in range(position + 6, position + 110, 8)]
        inode, mode, uid, gid, links, mtime, size, *devices, name_size, _ = fields
        name = data[position + 110 : position + 109 + name_size].decode()
        start = -(-(position + 110 + name_size) // 4) * 4
        position = -(-(start + size) // 4) * 4
        if name == "TRAILER!!!":
            assert not data[position:].strip(b"\0")
            return entries
        assert name not in entries
        entries[name] = CpioEntry(
            mode=mode,
            inode=inode,
            links=links,
            content=data[start : start + size],
            other=(uid, gid, mtime, *devices),
        )


def make_elf(sections: Mapping[str, bytes], *, machine: int = 62) -> bytes:
    """An object of these sections and no segments."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name in (*sections, ".shstrtab"))
    body = {**sections, ".shstrtab": names}
    table, content = [], b""
    for name, data in body.items():
        table.append((names.index(name.encode() + b"\0"), 1, 0, 0, 64 + len(content), len(data), 0, 0, 1, 0))
        content += data
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        3,
        machine,
        1,
        0,
        0,
        64 + len(content),
        0,
        64,
        56,
        0,
        64,
        len(table),
        len(table) - 1,
    )
    return header + content + b"".join(struct.pack("<IIQQQQIIQQ", *each) for each in table)


def make_object(*needed: str, machine: int = 62, interpreter: str = "") -> bytes:
    """An object that is linked with libraries of these names."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in needed)
    dynamic = b"".join(struct.pack("<qQ", 1, strings.index(name.encode() + b"\0")) for name in needed)
    sections = {".dynstr": strings, ".dynamic": dynamic + bytes(16)}
    if interpreter:
        sections[".interp"] = interpreter.encode() + b"\0"
    return make_elf(sections, machine=machine)


def make_deb(
    members: Sequence[tuple[tarfile.TarInfo, bytes]], *, compression: str = "xz", form: int = tarfile.GNU_FORMAT
) -> bytes:
    """A package of these members."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=form) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data) if data else None)
    plain = content.getvalue()
    compressed = {"": plain, ".xz": lzma.compress(plain), ".gz": gzip.compress(plain)}
    suffix = f".{compression}" if compression else ""
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", f"data.tar{suffix}": compressed[suffix]}
    return b"!<arch>\n" + b"".join(_ar_member(name, data) for name, data in parts.items())


def _ar_member(name: str, data: bytes) -> bytes:
    header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode()
    return header + data + b"\n" * (len(data) % 2)


def member(
    name: str, content: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644
) -> tuple[tarfile.TarInfo, bytes]:
    """One member of a package."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname, info.mode = len(content), kind, link, mode
    return info, content


def make_wheel(files: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A wheel of these files; nothing is added."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return target.getvalue()
