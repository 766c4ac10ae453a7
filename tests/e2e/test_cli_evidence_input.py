"""`adyton inspect`, `verify` and `explain`: words, forms of input, and what hostile input can't do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cbor2
import pytest
from evidence_on_disk import ALLOW, AT, LABELS, Files, adyton, files_of, fitting, genuine_once, policy_text
from rule_values import fitting_table

from adyton.cli.main import VERBS
from adyton.errors import ExitCode
from adyton.policy.rules import SCHEMAS
from adyton.tee.evidence import Evidence
from adyton.tee.message import encode_evidence
from adyton.tee.registry import tee
from adyton.testing.forgery import NOW
from adyton.testing.psa import SYMMETRIC_KEY, PsaVendor


@pytest.fixture
def simulated(tmp_path: Path) -> Files:
    return files_of("simulated", genuine_once("simulated"), tmp_path, fitting("simulated"))


def test_explain_a_refusal(simulated: Files) -> None:
    simulated.policy.write_text(simulated.policy.read_text().replace("max_age_seconds = 0", "max_age_seconds = 5"))
    late = ("--at", "2026-11-23T12:00:06Z")
    done = adyton("explain", simulated.message, "--policy", simulated.policy, *late, "--report-data", "ff")
    assert done.returncode == ExitCode.POLICY_REFUSED
    for line in (
        "  rule 'mine' does not accept it\n    ok  measurement = ",
        "    NO  max_age_seconds = 0:00:06\n          wanted: at most 0:00:05\n          mend: ask for fresh",
        "    NO  insecurity simulated: not agreed to\n",
        "  accepted: no\n  error: the policy accepts no such evidence of simulated\n    report_data is ",
    ):
        assert line in done.stdout


def test_a_policy_without_a_rule_for_it(simulated: Files) -> None:
    simulated.policy.write_text(fitting("psa"))
    for verb in ("verify", "explain"):
        done = adyton(verb, *simulated.question(simulated.message), "--json")
        assert done.returncode == ExitCode.POLICY_REFUSED
        refused = json.loads(done.stdout)
        refused = refused.get("verdict", refused)
        assert refused["error"] == "the policy has no rule for simulated"
        assert [(each["got"], each["wanted"]) for each in refused["findings"]] == [("simulated", "psa")]


@pytest.mark.parametrize("verb", ["inspect", "verify", "explain"])
def test_json_is_the_same_each_time(simulated: Files, verb: str) -> None:
    words = (verb, "--json", *((simulated.message,) if verb == "inspect" else simulated.question(simulated.message)))
    outputs = {adyton(*words, env=os.environ | {"PYTHONHASHSEED": seed}).stdout for seed in ("1", "2")}
    (output,) = outputs
    assert output == json.dumps(json.loads(output), indent=2, sort_keys=True) + "\n"


def test_evidence_from_standard_input_and_as_text(simulated: Files) -> None:
    for content in (simulated.message.read_bytes(), simulated.message.read_bytes().hex().encode()):
        done = adyton("verify", "-", *simulated.question(simulated.message)[1:], input=content)
        assert done.returncode == 0, done.stderr
    done = adyton("inspect", "-", preexec_fn=lambda: os.close(0))
    assert done.returncode == ExitCode.USAGE
    assert "standard input is closed" in done.stderr


def test_a_shared_key_comes_from_a_folder_only(tmp_path: Path) -> None:
    case = PsaVendor(SYMMETRIC_KEY).case()
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "shared.key").write_bytes(SYMMETRIC_KEY)
    (tmp_path / "token.cbor").write_bytes(case.evidence.data)
    table = fitting_table(SCHEMAS["psa"], case.verify_with(tee("psa").verifier()), NOW)
    (tmp_path / "policy.toml").write_text(policy_text("psa", case, table))
    words = ("verify", tmp_path / "token.cbor", "--policy", tmp_path / "policy.toml", *AT, *ALLOW)
    assert adyton(*words).returncode == ExitCode.NOT_GENUINE
    assert adyton(*words, "--collateral", tmp_path / "keys").returncode == 0


WRONG_WORDS = {
    "no evidence": ("verify", "--policy", "p"),
    "no policy": ("verify", "e"),
    "an unknown TEE": ("inspect", "e", "--tee", "sev"),
    "a time without zone": ("verify", "e", "--policy", "p", "--at", "2026-11-23T12:00:00"),
    "a time before time": ("verify", "e", "--policy", "p", "--at", "0001-01-01T00:00:00+14:00"),
    "no time": ("verify", "e", "--policy", "p", "--at", "now"),
    "odd digits": ("verify", "e", "--policy", "p", "--report-data", "abc"),
    "no digits": ("verify", "e", "--policy", "p", "--report-data", ""),
    "an unknown insecurity": ("verify", "e", "--policy", "p", "--allow-insecure", "simulated,all"),
    "report data without a policy": ("explain", "e", "--report-data", "00"),
    "an insecurity without a policy": ("explain", "e", "--allow-insecure", "debug"),
    "a file that is not there": ("inspect", "none"),
    "a folder": ("inspect", "/"),
    "a policy that is not there": ("verify", "e", "--policy", "none"),
    "measurements that are not there": ("policy", "none"),
}


@pytest.mark.parametrize("words", WRONG_WORDS.values(), ids=WRONG_WORDS)
def test_wrong_words_are_usage(words: tuple[str, ...], tmp_path: Path) -> None:
    for name in ("e", "p"):
        (tmp_path / name).write_text("version = 1")
    done = adyton(*words, cwd=tmp_path)
    assert done.returncode == ExitCode.USAGE, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_hostile_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "junk").write_bytes(b"\x81" * 65536)
    (tmp_path / "larger").write_bytes(b"\x81" * 65537)
    (tmp_path / "policy.toml").write_text("version = 1")
    for name in ("fifo", "junk", "larger"):
        for words in (("inspect",), ("verify", "--policy", tmp_path / "policy.toml"), ("explain",)):
            done = adyton(*words, tmp_path / name)
            assert done.returncode == ExitCode.NOT_GENUINE, done.stderr
            assert "Traceback" not in done.stderr
    assert adyton("inspect", "/dev/zero").returncode == ExitCode.USAGE


@pytest.mark.parametrize("label", LABELS)
def test_junk_under_any_label_is_refused(label: str, tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"\x81" * 65536)
    done = adyton("inspect", "--tee", label, tmp_path / "junk")
    assert done.returncode == ExitCode.NOT_GENUINE, done.stderr
    assert len(done.stderr) < 400


def test_a_label_of_no_tee_is_not_possible_here(tmp_path: Path) -> None:
    evidence = Evidence(tee="\x1b[2Jquantum", data=b"?")
    (tmp_path / "evidence").write_bytes(encode_evidence(evidence))
    done = adyton("inspect", tmp_path / "evidence")
    assert done.returncode == ExitCode.UNSUPPORTED_HERE
    assert "\x1b" not in done.stderr
    assert "known are: azure, cca" in done.stderr


def test_terminal_escapes_in_evidence_reach_no_terminal(tmp_path: Path) -> None:
    token = cbor2.loads(genuine_once("psa").evidence.data)
    protected, _, claims, signature = token.value
    parts = [protected, {"\x1b]0;mine\x07\nverified: true": "\x9b2J"}, claims, signature]
    (tmp_path / "token").write_bytes(cbor2.dumps(cbor2.CBORTag(token.tag, parts)))
    (tmp_path / "policy.toml").write_text(fitting("psa"))
    for words in (("inspect",), ("inspect", "--json"), ("verify", "--policy", tmp_path / "policy.toml"), ("explain",)):
        done = adyton(*words, tmp_path / "token")
        assert not any(character in done.stdout + done.stderr for character in "\x1b\x07\x9b")
        assert "\nverified: true" not in done.stdout
    assert "\\u001b]0;mine\\u0007\\u000averified: true: \\u009b2J" in adyton("inspect", tmp_path / "token").stdout


def test_help_imports_nothing_heavy() -> None:
    heavy = {"cryptography", "cbor2", "dcap_qvl", "grpc"}
    code = f"""
import sys
from adyton.cli.main import main
try:
    main(["--help"])
except SystemExit:
    sys.stderr.write(repr(sorted({heavy} & set(sys.modules))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr == "[]"
    assert set(VERBS) <= set(re.findall(r"^    (\S+)", done.stdout, re.MULTILINE))


def test_doctor_says_what_can_not_be_launched() -> None:
    found = json.loads(adyton("doctor", "--json").stdout)
    assert {name for name, each in found["hardware"].items() if "no launcher yet" in each["missing"]} == {"sgx", "cca"}
