"""Debian's packages: an ar archive that holds a tar archive (deb(5)). Read in memory; nothing is unpacked anywhere."""

from __future__ import annotations

import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator

from adyton.errors import ConfigurationError
from adyton.host.image.tree import File, Link, check_path

MAX_BYTES = 512 * 1024 * 1024
"""What a package may unpack to, of what is wanted of it."""

_MAGIC = b"!<arch>\n"
_HEADER_BYTES = 60


def read_deb(data: bytes, origin: str, wanted: Callable[[str], bool] = lambda _: True) -> dict[str, File | Link]:
    """The files and links of a package whose paths are `wanted`. `origin` is its name, for the errors.

    Raises ConfigurationError for a path that leaves the root, and for what no package of an image has: hard links,
    devices, a format of another day.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(_content(data, origin))) as archive:
            return dict(_entries(archive, origin, wanted))
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError, ValueError) as problem:
        raise ConfigurationError(f"{origin} can't be read: {type(problem).__name__}") from problem


def _content(data: bytes, origin: str) -> bytes:
    """The member data.tar, whatever it is compressed with."""
    if not data.startswith(_MAGIC):
        raise ConfigurationError(f"{origin} is no Debian package")
    position = len(_MAGIC)
    while len(header := data[position : position + _HEADER_BYTES]) == _HEADER_BYTES:
        name, digits = header[:16].rstrip(b" /"), header[48:58].rstrip(b" ")
        if not digits.isdigit():
            raise ConfigurationError(f"{origin} has a member of no size")
        size = int(digits)
        position += _HEADER_BYTES
        if name.startswith(b"data.tar") and position + size <= len(data):
            return data[position : position + size]
        position += size + size % 2
    raise ConfigurationError(f"{origin} is a Debian package without its content")


def _entries(archive: tarfile.TarFile, origin: str, wanted: Callable[[str], bool]) -> Iterator[tuple[str, File | Link]]:
    left, last = MAX_BYTES, -1
    for member in archive:
        if member.offset <= last:  # a negative size leads back, and round for ever
            raise ConfigurationError(f"{origin} has a member that overlaps another")
        last = member.offset
        name = member.name.removeprefix("./")
        if member.isdir():
            continue
        check_path(name, origin)
        if not (member.isreg() or member.issym()):
            raise ConfigurationError(f"{origin} has {name!r}, which is neither a file nor a symbolic link")
        if not wanted(name):
            continue
        left -= member.size
        if left < 0:
            raise ConfigurationError(f"{origin} unpacks to more than {MAX_BYTES} bytes")
        yield name, _entry(archive, member)


def _entry(archive: tarfile.TarFile, member: tarfile.TarInfo) -> File | Link:
    if member.issym():
        return Link(target=member.linkname)
    source = archive.extractfile(member)
    content = source.read() if source else b""
    if len(content) != member.size:
        raise EOFError
    return File(content=content, executable=bool(member.mode & 0o111))
