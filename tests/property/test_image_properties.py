"""Whatever bytes a package is, reading it ends with what it holds or with the documented error."""

from __future__ import annotations

import contextlib
import tarfile
import zipfile
from pathlib import PurePosixPath

from hypothesis import given
from hypothesis import strategies as st
from image_pieces import make_deb, make_object, make_wheel, member, read_cpio

from adyton.errors import ConfigurationError
from adyton.host.image.architecture import ARCHITECTURES
from adyton.host.image.cpio import BLOCK_BYTES, encode_cpio
from adyton.host.image.deb import read_deb
from adyton.host.image.elf import parse_elf, trim_elf
from adyton.host.image.lock import ImageLock, LockedPackage, parse_image_lock
from adyton.host.image.tree import File
from adyton.host.image.wheels import read_wheel

PART = st.text(st.characters(categories=["L", "N"], include_characters="-_."), min_size=1, max_size=8).filter(
    lambda part: part not in (".", "..")
)
PATH = st.lists(PART, min_size=1, max_size=4).map("/".join)
FILES = st.dictionaries(
    PATH, st.builds(lambda c, x: File(content=c, executable=x), st.binary(max_size=40), st.booleans())
)
PACKAGE = st.builds(
    lambda name, version, digest, size: LockedPackage(name=name, version=version, sha256=digest.hex(), size=size),
    st.from_regex(r"[a-z0-9][a-z0-9+.-]{1,20}", fullmatch=True),
    st.from_regex(r"[0-9][A-Za-z0-9.+:~-]{0,20}", fullmatch=True),
    st.binary(min_size=32, max_size=32),
    st.integers(1, 10**8),
)
PACKAGES = st.lists(PACKAGE, min_size=1, max_size=8, unique_by=lambda each: each.name).map(lambda x: tuple(sorted(x)))
DEB = make_deb(
    [member("./usr/bin/a", b"content", mode=0o755), member("./b", kind=tarfile.SYMTYPE, link="a")], compression=""
)
WHEELS = [
    make_wheel({"a/__init__.py": b"content" * 9, "a-1.dist-info/METADATA": b"Name: a"}, compression)
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
]
OBJECT = make_object("libc.so.6", interpreter="/lib/ld.so")


def mutated(data: bytes) -> st.SearchStrategy[bytes]:
    """`data` with a few bytes replaced, and cut somewhere."""
    places = st.dictionaries(st.integers(0, len(data) - 1), st.integers(0, 255), max_size=4)
    return st.builds(lambda changes, end: _with(data, changes)[:end], places, st.integers(0, len(data)))


def _with(data: bytes, changes: dict[int, int]) -> bytes:
    return bytes(changes.get(index, byte) for index, byte in enumerate(data))


@given(FILES, st.lists(PATH, max_size=3))
def test_an_archive_says_what_was_put_in_and_nothing_else(files: dict[str, File], folders: list[str]) -> None:
    try:
        data = encode_cpio(files, folders=folders)
    except ConfigurationError:
        inner = {str(parent) for path in (*files, *folders) for parent in PurePosixPath(path).parents} | set(folders)
        assert inner & files.keys()
        return
    entries = read_cpio(data)
    plain = {name: entry for name, entry in entries.items() if entry.mode & 0o100000}
    assert {name: entry.content for name, entry in plain.items()} == {n: file.content for n, file in files.items()}
    assert all((entry.mode == 0o100755) == files[name].executable for name, entry in plain.items())
    assert set(folders) <= entries.keys() - plain.keys()
    assert list(entries) == sorted(entries)
    assert len(data) % BLOCK_BYTES == 0


@given(st.dictionaries(st.sampled_from(sorted(ARCHITECTURES)), PACKAGES))
def test_a_lock_is_read_as_it_was_written(packages: dict[str, tuple[LockedPackage, ...]]) -> None:
    lock = ImageLock(packages=packages)
    assert parse_image_lock(lock.encode()) == lock


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_only_the_documented_error_escapes_a_lock(data: bytes) -> None:
    with contextlib.suppress(ConfigurationError):
        parse_image_lock(data)


@given(mutated(DEB) | st.binary(max_size=200).map(lambda tail: DEB[:8] + tail))
def test_only_the_documented_error_escapes_a_debian_package(data: bytes) -> None:
    with contextlib.suppress(ConfigurationError):
        for path in read_deb(data, "x"):
            assert not PurePosixPath(path).is_absolute()
            assert ".." not in PurePosixPath(path).parts


@given(st.one_of(*map(mutated, WHEELS), st.binary(max_size=200)))
def test_only_the_documented_error_escapes_a_wheel(data: bytes) -> None:
    with contextlib.suppress(ConfigurationError):
        for path in read_wheel("x", data):
            assert not PurePosixPath(path).is_absolute()
            assert ".." not in PurePosixPath(path).parts


@given(mutated(OBJECT))
def test_only_the_documented_error_escapes_an_object(data: bytes) -> None:
    with contextlib.suppress(ConfigurationError):
        elf = parse_elf(data, "x")
        elf.needed()
        elf.interpreter()
        elf.module_facts()
    with contextlib.suppress(ConfigurationError):
        trim_elf(data, "x")
