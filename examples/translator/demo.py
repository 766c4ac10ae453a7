"""The translator, from source to shutdown, with what each step proves: `python3 dev.py demo [--on vm]`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import grpc

import adyton
from adyton.host.launch.launcher import Launcher
from adyton.host.launch.registry import LAUNCHERS, launcher
from adyton.policy.reference_values import policy_for
from adyton.proto import grpc_application_pb2 as extensions

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


class Stage:
    """Where the enclaves of this demonstration run, and what a client must know of that."""

    def __init__(self, manager: adyton.EnclaveManager, technology: str) -> None:
        self.manager = manager
        self.launcher: Launcher = launcher(technology)
        #: A simulation is accepted by nobody who has not said so.
        self.agreed = ["simulated"] if technology == "process" else []

    def start(self, name: str, bundle: adyton.Bundle, state: Path | None = None) -> tuple[adyton.EnclaveClient, str]:
        config = adyton.EnclaveConfig()
        config.Extensions[extensions.server_address] = "localhost"
        config.Extensions[extensions.port] = 0
        enclave = self.manager.load(name, bundle, config, on=self.launcher.technology, state=state)
        port = enclave.enter_and_run().Extensions[extensions.actual_server_port]
        return enclave, enclave.address_of(port)

    def connect(self, address: str, policy: Path) -> adyton.AttestedChannel:
        return adyton.connect(address, policy, allow_insecure=self.agreed)


class Counted:
    """The enclave that counts words: its state folder outlives it.

    It gets a name of its own, for the hardware remembers the stores of each name, and this folder is thrown away.
    """

    def __init__(self, stage: Stage, bundle: adyton.Bundle, state: Path) -> None:
        self._stage = stage
        self._bundle = bundle
        self._state = state
        self._name = f"translator-{secrets.token_hex(4)}"
        self.start()

    def start(self) -> None:
        before, begun = descendants(), time.monotonic()
        self.enclave, self.address = self._stage.start(self._name, self._bundle, self._state)
        self._processes = descendants() - before
        show(f"Server started on {self.address}, after {time.monotonic() - begun:.1f} s")

    def kill(self) -> None:
        for pid in sorted(self._processes):
            with contextlib.suppress(ProcessLookupError):  # it ended with another of them
                os.kill(pid, signal.SIGKILL)
        try:
            self.enclave.wait_stop_requested(30)
        except adyton.errors.EnclaveDiedError as death:
            show(f"{type(death).__name__}: {death.message}")
        else:
            raise SystemExit("the enclave lives on")


def descendants() -> set[int]:
    """The processes that this one has started, and that those have."""
    found, parents = set[int](), {os.getpid()}
    while parents:
        lists = [each for parent in parents for each in Path(f"/proc/{parent}/task").glob("*/children")]
        parents = set()
        for each in lists:
            with contextlib.suppress(OSError):  # that thread has ended
                parents.update(map(int, each.read_text().split()))
        found |= parents
    return found


def load(stage: Stage, bundle: adyton.Bundle, folder: Path) -> Counted:
    step(f"2. Start it in an enclave, on {stage.launcher.technology!r}")
    show(stage.launcher.warning)
    stage.launcher.prepare(bundle, show)
    counted = Counted(stage, bundle, folder / "state")
    if stage.launcher.technology == "process":
        proves("the bundle was verified against its digest before a line of it ran, in an interpreter of its own")
    else:
        proves("another kernel booted; its kernel, system, application and command line were measured into a TPM")
    return counted


def write_policy(stage: Stage, bundle: adyton.Bundle, folder: Path) -> Path:
    policy = folder / "translator.policy.toml"
    measurements = json.dumps(stage.launcher.measurements(bundle)).encode()
    policy.write_text(policy_for(measurements, stage.launcher.anchors()))
    return policy


def connect(stage: Stage, address: str, policy: Path) -> adyton.AttestedChannel:
    step("3. Connect, on condition that the enclave proves what it is")
    channel = stage.connect(address, policy)
    assert channel.attestation is not None
    record = channel.attestation.record()
    show(f"accepted by the rule {record['rule']!r}: measurement {record['measurement'][:32]}…")
    show(
        f"bound to this {record['level']}" + ("; of a simulation, to which this client agreed" if stage.agreed else "")
    )
    proves("the evidence names this client's key on this connection; nothing was sent before it was verified")
    return channel


def translate(stub: translator_pb2_grpc.TranslatorStub) -> None:
    step("4. Translate, from an untrusted client")
    for word in ("asylo", "istio", "Kubernetes", "Orkut"):
        try:
            response = stub.GetTranslation(translator_pb2.GetTranslationRequest(input_word=word), timeout=10)
            show(f"{word} → {response.translated_word}")
        except grpc.RpcError as error:
            show(f"{word} → {error.code().name}: {error.details()}")
    proves("an ordinary gRPC channel, generated code, and the servicer's own statuses")


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


def words_until_now(channel: adyton.AttestedChannel) -> int:
    """Of this client, which has given no name, and this word with them."""
    stub = translator_pb2_grpc.TranslatorStub(channel)
    request = translator_pb2.GetTranslationRequest(input_word="asylo")
    _, call = stub.GetTranslation.with_call(request, timeout=10)
    return int(dict(call.trailing_metadata())["usage-count"])


def outlive_a_kill(stage: Stage, counted: Counted, policy: Path, before: int) -> None:
    step("6. Kill it, and start it again")
    show(f"{before} words translated for this client")
    show("kill -9")
    counted.kill()
    counted.start()
    with stage.connect(counted.address, policy) as channel:
        after = words_until_now(channel)
    show(f"one word more, which makes {after}")
    if after != before + 1:
        raise SystemExit("the count was lost")
    proves("each count was on the disk before its client was told, sealed for this very code")


def refuse_a_changed_bundle(stage: Stage, bundle: adyton.Bundle) -> None:
    step("7. Start it again with one byte of the dictionary changed, but under the old digest")
    changed = bundle.data.replace(b"sanctuary", b"sanctuarz", 1)
    forged = adyton.Bundle(sha256=bundle.sha256, data=changed, settings=bundle.settings, lock=bundle.lock)
    try:
        stage.start("forged", forged)
    except adyton.errors.BundleError as error:
        show(f"{type(error).__name__}: {error}")
    else:
        raise SystemExit("a changed bundle was started")
    proves("an honest host does not run it")


def refuse_an_impostor(stage: Stage, policy: Path, folder: Path) -> None:
    step("8. A dishonest host runs it: the same server, one byte changed, in an enclave of its own")
    project = folder / "impostor"
    shutil.copytree(PROJECT, project, ignore=shutil.ignore_patterns("__pycache__", "dist"))
    dictionary = project / "translator" / "dictionary.toml"
    dictionary.write_bytes(dictionary.read_bytes().replace(b"sanctuary", b"sanctuarz", 1))
    _, address = stage.start("impostor", adyton.Bundle.build(project))
    try:
        stage.connect(address, policy)
    except adyton.errors.PolicyError as refusal:  # and a grpc.RpcError too
        show(f"{type(refusal).__name__}, {refusal.status.name}: {refusal.message}")
        for finding in refusal.findings:
            show(f"{finding.subject} is {finding.got[:44]}…, wanted is {finding.wanted[:44]}…")
    else:
        raise SystemExit("an impostor was accepted")
    proves("its evidence is genuine and says what it is, so no word was sent to it")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--on", default="process", choices=sorted(LAUNCHERS), help="technology (default: %(default)s)")
    technology = parser.parse_args().on
    print("Adyton's demonstration: a translation server in an enclave")
    with tempfile.TemporaryDirectory() as folder, adyton.EnclaveManager() as manager:
        stage = Stage(manager, technology)
        bundle = build(Path(folder))
        counted = load(stage, bundle, Path(folder))
        policy = write_policy(stage, bundle, Path(folder))
        with connect(stage, counted.address, policy) as channel:
            stub = translator_pb2_grpc.TranslatorStub(channel)
            translate(stub)
            stream(stub)
            before = words_until_now(channel)
        outlive_a_kill(stage, counted, policy, before)
        refuse_a_changed_bundle(stage, bundle)
        refuse_an_impostor(stage, policy, Path(folder))
        step("9. Shut down")
        counted.enclave.destroy()
        show(f"last log line: {counted.enclave.log_tail()[-1]}")
        proves("RPCs in flight got their time, the application was finalized, and no process is left")
    print(f"\nDone. {_LAST_WORDS.get(technology, '')}".rstrip())
    return 0


_LAST_WORDS = {
    "process": "It was a simulation: the channel is the real one, the hardware is a key of this machine",
    "vm": "It was emulated: the machine and its measured boot are real, the TPM is a program on this one",
}


if __name__ == "__main__":
    sys.exit(main())
