"""What a parser made of bytes, in lines and in JSON."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from types import MappingProxyType
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from adyton.cli.tree import as_json, lines, one_line, print_line


class Colour(Enum):
    RED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    flag: bool
    nothing: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    inner: Inner
    small: int
    flags: int
    long: int
    below: int
    data: bytes
    much: bytes
    empty: bytes
    text: str
    time: datetime
    registers: Mapping[int, bytes]
    version: tuple[int, ...]
    none: tuple[int, ...]
    curve: ec.EllipticCurve
    colour: Colour
    ratio: float


VALUE = Outer(
    inner=Inner(flag=True, nothing=None),
    small=9,
    flags=0x85,
    long=1 << 64,
    below=-35,
    data=b"\xab" * 64,
    much=b"\xab" * 65,
    empty=b"",
    text="a text",
    time=datetime(2026, 11, 23, tzinfo=UTC),
    registers=MappingProxyType({0: b"\x01"}),
    version=(1, 55),
    none=(),
    curve=ec.SECP384R1(),
    colour=Colour.RED,
    ratio=0.5,
)

TEXT = f"""\
it:
  inner:
    flag: true
    nothing: none
  small: 9
  flags: 133 (0x85)
  long: 0x10000000000000000
  below: -35
  data: {"ab" * 64}
  much: {"ab" * 64}… (65 bytes)
  empty: empty
  text: a text
  time: 2026-11-23T00:00:00+00:00
  registers:
    0: 01
  version:
    0: 1
    1: 55 (0x37)
  none: none
  curve: secp384r1
  colour: RED
  ratio: 0.5"""

JSON = {
    "inner": {"flag": True, "nothing": None},
    "small": 9,
    "flags": 0x85,
    "long": 1 << 64,
    "below": -35,
    "data": "ab" * 64,
    "much": "ab" * 65,
    "empty": "",
    "text": "a text",
    "time": "2026-11-23T00:00:00+00:00",
    "registers": {"0": "01"},
    "version": [1, 55],
    "none": [],
    "curve": "secp384r1",
    "colour": "RED",
    "ratio": 0.5,
}


def test_a_tree_of_lines() -> None:
    assert "\n".join(lines("it", VALUE)) == TEXT


def test_the_same_in_json() -> None:
    assert as_json(VALUE) == JSON


def test_what_is_no_json_becomes_text() -> None:
    class Key:
        pass

    assert json.loads(json.dumps(as_json([float("inf"), Key(), Colour.RED]), allow_nan=False)) == ["inf", "Key", "RED"]
    assert list(lines("", [Key()])) == [":", "  0: Key"]


def test_depth_is_bounded() -> None:
    deep: Any = ()
    for _ in range(5000):
        deep = (deep,)
    assert json.dumps(as_json(deep)).count("[") == 32
    assert list(lines("deep", deep))[-1].strip() == "0: …"


def test_nobodys_words_pass_for_a_line_of_ours() -> None:
    assert one_line("a\nverified: true\x1b[2J") == "a\\u000averified: true\\u001b[2J"


def test_characters_that_standard_output_lacks_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    print_line("café …")
    sys.stdout.flush()
    assert raw.getvalue() == b"caf\\xe9 \\u2026\n"
