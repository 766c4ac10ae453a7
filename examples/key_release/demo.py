"""Sealed data that outlives its code and its machine: `python3 examples/key_release/demo.py [FOLDER]`."""

from __future__ import annotations

import base64
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import adyton
from adyton.policy.reference_values import policy_for
from adyton.policy.signed import PAYLOAD_TYPE, pre_authentication_encoding
from adyton.proto import grpc_application_pb2 as extensions
from adyton.tee.simulated.platform import SimulatedPlatform

HERE = Path(__file__).resolve().parent
LOCK = HERE.parent / "translator" / "requirements.lock"

CALLERS = """\
# Who gets keys, and which: those of one rule are for all code whose measurement the owner has signed for it.
version = 1

[anchors]
simulated = ["{anchor}"]

[[reference_values]]
name = "diary"
keys = ["{owner}"]
threshold = 1
min_version = 1

[[simulated]]
name = "diary"
measurement = {{ signed = "diary" }}
max_age_seconds = 300
"""


def step(title: str) -> None:
    print(f"\n{title}", flush=True)


def show(text: str) -> None:
    print(f"    {text}", flush=True)


def proves(text: str) -> None:
    print(f"    → {text}", flush=True)


def copy_project(project: str, folder: Path) -> Path:
    """A copy of `service` or `diary` in `folder`, with a lock."""
    copy = folder / project
    shutil.copytree(HERE / project, copy, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(LOCK, copy)
    return copy


def root_sha256() -> bytes:
    """What is believed of this machine's simulation."""
    return SimulatedPlatform.open().root.fingerprint(hashes.SHA256())


def build_service(folder: Path, owner: Ed25519PrivateKey) -> adyton.Bundle:
    """Its policy names the owner's key, and no measurement of a caller's."""
    project = copy_project("service", folder)
    key = owner.public_key().public_bytes_raw().hex()
    text = CALLERS.format(anchor=root_sha256().hex(), owner=key)
    (project / "callers.policy.toml").write_text(text, encoding="utf-8")
    return adyton.Bundle.build(project)


def build_diary(folder: Path, service: adyton.Bundle) -> adyton.Bundle:
    """Its policy names the service's measurement, as `adyton policy` writes it."""
    project = copy_project("diary", folder)
    text = policy_for(json.dumps(service.measurements()).encode(), {"simulated": root_sha256()})
    (project / "service.policy.toml").write_text(text, encoding="utf-8")
    return adyton.Bundle.build(project)


def update_diary(folder: Path) -> adyton.Bundle:
    """The same project with other code, so another measurement."""
    source = folder / "diary" / "diary.py"
    source.write_text(source.read_text(encoding="utf-8").replace("start number", "updated, start number"), "utf-8")
    return adyton.Bundle.build(folder / "diary")


def sign_values(bundles: Sequence[adyton.Bundle], owner: Ed25519PrivateKey, *, version: int = 1) -> bytes:
    """What the owner says: these are the measurements of the enclave that has their name."""
    values = {
        "simulated": {
            "measurement": [each.measurements()["reference_values"]["simulated"]["measurement"] for each in bundles]  # type: ignore[index]
        }
    }
    expires = datetime.now(UTC) + timedelta(days=30)
    body = {"name": bundles[0].settings.name, "version": version, "expires": expires.isoformat(), "values": values}
    payload = json.dumps(body).encode()
    signature = owner.sign(pre_authentication_encoding(payload))
    envelope = {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"sig": base64.b64encode(signature).decode()}],
    }
    return json.dumps(envelope).encode()


def start_service(
    manager: adyton.EnclaveManager, bundle: adyton.Bundle, document: bytes, state: Path
) -> tuple[adyton.EnclaveClient, str]:
    """The release enclave and where it is."""
    config = adyton.EnclaveConfig()
    config.Extensions[extensions.server_address] = "localhost"
    config.Extensions[extensions.port] = 0
    config.Extensions[extensions.reference_values].append(document)
    enclave = manager.load("key-release", bundle, config, state=state)
    return enclave, enclave.address_of(enclave.enter_and_run().Extensions[extensions.actual_server_port])


