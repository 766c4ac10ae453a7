"""`adyton explain`: a verification step by step, then every key of every rule, then the verdict.

It asks the same verifier and the same policy as `adyton verify`, and decides nothing by itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from adyton.cli.main import say
from adyton.cli.question import Question, add_question, read_question
from adyton.cli.tree import print_line
from adyton.cli.verdict import as_text, print_json, refusal, warn
from adyton.errors import EvidenceError, Finding, PolicyError
from adyton.tee.registry import tee
from adyton.tee.steps import Trace

if TYPE_CHECKING:
    from datetime import datetime

    from adyton.policy.insecurity import Insecurity
    from adyton.policy.rule import Rule
    from adyton.tee.evidence import VerifiedEvidence

Explained = dict[str, Any]
"""What is printed, as JSON has it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    add_question(parser, policy_required=False)


def run(arguments: argparse.Namespace) -> int:
    """Print the explanation on standard output, and exit as `adyton verify` does; without a policy with 0 or 3."""
    try:
        explained, problem = _explain(read_question(arguments))
    except (EvidenceError, PolicyError) as unreadable:
        explained, problem = {"verdict": refusal(unreadable)}, unreadable
    if arguments.json:
        print_json(explained)
    else:
        for line in _lines(explained):
            print_line(line)
    return 0 if problem is None else int(type(problem).exit_code)


def _explain(asked: Question) -> tuple[Explained, EvidenceError | PolicyError | None]:
    trace = Trace()
    seen: list[VerifiedEvidence] = []
    problem: EvidenceError | PolicyError | None = None
    try:
        verdict = _judge(asked, trace, seen)
    except (EvidenceError, PolicyError) as refused:
        problem, verdict = refused, refusal(refused)
    explained: Explained = {"tee": asked.evidence.tee, "steps": _steps(asked.evidence.tee, trace, genuine=bool(seen))}
    if asked.policy is not None:
        rules = asked.policy.rules_for(asked.evidence.tee)
        explained["rules"] = [_look(rule, each, asked.now, asked.allow) for each in seen for rule in rules]
    return explained | {"verdict": verdict}, problem


def _judge(asked: Question, trace: Trace, seen: list[VerifiedEvidence]) -> Explained:
    """The record, or without a policy that the evidence is genuine. What was verified is put into `seen`."""
    from adyton.policy.appraisal import evaluate

    if asked.policy is None:
        known = tee(asked.evidence.tee)
        if not known.anchors():
            say(f"{known.label} has no vendor's root: a policy names the anchors, --policy FILE")
        verified = known.verifier()(asked.evidence, anchors=known.anchors(), now=asked.now, trace=trace)
        seen.append(verified)
        return {"genuine": True, "anchor_sha256": verified.anchor_sha256.hex()}

    def see(verified: VerifiedEvidence) -> tuple[str, ...]:
        seen.append(verified)
        return ()

    appraisal = evaluate(
        asked.evidence,
        asked.policy,
        now=asked.now,
        report_data=asked.report_data,
        allow=asked.allow,
        refuse=see,
        trace=trace,
    )
    warn(appraisal)
    return {"accepted": True} | appraisal.record()


def _steps(label: str, trace: Trace, *, genuine: bool) -> list[Explained]:
    passed = trace.begun if genuine else trace.begun[:-1]
    return [
        {
            "title": step.title,
            "reference": step.reference,
            "state": "passed" if step in passed else "failed" if step in trace.begun else "not reached",
        }
        for step in tee(label).steps()
    ]


def _look(rule: Rule, verified: Any, now: datetime, allow: frozenset[Insecurity]) -> Explained:
    verdict = rule.appraise(verified, now)
    against = {finding.subject: finding for finding in verdict.findings}
    return {
        "name": rule.name,
        "accepts": not against and verdict.insecurities <= allow,
        "insecurities": {name: name in allow for name in sorted(verdict.insecurities)},
        "keys": [
            key | {"accepts": key["key"] not in against, "mend": _mend(against.get(key["key"]))}
            for key in _keys(rule, verified, now)
        ],
    }


def _mend(finding: Finding | None) -> str:
    return "" if finding is None else finding.mend


def _keys(rule: Rule, verified: Any, now: datetime, prefix: str = "") -> Iterator[Explained]:
    """Every key with what was got and what is wanted; those about the hardware underneath as findings name them."""
    from adyton.policy.constraints import shown

    for field in rule.schema.fields:
        got, wanted = shown(field.fact(verified, now)), rule.constraints[field.key].wanted()
        yield {"key": prefix + field.key, "got": got, "wanted": wanted}
    if rule.hardware is not None:
        wanted = rule.hardware.schema.tee
        yield {"key": "hardware", "got": verified.hardware.tee, "wanted": wanted}
        if wanted == verified.hardware.tee:
            yield from _keys(rule.hardware, verified.hardware, now, f"{wanted}.")


def _lines(explained: Explained) -> Iterator[str]:
    if "steps" in explained:
        yield f"Is this evidence of {explained['tee']!r} genuine?"
        for number, step in enumerate(explained["steps"], 1):
            yield f"  {number:>2}  {step['state']:<11}  {step['title']}  [{step['reference']}]"
    if explained.get("rules"):
        yield "Is it acceptable?"
        for rule in explained["rules"]:
            yield from _rule_lines(rule)
    yield "Verdict"
    for key, value in explained["verdict"].items():
        if key != "findings":
            yield f"  {key}: {as_text(value)}"
    yield from (f"    {Finding(**finding)}" for finding in explained["verdict"].get("findings", ()))


def _rule_lines(rule: Explained) -> Iterator[str]:
    yield f"  rule {rule['name']!r} {'accepts' if rule['accepts'] else 'does not accept'} it"
    for key in rule["keys"]:
        yield f"    {'ok' if key['accepts'] else 'NO'}  {key['key']} = {key['got']}"
        yield f"          wanted: {key['wanted']}"
        if key["mend"]:
            yield f"          mend: {key['mend']}"
    for name, agreed in rule["insecurities"].items():
        yield f"    {'ok' if agreed else 'NO'}  insecurity {name}: {'agreed to' if agreed else 'not agreed to'}"
