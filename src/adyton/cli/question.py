"""What `verify` and `explain` are asked: which evidence, under which policy, as of when, and bound to what."""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adyton.cli.main import say
from adyton.errors import ConfigurationError
from adyton.policy.insecurity import Insecurity
from adyton.tee.registry import TEES

if TYPE_CHECKING:
    from adyton.policy.document import Policy
    from adyton.tee.evidence import Evidence

YEARS: Final = range(1970, 3000)
"""Verifiers add to the time and take from it, which Python can't do at the ends of its calendar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """`policy` is None if there is none to ask; `report_data` is None if there is nothing to compare."""

    evidence: Evidence
    policy: Policy | None
    now: datetime
    report_data: bytes | None
    allow: frozenset[Insecurity]


def add_evidence(parser: argparse.ArgumentParser) -> None:
    """The arguments that name the evidence."""
    parser.add_argument("evidence", metavar="EVIDENCE", help="file with evidence: raw, hex, base64, or a message; or -")
    parser.add_argument("--tee", choices=sorted(TEES), metavar="LABEL", help=f"whose it is: {', '.join(sorted(TEES))}")
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_question(parser: argparse.ArgumentParser, *, policy_required: bool) -> None:
    """The arguments of a question."""
    add_evidence(parser)
    add_policy(parser, required=policy_required)
    parser.add_argument("--at", type=_time, metavar="TIME", help="judge as of that time, ISO 8601 (default: now)")
    parser.add_argument("--collateral", type=Path, metavar="DIR", help="folder of certificates, CRLs, logs, keys …")
    made_over = parser.add_mutually_exclusive_group()
    made_over.add_argument("--report-data", type=_hex, metavar="HEX", help="what the evidence must have been made over")
    made_over.add_argument(
        "--question", type=_hex, metavar="HEX", help="the 64 bytes that a host asked its enclave with"
    )
    parser.add_argument(
        "--reference-values", type=Path, nargs="+", action="extend", default=[], metavar="FILE", help="signed ones"
    )


def add_policy(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """The arguments that say what is acceptable; `read_policy` reads --reference-values too, a list of files."""
    parser.add_argument("--policy", type=Path, required=required, metavar="FILE", help="what is acceptable")
    parser.add_argument(
        "--allow-insecure", type=_insecurities, default=frozenset(), metavar="NAMES", help=", ".join(Insecurity)
    )
    parser.add_argument("--state", type=Path, metavar="FILE", help="remembers the versions of signed reference values")


def read_question(arguments: argparse.Namespace) -> Question:
    """Read every file that the arguments name. Each thing that is wrong is the `AdytonError` of its kind."""
    from adyton.cli.evidence_files import load_endorsements, load_evidence, staple

    if arguments.at is not None:
        say(f"as of {arguments.at.isoformat()}, not now")
    now = arguments.at or datetime.now(UTC)
    policy = None if arguments.policy is None else read_policy(arguments, now)
    if policy is None:
        check_no_policy_is_needed(arguments)
    evidence = load_evidence(arguments.evidence, arguments.tee)
    if arguments.collateral is not None:
        evidence = staple(evidence, load_endorsements(arguments.collateral))
    return Question(
        evidence=evidence,
        policy=policy,
        now=now,
        report_data=_report_data(arguments, evidence.tee),
        allow=arguments.allow_insecure,
    )


def _report_data(arguments: argparse.Namespace, tee: str) -> bytes | None:
    from adyton.atls.binding import carried, host_report_data

    given: bytes | None = arguments.report_data
    return given if arguments.question is None else carried(tee, host_report_data(arguments.question))


def read_policy(arguments: argparse.Namespace, now: datetime) -> Policy:
    """The policy that the arguments name, with its reference values, none older than --state has seen."""
    from adyton.cli.evidence_files import read_file
    from adyton.cli.seen_versions import load_seen_versions
    from adyton.policy.document import MAX_POLICY_BYTES, Policy
    from adyton.policy.signed import MAX_DOCUMENT_BYTES

    content = read_file(arguments.policy, at_most=MAX_POLICY_BYTES)
    documents = [read_file(path, at_most=MAX_DOCUMENT_BYTES) for path in arguments.reference_values]
    seen_versions = load_seen_versions(arguments.state) if arguments.state else {}
    try:
        return Policy.parse(content, reference_values=documents, seen_versions=seen_versions, now=now)
    except ConfigurationError as problem:
        raise ConfigurationError(f"{arguments.policy}: {problem.message}", mend=problem.mend) from problem


def check_no_policy_is_needed(arguments: argparse.Namespace) -> None:
    """Raise ConfigurationError if something was given that means nothing without a policy."""
    for name in ("report_data", "question", "allow_insecure", "reference_values", "state"):
        if getattr(arguments, name, None):
            raise ConfigurationError(f"--{name.replace('_', '-')} is about a policy, and none is given: --policy FILE")


def _time(text: str) -> datetime:
    with contextlib.suppress(ValueError):
        return datetime.combine(date.fromisoformat(text), time(), UTC)
    with contextlib.suppress(ValueError, OverflowError):
        moment = datetime.fromisoformat(text)
        if moment.utcoffset() is not None and moment.year in YEARS:
            return moment.astimezone(UTC)
    raise argparse.ArgumentTypeError(f"{text!r} is not a date, or a time with its zone, as in 2026-11-23T12:00:00Z")


def _hex(text: str) -> bytes:
    with contextlib.suppress(ValueError):
        if data := bytes.fromhex(text):
            return data
    raise argparse.ArgumentTypeError(f"{text!r} is not bytes in hexadecimal")


def _insecurities(text: str) -> frozenset[Insecurity]:
    try:
        return frozenset(Insecurity(name) for name in text.split(","))
    except ValueError:
        known = ", ".join(Insecurity)
        raise argparse.ArgumentTypeError(f"{text!r} is not one of these, or several with commas: {known}") from None
