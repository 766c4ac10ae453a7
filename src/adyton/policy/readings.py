"""A value of the policy's file → a constraint. What is not exactly of its type is a `ConfigurationError`."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from typing import Any, Final

from adyton.errors import ConfigurationError
from adyton.policy.constraints import (
    Anything,
    AtLeast,
    Constraint,
    NoComponentBelow,
    NoneBut,
    NotOlderThan,
    OneOf,
    Parts,
    Permitted,
    Registers,
    Required,
    Unresolved,
    Within,
)
from adyton.policy.schema import Reading

ANY: Final = "any"
MAX_VALUES: Final = 1024
MAX_DAYS: Final = 36525
_HEX: Final = re.compile(r"(?:[0-9a-f]{2})*")

Item = Callable[[Any, str], Any]
"""One element of a list, and where it stands → its value; `ConfigurationError` if it is none."""


def hex_bytes(sizes: Collection[int]) -> Item:
    """A string of lower-case hexadecimal digits, of one of these numbers of bytes."""

    def read(value: Any, where: str) -> bytes:
        if not isinstance(value, str) or not _HEX.fullmatch(value) or len(value) // 2 not in sizes:
            wanted = " or ".join(map(str, sorted(sizes)))
            raise ConfigurationError(f"{where} must be a string of {wanted} bytes in lower-case hexadecimal")
        return bytes.fromhex(value)

    return read


def number(low: int, high: int) -> Item:
    """An integer of that range; `true` is none."""

    def read(value: Any, where: str) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ConfigurationError(f"{where} must be a whole number from {low} to {high}")
        return value

    return read


def whole_number(bits: int) -> Item:
    """An unsigned integer of so many bits."""
    return number(0, (1 << bits) - 1)


def word(*allowed: str) -> Item:
    """One of these strings, or any string if none is given."""

    def read(value: Any, where: str) -> str:
        if not isinstance(value, str) or (allowed and value not in allowed):
            raise ConfigurationError(f"{where} must be {'one of ' + ', '.join(allowed) if allowed else 'a string'}")
        return value

    return read


def one_of(item: Item, *, or_any: bool = True) -> Reading:
    """A list of what is accepted, or "any"."""

    def read(value: Any, where: str) -> Constraint:
        if isinstance(value, Unresolved):
            return value
        if or_any and value == ANY:
            return Anything()
        return OneOf(_items(value, where, item, or_any=or_any))

    return read


def none_but(item: Item) -> Reading:
    """A list of all that may occur, or "any"."""

    def read(value: Any, where: str) -> Constraint:
        if isinstance(value, Unresolved):
            return value
        return Anything() if value == ANY else NoneBut(_items(value, where, item, or_any=True))

    return read


def _items(value: Any, where: str, item: Item, *, or_any: bool) -> frozenset[Any]:
    if not isinstance(value, list) or len(value) > MAX_VALUES:
        also = ', or "any"' if or_any else ""
        raise ConfigurationError(f"{where} must be a list of up to {MAX_VALUES} values{also}")
    return frozenset(item(element, f"{where}[{index}]") for index, element in enumerate(value))


def at_least(bits: int) -> Reading:
    """The smallest number that is accepted, or "any"."""
    floor = whole_number(bits)

    def read(value: Any, where: str) -> Constraint:
        return Anything() if value == ANY else AtLeast(floor(value, where))

    return read


def not_older_than(unit: timedelta) -> Reading:
    """The greatest age that is accepted, in whole units, or "any"."""
    units = number(0, timedelta(days=MAX_DAYS) // unit)

    def read(value: Any, where: str) -> Constraint:
        return Anything() if value == ANY else NotOlderThan(units(value, where) * unit)

    return read


def within(value: Any, where: str) -> Constraint:
    """A mask of 64 bits: the flags that may be set."""
    return Within(whole_number(64)(value, where))


def permitted(value: Any, where: str) -> Constraint:
    """`true` permits; `false` refuses."""
    return Permitted(_flag(value, where))


def required(value: Any, where: str) -> Constraint:
    """`true` requires; `false` does not care."""
    return Required(_flag(value, where))


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{where} must be true or false")
    return value


def components(*known: str) -> Reading:
    """A table of floors by component, or "any"."""
    floor = whole_number(8)

    def read(value: Any, where: str) -> Constraint:
        if value == ANY:
            return Anything()
        if not isinstance(value, Mapping) or not value or not set(value) <= set(known):
            raise ConfigurationError(f'{where} must be a table of some of {", ".join(known)}, or "any"')
        return NoComponentBelow({name: floor(least, f"{where}.{name}") for name, least in value.items()})

    return read


def registers(item: Item, count: int, must_name: Collection[int] = ()) -> Reading:
    """A table of lists by register, each a list or "any", and `others = "any"` or "zero" (the default)."""
    listed = one_of(item)

    def read(value: Any, where: str) -> Constraint:
        if not isinstance(value, Mapping):
            raise ConfigurationError(f"{where} must be a table of registers")
        table = dict(value)
        others = word(ANY, "zero")(table.pop("others", "zero"), f"{where}.others")
        indices = {str(index): index for index in range(count)}
        if not table or not set(table) <= set(indices):
            raise ConfigurationError(f"{where} must name registers from 0 to {count - 1}, and no others")
        if missing := set(map(str, must_name)) - set(table):
            raise ConfigurationError(f"{where} lacks {', '.join(sorted(missing))}", mend='"any" accepts any value')
        named = {indices[name]: listed(values, f"{where}.{name}") for name, values in table.items()}
        return Registers(named, others=others == ANY)

    return read


def logged(item: Item, count: int) -> Reading:
    """A table of lists by register: every event that the register's log has must be listed, and there must be a log."""
    listed = none_but(item)
    indices = {str(index): index for index in range(count)}

    def read(value: Any, where: str) -> Constraint:
        if not isinstance(value, Mapping) or not set(value) <= set(indices):
            raise ConfigurationError(f"{where} must be a table of registers from 0 to {count - 1}")
        return Registers(
            {indices[name]: listed(values, f"{where}.{name}") for name, values in value.items()}, others=True
        )

    return read


def parts(item: Item) -> Reading:
    """A table of lists by name, each a list or "any"; what it does not name must not be there. Empty: no demand."""
    listed = one_of(item)

    def read(value: Any, where: str) -> Constraint:
        if not isinstance(value, Mapping) or len(value) > MAX_VALUES:
            raise ConfigurationError(f"{where} must be a table of lists by name")
        named = {name: listed(values, f"{where}.{name}") for name, values in value.items()}
        return Parts(named, others=not named)

    return read
