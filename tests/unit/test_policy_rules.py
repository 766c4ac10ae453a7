"""Every key of every TEE's rules decides: on verified evidence, the tightest rule accepts, and each key can refuse."""

from __future__ import annotations

import functools
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from rule_values import EVERYTHING, changed, choices, fitting_table, policy_of

from adyton.errors import ConfigurationError, EvidenceError, Finding, PolicyError
from adyton.policy.appraisal import Appraisal, appraise, evaluate
from adyton.policy.insecurity import Insecurity
from adyton.policy.rules import SCHEMAS
from adyton.tee.evidence import VerifiedEvidence
from adyton.tee.registry import TEES, tee
from adyton.testing.forgery import NOW
from adyton.testing.samples import genuine

LABELS = sorted(TEES)


@functools.cache
def verified(label: str) -> VerifiedEvidence:
    return genuine(label).verify_with(tee(label).verifier())


def table(label: str) -> dict[str, Any]:
    return fitting_table(SCHEMAS[label], verified(label), NOW)


def decide(label: str, *tables: dict[str, Any], allow: frozenset[Insecurity] = EVERYTHING) -> Appraisal:
    return appraise(verified(label), policy_of(label, *tables), now=NOW, report_data=None, allow=allow)


def refused(label: str, *tables: dict[str, Any], allow: frozenset[Insecurity] = EVERYTHING) -> tuple[Finding, ...]:
    with pytest.raises(PolicyError) as caught:
        decide(label, *tables, allow=allow)
    return caught.value.findings


@pytest.mark.parametrize("label", LABELS)
def test_the_tightest_rule_accepts_and_is_named(label: str) -> None:
    appraisal = decide(label, table(label))
    assert (appraisal.rule, appraisal.tee) == ("rule 0", label)
    assert appraisal.measurement == verified(label).measurement


@pytest.mark.parametrize("label", LABELS)
def test_each_key_alone_can_refuse_and_names_itself(label: str) -> None:
    tight = table(label)
    for path, choice in choices(SCHEMAS[label], verified(label), NOW).items():
        for value in choice.refusing:
            found = refused(label, changed(tight, path, value))
            assert [finding.subject for finding in found] == [".".join(path)], (path, value)
            assert all((found[0].got, found[0].wanted, found[0].mend))


@pytest.mark.parametrize("label", LABELS)
def test_each_key_alone_can_be_looser(label: str) -> None:
    tight = table(label)
    for path, choice in choices(SCHEMAS[label], verified(label), NOW).items():
        for value in choice.looser:
            assert decide(label, changed(tight, path, value)).rule == "rule 0", (path, value)


@pytest.mark.parametrize("label", LABELS)
def test_each_key_without_a_default_must_be_there(label: str) -> None:
    tight = table(label)
    for field in SCHEMAS[label].fields:
        without = {key: value for key, value in tight.items() if key != field.key}
        if field.default is None:
            with pytest.raises(ConfigurationError, match=f"lacks {field.key}"):
                policy_of(label, without)
        else:
            policy_of(label, without)


def test_what_is_left_out_is_held_to_the_default_that_refuses_most() -> None:
    # Of keys with a default: looser values exist for each, or the default already accepts nothing.
    for label, schema in SCHEMAS.items():
        for field in schema.fields:
            if field.default is not None:
                assert field.read(field.default, label).wanted() != "anything", (label, field.key)


def test_time_makes_evidence_old() -> None:
    for label in ("nitro", "simulated"):
        tight = changed(table(label), ("max_age_seconds",), 60)
        later = NOW + timedelta(seconds=61)
        with pytest.raises(PolicyError) as caught:
            appraise(verified(label), policy_of(label, tight), now=later, report_data=None, allow=EVERYTHING)
        assert [finding.subject for finding in caught.value.findings] == ["max_age_seconds"]


@pytest.mark.parametrize("label", LABELS)
def test_an_insecurity_needs_both_words(label: str) -> None:
    used = decide(label, table(label)).insecurities
    if not used:
        assert decide(label, table(label), allow=frozenset()).insecurities == ()
        return
    found = refused(label, table(label), allow=frozenset())
    assert [finding.got for finding in found] == sorted(used)


@pytest.mark.parametrize("label", LABELS)
def test_evidence_is_verified_under_the_policys_anchors_and_then_appraised(label: str) -> None:
    case = genuine(label)
    policy = policy_of(label, fitting_table(SCHEMAS[label], case.verify_with(tee(label).verifier()), NOW))
    policy = replace(policy, anchors={label: case.anchors})
    appraisal = evaluate(case.evidence, policy, now=case.now, report_data=None, allow=EVERYTHING)
    assert (appraisal.tee, appraisal.rule) == (label, "rule 0")
    with pytest.raises(EvidenceError):
        evaluate(case.evidence, replace(policy, anchors={label: frozenset({bytes(32)})}), now=NOW, report_data=None)


@pytest.mark.parametrize(
    ("label", "key", "flag", "value", "name"),
    [
        ("sgx", "attributes", 0x2, 0x87, Insecurity.DEBUG),
        ("tdx", "td_attributes", 1, "any", Insecurity.DEBUG),
        ("tdx", "td_attributes", 1 << 29, "any", Insecurity.MIGRATABLE),
    ],
)
def test_a_flag_that_the_rule_allows_needs_the_callers_word_too(
    label: str, key: str, flag: int, value: Any, name: Insecurity
) -> None:
    weak: Any = verified(label)
    weak = replace(weak, **{key: getattr(weak, key) | flag})
    loose = policy_of(label, changed(table(label), (key,), value))
    with pytest.raises(PolicyError) as caught:
        appraise(weak, loose, now=NOW, report_data=None)
    assert [finding.got for finding in caught.value.findings] == [name]
    assert appraise(weak, loose, now=NOW, report_data=None, allow={name}).insecurities == (name,)


def test_a_rule_for_other_hardware_underneath_says_so_and_nothing_else() -> None:
    other = table("azure")
    other["tdx"] = table("tdx")
    del other["snp"]
    (finding,) = refused("azure", other)
    assert (finding.subject, finding.got, finding.wanted) == ("hardware", "snp", "tdx")
