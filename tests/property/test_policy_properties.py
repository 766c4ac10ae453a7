"""A stricter policy never accepts more, every acceptance names its rule, and no file raises what is not documented."""

from __future__ import annotations

import functools
import json
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rule_values import EVERYTHING, changed, choices, fitting_table, policy_of

from adyton.errors import ConfigurationError, PolicyError
from adyton.policy.appraisal import Appraisal, appraise
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
)
from adyton.policy.document import Policy
from adyton.policy.insecurity import Insecurity
from adyton.policy.reference_values import policy_for
from adyton.policy.rules import SCHEMAS
from adyton.policy.signed import substitute
from adyton.tee.evidence import VerifiedEvidence
from adyton.tee.registry import TEES, tee
from adyton.testing.forgery import NOW
from adyton.testing.samples import genuine

numbers = st.integers(0, 8)
flags = st.booleans()
values = st.sampled_from([bytes(1), b"\x01", b"\x02", b"\x03"])
words = st.sets(st.sampled_from("abcd"))
component = st.sampled_from(["fmc", "snp", "microcode"])


@st.composite
def one_ofs(draw: st.DrawFn) -> tuple[Constraint, Constraint]:
    listed = draw(st.frozensets(values))
    return OneOf(draw(st.frozensets(st.sampled_from(sorted(listed)))) if listed else listed), OneOf(listed)


@st.composite
def none_buts(draw: st.DrawFn) -> tuple[Constraint, Constraint]:
    listed = frozenset(draw(words))
    return NoneBut(listed & frozenset(draw(words))), NoneBut(listed)


@st.composite
def floors(draw: st.DrawFn) -> tuple[Constraint, Constraint]:
    base = draw(st.dictionaries(component, numbers))
    raised = {name: floor + draw(numbers) for name, floor in base.items()}
    return NoComponentBelow({**draw(st.dictionaries(component, numbers)), **raised}), NoComponentBelow(base)


@st.composite
def registers(draw: st.DrawFn) -> tuple[Constraint, Constraint]:
    pairs = draw(st.dictionaries(st.integers(0, 3), one_ofs() | one_ofs().map(lambda pair: (pair[0], Anything()))))
    others = draw(flags)
    strict = Registers({index: pair[0] for index, pair in pairs.items()}, others and draw(flags))
    return strict, Registers({index: pair[1] for index, pair in pairs.items()}, others)


pairs_and_facts = st.one_of(
    st.tuples(one_ofs(), values),
    st.tuples(none_buts(), words),
    st.tuples(st.tuples(numbers, numbers).map(lambda n: (AtLeast(n[0] + n[1]), AtLeast(n[0]))), numbers),
    st.tuples(
        st.tuples(numbers, numbers).map(
            lambda n: (NotOlderThan(timedelta(n[0])), NotOlderThan(timedelta(n[0] + n[1])))
        ),
        numbers.map(timedelta),
    ),
    st.tuples(st.tuples(numbers, numbers).map(lambda n: (Within(n[0] & n[1]), Within(n[0]))), numbers),
    st.tuples(st.tuples(flags, flags).map(lambda b: (Permitted(b[0] and b[1]), Permitted(b[0]))), flags),
    st.tuples(st.tuples(flags, flags).map(lambda b: (Required(b[0] or b[1]), Required(b[0]))), flags),
    st.tuples(floors(), st.dictionaries(component, numbers | st.none())),
    st.tuples(registers(), st.dictionaries(st.integers(0, 4), values)),
)


@settings(max_examples=2000)
@given(pairs_and_facts)
def test_a_stricter_constraint_accepts_no_more(drawn: tuple[tuple[Constraint, Constraint], Any]) -> None:
    (strict, base), got = drawn
    assert base.accepts(got) or not strict.accepts(got)
    assert Anything().accepts(got)
    assert not Unresolved("x").accepts(got)


@given(pairs_and_facts)
def test_a_refusal_says_what_was_got_and_wanted(drawn: tuple[tuple[Constraint, Constraint], Any]) -> None:
    (constraint, _), got = drawn
    if not constraint.accepts(got):
        assert all(constraint.refusal(got))


@functools.cache
def verified(label: str) -> VerifiedEvidence:
    return genuine(label).verify_with(tee(label).verifier())


@functools.cache
def choices_of(label: str) -> Any:
    return choices(SCHEMAS[label], verified(label), NOW)


def tables(label: str) -> st.SearchStrategy[dict[str, Any]]:
    """Rules of which a few keys are not the tightest."""

    def edited(edits: list[tuple[tuple[str, ...], Any]]) -> dict[str, Any]:
        table = fitting_table(SCHEMAS[label], verified(label), NOW)
        for path, value in edits:
            table = changed(table, path, value)
        return table

    every = [(path, value) for path, each in choices_of(label).items() for value in (*each.refusing, *each.looser)]
    return st.lists(st.sampled_from(every), max_size=3).map(edited)


def decide(label: str, policy: Policy, allow: frozenset[Insecurity], *, hook: bool = False) -> Appraisal | None:
    refuse = (lambda _: ["no"]) if hook else None
    with suppress(PolicyError):
        return appraise(verified(label), policy, now=NOW, report_data=None, allow=allow, refuse=refuse)
    return None


