"""Evidence of each TEE as files, a policy that fits it, and the command as a process: for tests of the command line."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rule_values import fitting_table

from adyton.policy.insecurity import Insecurity
from adyton.policy.rules import SCHEMAS
from adyton.tee.evidence import Evidence
from adyton.tee.message import encode_evidence
from adyton.tee.registry import TEES, tee
from adyton.testing.forgery import NOW, Case
from adyton.testing.samples import genuine

LABELS = sorted(TEES)
AT = ("--at", NOW.isoformat())
ALLOW = ("--allow-insecure", ",".join(Insecurity))


def adyton(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "adyton.cli", *map(str, words)]
    if "input" not in options:
        options["stdin"] = subprocess.DEVNULL
    done = subprocess.run(command, capture_output=True, check=False, timeout=60, **options)
    out, err = (part.decode() for part in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(command, done.returncode, out, err)


def toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {toml(inner)}" for key, inner in value.items()) + " }"
    return json.dumps(value)


def policy_text(label: str, case: Case, table: Mapping[str, Any]) -> str:
    anchors = toml(sorted(anchor.hex() for anchor in case.anchors))
    keys = "".join(f"{key} = {toml(value)}\n" for key, value in table.items())
    return f'version = 1\n[anchors]\n{label} = {anchors}\n[[{label}]]\nname = "mine"\n{keys}'


@functools.cache
def genuine_once(label: str) -> Case:
    return genuine(label)


@functools.cache
def fitting(label: str) -> str:
    """The text of the tightest policy that accepts the genuine evidence of that TEE."""
    case = genuine_once(label)
    return policy_text(label, case, fitting_table(SCHEMAS[label], case.verify_with(tee(label).verifier()), NOW))


def forged(evidence: Evidence) -> Evidence:
    """A bit flipped in its middle."""
    middle = len(evidence.data) // 2
    return replace(
        evidence, data=evidence.data[:middle] + bytes([evidence.data[middle] ^ 1]) + evidence.data[middle + 1 :]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Of one TEE: the evidence raw and as a message, a forged message, and a policy that accepts the genuine."""

    label: str
    case: Case
    raw: Path
    message: Path
    forged: Path
    policy: Path

    def question(self, evidence: Path) -> tuple[str | Path, ...]:
        return (evidence, "--policy", self.policy, *AT, *ALLOW)


def files_of(label: str, case: Case, folder: Path, policy: str) -> Files:
    made = Files(
        label=label,
        case=case,
        raw=folder / "evidence.raw",
        message=folder / "evidence",
        forged=folder / "forged",
        policy=folder / "policy.toml",
    )
    made.raw.write_bytes(case.evidence.data)
    made.message.write_bytes(encode_evidence(case.evidence))
    made.forged.write_bytes(encode_evidence(forged(case.evidence)))
    made.policy.write_text(policy)
    return made
