"""How a verdict is said: the record of what was accepted, or every reason against it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from adyton.cli.main import say
from adyton.cli.printable import printable
from adyton.cli.tree import one_line, print_line
from adyton.errors import EvidenceError, PolicyError
from adyton.policy.insecurity import Insecurity

if TYPE_CHECKING:
    from adyton.policy.appraisal import Appraisal

DANGERS: Final[Mapping[Insecurity, str]] = {
    Insecurity.SIMULATED: "no hardware protects anything",
    Insecurity.DEBUG: "the host can read and change the enclave's memory",
    Insecurity.OUT_OF_DATE: "the platform lacks fixes for known vulnerabilities",
    Insecurity.MIGRATABLE: "an agent outside the measurement can copy the enclave elsewhere",
    Insecurity.REVOCATION_UNKNOWN: "whether the vendor has revoked its intermediate certificate was not looked up",
}
"""What each insecurity means for whoever agreed to it."""


def print_json(document: object) -> None:
    """Print it on standard output, keys sorted."""
    print(printable(json.dumps(document, indent=2, sort_keys=True)))


def print_record(record: Mapping[str, Any], *, as_json: bool) -> None:
    """Print what was accepted on standard output: a line a value, or JSON."""
    if as_json:
        print_json(record)
        return
    width = max(map(len, record))
    for key, value in record.items():
        print_line(f"{key:<{width}}  {as_text(value)}")


def as_text(value: object) -> str:
    """A value of a record, in words."""
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) or "none"


def warn(appraisal: Appraisal) -> None:
    """Say on standard error what is not as it should be with evidence that was accepted."""
    for insecurity in appraisal.insecurities:
        say(f"warning: {insecurity}: {DANGERS[insecurity]}")
    if not appraisal.report_data_compared:
        say("warning: the evidence may be old, and made for somebody else: give --question or --report-data")


def refusal(problem: EvidenceError | PolicyError) -> dict[str, Any]:
    """The refusal for JSON."""
    findings = problem.findings if isinstance(problem, PolicyError) else ()
    return {"accepted": False, "error": problem.message, "findings": [asdict(finding) for finding in findings]}


def print_refusal(verb: str, problem: EvidenceError | PolicyError, *, as_json: bool) -> int:
    """Say it on standard error, or as JSON on standard output; the exit code."""
    if as_json:
        print_json(refusal(problem))
    else:
        say_refusal(verb, problem)
    return int(type(problem).exit_code)


def say_refusal(verb: str, problem: EvidenceError | PolicyError) -> None:
    """The refusal on standard error, each finding on a line of its own."""
    findings = problem.findings if isinstance(problem, PolicyError) else ()
    mend = f" ({problem.mend})" if problem.mend else ""
    say(one_line(f"adyton {verb}: {problem.message}{mend}"))
    for finding in findings:
        say(one_line(f"  {finding}"))
