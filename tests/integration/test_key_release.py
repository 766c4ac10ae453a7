"""Keys that one enclave releases to another: real enclaves that attest each other, and callers of any measurement."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import grpc
import pytest
from command_line import COMMAND, running
from command_line import adyton as adyton_command
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from observing import eventually

from adyton.atls.batch import DeviceQuotes
from adyton.atls.claims import encode_claims
from adyton.atls.connect import connect
from adyton.atls.enrolling import CallerIdentity
from adyton.enclave.key_release import STORE
from adyton.enclave.key_sources.release import METHOD, ReleaseKeys
from adyton.errors import ApplicationError, EnclaveDiedError, KeyUnavailableError, StatusCode, UnsealError
from adyton.host.bundles import LOCK, Bundle, runtime_lock
from adyton.host.manager import EnclaveClient, EnclaveManager
from adyton.policy.document import Policy
from adyton.policy.insecurity import Insecurity
from adyton.policy.reference_values import policy_for
from adyton.proto import grpc_application_pb2 as extensions
from adyton.proto.key_release_pb2 import KeyReleaseRequest
from adyton.sealing.header import parse_header, split_header
from adyton.sealing.sealer import Sealer
from adyton.tee.sealing import SealPolicy
from adyton.tee.simulated.device import SimulatedDevice
from adyton.tee.simulated.format import simulated_measurement
from adyton.tee.simulated.platform import SimulatedPlatform, serve
from adyton.testing.probes import answer, command, server_config, write_probe_project
from adyton.testing.sealers import KeySourceConformance, SealingWorld

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples" / "key_release"

SERVICE = """
name = "service"
application = "adyton.enclave.key_release:KeyReleaseApplication"
include = ["callers.policy.toml"]
[access]
policy = "callers.policy.toml"
allow_insecure = ["simulated"]
"""
CALLERS = """
version = 1
[anchors]
simulated = {anchors}
[[simulated]]
name = "notes"
measurement = {notes}
max_age_seconds = 300
[[simulated]]
name = "ledger"
measurement = {ledger}
max_age_seconds = 300
"""
SEALING = """
[network]
outbound = {outbound}
[sealing]
source = "release"
[sealing.release]
policy = "probe/service.policy.toml"
"""
NOTES = """
import os, signal
import adyton
from probe import probe_pb2

class Notes(adyton.TrustedApplication):
    def run(self, input):
        store, name, value = (input.Extensions[probe_pb2.command].split() + ["", ""])[:3]
        if store == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        with self.context.store(store) as notes:
            if value:
                notes.put(name, value.encode())
            output = adyton.EnclaveOutput()
            output.Extensions[probe_pb2.answer] = (notes.get(name) or b"nothing").decode()
        return output

class Serving:
    def add_servicers(self, server):
        (self.context.state_directory / f"by {self.context.worker}").write_bytes(adyton.seal(b"a secret"))

class Threads(Serving, adyton.GrpcApplication):
    pass

class Asyncio(Serving, adyton.AioGrpcApplication):
    pass
