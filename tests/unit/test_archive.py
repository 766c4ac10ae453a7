"""The bundle's archive: one form for one content, and everything else refused."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable

import pytest

from adyton.bundle import archive
from adyton.bundle.archive import bundle_sha256, encode_archive, parse_archive
from adyton.errors import BundleError

FILES = {"app/__init__.py": b"", "app/prière.py": b"print('ora')\n", "enclave.toml": b"name = 'a'\n"}
CANONICAL = encode_archive(FILES)

Entry = tuple[str, bytes]


def make_zip(
    entries: list[Entry],
    *,
    change: Callable[[zipfile.ZipInfo], None] = lambda _: None,
    comment: bytes = b"",
) -> bytes:
    """A ZIP file as `encode_archive` writes it, but of any entries in any order, each changed by `change`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        target.comment = comment
        for name, content in entries:
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr, entry.create_system = 0o100644 << 16, 3
            change(entry)
            target.writestr(entry, content)
    return buffer.getvalue()


def make_changed(attribute: str, value: object) -> bytes:
    return make_zip(sorted(FILES.items()), change=lambda entry: setattr(entry, attribute, value))


def patch(data: bytes, start: int, new: bytes) -> bytes:
    return data[:start] + new + data[start + len(new) :]


# --- what is written


def test_what_is_encoded_is_parsed_back() -> None:
    assert parse_archive(CANONICAL) == FILES


def test_equal_files_give_equal_bytes_whatever_their_order() -> None:
    assert encode_archive(dict(reversed(FILES.items()))) == CANONICAL


def test_the_bytes_are_the_same_on_every_machine() -> None:
    digest = "4ccd81d21fec67bd4bb0c337a8533b5d57a554f3cad94871b1d72af226172a02"
    assert bundle_sha256(CANONICAL).hex() == digest


def test_an_empty_bundle_is_an_archive() -> None:
    assert parse_archive(encode_archive({})) == {}


def test_the_helper_of_these_tests_writes_canonical_archives_too() -> None:
    assert make_zip(sorted(FILES.items())) == CANONICAL


# --- names

SAFE = ("a", "a/b.py", ".hidden", "a..b", "...", "a b", "ünï/ça", "a:b", "~", "-", "x" * 240, "/".join("a" * 32))
UNSAFE = (
    "",
    ".",
    "..",
    "/",
    "/etc/passwd",
    "../a",
    "a/..",
    "a/../b",
    "./a",
    "a/./b",
    "a//b",
    "app/",
    "a\\b",
    "..\\a",
    "a\0b",
    "a\nb",
    "a\x1b[1m",
    "a\x7f",
    "a\u202eb",
    "a\u00a0b",
    "a\udc80b",
    "x" * 241,
    "é" * 121,
)


@pytest.mark.parametrize("name", SAFE)
def test_a_safe_name_is_taken(name: str) -> None:
    assert parse_archive(encode_archive({name: b"x"})) == {name: b"x"}


@pytest.mark.parametrize("name", UNSAFE, ids=ascii)
def test_an_unsafe_name_is_not_written(name: str) -> None:
    with pytest.raises(BundleError, match="not a path that a bundle may hold"):
        encode_archive({name: b""})


@pytest.mark.parametrize("name", [name for name in UNSAFE if name and not set(name) & {"\0", "\udc80"}], ids=ascii)
def test_an_unsafe_name_is_not_read(name: str) -> None:
    with pytest.raises(BundleError, match="not a path that a bundle may hold"):
        parse_archive(make_zip([(name, b"")]))


def test_a_name_with_a_nul_is_not_read() -> None:
    with pytest.raises(BundleError, match="canonical"):
        parse_archive(encode_archive({"aZb": b"x"}).replace(b"aZb", b"a\0b"))


def test_a_name_that_is_nested_too_deeply_is_refused() -> None:
    name = "/".join("a" * 33)
    for refused in (lambda: encode_archive({name: b""}), lambda: parse_archive(make_zip([(name, b"")]))):
        with pytest.raises(BundleError, match="nested too deeply"):
            refused()


def test_a_file_that_is_a_folder_too_is_refused() -> None:
    for refused in (
        lambda: encode_archive({"a/b/c": b"", "a/b": b""}),
        lambda: parse_archive(make_zip([("a/b", b""), ("a/b/c", b"")])),
    ):
        with pytest.raises(BundleError, match="'a/b/c' lies below a file"):
            refused()
    assert parse_archive(encode_archive({"a/b": b"", "a/bc": b"", "a/b.c/d": b""}))


# --- limits


def test_too_many_files_are_refused() -> None:
    names = [f"{number:05}" for number in range(archive.MAX_FILES + 1)]
    with pytest.raises(BundleError, match="at most 10000 files, not 10001"):
        encode_archive(dict.fromkeys(names, b""))
    with pytest.raises(BundleError, match="at most 10000 files, not 10001"):
        parse_archive(make_zip([(name, b"") for name in names]))