labels = st.sampled_from(sorted(TEES))


@settings(max_examples=300, deadline=None)
@given(st.data(), labels)
def test_a_policy_with_fewer_rules_or_stricter_keys_accepts_no_more(data: st.DataObject, label: str) -> None:
    base = data.draw(st.lists(tables(label), max_size=3))
    kept = [table for table in base if data.draw(flags)]
    path, choice = data.draw(st.sampled_from(sorted(choices_of(label).items())))
    for value in choice.refusing:
        strict = policy_of(label, *(changed(table, path, value) for table in kept))
        assert decide(label, strict, EVERYTHING) is None
    fewer = decide(label, policy_of(label, *kept), EVERYTHING)
    assert fewer is None or decide(label, policy_of(label, *base), EVERYTHING) is not None


@settings(max_examples=300, deadline=None)
@given(st.data(), labels, st.frozensets(st.sampled_from(Insecurity)))
def test_a_caller_who_agrees_to_less_accepts_no_more(
    data: st.DataObject, label: str, allow: frozenset[Insecurity]
) -> None:
    policy = policy_of(label, *data.draw(st.lists(tables(label), max_size=2)))
    appraisal = decide(label, policy, allow)
    if appraisal is not None:
        assert decide(label, policy, EVERYTHING) is not None
        assert set(appraisal.insecurities) <= allow
    assert decide(label, policy, EVERYTHING, hook=True) is None


@settings(max_examples=300, deadline=None)
@given(st.data(), labels)
def test_every_acceptance_names_a_rule_that_accepts_alone(data: st.DataObject, label: str) -> None:
    rules = data.draw(st.lists(tables(label), max_size=3))
    appraisal = decide(label, policy_of(label, *rules), EVERYTHING)
    alone = [decide(label, policy_of(label, table), EVERYTHING) for table in rules]
    if appraisal is None:
        assert alone == [None] * len(rules)
    else:
        first = int(appraisal.rule.removeprefix("rule "))
        assert alone[first] is not None
        assert alone[:first] == [None] * first


# --- hostile files


scalars = st.none() | flags | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["any", "ab" * 32])
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
keys = st.sampled_from(
    sorted({"version", "anchors", "reference_values", *SCHEMAS} | {f.key for s in SCHEMAS.values() for f in s.fields})
)


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return "false" if value is None else json.dumps(value)


def _parse(content: bytes) -> None:
    with suppress(ConfigurationError):
        Policy.parse(content)


@given(st.binary(max_size=300) | st.binary(max_size=300).map(b"version = 1\n".__add__))
def test_bytes_are_a_policy_or_a_configuration_error(content: bytes) -> None:
    _parse(content)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(keys, json_values | st.lists(st.dictionaries(keys, json_values, max_size=6), max_size=2)))
def test_tables_of_any_content_are_a_policy_or_a_configuration_error(document: dict[str, Any]) -> None:
    lines = [f"{key} = {toml(value)}" for key, value in document.items() if key != "version"]
    _parse("\n".join(("version = 1", *lines)).encode())


@settings(max_examples=300, deadline=None)
@given(st.data(), labels, json_values)
def test_a_rule_with_any_value_in_one_place_is_a_policy_or_a_configuration_error(
    data: st.DataObject, label: str, value: Any
) -> None:
    path = data.draw(st.sampled_from(sorted(choices_of(label))))
    table = changed(fitting_table(SCHEMAS[label], verified(label), NOW), path, value)
    lines = [f"{key} = {toml(inner)}" for key, inner in table.items()]
    _parse("\n".join(("version = 1", f"[[{label}]]", 'name = "n"', *lines)).encode())


def _policy_for(measurements: bytes) -> None:
    with suppress(ConfigurationError):
        policy_for(measurements, {})


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_measurements_are_a_policy_or_a_configuration_error(measurements: bytes) -> None:
    _policy_for(measurements)


@given(st.dictionaries(st.sampled_from([*SCHEMAS, "abacus"]), json_values, max_size=3))
def test_reference_values_of_any_content_are_a_policy_or_a_configuration_error(content: dict[str, Any]) -> None:
    document = {"version": 1, "name": "n", "bundle_sha256": "ab" * 32, "reference_values": content}
    _policy_for(json.dumps(document).encode())


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_a_signed_document_of_any_content_is_a_policy_error(document: bytes) -> None:
    source = f'[[reference_values]]\nname = "n"\nkeys = ["{"ab" * 32}"]\nthreshold = 1\nmin_version = 0\n'
    with pytest.raises(PolicyError):
        Policy.parse(f"version = 1\n{source}".encode(), reference_values=[document], now=NOW)


@given(json_values, json_values)
def test_substitution_takes_any_document_and_any_rule(value: Any, document: Any) -> None:
    substitute(value, {"n": document}, ("snp",))
    assert substitute({"k": {"signed": "n"}}, {"n": {"snp": {"k": 7}}}, ("snp",)) == {"k": 7}
