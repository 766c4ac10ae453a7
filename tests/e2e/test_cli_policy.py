"""`adyton policy`, and policies whose values others sign."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from evidence_on_disk import adyton, files_of, fitting, genuine_once, policy_text

from adyton.errors import ExitCode
from adyton.host.manager import EnclaveManager
from adyton.policy.signed import PAYLOAD_TYPE, pre_authentication_encoding
from adyton.tee.evidence import EndorsementKind
from adyton.tee.message import encode_evidence
from adyton.tee.registry import tee
from adyton.testing.probes import config, probe_bundle, write_probe_project

SIGNER = Ed25519PrivateKey.generate()
SOURCE = f"""
[[reference_values]]
name = "them"
keys = ["{SIGNER.public_key().public_bytes_raw().hex()}"]
threshold = 1
min_version = 1
"""


def signed_document(version: int, values: Mapping[str, Any]) -> bytes:
    body = {"name": "them", "version": version, "expires": "2027-01-01T00:00:00Z", "values": values}
    payload = json.dumps(body).encode()
    signature = SIGNER.sign(pre_authentication_encoding(payload))
    payload_text, signature_text = (base64.b64encode(part).decode() for part in (payload, signature))
    envelope = {"payloadType": PAYLOAD_TYPE, "payload": payload_text, "signatures": [{"sig": signature_text}]}
    return json.dumps(envelope).encode()


def test_signed_reference_values_never_go_back(tmp_path: Path) -> None:
    simulated = files_of("simulated", genuine_once("simulated"), tmp_path, fitting("simulated"))
    table = {"measurement": {"signed": "them"}, "max_age_seconds": "any"}
    measurement = genuine_once("simulated").verify_with(tee("simulated").verifier()).measurement.hex()
    simulated.policy.write_text(policy_text("simulated", simulated.case, table) + SOURCE)
    for version in (7, 8):
        document = signed_document(version, {"simulated": {"measurement": [measurement]}})
        (tmp_path / f"v{version}.json").write_bytes(document)
    words = ("verify", *simulated.question(simulated.message), "--state", tmp_path / "state.json")
    assert adyton(*words).returncode == ExitCode.POLICY_REFUSED  # the values are missing
    assert not (tmp_path / "state.json").exists()
    assert adyton(*words, "--reference-values", tmp_path / "v8.json").returncode == 0
    done = adyton(*words, "--reference-values", tmp_path / "v7.json")
    assert done.returncode == ExitCode.POLICY_REFUSED
    assert "version 7 of 'them' is older than 8, which was seen or is asked" in done.stderr
    assert adyton("explain", *words[1:], "--reference-values", tmp_path / "v8.json").returncode == 0


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_probe_project(tmp_path_factory.mktemp("project"))


def test_a_policy_of_a_bundle_accepts_its_running_enclave_and_no_other(project: Path, tmp_path: Path) -> None:
    question = bytes(range(64))
    assert adyton("build", project, "-o", tmp_path).returncode == 0
    with EnclaveManager() as manager:
        evidence = manager.load("mine", tmp_path / "probe.adyton", config()).collect_evidence(question)
        other = manager.load("other", probe_bundle(settings="[logging]\naccess = true"), config())
        (tmp_path / "other").write_bytes(encode_evidence(other.collect_evidence(question)))
    (tmp_path / "evidence").write_bytes(encode_evidence(evidence))
    printed = adyton("policy", tmp_path / "measurements.json")
    assert printed.returncode == 0, printed.stderr
    assert printed.stderr == ""
    assert printed.stdout.startswith("# The simulation's anchor is that of this machine, ")
    (tmp_path / "policy.toml").write_text(printed.stdout)
    words = ("--policy", tmp_path / "policy.toml", "--question", question.hex(), "--allow-insecure", "simulated")
    done = adyton("verify", tmp_path / "evidence", *words)
    assert done.returncode == 0, done.stderr
    assert "report_data_compared  yes\n" in done.stdout
    assert done.stderr == "warning: simulated: no hardware protects anything\n"
    done = adyton("verify", tmp_path / "other", *words)
    assert done.returncode == ExitCode.POLICY_REFUSED
    assert "measurement is " in done.stderr


def test_the_policys_anchor_is_of_the_root_that_is_named(project: Path, tmp_path: Path) -> None:
    adyton("build", project, "-o", tmp_path)
    (certificate,) = genuine_once("simulated").evidence.endorsed(EndorsementKind.CERTIFICATE)
    root = x509.load_der_x509_certificate(certificate).public_bytes(Encoding.PEM)
    (tmp_path / "root\n.pem").write_bytes(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n" + root)
    done = adyton("policy", tmp_path / "measurements.json", "--simulated-root", tmp_path / "root\n.pem")
    assert done.returncode == 0, done.stderr
    assert f'simulated = ["{hashlib.sha256(certificate).hexdigest()}"]' in done.stdout
    assert "root\\u000a.pem.\n" in done.stdout.splitlines(keepends=True)[0]
    (tmp_path / "junk.pem").write_bytes(b"junk")
    done = adyton("policy", tmp_path / "measurements.json", "--simulated-root", tmp_path / "junk.pem")
    assert done.returncode == ExitCode.USAGE
    assert "junk.pem holds no certificate in PEM" in done.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('name = "probe"', "the policy is of no version that is known: is it a policy? (one begins with version = 1)"),
        ("version = 1\nrules = []", "the policy has unknown keys: 'rules'"),
        (None, "No such file or directory"),
    ],
)
@pytest.mark.parametrize(
    "words", [("verify", os.devnull, "--tee", "simulated"), ("proxy", "localhost:1", "--listen", "127.0.0.1:0")]
)
def test_what_is_wrong_with_a_policy_is_said_with_the_name_of_its_file(
    words: tuple[str, ...], content: str | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "policy.toml"
    if content is not None:
        path.write_text(content)
    done = adyton(*words, "--policy", path)
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    prefix = "can't read " if content is None else ""
    assert done.stderr.startswith(f"adyton {words[0]}: {prefix}{path}: {message}")


def test_a_policy_without_a_root_accepts_nothing_yet(project: Path, tmp_path: Path) -> None:
    adyton("build", project, "-o", tmp_path)
    nowhere = {"XDG_DATA_HOME": str(tmp_path / "nothing here")}
    done = adyton("policy", tmp_path / "measurements.json", env=os.environ | nowhere)
    assert done.returncode == 0
    assert "simulated = []" in done.stdout
    assert "no anchor for the simulation: this machine has none yet; `adyton run` makes it" in done.stderr
    shutil.rmtree(tmp_path / "nothing here", ignore_errors=True)
    homeless = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_DATA_HOME")}
    assert adyton("policy", tmp_path / "measurements.json", env=homeless | {"HOME": "."}).returncode == 0
