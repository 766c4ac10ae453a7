"""Evidence and a policy: one record that names the rule, or every finding; what caller and policy must both allow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from adyton.errors import EvidenceError, ExitCode, Finding, PolicyError, StatusCode, UnsupportedError
from adyton.policy.appraisal import Appraisal, appraise, evaluate
from adyton.policy.document import Policy
from adyton.policy.insecurity import Insecurity
from adyton.tee.evidence import Evidence, VerifiedEvidence
from adyton.tee.simulated.verify import VerifiedSimulated
from adyton.tee.steps import Trace

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
SIMULATED = frozenset({Insecurity.SIMULATED})
MEASUREMENT = b"\xab" * 48
REPORT_DATA = bytes(range(64))
VERIFIED = VerifiedSimulated(
    measurement=MEASUREMENT,
    report_data=REPORT_DATA,
    issued_at=NOW - timedelta(seconds=10),
    evidence_sha256=b"\x01" * 32,
    anchor_sha256=b"\x02" * 32,
)


def rule(name: str = "laptop", measurement: str = f'["{MEASUREMENT.hex()}"]', seconds: int = 10) -> str:
    return f'[[simulated]]\nname = "{name}"\nmeasurement = {measurement}\nmax_age_seconds = {seconds}\n'


def policy(*rules: str) -> Policy:
    return Policy.parse("\n".join(("version = 1", *rules)).encode())


def accept(*rules: str, verified: VerifiedEvidence = VERIFIED) -> Appraisal:
    return appraise(verified, policy(*rules), now=NOW, report_data=REPORT_DATA, allow=SIMULATED)


def findings(*rules: str, **arguments: object) -> tuple[Finding, ...]:
    given = {"now": NOW, "report_data": REPORT_DATA, "allow": SIMULATED} | arguments
    with pytest.raises(PolicyError) as caught:
        appraise(VERIFIED, policy(*rules), **given)  # type: ignore[arg-type]
    assert caught.value.findings
    return caught.value.findings


def test_what_is_accepted_is_recorded_with_the_rule_that_did() -> None:
    appraisal = accept(rule())
    assert appraisal == Appraisal(
        policy_sha256=policy(rule()).sha256,
        rule="laptop",
        evidence_sha256=b"\x01" * 32,
        anchor_sha256=b"\x02" * 32,
        tee="simulated",
        measurement=MEASUREMENT,
        tcb="simulation: protects nothing",
        platform="",
        insecurities=(Insecurity.SIMULATED,),
        report_data_compared=True,
        time=NOW,
    )
    with pytest.raises(FrozenInstanceError):
        appraisal.rule = "another"  # type: ignore[misc]


def test_the_record_is_plain_json() -> None:
    record = accept(rule()).record()
    assert record == {
        "policy_sha256": policy(rule()).sha256.hex(),
        "rule": "laptop",
        "evidence_sha256": "01" * 32,
        "anchor_sha256": "02" * 32,
        "tee": "simulated",
        "measurement": MEASUREMENT.hex(),
        "tcb": "simulation: protects nothing",
        "platform": "",
        "insecurities": ["simulated"],
        "report_data_compared": True,
        "time": "2026-11-23T12:00:00+00:00",
    }


def test_a_refusal_has_every_finding_of_every_rule() -> None:
    found = findings(rule("one", '["' + "cd" * 48 + '"]', 9), rule("two", "[]"))
    assert [(finding.rule, finding.subject) for finding in found] == [
        ("one", "measurement"),
        ("one", "max_age_seconds"),
        ("two", "measurement"),
    ]
    assert str(found[0]) == (
        f"rule 'one': measurement is {'ab' * 48}, wanted is {'cd' * 48} "
        "(add the measurement if this is a bundle that you built)"
    )
    assert (found[1].got, found[1].wanted) == ("0:00:10", "at most 0:00:09")
    assert found[2].wanted == "nothing, since the list is empty"


def test_the_error_is_of_its_own_kind_and_prints_a_line_a_finding() -> None:
    with pytest.raises(PolicyError) as caught:
        appraise(VERIFIED, policy(rule(measurement="[]")), now=NOW, report_data=None, allow=SIMULATED)
    assert (caught.value.status, caught.value.exit_code) == (StatusCode.PERMISSION_DENIED, ExitCode.POLICY_REFUSED)
    assert str(caught.value).splitlines()[0] == "the policy accepts no such evidence of simulated"
    assert len(str(caught.value).splitlines()) == 2


def test_the_first_rule_that_accepts_is_the_one_that_is_named() -> None:
    assert accept(rule("no", "[]"), rule("yes"), rule("too", '"any"')).rule == "yes"


def test_an_empty_policy_refuses() -> None:
    (finding,) = findings()
    assert (finding.subject, finding.got, finding.wanted) == ("tee", "simulated", "no TEE at all")


def test_a_tee_without_a_rule_is_refused() -> None:
    snp = '[[snp]]\nname = "s"\nmeasurement = "any"\nproducts = ["Genoa"]\nmin_tcb = "any"\nplatforms = "any"\n'
    (finding,) = findings(snp)
    assert (finding.subject, finding.got, finding.wanted) == ("tee", "simulated", "snp")


def test_what_is_insecure_needs_the_callers_word_too() -> None:
    (finding,) = findings(rule(), allow=())
    assert (finding.rule, finding.subject, finding.got) == ("laptop", "insecurity", "simulated")
    assert "--allow-insecure simulated" in finding.mend
    (finding,) = findings(rule(), allow=set(Insecurity) - SIMULATED)
    assert finding.got == "simulated"


def test_another_report_data_is_refused_whatever_the_rules_say() -> None:
    for wrong in (bytes(64), REPORT_DATA[:-1], REPORT_DATA + b"\0", b""):
        (finding,) = findings(rule(), report_data=wrong)
        assert (finding.rule, finding.subject, finding.got) == ("", "report_data", REPORT_DATA.hex())
        assert finding.wanted == (wrong.hex() or "something to compare with")


def test_nothing_to_compare_with_is_not_the_same_as_evidence_over_nothing() -> None:
    empty = replace(VERIFIED, report_data=b"")
    with pytest.raises(PolicyError) as caught:
        appraise(empty, policy(rule()), now=NOW, report_data=b"", allow=SIMULATED)
    assert caught.value.findings[0].got == "empty"


def test_that_nothing_was_compared_is_on_record() -> None:
    appraisal = appraise(VERIFIED, policy(rule()), now=NOW, report_data=None, allow=SIMULATED)
    assert appraisal.report_data_compared is False


def test_age_is_counted_in_any_time_zone_and_to_the_microsecond() -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=9)))
    assert appraise(VERIFIED, policy(rule()), now=elsewhere, report_data=None, allow=SIMULATED).rule == "laptop"
    (finding,) = findings(rule(), now=elsewhere + timedelta(microseconds=1))
    assert finding.subject == "max_age_seconds"


def test_a_time_without_zone_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="now must have a time zone"):
        appraise(VERIFIED, policy(rule()), now=NOW.replace(tzinfo=None), report_data=None, allow=SIMULATED)


# --- the caller's hook


def test_a_hook_adds_refusals() -> None:
    found = findings(rule(), refuse=lambda verified: [f"{verified.tee} on a Monday", "and in November"])
    assert [(finding.subject, finding.got) for finding in found] == [
        ("refuse", "simulated on a Monday"),
        ("refuse", "and in November"),
    ]


def test_a_hook_that_has_nothing_to_say_changes_nothing() -> None:
    assert appraise(VERIFIED, policy(rule()), now=NOW, report_data=None, allow=SIMULATED, refuse=lambda _: ()).rule


def test_a_hook_can_not_accept() -> None:
    (finding,) = findings(rule(measurement="[]"), refuse=lambda _: ())
    assert finding.subject == "measurement"


def _fails_late(_: VerifiedEvidence) -> Iterator[str]:
    yield "one thing"
    raise KeyError("another")


@pytest.mark.parametrize(
    ("hook", "said"), [(_fails_late, "it raised KeyError"), (lambda _: None, "it raised TypeError")]
)
def test_a_hook_that_fails_refuses(hook: object, said: str) -> None:
    (finding,) = findings(rule(), refuse=hook)
    assert finding.got == said


def test_a_hook_that_changes_the_evidence_changes_nothing_that_was_decided() -> None:
    def improve(verified: VerifiedEvidence) -> list[str]:
        object.__setattr__(verified, "measurement", MEASUREMENT)
        return []

    other = replace(VERIFIED, measurement=bytes(48))
    with pytest.raises(PolicyError, match="measurement is 0000"):
        appraise(other, policy(rule()), now=NOW, report_data=None, allow=SIMULATED, refuse=improve)


@pytest.mark.parametrize("said", ["no", ""])
def test_a_hook_that_answers_with_one_text_has_one_objection(said: str) -> None:
    (finding,) = findings(rule(), refuse=lambda _: said)
    assert finding.got == said


def test_what_a_hook_says_is_printable_and_bounded() -> None:
    found = findings(rule(), refuse=lambda _: ["\x1b[2J" + "x" * 1000] * 1000)
    assert len(found) == 100
    assert found[0].got.isprintable()
    assert len(found[0].got) < 600


def test_a_policy_whose_signed_values_have_expired_refuses() -> None:
    ended = replace(policy(rule()), expires=NOW - timedelta(microseconds=1))
    with pytest.raises(PolicyError, match="have expired") as caught:
        appraise(VERIFIED, ended, now=NOW, report_data=None, allow=SIMULATED)
    assert caught.value.findings[0].subject == "reference_values"
    last = replace(ended, expires=NOW)
    assert appraise(VERIFIED, last, now=NOW, report_data=None, allow=SIMULATED).rule == "laptop"


# --- evaluate


def test_a_label_that_nobody_knows_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="no verifier for evidence of 'abacus'"):
        evaluate(Evidence(tee="abacus", data=b""), policy(rule()), now=NOW, report_data=None)


def test_evidence_of_a_tee_without_a_rule_is_not_even_looked_at() -> None:
    trace = Trace()
    with pytest.raises(PolicyError, match="no rule for nitro"):
        evaluate(Evidence(tee="nitro", data=b"\xff"), policy(rule()), now=NOW, report_data=None, trace=trace)
    assert trace.begun == []


def test_evidence_that_is_not_genuine_is_not_appraised() -> None:
    anchored = policy(f'[anchors]\nsimulated = ["{"00" * 32}"]', rule())
    trace = Trace()
    with pytest.raises(EvidenceError, match="inside its header"):
        evaluate(Evidence(tee="simulated", data=b""), anchored, now=NOW, report_data=None, trace=trace)
    assert len(trace.begun) == 1


def test_without_anchors_nothing_is_genuine() -> None:
    with pytest.raises(EvidenceError, match="no anchors are trusted"):
        evaluate(Evidence(tee="simulated", data=b""), policy(rule()), now=NOW, report_data=None)
