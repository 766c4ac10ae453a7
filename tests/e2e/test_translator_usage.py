"""The translator counts its clients' words, through kill -9, restarts and an update of its code."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from channel_parties import CLAIMS, MEASUREMENT, policy_text, slow_device
from command_line import adyton, running
from counting import (
    TRANSLATOR,
    assert_refused,
    at,
    build,
    channel_to,
    count,
    count_after_a_start,
    kill_the_enclave,
    kill_the_host,
    status_of,
    told,
    translate,
)
from cryptography.hazmat.primitives import hashes
from observing import eventually
from simulated_machine import SimulatedMachine
from translator import translator_pb2, translator_pb2_grpc, usage

from adyton.atls.batch import DeviceQuotes
from adyton.atls.enrolling import CallerIdentity
from adyton.sealing.header import parse_header, split_header
from adyton.sealing.sealer import Sealer
from adyton.sealing.store import SealedStore

WORD = translator_pb2.GetTranslationRequest(input_word="asylo")
CALLERS = 3
"""Threads of each client, and so what it may have in flight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    key: Path
    id: str

    @classmethod
    def make(cls, key: Path) -> Signer:
        made = adyton("new-key", key)
        assert made.returncode == 0, made.stderr
        return cls(key=key, id=made.stdout.strip())

    def sign(self, bundle: Path) -> None:
        signed = adyton("sign", bundle, "--key", self.key)
        assert signed.returncode == 0, signed.stderr


def for_signer(signer: str, version: int) -> str:
    return f'[sealing]\npolicy = "signer"\nsigners = ["{signer}"]\nversion = {version}\n'


@dataclass(frozen=True, slots=True, kw_only=True)
class Releases:
    """Of one product: two versions by its signer, and what another one makes of the second."""

    signer: str
    other: str
    first: Path
    second: Path
    copied: Path
    """The same code, signed by the other."""
    changed: Path
    """Code that believes the other, signed by him."""


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Releases:
    folder = tmp_path_factory.mktemp("releases")
    signer, other = (Signer.make(folder / f"{name}.pem") for name in ("signer", "other"))
    made = Releases(
        signer=signer.id,
        other=other.id,
        first=build(folder / "first", for_signer(signer.id, 1)),
        second=build(folder / "second", for_signer(signer.id, 2), agora="market"),
        copied=build(folder / "copied", for_signer(signer.id, 2), agora="market"),
        changed=build(folder / "changed", for_signer(other.id, 3)),
    )
    for bundle, by in ((made.first, signer), (made.second, signer), (made.copied, other), (made.changed, other)):
        by.sign(bundle)
    assert made.copied.read_bytes() == made.second.read_bytes()
    return made


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as it stands."""
    return build(tmp_path_factory.mktemp("plain") / "project")


@dataclass
class Load:
    """Clients that call until they can't, and what each was told."""

    channel: grpc.Channel
    clients: tuple[str, ...] = ("ada", "grace")
    heard: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.heard = {client: [] for client in self.clients}
        self.threads = [
            threading.Thread(target=self._call, args=(client,)) for client in self.clients for _ in range(CALLERS)
        ]
        for each in self.threads:
            each.start()

    def _call(self, client: str) -> None:
        with contextlib.suppress(grpc.RpcError):
            while True:
                self.heard[client].append(count(self.channel, client))

    def wait_for(self, words: int) -> None:
        eventually(lambda: all(len(each) >= words for each in self.heard.values()), 60)

    def end(self) -> dict[str, int]:
        """The highest count that each client was told."""
        for each in self.threads:
            each.join(60)
            assert not each.is_alive()
        return {client: max(told) for client, told in self.heard.items()}


def version_of(store: Path) -> int:
    """The least version of the signer's code that can open it."""
    with contextlib.closing(sqlite3.connect(store)) as database:
        (sealed_key,) = database.execute("SELECT sealed_key FROM meta").fetchone()
    return parse_header(split_header(sealed_key)[0]).binding.version


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_counts_go_on_through_kills_restarts_and_an_update(releases: Releases, tmp_path: Path) -> None:
    state = at(tmp_path)
    before = {"ada": 0, "grace": 0}
    for kill in (kill_the_enclave, kill_the_host, kill_the_enclave):
        with running(releases.first, *state) as server, channel_to(server, releases.first) as channel:
            load = Load(channel)
            load.wait_for(15)
            kill(server)
            acknowledged = load.end()
        for client, counted in before.items():
            assert counted < min(load.heard[client])  # what was kept the last time was there
            now = count_after_a_start(client, releases.first, *state)
            assert acknowledged[client] <= now <= acknowledged[client] + CALLERS
            before[client] = now + 1
            assert sorted(load.heard[client]) == sorted(set(load.heard[client]))  # no count was told twice
    assert version_of(tmp_path / "state" / "usage.store") == 1

    with running(releases.second, *state) as server, channel_to(server, releases.second) as channel:
        assert translate(channel, "ada", "agora") == ("market", before["ada"] + 1)
        assert count(channel, "grace") == before["grace"] + 1
        assert server.end()[0] == 0
    assert version_of(tmp_path / "state" / "usage.store") == 2
    refused = r"PERMISSION_DENIED: the version is 1; the data was sealed for 2 or later"
    assert_refused(refused, releases.first, *state)
    for client, counted in before.items():
        assert count_after_a_start(client, releases.second, *state) == counted + 1


