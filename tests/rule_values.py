"""Values for a rule's keys, made from a fact: the tightest that accepts it, tighter ones that refuse, looser ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from adyton.errors import ConfigurationError
from adyton.policy.constraints import (
    AtLeast,
    Constraint,
    NoComponentBelow,
    NoneBut,
    NotOlderThan,
    OneOf,
    Permitted,
    Registers,
    Required,
    Within,
)
from adyton.policy.document import Policy
from adyton.policy.insecurity import Insecurity
from adyton.policy.rules import SCHEMAS
from adyton.policy.schema import Field, Schema
from adyton.tee.evidence import VerifiedEvidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a key can be, for one piece of evidence; `refusing` and `looser` may be empty."""

    fitting: Any
    refusing: tuple[Any, ...]
    looser: tuple[Any, ...]


def choice(field: Field, verified: VerifiedEvidence, now: datetime) -> Choice:
    got = field.fact(verified, now)
    for raw in _candidates(field, got):
        constraint = _read(field, raw)
        if constraint is not None and constraint.accepts(got):
            return _around(field, raw, constraint)
    raise AssertionError(f"nothing fits {field.key}, which is {got!r}")


def _read(field: Field, raw: Any) -> Constraint | None:
    try:
        return field.read(raw, "test")
    except ConfigurationError:
        return None


def _candidates(field: Field, got: Any) -> list[Any]:
    if isinstance(got, timedelta):
        one = _read(field, 1)
        assert isinstance(one, NotOlderThan)
        return [max(0, -(-got // one.limit))]
    if isinstance(got, frozenset):
        return [sorted(map(_raw, got))]
    if isinstance(got, Mapping):
        registers = {str(key): [_raw(value)] for key, value in got.items()}
        return [registers, {key: value for key, value in got.items() if value is not None}]
    return [[_raw(got)], _raw(got), not got]


def _raw(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


def _around(field: Field, raw: Any, constraint: Constraint) -> Choice:  # noqa: PLR0911, C901
    """Each constraint has its own way of being stricter; "any" is the loosest of all where the key takes it."""
    any_ = ("any",) if _read(field, "any") is not None else ()
    match constraint:
        case OneOf():
            return Choice(fitting=raw, refusing=([], [_other(raw[0])]), looser=([*raw, _other(raw[0])], *any_))
        case NoneBut(values=values):
            refusing = (raw[1:],) if values else ()
            return Choice(fitting=raw, refusing=refusing, looser=([*raw, *_more(field)], *any_))
        case AtLeast(floor=floor):
            looser = (floor - 1,) if floor else ()
            return Choice(fitting=raw, refusing=(floor + 1,), looser=(*looser, *any_))
        case NotOlderThan():
            return Choice(fitting=raw, refusing=(raw - 1,) if raw else (), looser=(raw + 1, *any_))
        case Within(allowed=allowed):
            return Choice(fitting=raw, refusing=(0,) if allowed else (), looser=(allowed | 1 << 63,))
        case Permitted(permitted=permitted):
            return Choice(fitting=raw, refusing=(False,) if permitted else (), looser=() if permitted else (True,))
        case Required(required=required):
            return Choice(fitting=raw, refusing=() if required else (True,), looser=(False,) if required else ())
        case NoComponentBelow(floors=floors):
            name, floor = next(iter(floors.items()))
            return Choice(fitting=raw, refusing=({name: floor + 1}, {"fmc": 255}), looser=({name: 0}, *any_))
        case Registers(named=named) if not named:
            return Choice(fitting=raw, refusing=({"0": []},), looser=())
        case Registers(named=named):
            index = str(min(named))
            wrong = {**raw, index: [_other(raw[index][0])]}
            return Choice(
                fitting=raw,
                refusing=(wrong, {**raw, index: []}),
                looser=({**raw, index: "any"}, {**raw, "others": "any"}),
            )
    raise AssertionError(f"no idea what is around {constraint!r}")


def _other(value: Any) -> Any:
    """A value of the same kind."""
    if isinstance(value, str) and value in {"Milan", "Genoa", "Turin"}:
        return "Turin" if value == "Milan" else "Milan"
    if isinstance(value, str) and all(digit in "0123456789abcdef" for digit in value):
        return ("1" if value[0] == "0" else "0") + value[1:]
    if isinstance(value, str):
        return "SWHardeningNeeded" if value == "UpToDate" else value + "x"
    return value ^ 1


def _more(field: Field) -> list[str]:
    return [word for word in ("ab" * 32, "another") if _read(field, [word]) is not None][:1]


def fitting_table(schema: Schema, verified: Any, now: datetime) -> dict[str, Any]:
    """The tightest rule for that evidence, without its name."""
    table = {field.key: choice(field, verified, now).fitting for field in schema.fields}
    if schema.hardware:
        below = next(known for known in schema.hardware if known.tee == verified.hardware.tee)
        table[below.tee] = fitting_table(below, verified.hardware, now)
    return table


def choices(schema: Schema, verified: Any, now: datetime) -> dict[tuple[str, ...], Choice]:
    """Every key of a rule for that evidence, by its path in the rule's table."""
    found: dict[tuple[str, ...], Choice] = {(field.key,): choice(field, verified, now) for field in schema.fields}
    for below in schema.hardware:
        if below.tee == verified.hardware.tee:
            inner = choices(below, verified.hardware, now)
            found |= {(below.tee, *path): each for path, each in inner.items()}
    return found


def changed(table: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The table with one value replaced."""
    first, *rest = path
    return {**table, first: changed(table[first], tuple(rest), value) if rest else value}


def policy_of(label: str, *tables: Mapping[str, Any]) -> Policy:
    """A policy with these rules, named rule 0, rule 1 …"""
    lines = ["version = 1"]
    for index, table in enumerate(tables):
        lines += [f"[[{label}]]", f'name = "rule {index}"', *_lines(table)]
        lines += [
            line for key, inner in table.items() if key in SCHEMAS for line in (f"[{label}.{key}]", *_lines(inner))
        ]
    return Policy.parse("\n".join(lines).encode())


def _lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_toml(value)}" for key, value in table.items() if key not in SCHEMAS]


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(inner)}" for key, inner in value.items()) + " }"
    return json.dumps(value)


EVERYTHING = frozenset(Insecurity)
