"""What a client imports: quickly, and no verifier that it does not use."""

from __future__ import annotations

import subprocess
import sys

import pytest

from adyton.tee.registry import TEES

HEAVY = ("cryptography", "dcap_qvl", "cbor2", "grpc", "google.protobuf")
NEEDED = {
    "sgx": {"cryptography", "dcap_qvl"},
    "tdx": {"cryptography", "dcap_qvl"},
    "snp": {"cryptography"},
    "nitro": {"cryptography", "cbor2"},
    "tpm": {"cryptography", "cbor2"},
    "azure": {"cryptography", "cbor2"},
    "cca": {"cryptography", "cbor2"},
    "psa": {"cryptography", "cbor2"},
    "simulated": {"cryptography"},
}


def loaded(statement: str) -> set[str]:
    script = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_policy_and_registry_need_no_library() -> None:
    modules = loaded("import adyton, adyton.policy.appraisal, adyton.tee.registry")
    assert modules & set(HEAVY) == set()
    assert not any(name.startswith("adyton.tee.") and name.endswith((".verify", ".format")) for name in modules)


@pytest.mark.parametrize("label", sorted(TEES))
def test_a_verifier_brings_only_its_own_room_and_libraries(label: str) -> None:
    modules = loaded(f"from adyton.tee.registry import tee; tee({label!r}).verifier()")
    rooms = {name.split(".")[2] for name in modules if name.startswith("adyton.tee.") and name.count(".") == 3}
    assert rooms == {label}
    assert modules & set(HEAVY) == NEEDED[label]
