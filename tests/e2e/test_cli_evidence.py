"""`adyton inspect`, `verify` and `explain` on evidence of every TEE, each in a process of its own."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from pathlib import Path

import pytest
from evidence_on_disk import AT, LABELS, Files, adyton, files_of, fitting, genuine_once

from adyton.errors import ExitCode
from adyton.policy.appraisal import Appraisal
from adyton.policy.rules import SCHEMAS
from adyton.tee.evidence import EndorsementKind
from adyton.tee.registry import tee

INSECURE = {"simulated": ["simulated"], "snp": ["revocation-unknown"], "azure": ["revocation-unknown"]}
"""What is insecure about the genuine evidence of these tests."""
SUFFIXES = {
    EndorsementKind.CERTIFICATE: ".der",
    EndorsementKind.CRL: ".crl",
    EndorsementKind.DCAP_COLLATERAL: ".json",
    EndorsementKind.PUBLIC_KEY: ".pub",
    EndorsementKind.SYMMETRIC_KEY: ".key",
    EndorsementKind.EVENT_LOG: ".log",
}


@pytest.fixture(params=LABELS)
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    return files_of(request.param, genuine_once(request.param), tmp_path, fitting(request.param))


def test_inspect_shows_every_format_and_verifies_none(files: Files) -> None:
    done = adyton("inspect", files.message)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "nothing here is verified: these are claims, and anybody can make them\n"
    assert f"tee: {files.label}\n" in done.stdout
    assert "verified: false\n" in done.stdout
    kinds = [each.kind.value for each in files.case.evidence.endorsements]
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("    kind: ")] == kinds
    found = json.loads(adyton("inspect", "--json", files.raw).stdout)
    assert (found["tee"], found["verified"], found["endorsements"]) == (files.label, False, [])
    assert found["sha256"] == hashlib.sha256(files.case.evidence.data).hexdigest()


def test_verify_accepts_what_is_genuine_and_acceptable(files: Files) -> None:
    done = adyton("verify", *files.question(files.message), "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["tee"], record["rule"]) == (files.label, "mine")
    assert record["insecurities"] == INSECURE.get(files.label, [])
    assert record["policy_sha256"] == hashlib.sha256(files.policy.read_bytes()).hexdigest()
    assert bytes.fromhex(record["anchor_sha256"]) in files.case.anchors
    talk = done.stderr.splitlines()
    assert talk[0] == "as of 2026-11-23T12:00:00+00:00, not now"
    assert [line.split(": ")[1] for line in talk[1:-1]] == record["insecurities"]
    assert talk[-1] == "warning: the evidence may be old, and made for somebody else: give --question or --report-data"


def test_verify_takes_the_endorsements_of_a_folder(files: Files, tmp_path: Path) -> None:
    folder = tmp_path / "collateral"
    folder.mkdir()
    for index, each in enumerate(files.case.evidence.endorsements):
        (folder / f"{index:02}{SUFFIXES[each.kind]}").write_bytes(each.data)
    done = adyton("verify", *files.question(files.raw), "--collateral", folder)
    assert done.returncode == 0, done.stderr
    assert f"tee                   {files.label}\n" in done.stdout
    assert "rule                  mine\n" in done.stdout


def test_verify_refuses_what_is_not_genuine(files: Files) -> None:
    done = adyton("verify", *files.question(files.forged))
    assert done.returncode == ExitCode.NOT_GENUINE
    assert done.stdout == ""
    assert "adyton verify: " in done.stderr.splitlines()[-1]
    done = adyton("verify", *files.question(files.forged), "--json")
    assert done.returncode == ExitCode.NOT_GENUINE
    assert json.loads(done.stdout).keys() == {"accepted", "error", "findings"}


def test_verify_refuses_what_is_not_acceptable_and_says_all_of_it(files: Files) -> None:
    question = (files.message, "--policy", files.policy, *AT, "--report-data", "00ff", "--json")
    done = adyton("verify", *question)
    assert done.returncode == ExitCode.POLICY_REFUSED
    refused = json.loads(done.stdout)
    assert refused["accepted"] is False
    got = [finding["got"] for finding in refused["findings"] if finding["subject"] == "insecurity"]
    assert got == INSECURE.get(files.label, [])
    assert len(refused["findings"]) == 1 + len(got)
    talk = adyton("verify", *question[:-1]).stderr.splitlines()
    assert talk[1] == f"adyton verify: the policy accepts no such evidence of {files.label}"
    assert len(talk) == 2 + len(refused["findings"])
    assert "report_data is " in talk[2]
    assert "wanted is 00ff (the evidence was made for another question" in talk[2]


def test_explain_shows_each_step_and_each_key(files: Files) -> None:
    done = adyton("explain", *files.question(files.message), "--json")
    assert done.returncode == 0, done.stderr
    explained = json.loads(done.stdout)
    assert [step["title"] for step in explained["steps"]] == [step.title for step in tee(files.label).steps()]
    assert {step["state"] for step in explained["steps"]} == {"passed"}
    (rule,) = explained["rules"]
    keys = [key["key"] for key in rule["keys"]]
    assert keys[: len(SCHEMAS[files.label].fields)] == [field.key for field in SCHEMAS[files.label].fields]
    assert rule["accepts"]
    assert all(key["accepts"] and key["got"] and key["wanted"] for key in rule["keys"])
    verdict = explained["verdict"]
    assert verdict.pop("accepted")
    assert verdict.keys() == {field.name for field in fields(Appraisal)}
    text = adyton("explain", *files.question(files.message)).stdout
    assert all(f"[{step['reference']}]" in text for step in explained["steps"])
    assert all(f"    ok  {key['key']} = " in text for key in rule["keys"])


def test_explain_shows_the_step_that_failed(files: Files) -> None:
    done = adyton("explain", *files.question(files.forged), "--json")
    assert done.returncode == ExitCode.NOT_GENUINE
    explained = json.loads(done.stdout)
    states = [step["state"] for step in explained["steps"]]
    assert states.count("failed") == 1
    at = states.index("failed")
    assert states == ["passed"] * at + ["failed"] + ["not reached"] * (len(states) - at - 1)
    assert explained["rules"] == []
    assert explained["verdict"]["error"]


def test_explain_without_a_policy_asks_the_vendors_roots(files: Files) -> None:
    done = adyton("explain", files.message, *AT)
    assert done.returncode == ExitCode.NOT_GENUINE  # the vendors of these tests are nobody's roots
    assert "Is it acceptable?" not in done.stdout
    vendorless = not tee(files.label).anchors()
    assert ("has no vendor's root: a policy names the anchors" in done.stderr) is vendorless
    assert ("no anchors are trusted" in done.stdout) is vendorless