def start_diary(manager: adyton.EnclaveManager, bundle: adyton.Bundle, keys_at: str, state: Path) -> str:
    """Start it once, and end it; what it logged, or why it was refused."""
    config = adyton.EnclaveConfig()
    config.Extensions[extensions.key_release_address] = keys_at
    try:
        enclave = manager.load("diary", bundle, config, state=state)
    except adyton.ApplicationError as error:
        return f"{error.status.name}: {error.message}"
    until = time.monotonic() + 10  # the log comes through a pipe
    while not (said := [line for line in enclave.log_tail() if "start number" in line]):
        if time.monotonic() > until:
            raise SystemExit("the diary's log says nothing")
        time.sleep(0.05)
    enclave.destroy()
    return str(json.loads(said[-1])["message"])


def build(folder: Path, owner: Ed25519PrivateKey) -> tuple[adyton.Bundle, adyton.Bundle]:
    step("1. Build the enclave that releases keys, and one that seals with them")
    service = build_service(folder, owner)
    diary = build_diary(folder, service)
    for bundle in (service, diary):
        show(f"{bundle.settings.name}: SHA-256 {bundle.sha256.hex()}")
    proves("the diary's policy names the service's measurement, the service's policy the key that signs the diary's")
    return service, diary


def seal_and_start_again(manager: adyton.EnclaveManager, diary: adyton.Bundle, address: str, state: Path) -> None:
    step("2. Start the diary twice: it has a store in its state folder, and no sealing key of its hardware")
    for _ in range(2):
        show(f"the diary: {start_diary(manager, diary, address, state)}")
    proves("the second start got the key of the first, from an enclave that it had attested and that had attested it")


def refuse_what_is_not_signed(manager: adyton.EnclaveManager, updated: adyton.Bundle, at: str, state: Path) -> None:
    step("3. Update the diary's code, and start it before the owner has signed it")
    show(f"the diary: {start_diary(manager, updated, at, state)}")
    proves("code that the owner did not sign gets no key, and the store stays as it was")


def start_or_say(manager: adyton.EnclaveManager, service: adyton.Bundle, document: bytes, state: Path) -> str:
    try:
        start_service(manager, service, document, state)
    except adyton.ApplicationError as error:
        return f"{error.status.name}: {error.message}"
    return "started"


def lose_the_master_key(manager: adyton.EnclaveManager, service: adyton.Bundle, document: bytes, folder: Path) -> None:
    step("5. Start the service with an empty folder, not the one that its master key is in")
    show(f"the service: {start_or_say(manager, service, document, folder / 'empty')}")
    proves("it does not begin anew under another key; who keeps the service must keep that folder")


def main(words: Sequence[str]) -> int:
    print("Adyton's demonstration of keys from outside: an enclave releases them to another one")
    owner = Ed25519PrivateKey.generate()
    with tempfile.TemporaryDirectory() as scratch, adyton.EnclaveManager() as manager:
        folder = Path(words[0]) if words else Path(scratch)
        keys, state = folder / "service-state", folder / "diary-state"
        bundle, diary = build(folder, owner)
        service, address = start_service(manager, bundle, sign_values([diary], owner), keys)
        seal_and_start_again(manager, diary, address, state)
        updated = update_diary(folder)
        refuse_what_is_not_signed(manager, updated, address, state)
        service.destroy()

        step("4. The owner signs both versions; the same service gets the new document from its host")
        document = sign_values([diary, updated], owner, version=2)
        (folder / "diary.values.json").write_bytes(document)
        service, address = start_service(manager, bundle, document, keys)
        show(f"the diary: {start_diary(manager, updated, address, state)}")
        proves("new code of the same rule reads what the old code sealed; the service's own measurement is as it was")
        service.destroy()
        lose_the_master_key(manager, bundle, document, folder)
    print("\nDone. Both enclaves are processes of this machine, a simulation: nothing here protects a secret.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