def test_too_many_bytes_are_refused() -> None:
    with pytest.raises(BundleError, match="at most 67108864 bytes"):
        encode_archive({"a": bytes(archive.MAX_BYTES // 2), "b": bytes(archive.MAX_BYTES // 2 + 1)})
    with pytest.raises(BundleError, match="larger than a bundle can be"):
        parse_archive(bytes(2 * archive.MAX_BYTES + 1))


def test_entries_that_overlap_are_refused_before_they_fill_the_memory() -> None:
    tail, directory = bytes(1 << 20), b""
    for number in range(200):  # from the last to the first: each holds all that come after it
        name, sizes = b"%03d" % (200 - number), (zlib.crc32(tail), len(tail), len(tail))
        offset = len(tail)  # from the end, for now
        tail = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 0x21, *sizes, len(name), 0) + name + tail
        head = struct.pack("<4s6H3L5H", b"PK\1\2", 20 | 3 << 8, 20, 0, 0, 0, 0x21, *sizes, len(name), 0, 0, 0, 0)
        directory = head + struct.pack("<2L", 0o100644 << 16, offset + 30 + len(name)) + name + directory
    at = 0
    while at < len(directory):
        (from_end,) = struct.unpack_from("<L", directory, at + 42)
        directory = patch(directory, at + 42, struct.pack("<L", len(tail) - from_end))
        at += 46 + 3
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 200, 200, len(directory), len(tail), 0)
    tracemalloc.start()
    try:
        with pytest.raises(BundleError, match="canonical"):
            parse_archive(tail + directory + end)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


# --- another form of the same content

LOCAL, CENTRAL = CANONICAL.index(b"PK\3\4"), CANONICAL.index(b"PK\1\2")
OTHER_FORMS = {
    "compressed": make_changed("compress_type", zipfile.ZIP_DEFLATED),
    "another date": make_changed("date_time", (1980, 1, 1, 0, 0, 2)),
    "another mode": make_changed("external_attr", 0o100755 << 16),
    "a symbolic link": make_changed("external_attr", 0o120777 << 16),
    "another system": make_changed("create_system", 0),
    "another version to extract": make_changed("extract_version", 45),
    "an extra field": make_changed("extra", b"\xfe\xca\0\0"),
    "a comment on an entry": make_changed("comment", b"!"),
    "a comment on the archive": make_zip(sorted(FILES.items()), comment=b"!"),
    "unsorted": make_zip(sorted(FILES.items(), reverse=True)),
    "prepended bytes": b"#!/bin/sh\n" + CANONICAL,
    "a trailing byte": CANONICAL + b"\n",
    "an archive before it": CANONICAL + CANONICAL,
    "a date in the local header only": patch(CANONICAL, LOCAL + 10, b"\1"),
    "a checksum in the local header only": patch(CANONICAL, LOCAL + 14, b"\1"),
    "a size in the local header only": patch(CANONICAL, LOCAL + 18, b"\1"),
    "flags in the central directory only": patch(CANONICAL, CENTRAL + 8, b"\2"),
    "a disk's number": patch(CANONICAL, CENTRAL + 34, b"\1"),
    "a bit that says text": patch(CANONICAL, CENTRAL + 36, b"\1"),
    "a count of entries": patch(CANONICAL, len(CANONICAL) - 14, b"\7"),
}


@pytest.mark.parametrize("data", OTHER_FORMS.values(), ids=OTHER_FORMS.keys())
def test_another_form_is_refused(data: bytes) -> None:
    with pytest.raises(BundleError, match="canonical"):
        parse_archive(data)


def test_a_name_that_occurs_twice_is_refused() -> None:
    data = encode_archive({"a.py": b"1", "b.py": b"2"}).replace(b"b.py", b"a.py")
    with pytest.raises(BundleError, match=r"names 'a\.py' twice"):
        parse_archive(data)


# --- no archive at all


def make_zip64(offset: int) -> bytes:
    """An archive of one empty file, which is said to begin at `offset`."""
    extra = struct.pack("<2HQ", 1, 8, offset)
    fields = (20 | 3 << 8, 20, 0, 0, 0, 0x21, 0, 0, 0, 1, len(extra), 0, 0, 0, 0o100644 << 16, 0xFFFFFFFF)
    central = struct.pack("<4s6H3L5H2L", b"PK\1\2", *fields) + b"a" + extra
    return central + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(central), 0, 0)


BROKEN = {
    "nothing": b"",
    "text": b"name = 'a'\n",
    "another kind of archive": b"\x1f\x8b" + bytes(100),
    "cut off": CANONICAL[:-1],
    "only its end": CANONICAL[-22:],
    "a local header with another name": CANONICAL.replace(b"app/__init__.py", b"app/__main__.py", 1),
    "a content with another checksum": CANONICAL.replace(b"ora", b"ave"),
    "encrypted": patch(patch(CANONICAL, LOCAL + 6, b"\1"), CENTRAL + 8, b"\1"),
    "a name that is not UTF-8": CANONICAL.replace("è".encode(), b"\xff\xff"),
    "a version from the future": patch(CANONICAL, CENTRAL + 6, b"\xff"),
    "an entry beyond its end": make_zip64(1 << 20),
    "an entry beyond every end": make_zip64(1 << 63),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_no_archive_is_refused(data: bytes) -> None:
    with pytest.raises(BundleError, match="can't be read"):
        parse_archive(data)


def test_no_bit_of_an_archive_can_be_changed() -> None:
    for bit in range(len(CANONICAL) * 8):
        data = bytearray(CANONICAL)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BundleError):
            parse_archive(bytes(data))


def test_a_directory_of_a_million_entries_is_not_even_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 65535, 65535, 60_000_000, 0, 0)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(BundleError, match="no directory of a bundle's size"):
        parse_archive(bytes(60_000_000) + end)
