"""`adyton verify`: evidence and a policy → accepted, with a record of it, or not, with every reason."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from adyton.cli.question import add_question, read_question
from adyton.cli.tree import print_line
from adyton.cli.verdict import as_text, print_json, refusal, say_refusal, warn
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
        if arguments.json:
            print_json(refusal(problem))
        else:
            say_refusal("verify", problem)
        return int(type(problem).exit_code)
    warn(appraisal)
    record = appraisal.record()
    if arguments.json:
        print_json(record)
    else:
        width = max(map(len, record))
        for key, value in record.items():
            print_line(f"{key:<{width}}  {as_text(value)}")
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
