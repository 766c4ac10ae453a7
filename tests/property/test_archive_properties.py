"""Whatever bytes an archive's reader is given: it gives the files that exactly these bytes say, or a BundleError."""

from __future__ import annotations

import random
import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from adyton.bundle.archive import bundle_sha256, encode_archive, parse_archive
from adyton.errors import BundleError

FILES = {"app/__init__.py": b"", "app/main.py": b"print('ora')\n", "enclave.toml": b"name = 'a'\n"}
CANONICAL = encode_archive(FILES)

parts = st.text(st.sampled_from("ab.-é"), min_size=1, max_size=3).filter(lambda part: part not in (".", ".."))
names = st.lists(parts, min_size=1, max_size=3).map("/".join)


def _is_a_tree(files: dict[str, bytes]) -> bool:
    return not any(other.startswith(name + "/") for name in files for other in files)


trees = st.dictionaries(names, st.binary(max_size=50), max_size=6).filter(_is_a_tree)
words = st.sampled_from([0, 1, 0x7FFF, 0xFFFF, 0x80000000, 0xFFFFFFFF]) | st.integers(0, 0xFFFFFFFF)
chunks = st.one_of(
    st.binary(max_size=8),
    words.map(lambda word: struct.pack("<L", word)),
    st.integers(0, 2**64 - 1).map(lambda number: struct.pack("<2HQ", 1, 8, number)),  # a ZIP64 field
    st.sampled_from([b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7"]),
)


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """A real archive with one to four places overwritten, cut out or filled in."""
    data = CANONICAL
    for _ in range(draw(st.integers(1, 4))):
        start, chunk = draw(st.integers(0, len(data))), draw(chunks)
        removed = draw(st.sampled_from([0, len(chunk)]) | st.integers(0, 20))
        data = data[:start] + chunk + data[start + removed :]
    return data


@st.composite
def archives_with_zip64(draw: st.DrawFn) -> bytes:
    """An archive of one empty file whose offsets and sizes stand in ZIP64 fields, and may be any number."""
    numbers = st.integers(0, 2**64 - 1) | st.integers(0, 100) | st.sampled_from([2**63 - 1, 2**63, 2**64 - 1])
    size, packed_size, offset = draw(numbers), draw(numbers), draw(numbers)
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 0x21, 0, 0, 0, 1, 0) + b"a"
    extra = struct.pack("<2H3Q", 1, 24, size, packed_size, offset)
    fields = (
        20 | 3 << 8,
        20,
        0,
        0,
        0,
        0x21,
        0,
        0xFFFFFFFF,
        0xFFFFFFFF,
        1,
        len(extra),
        0,
        0,
        0,
        0o644 << 16,
        0xFFFFFFFF,
    )
    central = struct.pack("<4s6H3L5H2L", b"PK\1\2", *fields) + b"a" + extra
    return local + central + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(central), len(local), 0)


def _files_or_none(data: bytes) -> dict[str, bytes] | None:
    try:
        return parse_archive(data)
    except BundleError:
        return None


@given(trees)
def test_every_tree_comes_back(files: dict[str, bytes]) -> None:
    assert parse_archive(encode_archive(files)) == files


@given(trees, trees)
def test_two_trees_have_one_digest_only_if_they_are_equal(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    same = bundle_sha256(encode_archive(one)) == bundle_sha256(encode_archive(other))
    assert same == (one == other)


@given(trees, st.randoms())
def test_the_order_of_a_tree_does_not_matter(files: dict[str, bytes], order: random.Random) -> None:
    shuffled = list(files.items())
    order.shuffle(shuffled)
    assert encode_archive(dict(shuffled)) == encode_archive(files)


@given(st.text(max_size=300) | st.text(st.sampled_from("a./\\\0\n"), max_size=80))
def test_any_name_is_refused_or_comes_back(name: str) -> None:
    try:
        data = encode_archive({name: b"x"})
    except BundleError:
        return
    assert parse_archive(data) == {name: b"x"}


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda data: data + CANONICAL[-22:]))
def test_random_bytes_are_refused(data: bytes) -> None:
    assert _files_or_none(data) in (None, {})


@given(archives_with_zip64())
def test_an_archive_with_large_numbers_is_refused(data: bytes) -> None:
    assert _files_or_none(data) is None


@settings(max_examples=1000)
@given(mutations())
def test_a_mutation_is_refused_or_says_what_it_is(data: bytes) -> None:
    files = _files_or_none(data)
    assert files is None or encode_archive(files) == data
    assert (files == FILES) == (data == CANONICAL)
