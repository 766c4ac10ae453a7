"""The archive that Linux unpacks as its first root file system: cpio, "newc", of one canonical form.

Format: Documentation/driver-api/early-userspace/buffer-format.rst of Linux. Uncompressed, for what a compressor writes
differs between its versions. Everything is root's and of 1970; entries are sorted; inodes are numbered in that order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from adyton.errors import ConfigurationError
from adyton.host.image.tree import File, Files

BLOCK_BYTES = 512
"""Archives that follow one another in an initrd begin at multiples of this."""

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
_FOLDER, _EXECUTABLE, _PLAIN = 0o040755, 0o100755, 0o100644
_MOST_BYTES = 0xFFFFFFFF


def encode_cpio(files: Files, *, folders: Iterable[str] = ()) -> bytes:
    """The archive of `files` with every folder that they lie in, and of `folders`. Equal input gives equal bytes.

    Raises ConfigurationError for what no file system could hold.
    """
    entries: dict[str, File | None] = {folder: None for each in (*files, *folders) for folder in _parents(each)}
    entries |= dict.fromkeys(folders)
    if clash := sorted(entries.keys() & files.keys()):
        raise ConfigurationError(f"{clash[0]!r} is both a file and a folder")
    archive = bytearray()
    for inode, (path, file) in enumerate(sorted((entries | dict(files)).items()), start=1):
        archive += _entry(path, inode, file)
    archive += _header(_TRAILER, inode=0, mode=0, links=1, size=0)
    return bytes(archive + bytes(-len(archive) % BLOCK_BYTES))


def _parents(path: str) -> Iterator[str]:
    return (path[:end] for end, letter in enumerate(path) if letter == "/")


def _entry(path: str, inode: int, file: File | None) -> bytes:
    if file is None:
        return _header(path, inode=inode, mode=_FOLDER, links=2, size=0)
    mode = _EXECUTABLE if file.executable else _PLAIN
    header = _header(path, inode=inode, mode=mode, links=1, size=len(file.content))
    return header + file.content + bytes(-len(file.content) % 4)


def _header(path: str, *, inode: int, mode: int, links: int, size: int) -> bytes:
    if size > _MOST_BYTES:
        raise ConfigurationError(f"{path!r} is larger than the format allows")
    name = path.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, size, the device's two numbers, the special file's two, name's size, checksum
    fields = (inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, len(name), 0)
    header = _MAGIC + b"".join(b"%08X" % field for field in fields) + name
    return header + bytes(-len(header) % 4)
