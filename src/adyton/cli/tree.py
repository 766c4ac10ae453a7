"""What a parser made of bytes, for a reader: any frozen dataclass as a tree of lines, and as JSON."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from typing import Any, Final

from adyton.cli.printable import printable

SHOWN_BYTES: Final = 64
"""A line shows as many bytes of a value, JSON all of them."""
MAX_DEPTH: Final = 32
_DEEPER: Final = "…"


def one_line(text: str) -> str:
    """The text without what a terminal would obey, the line feed too: nobody's words can pass for a line of ours."""
    return printable(text).replace("\n", "\\u000a")


def print_line(text: str) -> None:
    """Print it on standard output as `one_line`; characters that its encoding lacks are escaped."""
    encoding = sys.stdout.encoding
    print(one_line(text).encode(encoding, "backslashreplace").decode(encoding))


def as_json(value: object, depth: int = MAX_DEPTH) -> Any:
    """The value for `json.dumps`: bytes in hexadecimal, times in ISO 8601, all keys text."""
    items = _items(value)
    if items is None:
        return value if _is_json(value) else _text(value)
    if not depth:
        return _DEEPER
    if isinstance(value, (tuple, list)):
        return [as_json(item, depth - 1) for _, item in items]
    return {name: as_json(item, depth - 1) for name, item in items}


def lines(name: str, value: object, depth: int = 0) -> Iterator[str]:
    """The value under its name, one line each, what is inside it two columns further right."""
    indent = "  " * depth
    items = _items(value)
    if not items or depth == MAX_DEPTH:
        yield f"{indent}{name}: {_shown(value) if items is None else _DEEPER if items else 'none'}"
        return
    yield f"{indent}{name}:"
    for inner, item in items:
        yield from lines(inner, item, depth + 1)


def _items(value: object) -> list[tuple[str, Any]] | None:
    """What is inside the value, by name or number; None if nothing can be."""
    if is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, Mapping):
        return [(str(key), item) for key, item in value.items()]
    if isinstance(value, (tuple, list)):
        return [(str(index), item) for index, item in enumerate(value)]
    return None


def _is_json(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, (bool, int, str))


def _shown(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int):
        return _number(value)
    if isinstance(value, bytes):
        more = f"… ({len(value)} bytes)" if len(value) > SHOWN_BYTES else ""
        return value[:SHOWN_BYTES].hex() + more or "empty"
    return _text(value) or '""'


def _number(value: int) -> str:
    """In decimal, and if it has more than a digit in hexadecimal too; a signature's only so."""
    if value < 10:
        return str(value)
    return f"{value} ({value:#x})" if value.bit_length() <= 64 else f"{value:#x}"


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, (str, float)):
        return str(value)
    return str(getattr(value, "name", type(value).__name__))  # a curve has a name; of a key the class says enough
