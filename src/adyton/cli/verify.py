"""`adyton verify`: evidence and a policy → accepted, with a record of it, or not, with every reason."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from adyton.cli.question import add_question, read_question
from adyton.cli.verdict import print_record, print_refusal, warn
from adyton.errors import EvidenceError, PolicyError

if TYPE_CHECKING:
    from adyton.policy.appraisal import Appraisal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    add_question(parser, policy_required=True)


def run(arguments: argparse.Namespace) -> int:
    """Print the record and exit 0; or exit 3 if the evidence is not genuine, 4 if the policy refuses it."""
    try:
        appraisal = _appraise(arguments)
    except (EvidenceError, PolicyError) as problem:
        return print_refusal("verify", problem, as_json=arguments.json)
    warn(appraisal)
    print_record(appraisal.record(), as_json=arguments.json)
    return 0


def _appraise(arguments: argparse.Namespace) -> Appraisal:
    from adyton.cli.seen_versions import keep_seen_versions
    from adyton.policy.appraisal import evaluate

    asked = read_question(arguments)
    assert asked.policy is not None  # the parser requires it
    appraisal = evaluate(asked.evidence, asked.policy, now=asked.now, report_data=asked.report_data, allow=asked.allow)
    if arguments.state is not None:
        keep_seen_versions(arguments.state, asked.policy.reference_versions)
    return appraisal
