"""`adyton inspect`: what evidence claims, read and not believed."""

from __future__ import annotations

import argparse
import hashlib
from typing import TYPE_CHECKING, Any

from adyton.cli.main import say
from adyton.cli.question import add_evidence
from adyton.cli.tree import as_json, lines, print_line
from adyton.cli.verdict import print_json

if TYPE_CHECKING:
    from adyton.tee.evidence import Endorsement


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    add_evidence(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print every field that the evidence has; exit 3 if it does not parse."""
    from adyton.cli.evidence_files import load_evidence
    from adyton.tee.registry import tee

    evidence = load_evidence(arguments.evidence, arguments.tee)
    known = tee(evidence.tee)
    parsed = known.parser()(evidence.data)
    say("nothing here is verified: these are claims, and anybody can make them")
    found = {
        "tee": known.label,
        "title": known.title,
        "verified": False,
        "bytes": len(evidence.data),
        "sha256": hashlib.sha256(evidence.data).digest(),
        "claims": parsed,
        "endorsements": [describe(each) for each in evidence.endorsements],
    }
    if arguments.json:
        print_json(as_json(found))
    else:
        for name, value in found.items():
            for line in lines(name, value):
                print_line(line)
    return 0


def describe(endorsement: Endorsement) -> dict[str, Any]:
    """What an endorsement is, and what it says of itself; of one that does not parse, why."""
    from adyton.errors import EvidenceError

    described = {
        "kind": endorsement.kind.value,
        "bytes": len(endorsement.data),
        "sha256": hashlib.sha256(endorsement.data).digest(),
    }
    try:
        return described | _contents(endorsement)
    except EvidenceError as problem:
        return described | {"malformed": problem.message}


def _contents(endorsement: Endorsement) -> dict[str, Any]:
    """What certificates and revocation lists say of themselves."""
    from adyton.tee._x509 import load_certificate, load_crl
    from adyton.tee.evidence import EndorsementKind

    if endorsement.kind is EndorsementKind.CERTIFICATE:
        certificate = load_certificate(endorsement.data, "the certificate", serial_zero=True)
        return {
            "subject": certificate.subject.rfc4514_string(),
            "issuer": certificate.issuer.rfc4514_string(),
            "not_before": certificate.not_valid_before_utc,
            "not_after": certificate.not_valid_after_utc,
        }
    if endorsement.kind is EndorsementKind.CRL:
        crl = load_crl(endorsement.data, "the revocation list")
        return {
            "issuer": crl.issuer.rfc4514_string(),
            "this_update": crl.last_update_utc,
            "next_update": crl.next_update_utc,
        }
    return {}
