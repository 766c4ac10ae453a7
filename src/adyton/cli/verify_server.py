"""`adyton verify-server`: whether what answers at an address is an enclave that a policy accepts."""

from __future__ import annotations

import argparse

from adyton.cli.connection import add_connection_arguments, attest, read_wanted
from adyton.cli.verdict import print_record, print_refusal
from adyton.errors import EvidenceError, PolicyError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    parser.add_argument("target", metavar="HOST:PORT", help="or [IPV6]:PORT or unix:PATH")
    add_connection_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the record and exit 0; or exit 3 if it is not genuine, 4 if the policy refuses it, 5 if nobody answers."""
    try:
        attestation = attest(read_wanted(arguments)).attestation
    except (EvidenceError, PolicyError) as problem:
        return print_refusal("verify-server", problem, as_json=arguments.json)
    print_record(attestation.record(), as_json=arguments.json)
    return 0
