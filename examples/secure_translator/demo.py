"""Two enclaves that attest each other before a word is translated: `python3 examples/secure_translator/demo.py`."""

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

import grpc
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import adyton
from adyton.policy.signed import PAYLOAD_TYPE, pre_authentication_encoding
from adyton.proto import grpc_application_pb2 as extensions
from adyton.tee.simulated.platform import SimulatedPlatform

HERE = Path(__file__).resolve().parent
TRANSLATOR = HERE.parent / "translator"
sys.path[:0] = [str(TRANSLATOR), str(HERE / "client")]

from translation_client import translation_client_pb2  # noqa: E402
from translator import translator_pb2, translator_pb2_grpc  # noqa: E402

SERVER, CLIENT = "translation-server", "translation-client"

POLICY = """\
# Accepts the code for which {name}'s owner has signed reference values.
version = 1

[anchors]
simulated = ["{anchor}"]

[[reference_values]]
name = "{name}"
keys = ["{owner}"]
threshold = 1
min_version = 1

[[simulated]]
name = "{name}"
measurement = {{ signed = "{name}" }}
max_age_seconds = 300
"""


def step(title: str) -> None:
    print(f"\n{title}", flush=True)


def show(text: str) -> None:
    print(f"    {text}", flush=True)


def proves(text: str) -> None:
    print(f"    → {text}", flush=True)


def write_policy(path: Path, name: str, owner: Ed25519PrivateKey) -> None:
    """A policy on `name`, whose measurement its owner signs."""
    anchor = SimulatedPlatform.open().root.fingerprint(hashes.SHA256()).hex()
    text = POLICY.format(name=name, anchor=anchor, owner=owner.public_key().public_bytes_raw().hex())
    path.write_text(text, encoding="utf-8")


def copy_project(project: str, folder: Path) -> Path:
    """A copy of `client` or `server` in `folder`, with the translator's code and lock beside it."""
    copy = folder / project
    shutil.copytree(HERE / project, copy, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(TRANSLATOR / "translator", copy / "translator", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(TRANSLATOR / "requirements.lock", copy)
    return copy


def sign_values(bundle: adyton.Bundle, owner: Ed25519PrivateKey) -> bytes:
    """What the owner says of a bundle: its measurements are those of the name that its enclave.toml has."""
    expires = datetime.now(UTC) + timedelta(days=30)
    values = {
        "simulated": {"measurement": [bundle.measurements()["reference_values"]["simulated"]["measurement"]]}  # type: ignore[index]
    }
    body = {"name": bundle.settings.name, "version": 1, "expires": expires.isoformat(), "values": values}
    payload = json.dumps(body).encode()
    signature = owner.sign(pre_authentication_encoding(payload))
    envelope = {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"sig": base64.b64encode(signature).decode()}],
    }
    return json.dumps(envelope).encode()


def build(folder: Path, owner: Ed25519PrivateKey) -> tuple[adyton.Bundle, adyton.Bundle]:
    step("1. Build both enclaves, each with a policy on the other")
    server, client = copy_project("server", folder), copy_project("client", folder)
    write_policy(server / "clients.policy.toml", CLIENT, owner)
    write_policy(client / "server.policy.toml", SERVER, owner)
    bundles = adyton.Bundle.build(server), adyton.Bundle.build(client)
    for bundle in bundles:
        show(f"{bundle.settings.name}: SHA-256 {bundle.sha256.hex()}")
    proves("a policy names the owner's key, and no measurement: two bundles can't hold each other's digests")
    return bundles


def sign(bundles: Sequence[adyton.Bundle], owner: Ed25519PrivateKey) -> tuple[bytes, ...]:
    step("2. The owner signs what each bundle measures")
    signed = tuple(sign_values(bundle, owner) for bundle in bundles)
    for bundle, document in zip(bundles, signed, strict=True):
        show(f"{bundle.settings.name}: {len(document)} bytes, version 1, good for 30 days")
    proves("the documents are public, and whoever brings them can't change them")
    return signed


