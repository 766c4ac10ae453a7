"""A program with attested channels ends when it is over: closed or not, with threads of its own or without."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from attested import port_of
from cryptography.hazmat.primitives import hashes

from adyton.host.manager import EnclaveManager
from adyton.policy.reference_values import policy_for
from adyton.tee.simulated.platform import SimulatedPlatform
from adyton.testing.probes import SERVER, probe_bundle, server_config

BEGIN = """
import asyncio, sys, threading, time
import adyton
TARGET, POLICY = sys.argv[1:]
def connect():
    return adyton.connect(TARGET, POLICY, allow_insecure=["simulated"])
def check(channel):
    return channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=10) == b"\\x08\\x01"
"""
PROGRAMS = {
    "a channel that nobody closes": """
channel = connect()
assert check(channel)
""",
    "a stream that nobody reads": """
channel = connect()
stream = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
next(stream)
""",
    "a channel on asyncio that nobody closes": """
async def main():
    global channel
    channel = adyton.aio.connect(TARGET, POLICY, allow_insecure=["simulated"])
    assert await channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=10) == b"\\x08\\x01"
asyncio.run(main())
""",
    "a thread that goes on when the main one has ended": """
channel = connect()
def work():
    threading.main_thread().join()
    time.sleep(0.3)
    assert check(channel)
    assert check(connect())
    print("worked")
threading.Thread(target=work).start()
""",
    "many refusals, each of which closes a channel whose handshake has just ended": """
for _ in range(100):
    try:
        adyton.connect(TARGET, POLICY, allow_insecure=["simulated"], server_name="elsewhere.example")
    except adyton.EvidenceError:
        continue
    raise SystemExit("connected under a wrong name")
""",
    "daemon threads that are still connecting": """
def work():
    while True:
        connect()
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.5)
""",
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_the_process_ends(program: str, manager: EnclaveManager, tmp_path: Path) -> None:
    bundle = probe_bundle(SERVER)
    enclave = manager.load("server", bundle, server_config())
    anchor = SimulatedPlatform.open().root.fingerprint(hashes.SHA256())
    policy = tmp_path / "policy.toml"
    policy.write_text(policy_for(json.dumps(bundle.measurements()).encode(), {"simulated": anchor}))
    target = enclave.address_of(port_of(enclave))
    command = [sys.executable, "-W", "error", "-c", BEGIN + program, target, str(policy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    assert ("worked" in done.stdout) is ("worked" in program)
