"""The translator, from source to shutdown, with what each step proves: `python3 dev.py demo`."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
from cryptography.hazmat.primitives import hashes

import adyton
from adyton.host.launch.registry import launcher
from adyton.proto import grpc_application_pb2 as extensions
from adyton.tee.registry import tee
from adyton.tee.simulated.platform import SimulatedPlatform

PROJECT = Path(__file__).resolve().parent
sys.path.insert(0, str(PROJECT))

from translator import translator_pb2, translator_pb2_grpc  # noqa: E402


def step(title: str) -> None:
    print(f"\n{title}", flush=True)


def show(text: str) -> None:
    print(f"    {text}", flush=True)


def proves(text: str) -> None:
    print(f"    → {text}", flush=True)


def build(folder: Path) -> adyton.Bundle:
    step("1. Build the translator's bundle, twice")
    first, second = adyton.Bundle.build(PROJECT), adyton.Bundle.build(PROJECT)
    if first.data != second.data:
        raise SystemExit("the two builds differ")
    for path in first.save(folder):
        show(f"wrote {path.name}, {path.stat().st_size:,} bytes")
    show(f"SHA-256 {first.sha256.hex()}")
    proves("the bytes are equal, so this digest stands for exactly this code, configuration and lock")
    return first


def load(manager: adyton.EnclaveManager, bundle: adyton.Bundle) -> tuple[adyton.EnclaveClient, str]:
    step("2. Start it in an enclave process")
    show(launcher("process").warning)
    config = adyton.EnclaveConfig()
    config.Extensions[extensions.server_address] = "localhost"
    config.Extensions[extensions.port] = 0
    enclave = manager.load("translator", bundle, config)
    port = enclave.enter_and_run().Extensions[extensions.actual_server_port]
    show(f"Server started on port {port}")
    proves("the bundle was verified against its digest before a line of it ran, in an interpreter of its own")
    return enclave, enclave.address_of(port)


def attest(enclave: adyton.EnclaveClient, bundle: adyton.Bundle) -> None:
    step("3. Ask for evidence, over 64 bytes that nobody could know before")
    challenge = os.urandom(64)
    evidence = enclave.collect_evidence(challenge)
    anchors = {SimulatedPlatform.open().root.fingerprint(hashes.SHA256())}
    verified = tee("simulated").verifier()(evidence, anchors=anchors, now=datetime.now(UTC))
    measured = verified.measurement.hex()
    reference = bundle.measurements()["reference_values"]
    if verified.report_data != challenge or reference != {"simulated": {"measurement": measured}}:
        raise SystemExit("the evidence is not this enclave's")
    show(f"measurement {measured[:32]}…, as in measurements.json")
    proves("the evidence is fresh and names this bundle; its root is this machine's own: a simulation")


def translate(stub: translator_pb2_grpc.TranslatorStub) -> None:
    step("4. Translate, from an untrusted client")
    for word in ("asylo", "istio", "Kubernetes", "Orkut"):
        try:
            response = stub.GetTranslation(translator_pb2.GetTranslationRequest(input_word=word), timeout=10)
            show(f"{word} → {response.translated_word}")
        except grpc.RpcError as error:
            show(f"{word} → {error.code().name}: {error.details()}")
    proves("an ordinary gRPC client, generated code, and the servicer's own statuses")


def stream(stub: translator_pb2_grpc.TranslatorStub) -> None:
    step("5. Stream a sentence, word by word")
    sentence = "the kubernetes hoists the istio and steers for asylo"

    def words() -> Iterator[translator_pb2.GetTranslationRequest]:
        for word in sentence.split():
            yield translator_pb2.GetTranslationRequest(input_word=word)

    translated = [response.translated_word for response in stub.TranslateText(words(), timeout=10)]
    show(sentence)
    show(" ".join(translated))
    proves("a bidirectional stream, on the same server")


def refuse_a_changed_bundle(manager: adyton.EnclaveManager, bundle: adyton.Bundle) -> None:
    step("6. Start it again with one byte of the dictionary changed, but under the old digest")
    changed = bundle.data.replace(b"sanctuary", b"sanctuarz", 1)
    forged = adyton.Bundle(sha256=bundle.sha256, data=changed, settings=bundle.settings, lock=bundle.lock)
    try:
        manager.load("impostor", forged)
    except adyton.errors.BundleError as error:
        show(f"{type(error).__name__}: {error}")
    else:
        raise SystemExit("a changed bundle was started")
    proves("nothing of it ran")


def main() -> int:
    print("Adyton's demonstration: a translation server in an enclave")
    with tempfile.TemporaryDirectory() as folder, adyton.EnclaveManager() as manager:
        bundle = build(Path(folder))
        enclave, address = load(manager, bundle)
        attest(enclave, bundle)
        with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            stub = translator_pb2_grpc.TranslatorStub(channel)
            translate(stub)
            stream(stub)
        refuse_a_changed_bundle(manager, bundle)
        step("7. Shut down")
        enclave.destroy()
        show(f"last log line: {enclave.log_tail()[-1]}")
        proves("RPCs in flight got their time, the application was finalized, and no process is left")
    print("\nDone. The channel itself is plain gRPC in this version: see LIMITATIONS.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