def start_server(
    manager: adyton.EnclaveManager, bundle: adyton.Bundle, document: bytes
) -> tuple[adyton.EnclaveClient, str]:
    step("3. Start the server; its host hands in the signed values of the client")
    config = adyton.EnclaveConfig()
    config.Extensions[extensions.server_address] = "localhost"
    config.Extensions[extensions.port] = 0
    config.Extensions[extensions.reference_values].append(document)
    enclave = manager.load(SERVER, bundle, config)
    port = enclave.enter_and_run().Extensions[extensions.actual_server_port]
    show(f"Server started on port {port}")
    proves("its [access] lets callers of the rule translation-client have words translated, and nobody else anything")
    return enclave, enclave.address_of(port)


def start_client(
    manager: adyton.EnclaveManager, bundle: adyton.Bundle, document: bytes, name: str = CLIENT
) -> adyton.EnclaveClient:
    config = adyton.EnclaveConfig()
    config.Extensions[extensions.reference_values].append(document)
    return manager.load(name, bundle, config)


def translate(client: adyton.EnclaveClient, address: str, words: Sequence[str]) -> list[str]:
    asked = adyton.EnclaveInput()
    asked.Extensions[translation_client_pb2.job].server_address = address
    asked.Extensions[translation_client_pb2.job].words.extend(words)
    return list(client.enter_and_run(asked).Extensions[translation_client_pb2.translations].words)


def translate_between_enclaves(client: adyton.EnclaveClient, address: str) -> None:
    step("4. The client's enclave attests the server, enrols, and has words translated")
    words = ["asylo", "istio", "kubernetes"]
    for word, translated in zip(words, translate(client, address, words), strict=True):
        show(f"{word} → {translated}")
    proves("both sides proved what they are on this very connection, before the first word was sent")


def refuse_a_stranger(address: str, server: adyton.Bundle, document: bytes, owner: Ed25519PrivateKey) -> None:
    step("5. Call the server from outside of any enclave")
    with tempfile.TemporaryDirectory() as folder:
        policy = Path(folder) / "server.policy.toml"
        write_policy(policy, SERVER, owner)
        channel = adyton.connect(address, policy, reference_values=[document], allow_insecure=["simulated"])
    with channel:
        assert channel.attestation is not None
        show(f"the server is {server.settings.name}: the rule {channel.attestation.appraisal.rule} accepts it")
        stub = translator_pb2_grpc.TranslatorStub(channel)
        try:
            stub.GetTranslation(translator_pb2.GetTranslationRequest(input_word="asylo"), timeout=10)
        except grpc.RpcError as error:
            show(f"asylo → {error.code().name}: {error.details()}")
        else:
            raise SystemExit("a stranger was served")
    proves("anybody may attest the server; what it does for them is its own to say")


def refuse_changed_code(
    manager: adyton.EnclaveManager, client: Path, document: bytes, server: adyton.EnclaveClient, address: str
) -> None:
    step("6. Change one byte of the client's code, and try again")
    source = client / "translation_client" / "application.py"
    source.write_bytes(source.read_bytes().replace(b"timeout=10", b"timeout=11", 1))
    changed = start_client(manager, adyton.Bundle.build(client), document, name="impostor")
    try:
        translate(changed, address, ["asylo"])
    except adyton.ApplicationError as error:
        show(f"the client's enclave: {error}")
    else:
        raise SystemExit("changed code was enrolled")
    until = time.monotonic() + 10  # the log comes through a pipe
    while not (refusals := [line for line in server.log_tail() if "was not enrolled" in line]):
        if time.monotonic() > until:
            raise SystemExit("the server's log says nothing")
        time.sleep(0.05)
    for reason in json.loads(refusals[-1])["reasons"]:
        show(f"the server's log: {reason}")
    proves("the caller learns the fact; the finding, with what was got and what was wanted, stays in the server's log")


def main() -> int:
    print("Adyton's demonstration of mutual attestation: a translation client and server, each in an enclave")
    owner = Ed25519PrivateKey.generate()
    with tempfile.TemporaryDirectory() as folder, adyton.EnclaveManager() as manager:
        server_bundle, client_bundle = build(Path(folder), owner)
        server_values, client_values = sign((server_bundle, client_bundle), owner)
        server, address = start_server(manager, server_bundle, client_values)
        client = start_client(manager, client_bundle, server_values)
        translate_between_enclaves(client, address)
        refuse_a_stranger(address, server_bundle, server_values, owner)
        refuse_changed_code(manager, Path(folder) / "client", server_values, server, address)
    print("\nDone. Both enclaves are processes of this machine, a simulation: nothing here protects a secret.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
