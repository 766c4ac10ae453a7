"""The cursor over untrusted bytes: every read, every bound, and what it says."""

from __future__ import annotations

import pytest

from adyton.errors import EvidenceError
from adyton.tee._binary import Reader


def _reader(data: bytes) -> Reader:
    return Reader(data, "the quote", order="little")


def test_fields_are_read_from_front_to_back() -> None:
    reader = _reader(bytes(range(10)))
    assert (reader.position, reader.remaining) == (0, 10)
    assert reader.take(3, "head") == b"\0\1\2"
    assert reader.take(0, "nothing") == b""
    assert (reader.position, reader.remaining) == (3, 7)
    assert reader.rest() == bytes(range(3, 10))
    assert (reader.position, reader.remaining) == (10, 0)
    assert reader.rest() == b""
    reader.end()


@pytest.mark.parametrize(("order", "number"), [("little", 0xFF01), ("big", 0x01FF)])
def test_numbers_are_unsigned_and_in_the_order_that_was_asked_for(order: str, number: int) -> None:
    assert Reader(b"\x01\xff", "the quote", order=order).number(2, "size") == number  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused_with_where_and_why() -> None:
    reader = _reader(bytes(5))
    reader.take(2, "head")
    with pytest.raises(EvidenceError) as caught:
        reader.take(4, "signature")
    assert str(caught.value) == "the quote ends inside its signature: 4 bytes from 2, 3 left"
    assert reader.position == 2
    with pytest.raises(EvidenceError, match="ends inside its version: 8 bytes from 2, 3 left"):
        reader.number(8, "version")


@pytest.mark.parametrize("length", [0, 1, 3])
def test_a_field_may_have_its_length_before_it(length: int) -> None:
    reader = _reader(length.to_bytes(2, "little") + b"abc"[:length])
    assert reader.prefixed(2, "name", at_most=3) == b"abc"[:length]
    reader.end()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x04\0abcd", "the quote has a name of 4 bytes; 3 are allowed"),
        (b"\xff\xff", "the quote has a name of 65535 bytes; 3 are allowed"),
        (b"\x03\0ab", "the quote ends inside its name: 3 bytes from 2, 2 left"),
        (b"\x03", "the quote ends inside its length of its name: 2 bytes from 0, 1 left"),
    ],
)
def test_a_length_that_lies_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(EvidenceError) as caught:
        _reader(data).prefixed(2, "name", at_most=3)
    assert str(caught.value) == message


def test_bytes_after_the_end_are_refused() -> None:
    with pytest.raises(EvidenceError, match=r"^the quote goes on after its end, for 1 bytes$"):
        _reader(b"\0").end()
