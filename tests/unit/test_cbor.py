"""CBOR from strangers: what is decoded, what is refused, and that no tag acts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import cbor2
import pytest

from adyton.errors import EvidenceError
from adyton.tee._cbor import MAX_DEPTH, _PlainTags, decode_cbor, field


def _decoded(data: str | bytes, **options: Any) -> Any:
    return decode_cbor(bytes.fromhex(data) if isinstance(data, str) else data, "the token", **options)


def _tagged(tag: int, content: bytes) -> bytes:
    return cbor2.dumps(cbor2.CBORTag(tag, 0))[:-1] + content


@pytest.mark.parametrize(
    ("data", "item"),
    [
        ("00", 0),
        ("1bffffffffffffffff", (1 << 64) - 1),
        ("3bffffffffffffffff", -(1 << 64)),
        ("4101", b"\x01"),
        ("6161", "a"),
        ("f5", True),
        ("f6", None),
        ("fb3ff0000000000000", 1.0),
        ("5f41014102ff", b"\x01\x02"),
        ("7f61616162ff", "ab"),
        ("9f0102ff", (1, 2)),
        ("bf0102ff", {1: 2}),
        ("8201820203", (1, (2, 3))),
        ("a201020304", {1: 2, 3: 4}),
        ("1801", 1),
        ("580161", b"a"),
    ],
)
def test_every_kind_of_item_is_decoded(data: str, item: object) -> None:
    assert _decoded(data) == item
    assert type(_decoded(data)) is type(item) or isinstance(_decoded(data), Mapping)


def test_everything_is_immutable_at_every_depth() -> None:
    outer = _decoded(cbor2.dumps({1: [{"a": [1]}]}))
    inner = outer[1][0]
    for items in (outer, inner):
        assert isinstance(items, Mapping)
        with pytest.raises(TypeError):
            items[1] = 0  # type: ignore[index]
    assert type(inner["a"]) is tuple


@pytest.mark.parametrize(
    "data",
    [
        "",
        "18",
        "1c",
        "ff",
        "8201ff",
        "bf01ff",
        "9f01",
        "a101",
        "a2010201",
        "61ff",
        "63eda080",
        "7f61c361a9ff",
        "5f6161ff",
        "5f5f4101ffff",
        "f818",
        "9affffffff00",
        "9bffffffffffffffff",
        "bbffffffffffffffff",
        "5bffffffffffffffff00",
        "7bffffffffffffffff00",
    ],
)
def test_what_is_malformed_is_refused(data: str) -> None:
    with pytest.raises(EvidenceError, match=r"^the token is not well-formed CBOR$"):
        _decoded(data)


@pytest.mark.parametrize(
    "data",
    ["a201020103", "bf01020103ff", "a20102180103", "a2616100616101", "a101a202000201"],
    ids=["map", "indefinite map", "two encodings of one key", "text", "inner map"],
)
def test_a_key_may_not_come_twice(data: str) -> None:
    with pytest.raises(EvidenceError, match="not well-formed"):
        _decoded(data)


@pytest.mark.parametrize(
    "data",
    [
        "a1f502",
        "a1f90000",
        "a1f6a0",
        "a1414100",
        "a1810100",
        "a1a000",
        "bff500ff",
        "81a1f500",
        "a1d28000",
        "a1a1f50000",
    ],
    ids=["true", "float", "null", "bytes", "array", "map", "indefinite", "nested", "tag", "key's key"],
)
def test_a_key_is_an_integer_or_text(data: str) -> None:
    with pytest.raises(EvidenceError, match="not well-formed"):
        _decoded(data, tags={18})


@pytest.mark.parametrize("after", [b"\0", b"\xff", b"\xf6", bytes(1000)])
def test_nothing_may_follow(after: bytes) -> None:
    with pytest.raises(EvidenceError, match=f"^the token goes on after its end, for {len(after)} bytes$"):
        _decoded(b"\x82\x01\x02" + after)


@pytest.mark.parametrize("opening", [b"\x81", b"\x9f", b"\xa1\x01", b"\xbf\x01", b"\xd2"])
def test_nesting_has_a_limit(opening: bytes) -> None:
    closing = b"\xff" if opening[0] & 0x1F == 0x1F else b""
    _decoded(opening * MAX_DEPTH + b"\0" + closing * MAX_DEPTH, tags={18})
    for depth in (MAX_DEPTH + 1, 10_000):
        with pytest.raises(EvidenceError, match="not well-formed"):
            _decoded(opening * depth + b"\0" + closing * depth, tags={18})


@pytest.mark.parametrize("content", [b"\x00", b"\x40", b"\x61a", b"\x80", b"\x82\x01\x02", b"\xa0", b"\xf6"])
def test_no_tag_that_was_not_asked_for_passes_whatever_the_library_knows(content: bytes) -> None:
    for tag in (*range(1100), 43000, 55799, 65535, 1 << 32, (1 << 64) - 1):
        with pytest.raises(EvidenceError, match="not well-formed"):
            _decoded(_tagged(tag, content), tags={1 << 40})


@pytest.mark.parametrize("tag", [0, 1, 2, 17, 18, 25, 28, 29, 35, 36, 256, 258, 260, 399, 907, 55799])
def test_a_tag_that_was_asked_for_does_not_act(tag: int) -> None:
    inner = cbor2.CBORTag(tag, ("a",))
    assert _decoded(_tagged(tag, b"\x81\x61a"), tags={tag}) == inner
    assert _decoded(b"\x81" + _tagged(tag, b"\x81\x61a"), tags={tag, 5}) == (inner,)
    assert _decoded(_tagged(tag, _tagged(tag, b"\x81\x61a")), tags={tag}) == cbor2.CBORTag(tag, inner)


def test_the_table_of_tags_lists_those_that_were_asked_for() -> None:
    table = _PlainTags({18, 17})
    assert (set(table), len(table)) == ({17, 18}, 2)


@pytest.mark.parametrize(
    "data",
    [
        b"\x5f" + b"\x40" * 65000 + b"\xff",
        b"\x7f" + b"\x61a" * 32000 + b"\xff",
        b"\x99\xff\x00" + b"\xa0" * 0xFF00,
        b"\xb9\x4e\x20" + b"".join(b"\x19" + index.to_bytes(2) + b"\0" for index in range(20000)),
    ],
    ids=["chunks", "text chunks", "maps", "keys"],
)
def test_many_small_items_do_not_take_long(data: bytes) -> None:
    begun = time.perf_counter()
    _decoded(data)
    assert time.perf_counter() - begun < 1


# --- field


@pytest.mark.parametrize(
    ("key", "kind", "message"),
    [
        (3, int, "the token has nothing where its 3 should be, of type int"),
        (1, str, "the token has int where its 1 should be, of type str"),
        ("a", int, "the token has bool where its 'a' should be, of type int"),
        ("b", bytes, "the token has NoneType where its 'b' should be, of type bytes"),
    ],
)
def test_a_field_must_be_there_and_of_exactly_its_type(key: int | str, kind: type, message: str) -> None:
    items = {1: 2, "a": True, "b": None}
    with pytest.raises(EvidenceError) as caught:
        field(items, key, kind, "the token")
    assert str(caught.value) == message
    assert (field(items, 1, int, "the token"), field(items, "a", bool, "the token")) == (2, True)
