"""The bundle's archive: a ZIP file of one canonical form, so that its SHA-256 names its content and nothing else.

Stored, not compressed (what zlib writes differs between its versions); names sorted; one date, one mode; no comments,
no extra fields, no folders. Reading encodes again what it found and compares: an archive that says anything in a
second way is refused. Standard library only, for this runs before anything is verified.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping

from adyton.errors import BundleError

MAX_BYTES = 64 * 1024 * 1024
MAX_FILES = 10_000
MAX_NAME_BYTES = 240
MAX_DEPTH = 32

_DATE = (1980, 1, 1, 0, 0, 0)
_REGULAR_FILE_0644 = 0o100644 << 16
_UNIX = 3
_DIRECTORY_ENTRY_BYTES = 46


def bundle_sha256(data: bytes) -> bytes:
    """The digest that names a bundle, 32 bytes: SHA-256 over the archive as it lies on disk."""
    return hashlib.sha256(data).digest()


def encode_archive(files: Mapping[str, bytes]) -> bytes:
    """The archive of `files` (relative POSIX path → content). Equal files give equal bytes, on every machine."""
    if len(files) > MAX_FILES:
        raise BundleError(f"a bundle holds at most {MAX_FILES} files, not {len(files)}")
    if sum(map(len, files.values())) > MAX_BYTES:
        raise BundleError(f"a bundle holds at most {MAX_BYTES} bytes")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            _check_name(name)
            if any(name[:end] in files for end, letter in enumerate(name) if letter == "/"):
                raise BundleError(f"{name[:80]!r} lies below a file")
            entry = zipfile.ZipInfo(name, _DATE)
            entry.external_attr = _REGULAR_FILE_0644
            entry.create_system = _UNIX
            archive.writestr(entry, files[name])
    return buffer.getvalue()


def parse_archive(data: bytes) -> dict[str, bytes]:
    """The files of an archive, by path. Raises BundleError for anything that `encode_archive` would not have written.

    Before: untrusted bytes. After: the paths are safe to create below a folder; of the contents nothing is known.
    """
    if len(data) > 2 * MAX_BYTES:
        raise BundleError("the bundle is larger than a bundle can be")
    try:
        files = _read(data)
    except (zipfile.BadZipFile, RuntimeError, ValueError, OverflowError, OSError, EOFError) as problem:
        raise BundleError(f"the bundle can't be read: {type(problem).__name__}") from problem
    if encode_archive(files) != data:
        raise BundleError("the bundle is not in canonical form")
    return files


def _read(data: bytes) -> dict[str, bytes]:
    # The directory's size, as its end says (APPNOTE 4.3.16): zipfile would parse any number of entries before it tells.
    if int.from_bytes(data[-10:-6], "little") > MAX_FILES * (_DIRECTORY_ENTRY_BYTES + MAX_NAME_BYTES):
        raise BundleError(
            "the bundle can't be read, or is not in canonical form: it has no directory of a bundle's size"
        )
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if len(entries) > MAX_FILES:
            raise BundleError(f"a bundle holds at most {MAX_FILES} files, not {len(entries)}")
        if sum(entry.compress_size for entry in entries) > len(data):  # overlapping, to be large only when unpacked
            raise BundleError("the bundle is not in canonical form")
        files: dict[str, bytes] = {}
        for entry in entries:
            _check_name(entry.filename)
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise BundleError("the bundle is not in canonical form")
            if entry.filename in files:
                raise BundleError(f"the bundle names {entry.filename!r} twice")
            files[entry.filename] = archive.read(entry)
    return files


def _check_name(name: str) -> None:
    parts = name.split("/")
    unsafe = any(part in ("", ".", "..") for part in parts) or "\\" in name or not name.isprintable()
    if unsafe or len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        raise BundleError(f"{name[:80]!r} is not a path that a bundle may hold")
    if len(parts) > MAX_DEPTH:
        raise BundleError(f"{name[:80]!r} is nested too deeply")