"""


def measurement_of(code: str) -> bytes:
    return hashlib.sha384(code.encode()).digest()


def fingerprint(platform: SimulatedPlatform) -> bytes:
    return platform.root.fingerprint(hashes.SHA256())


@contextlib.contextmanager
def machine(folder: Path | None) -> Iterator[None]:
    """What is launched meanwhile runs on the machine whose platform is in that folder; None: on this one."""
    with pytest.MonkeyPatch.context() as patch:
        if folder is not None:
            folder.mkdir(exist_ok=True)
            patch.setenv("XDG_DATA_HOME", str(folder))
        yield


def platform_of(folder: Path | None) -> SimulatedPlatform:
    with machine(folder):
        return SimulatedPlatform.open()


def build_service(folder: Path, callers: str, settings: str = SERVICE) -> Bundle:
    folder.mkdir()
    (folder / LOCK).write_bytes(runtime_lock())
    (folder / "enclave.toml").write_text(settings)
    (folder / "callers.policy.toml").write_text(callers)
    return Bundle.build(folder)


def policy_on(bundle: Bundle, platform: SimulatedPlatform) -> str:
    return policy_for(json.dumps(bundle.measurements()).encode(), {"simulated": fingerprint(platform)})


def start_service(
    manager: EnclaveManager, bundle: Bundle, state: Path | None, *, port: int = 0, document: bytes | None = None
) -> tuple[EnclaveClient, str]:
    config = server_config(port=port)
    if document is not None:
        config.Extensions[extensions.reference_values].append(document)
    enclave = manager.load("service", bundle, config, state=state)
    return enclave, enclave.address_of(enclave.enter_and_run().Extensions[extensions.actual_server_port])


def kill(enclave: EnclaveClient) -> None:
    """As a host can, from outside."""
    launched: Any = enclave._launched
    os.kill(launched.pid, signal.SIGKILL)
    eventually(lambda: enclave.has_died)


def port_in(address: str) -> int:
    return int(address.rpartition(":")[2])


class World(contextlib.ExitStack):
    """A real service, and callers of any measurement in this process; a SealingWorld.

    Its rule "notes" accepts the codes a and a2, its rule "ledger" the code c, on this machine and on `other`.
    """

    def __init__(self, folder: Path, *, on: Path | None = None) -> None:
        super().__init__()
        self._folder = folder
        self._on = on
        self.other = folder / "other machine"
        anchors = [fingerprint(platform_of(each)).hex() for each in (None, self.other)]
        codes = {"notes": ["a", "a2"], "ledger": ["c"]}
        listed = {rule: json.dumps([measurement_of(code).hex() for code in each]) for rule, each in codes.items()}
        self.callers = CALLERS.format(anchors=json.dumps(anchors), **listed)
        self.bundle = build_service(folder / "service", self.callers)
        self.manager = self.enter_context(EnclaveManager())
        self.address = ""
        self.start()

    def start(self) -> None:
        """With the state and the port that it had before, if there was one before."""
        port = port_in(self.address) if self.address else 0
        with machine(self._on):
            self.enclave, self.address = start_service(self.manager, self.bundle, self._folder / "state", port=port)

    def identity(self, code: str, on: Path | None = None) -> CallerIdentity:
        inside, outside = map(self.enter_context, socket.socketpair())
        hardware = platform_of(on).enclave(measurement_of(code))
        threading.Thread(target=serve, args=(hardware, outside), daemon=True).start()
        claims = encode_claims(name="caller", config_sha256=bytes(32))
        return CallerIdentity(role="caller", claims=claims, quotes=DeviceQuotes(SimulatedDevice(inside)))

    def source(
        self, *, code: str = "a", signer: str = "s", version: int = 1, tcb: int = 1, on: Path | None = None
    ) -> ReleaseKeys:
        """As SealingWorld says."""
        return self.source_at(self.address, self.bundle, code=code, on=on)

    def source_at(self, address: str, accepted: Bundle, *, code: str = "a", on: Path | None = None) -> ReleaseKeys:
        policy = Policy.parse(policy_on(accepted, platform_of(self._on)).encode())
        allow = [Insecurity.SIMULATED]
        made = ReleaseKeys(address, policy, identity=self.identity(code, on), allow_insecure=allow)
        self.callback(made.close)
        return made

    def elsewhere(self) -> World:
        """As SealingWorld says."""
        folder = self._folder / "elsewhere"
        folder.mkdir()
        return self.enter_context(World(folder, on=folder / "machine"))


@pytest.fixture(scope="module")
def service_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("world")) as made:
        yield made


class TestReleaseKeys(KeySourceConformance):
    policies: ClassVar = frozenset({SealPolicy.EXTERNAL})

    @pytest.fixture
    def world(self, service_world: World) -> SealingWorld:
        return service_world


# --- who gets which keys


def test_two_rules_have_different_keys_and_do_not_take_each_others_requests(service_world: World) -> None:
    notes, ledger = service_world.source(code="a"), service_world.source(code="c")
    made = notes.new_key(SealPolicy.EXTERNAL)
    assert notes.current(SealPolicy.EXTERNAL) != ledger.current(SealPolicy.EXTERNAL)
    with pytest.raises(UnsealError, match="refuses: rule: the key is for another than 'ledger'"):
        ledger.same_key(made.binding, made.request)


def test_all_code_that_one_rule_accepts_has_its_keys(service_world: World) -> None:
    sealed = Sealer(service_world.source(code="a")).seal(b"secret")
    assert Sealer(service_world.source(code="a2")).unseal(sealed) == b"secret"


def test_a_caller_on_another_machine_that_the_rule_accepts_has_the_same_keys(service_world: World) -> None:
    made = service_world.source().new_key(SealPolicy.EXTERNAL)
    moved = service_world.source(on=service_world.other)
    assert moved.same_key(made.binding, made.request) == made.key


def test_code_of_no_rule_gets_nothing(service_world: World) -> None:
    source = service_world.source(code="b")
    for ask in (source.new_key, source.current):
        with pytest.raises(UnsealError, match=r"has no keys for this code: .* does not accept the caller"):
            ask(SealPolicy.EXTERNAL)


def test_the_request_of_another_service_is_refused_by_name(service_world: World, tmp_path: Path) -> None:
    made = service_world.source().new_key(SealPolicy.EXTERNAL)
    with (
        World(tmp_path, on=tmp_path / "machine") as other,
        pytest.raises(UnsealError, match=r"refuses: service: the key is one of .* lost its state"),
    ):
        other.source().same_key(made.binding, made.request)


def test_a_stranger_gets_nothing_whatever_access_says(service_world: World) -> None:
    policy = policy_on(service_world.bundle, platform_of(None)).encode()
    with connect(service_world.address, policy, allow_insecure=["simulated"]) as channel:
        assert refusal(channel, b"") == (
            grpc.StatusCode.PERMISSION_DENIED,
            "only an enclave that has enrolled here gets keys",
        )


@pytest.mark.parametrize("request_", [b"\xff", KeyReleaseRequest(request=b"x" * 85).SerializeToString()])
def test_what_is_no_request_is_said_to_be_none(service_world: World, request_: bytes) -> None:
    policy = policy_on(service_world.bundle, platform_of(None)).encode()
    identity = service_world.identity("a")
    with connect(service_world.address, policy, identity=identity, allow_insecure=["simulated"]) as channel:
        assert refusal(channel, request_)[0] is grpc.StatusCode.INVALID_ARGUMENT


def refusal(channel: grpc.Channel, request: bytes) -> tuple[grpc.StatusCode, str]:
    rpc: Any = channel.unary_unary(METHOD)
    with pytest.raises(grpc.RpcError) as caught:
        rpc(request, timeout=10)
    failed: Any = caught.value
    return failed.code(), failed.details()


# --- the service ends, moves, is another


def test_a_service_that_was_killed_has_the_same_keys_and_its_callers_go_on(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        source = world.source()
        made = source.new_key(SealPolicy.EXTERNAL)
        kill(world.enclave)
        with pytest.raises(KeyUnavailableError, match="was not asked"):
            source.new_key(SealPolicy.EXTERNAL)
        world.start()
        eventually(lambda: same_key_or_none(source, made) == made.key)
        assert source.current(SealPolicy.EXTERNAL) == made.binding
        assert made.key.hex() not in "".join(world.enclave.log_tail())


def same_key_or_none(source: ReleaseKeys, made: Any) -> bytes | None:
    with contextlib.suppress(KeyUnavailableError):
        return source.same_key(made.binding, made.request)
    return None


def test_a_service_that_lost_its_state_does_not_begin_anew_on_its_machine(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        world.enclave.destroy()
        shutil.rmtree(tmp_path / "state")
        with pytest.raises(ApplicationError, match="the hardware remembers a store of that name"):
            world.start()


def test_an_impostor_is_asked_for_nothing(service_world: World, manager: EnclaveManager, tmp_path: Path) -> None:
    bundle = build_service(tmp_path / "impostor", service_world.callers + "#")
    impostor, address = start_service(manager, bundle, tmp_path / "state")
    source = service_world.source_at(address, service_world.bundle)
    with pytest.raises(KeyUnavailableError, match=r"was not asked: (?s:.*)measurement is "):
        source.new_key(SealPolicy.EXTERNAL)
    assert "a caller has enrolled" not in "".join(impostor.log_tail())
    service_world.source_at(address, bundle).new_key(SealPolicy.EXTERNAL)  # who accepts it is accepted there
    eventually(lambda: "a caller has enrolled" in "".join(impostor.log_tail()))


# --- what a service needs


def test_a_service_without_a_state_folder_does_not_start(service_world: World, manager: EnclaveManager) -> None:
    with pytest.raises(ApplicationError, match="give it a state folder, --state DIR") as caught:
        start_service(manager, service_world.bundle, None)
    assert caught.value.status is StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (SERVICE.partition("[access]")[0], "nobody could ask for a key"),
        (SERVICE + "[server]\nworkers = 2\n", "has one server process"),
    ],
)
def test_a_service_that_could_not_serve_does_not_start(
    manager: EnclaveManager, tmp_path: Path, settings: str, why: str
) -> None:
    with pytest.raises(ApplicationError, match=why) as caught:
        start_service(manager, build_service(tmp_path / "service", "", settings), tmp_path / "state")
    assert caught.value.status is StatusCode.INVALID_ARGUMENT
    assert not (tmp_path / "state" / f"{STORE}.store").exists()


# --- real enclaves on both sides


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    """The demonstration's own functions."""
    spec = importlib.util.spec_from_file_location("key_release_demo", EXAMPLE / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Owner:
    """A service whose policy names this owner's key, enclaves that keep notes, and two machines."""

    def __init__(self, demo: ModuleType, manager: EnclaveManager, folder: Path) -> None:
        self.folder = folder
        self._demo = demo
        self._manager = manager
        self._key = Ed25519PrivateKey.generate()
        self.other_machine = folder / "other machine"
        anchors = '", "'.join(fingerprint(platform_of(each)).hex() for each in (None, self.other_machine))
        public = self._key.public_key().public_bytes_raw().hex()
        callers = demo.CALLERS.replace('"diary"', '"probe"').format(anchor=anchors, owner=public)
        self._service_bundle = build_service(folder / "service", callers)
        self._service: EnclaveClient | None = None
        self.address = ""

    def build(
        self, name: str, *, application: str = "Notes", code: str = "", settings: str = "", out: bool = True
    ) -> Bundle:
        """An enclave that takes the service's keys, on either machine. `code` makes it other code."""
        more = SEALING.format(outbound=str(out).lower()) + settings
        project = write_probe_project(self.folder / name, f"probe.notes:{application}", more)
        (project / "probe" / "notes.py").write_text(NOTES + code)
        policy = policy_on(self._service_bundle, platform_of(None)).replace(
            'simulated = ["', f'simulated = ["{fingerprint(platform_of(self.other_machine)).hex()}", "'
        )
        (project / "probe" / "service.policy.toml").write_text(policy)
        return Bundle.build(project)

    def serve(self, *signed: Bundle, on: Path | None = None) -> EnclaveClient:
        """Start the service in place of the last one, with what is signed for those bundles alone.

        `on` another machine it has not its state.
        """
        if self._service is not None:
            self._service.destroy()
        document = self._demo.sign_values(signed, self._key)
        state = self.folder / ("service state" if on is None else "other service's state")
        with machine(on):
            self._service, self.address = start_service(self._manager, self._service_bundle, state, document=document)
        return self._service

    def start(
        self, bundle: Bundle, state: str = "state", *, on: Path | None = None, at: str | None = None
    ) -> EnclaveClient:
        config = server_config()
        config.Extensions[extensions.key_release_address] = self.address if at is None else at
        with machine(on):
            return self._manager.load("notes", bundle, config, state=self.folder / state)


@pytest.fixture
def owner(demo: ModuleType, manager: EnclaveManager, tmp_path: Path) -> Owner:
    return Owner(demo, manager, tmp_path)


def tell(enclave: EnclaveClient, words: str) -> str:
    return answer(enclave.enter_and_run(command(words)))


def files_in(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir()}


def test_what_was_sealed_outlives_a_killed_enclave(owner: Owner) -> None:
    notes = owner.build("notes")
    owner.serve(notes)
    first = owner.start(notes)
    assert tell(first, "diary monday rain") == "rain"
    with pytest.raises(EnclaveDiedError):
        tell(first, "die")
    assert tell(owner.start(notes), "diary monday") == "rain"


def test_what_was_sealed_outlives_an_update_and_other_code_does_not_get_it(owner: Owner) -> None:
    notes, updated, other = (owner.build(name, code=f"# {name}\n") for name in ("notes", "updated", "other"))
    owner.serve(notes)
    first = owner.start(notes)
    assert tell(first, "diary monday rain") == "rain"
    first.destroy()
    service = owner.serve(notes, updated)
    second = owner.start(updated)
    assert tell(second, "diary monday") == "rain"
    second.destroy()
    before = files_in(owner.folder / "state")
    with pytest.raises(ApplicationError, match="has no keys for this code") as caught:
        tell(owner.start(other), "diary monday sun")
    assert caught.value.status is StatusCode.PERMISSION_DENIED
    assert files_in(owner.folder / "state") == before
    found = f"measurement is {simulated_measurement(other.sha256).hex()}"
    eventually(lambda: found in "".join(service.log_tail()))


def test_what_was_sealed_moves_to_another_machine(owner: Owner) -> None:
    notes = owner.build("notes")
    owner.serve(notes)
    here = owner.start(notes)
    assert tell(here, "diary monday rain") == "rain"
    here.destroy()
    shutil.copytree(owner.folder / "state", owner.folder / "copy", copy_function=shutil.copy)
    assert tell(owner.start(notes, "copy", on=owner.other_machine), "diary monday") == "rain"


def test_another_service_is_named_and_nothing_is_written_over(owner: Owner) -> None:
    notes = owner.build("notes")
    owner.serve(notes)
    first = owner.start(notes)
    assert tell(first, "diary monday rain") == "rain"
    first.destroy()
    before = files_in(owner.folder / "state")
    owner.serve(notes, on=owner.other_machine)
    second = owner.start(notes)
    with pytest.raises(ApplicationError, match="service: the key is one of") as caught:
        tell(second, "diary monday sun")
    assert caught.value.status is StatusCode.PERMISSION_DENIED
    second.destroy()
    assert files_in(owner.folder / "state") == before


@pytest.mark.parametrize("application", ["Threads", "Asyncio"])
def test_each_server_process_has_the_keys(owner: Owner, application: str) -> None:
    bundle = owner.build("serving", application=application, settings="[server]\nworkers = 2\n")
    owner.serve(bundle)
    owner.start(bundle)
    for worker in range(2):
        header, _ = split_header((owner.folder / "state" / f"by {worker}").read_bytes())
        assert parse_header(header).source == "release"


@pytest.mark.parametrize(
    ("out", "at", "status", "why"),
    [
        (True, "", StatusCode.INVALID_ARGUMENT, "where the key-release enclave is"),
        (True, "nonsense", StatusCode.INVALID_ARGUMENT, "nonsense"),
        (False, "localhost:1", StatusCode.INVALID_ARGUMENT, "need a connection to it"),
        (True, "localhost:1", StatusCode.UNAVAILABLE, "the key-release enclave at localhost:1 was not asked"),
    ],
)
def test_an_enclave_that_can_reach_no_service_says_why(
    owner: Owner, out: bool, at: str, status: StatusCode, why: str
) -> None:
    enclave = owner.start(owner.build("notes", out=out), at=at)
    with pytest.raises(ApplicationError, match=why) as caught:
        tell(enclave, "diary monday rain")
    assert caught.value.status is status
    assert list((owner.folder / "state").iterdir()) == []


# --- the example


@pytest.mark.slow
def test_the_commands_of_the_examples_readme_do_what_it_says(tmp_path: Path) -> None:
    readme = (EXAMPLE / "README.md").read_text()
    (demo_line,) = re.findall(r"^ +\S*python (\S+demo\.py) FOLDER", readme, flags=re.MULTILINE)
    runs = re.findall(r"^ +adyton run (.+)$", readme, flags=re.MULTILINE)
    folder = tmp_path / "folder"
    service, diary = (line.replace("FOLDER", str(folder)).split() for line in runs)
    done = run_demo(EXAMPLE.parent.parent / demo_line, folder)
    for line in (
        "the diary: start number 2",
        "the diary: PERMISSION_DENIED: ",
        "the diary: updated, start number 3",
        "the service: DATA_LOSS: the hardware remembers",
        "nothing here protects a secret",
    ):
        assert line in done, done
    service[service.index("50100")] = "0"
    with running(*service) as first:
        assert first.port, first.end()
        diary[-1] = f"localhost:{first.port}"
        assert "updated, start number 4" in said_until_it_started(*diary)
    assert_policy_is_as_printed(folder)


def said_until_it_started(*words: str) -> str:
    """What `adyton run` of an enclave without a port says before it waits; then it is ended."""
    talk = ""
    with subprocess.Popen([*COMMAND, "run", *words], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            talk += line
            if "it serves no port" in line:
                process.terminate()
    assert process.returncode == 0, talk
    return talk


def run_demo(script: Path, folder: Path) -> str:
    done = subprocess.run([sys.executable, script, folder], check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_policy_is_as_printed(folder: Path) -> None:
    """What the README's second step prints is what the demonstration has written."""
    assert adyton_command("build", folder / "service").returncode == 0
    printed = adyton_command("policy", folder / "service" / "dist" / "measurements.json").stdout
    written = (folder / "diary" / "service.policy.toml").read_text()
    assert written in printed
