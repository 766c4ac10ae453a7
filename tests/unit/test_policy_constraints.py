"""Each constraint accepts and refuses at its bounds, and says what it wants."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from adyton.policy.constraints import (
    Anything,
    AtLeast,
    Constraint,
    NoComponentBelow,
    NoneBut,
    NotOlderThan,
    OneOf,
    Permitted,
    Registers,
    Required,
    Unresolved,
    Within,
    shown,
)

A, B = b"\xaa" * 2, b"\xbb" * 2
ZERO = bytes(2)


@pytest.mark.parametrize(
    ("constraint", "accepted", "refused", "wanted"),
    [
        (Anything(), [None, b"", 0], [], "anything"),
        (OneOf(frozenset({A, B})), [A, B], [b"", ZERO], "aaaa or bbbb"),
        (OneOf(frozenset()), [], [A, b"", 0, None], "nothing, since the list is empty"),
        (OneOf(frozenset(range(6))), [0, 5], [6, -1], "0 or 1 or 2 or 3 or one of 2 more"),
        (OneOf(frozenset(range(5))), [4], [5], "0 or 1 or 2 or 3 or one of 1 more"),
        (OneOf(frozenset(range(4))), [3], [4], "0 or 1 or 2 or 3"),
        (NoneBut(frozenset({"x", "y"})), [set(), {"x"}, {"x", "y"}], [{"z"}, {"x", "z"}], "none but x, y"),
        (NoneBut(frozenset()), [frozenset()], [{"x"}], "none"),
        (AtLeast(5), [5, 6], [4, 0], "at least 5"),
        (NotOlderThan(timedelta(seconds=5)), [timedelta(seconds=5), timedelta(-1)], [timedelta(seconds=6)], "0:00:05"),
        (Within(0b101), [0, 0b100, 0b101], [0b10, 0b111], "no flags outside 0x5"),
        (Permitted(False), [False], [True], "False"),
        (Permitted(True), [False, True], [], "either"),
        (Required(True), [True], [False], "True"),
        (Required(False), [False, True], [], "either"),
        (
            NoComponentBelow({"snp": 3, "fmc": 0}),
            [{"snp": 3, "fmc": 0}, {"snp": 4, "fmc": 9, "x": 0}],
            [{"snp": 2, "fmc": 0}, {"snp": 3, "fmc": None}, {"snp": 3}],
            "at least snp=3, fmc=0",
        ),
        (
            Registers({0: OneOf(frozenset({A})), 2: Anything()}, others=False),
            [{0: A, 2: B}, {0: A, 1: ZERO, 2: ZERO}],
            [{0: B, 2: B}, {0: A}, {2: B}, {0: A, 1: B, 2: B}, {}],
            "0=aaaa; 2=anything; others=zero",
        ),
        (Registers({0: Anything()}, others=True), [{0: A, 7: B}], [{7: B}], "0=anything; others=any"),
        (
            Registers({0: NoneBut(frozenset({A}))}, others=True),
            [{0: frozenset({A})}, {0: frozenset(), 1: frozenset({B})}],
            [{0: frozenset({A, B})}, {}],
            "0=none but aaaa; others=any",
        ),
        (Unresolved("them"), [], [A, b"", None], "the signed reference values 'them', which were not given"),
    ],
)
def test_a_constraint_accepts_and_refuses_at_its_bounds(
    constraint: Constraint, accepted: list[Any], refused: list[Any], wanted: str
) -> None:
    assert [got for got in accepted if not constraint.accepts(got)] == []
    assert [got for got in refused if constraint.accepts(got)] == []
    assert wanted in constraint.wanted()


@pytest.mark.parametrize(
    ("constraint", "got", "refusal"),
    [
        (OneOf(frozenset({A})), B, ("bbbb", "aaaa")),
        (NoneBut(frozenset({"x"})), {"x", "z", "y"}, ("y, z", "none but x")),
        (
            Registers({0: OneOf(frozenset({A})), 1: Anything(), 2: Anything()}, others=False),
            {0: B, 1: A, 7: A},
            ("0=bbbb; 2=missing; 7=aaaa", "0=aaaa; 2=anything; 7=zero"),
        ),
    ],
)
def test_a_refusal_shows_only_what_is_wrong(constraint: Constraint, got: Any, refusal: tuple[str, str]) -> None:
    assert constraint.refusal(got) == refusal


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"", "empty"),
        (b"\x01\xff", "01ff"),
        (frozenset({"b", "a"}), "a, b"),
        (frozenset(), "none"),
        ((), "none"),
        ({"a": b"\x01"}, "a=01"),
        ({}, "none"),
        (7, "7"),
        (None, "None"),
        ("\x1b[2J\n\ud800", "'\\x1b[2J\\n\\ud800'"),
    ],
)
def test_values_are_shown_as_a_reader_expects(value: object, text: str) -> None:
    assert shown(value) == text