@pytest.mark.slow
def test_another_signers_code_gets_nothing(releases: Releases, tmp_path: Path) -> None:
    state = at(tmp_path)
    assert count_after_a_start("ada", releases.second, *state) == 0
    for bundle, unknown in ((releases.copied, releases.other), (releases.changed, releases.signer)):
        assert_refused(f"PERMISSION_DENIED: the signer {unknown} is none that this code knows", bundle, *state)
    assert count_after_a_start("ada", releases.second, *state) == 1


def test_without_a_signer_the_counts_outlive_a_restart_and_no_update(plain: Path, tmp_path: Path) -> None:
    state = at(tmp_path)
    assert count_after_a_start("ada", plain, *state) == 0
    assert count_after_a_start("ada", plain, *state) == 1
    changed = build(tmp_path / "changed", agora="market")
    assert_refused("PERMISSION_DENIED: the measurement is", changed, *state)


def test_without_a_state_folder_nothing_is_counted(plain: Path) -> None:
    with running(plain) as server, channel_to(server, plain) as channel:
        assert translate(channel, "ada") == ("sanctuary", -1)


def test_a_word_counts_when_it_is_translated_and_a_text_by_its_words(plain: Path, tmp_path: Path) -> None:
    with running(plain, *at(tmp_path)) as server, channel_to(server, plain) as channel:
        assert [count(channel, client) for client in ("ada", "grace", "ada", None, None)] == [1, 1, 2, 1, 2]
        assert status_of(channel, "ada", "orkut") is grpc.StatusCode.INVALID_ARGUMENT
        for claim in ("", "two words", "x" * 65):
            assert status_of(channel, claim) is grpc.StatusCode.INVALID_ARGUMENT
        stub: Any = translator_pb2_grpc.TranslatorStub(channel)
        text = stub.TranslateText(iter([WORD] * 5), timeout=20, metadata=((usage.CLIENT_NAME, "ada"),))
        assert len(list(text)) == 5
        assert told(text) == 7
        assert count(channel, "anonymous") == 3


def test_the_words_of_a_text_that_its_client_leaves_are_counted(plain: Path, tmp_path: Path) -> None:
    with running(plain, *at(tmp_path)) as server, channel_to(server, plain) as channel:
        sent = asked = 0

        def words() -> Iterator[translator_pb2.GetTranslationRequest]:
            nonlocal sent
            while True:
                sent += 1
                yield translator_pb2.GetTranslationRequest(input_word="x" * 500_000)

        def stands_still() -> bool:
            before = sent
            time.sleep(0.2)
            return sent == before

        def counted() -> bool:
            nonlocal asked
            asked += 1
            return count(channel, "ada") >= 3 + asked

        stub: Any = translator_pb2_grpc.TranslatorStub(channel)
        text = stub.TranslateText(words(), timeout=60, metadata=((usage.CLIENT_NAME, "ada"),))
        for _ in range(3):
            next(text)
        eventually(stands_still, 30)  # nobody reads the answers, so the servicer is stopped in the middle of one
        text.cancel()
        eventually(counted)


def test_an_enrolled_caller_is_counted_by_what_it_is_whatever_it_claims(tmp_path: Path) -> None:
    with slow_device(tmp_path, 0) as (device, hardware):
        access = '[access]\npolicy = "translator/callers.toml"\nallow_insecure = ["simulated"]\n'
        project = shutil.copytree(TRANSLATOR, tmp_path / "project", ignore=shutil.ignore_patterns("dist"))
        with (project / "enclave.toml").open("a") as settings:
            settings.write(access)
        (project / "translator" / "callers.toml").write_bytes(policy_text(hardware.root.fingerprint(hashes.SHA256())))
        caller = CallerIdentity(role="front-end", claims=CLAIMS, quotes=DeviceQuotes(device))
        with running(project, *at(tmp_path)) as server:
            with channel_to(server, project, identity=caller) as first:
                assert [count(first, client) for client in (None, "ada", "grace")] == [1, 2, 3]
            with channel_to(server, project, identity=caller) as again, channel_to(server, project) as stranger:
                assert count(again, "ada") == 4
                name = f"attested simulated {MEASUREMENT.hex()} an enclave"
                assert status_of(stranger, name) is grpc.StatusCode.INVALID_ARGUMENT
                assert [count(stranger, client) for client in ("ada", None)] == [1, 1]


def test_new_names_beyond_the_bound_count_as_anonymous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "MAX_CLIENTS", 2)
    with SimulatedMachine(tmp_path) as machine:
        counts = usage.Usage(SealedStore.open(tmp_path, "usage", Sealer(machine.source())))
        for client, counted in (
            ("claims ada", 1),
            ("claims grace", 1),
            ("claims emmy", 1),
            ("claims mary", 2),
            (usage.ANONYMOUS, 3),
            ("attested simulated 4d an enclave", 1),
            ("claims ada", 2),
        ):
            assert counts.add(client, 1) == counted, client
