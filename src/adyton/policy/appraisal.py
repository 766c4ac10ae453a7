"""Evidence and a policy → an appraisal: one record of what was accepted and by which rule, or a refusal that says all.

    appraisal = evaluate(evidence, policy, now=now, report_data=expected)

`evaluate` verifies and appraises; `appraise` is for evidence that is verified already.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from adyton.errors import Finding, PolicyError
from adyton.policy.constraints import shown
from adyton.policy.document import Policy
from adyton.policy.insecurity import Insecurity
from adyton.policy.rule import Rule
from adyton.tee.evidence import Evidence, VerifiedEvidence
from adyton.tee.registry import tee
from adyton.tee.steps import Trace

Hook = Callable[[VerifiedEvidence], Iterable[str]]
"""The caller's own look at verified evidence: yields what it has against it. It can only add refusals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Appraisal:
    """That evidence was accepted: by which policy and rule, what it is of, and when.

    `insecurities` are those which the rule permits and the caller agreed to; an ordinary appraisal has none.
    `report_data_compared` is false where the caller gave nothing to compare it with: then the evidence may be old, and
    made for somebody else.
    """

    policy_sha256: bytes
    rule: str
    evidence_sha256: bytes
    anchor_sha256: bytes
    tee: str
    measurement: bytes
    tcb: str
    platform: str
    insecurities: tuple[Insecurity, ...]
    report_data_compared: bool
    time: datetime

    def record(self) -> dict[str, Any]:
        """The same for JSON: bytes in hexadecimal, the time in ISO 8601."""
        return {
            "policy_sha256": self.policy_sha256.hex(),
            "rule": self.rule,
            "evidence_sha256": self.evidence_sha256.hex(),
            "anchor_sha256": self.anchor_sha256.hex(),
            "tee": self.tee,
            "measurement": self.measurement.hex(),
            "tcb": self.tcb,
            "platform": self.platform,
            "insecurities": [str(insecurity) for insecurity in self.insecurities],
            "report_data_compared": self.report_data_compared,
            "time": self.time.isoformat(),
        }


def evaluate(
    evidence: Evidence,
    policy: Policy,
    *,
    now: datetime,
    report_data: bytes | None,
    allow: Collection[Insecurity] = (),
    refuse: Hook | None = None,
    trace: Trace | None = None,
) -> Appraisal:
    """Verify the evidence under the policy's anchors, then `appraise` it.

    `UnsupportedError`: no such TEE. `EvidenceError`: not genuine. `PolicyError`: not acceptable; a TEE for which the
    policy has no rule is refused before any of its evidence is looked at.
    """
    verifier = tee(evidence.tee).verifier
    _rules(policy, evidence.tee)
    verified = verifier()(evidence, anchors=policy.anchors_for(evidence.tee), now=now, trace=trace)
    return appraise(verified, policy, now=now, report_data=report_data, allow=allow, refuse=refuse)


def appraise(
    verified: VerifiedEvidence,
    policy: Policy,
    *,
    now: datetime,
    report_data: bytes | None,
    allow: Collection[Insecurity] = (),
    refuse: Hook | None = None,
) -> Appraisal:
    """The record of the first rule that accepts the evidence, or a `PolicyError` with every finding of every rule.

    `report_data` is what the caller made sure of in another way, and must be in the evidence; None compares nothing.
    `allow` are the insecurities that the caller agrees to, if the rule permits them too. A `now` without time zone is a
    `ValueError`.
    """
    if now.utcoffset() is None:
        raise ValueError("now must have a time zone")
    _check_current(policy, now)
    findings: list[Finding] = []
    accepted: Appraisal | None = None
    for rule in _rules(policy, verified.tee):
        verdict = rule.appraise(verified, now)
        against = (*verdict.findings, *_not_agreed(rule, verdict.insecurities, allow))
        findings.extend(against)
        if not against:
            accepted = _record(verified, policy, rule, verdict.insecurities, report_data is not None, now)
            findings.clear()
            break
    findings = [*_binding_findings(verified, report_data), *findings]
    findings.extend(_hook_findings(verified, refuse))  # last, when nothing that it does can change what was decided
    if accepted is None or findings:
        raise PolicyError(f"the policy accepts no such evidence of {verified.tee}", findings=tuple(findings))
    return accepted


def _check_current(policy: Policy, now: datetime) -> None:
    if policy.expires is not None and now > policy.expires:
        finding = Finding(
            rule="",
            subject="reference_values",
            got=f"expired on {policy.expires}",
            wanted=f"valid at {now}",
            mend="read the policy again, with newer signed reference values",
        )
        raise PolicyError("the signed reference values of the policy have expired", findings=(finding,))


def _rules(policy: Policy, label: str) -> tuple[Rule, ...]:
    rules = policy.rules_for(label)
    if not rules:
        known = ", ".join(sorted({rule.schema.tee for rule in policy.rules})) or "no TEE at all"
        mend = "write a rule for it, if you trust that technology"
        finding = Finding(rule="", subject="tee", got=label, wanted=known, mend=mend)
        raise PolicyError(f"the policy has no rule for {label}", findings=(finding,))
    return rules


def _binding_findings(verified: VerifiedEvidence, report_data: bytes | None) -> Iterable[Finding]:
    if report_data is not None and (not report_data or not hmac.compare_digest(report_data, verified.report_data)):
        yield Finding(
            rule="",
            subject="report_data",
            got=verified.report_data.hex() or "empty",
            wanted=report_data.hex() or "something to compare with",
            mend="the evidence was made for another question, or for another connection",
        )


def _hook_findings(verified: VerifiedEvidence, refuse: Hook | None) -> Iterable[Finding]:
    if refuse is None:
        return ()
    try:
        reasons = refuse(verified)
        said = [shown(str(reason)[:500]) for reason in ([reasons] if isinstance(reasons, str) else reasons)][:100]
    except Exception as error:  # noqa: BLE001  whatever it raises is no consent
        said = [f"it raised {type(error).__name__}"]
    mend = "this check was added by whoever appraises the evidence"
    return [Finding(rule="", subject="refuse", got=reason, wanted="no objection", mend=mend) for reason in said]


def _not_agreed(rule: Rule, used: Collection[Insecurity], allow: Collection[Insecurity]) -> Iterable[Finding]:
    for insecurity in sorted(set(used) - set(allow)):
        mend = f"the rule permits it, and the caller must too: --allow-insecure {insecurity}"
        yield Finding(rule=rule.name, subject="insecurity", got=insecurity, wanted="none", mend=mend)


def _record(
    verified: VerifiedEvidence,
    policy: Policy,
    rule: Rule,
    insecurities: Collection[Insecurity],
    compared: bool,
    now: datetime,
) -> Appraisal:
    return Appraisal(
        policy_sha256=policy.sha256,
        rule=rule.name,
        evidence_sha256=verified.evidence_sha256,
        anchor_sha256=verified.anchor_sha256,
        tee=verified.tee,
        measurement=verified.measurement,
        tcb=verified.tcb,
        platform=verified.platform,
        insecurities=tuple(sorted(insecurities)),
        report_data_compared=compared,
        time=now,
    )
