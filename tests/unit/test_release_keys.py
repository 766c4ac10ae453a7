"""Keys from a key-release enclave: how they are derived, and what each answer of a service becomes."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from channel_parties import CLAIMS, MEASUREMENT, NAMES, policy_text, slow_device
from cryptography.hazmat.primitives import hashes
from simulated_machine import SimulatedMachine
from vaults import make_vault

from adyton.atls.attester import Attester
from adyton.atls.batch import BatchedQuotes, DeviceQuotes
from adyton.atls.enrolling import CallerIdentity
from adyton.atls.identity import LocalIdentity
from adyton.atls.question import Terms
from adyton.atls.registrar import Registrar
from adyton.bundle.settings import NetworkSettings, ReleaseSettings, SealingSettings, Settings
from adyton.enclave.application import EnclaveContext
from adyton.enclave.key_release import SERVICE, MasterKey
from adyton.enclave.key_sources.release import ReleaseKeys
from adyton.enclave.serving import Listen, ThreadedServing
from adyton.errors import (
    AdytonError,
    ApplicationError,
    KeyUnavailableError,
    SealedDataError,
    StatusCode,
    UnsealError,
    UnsupportedError,
)
from adyton.policy.document import Policy
from adyton.policy.insecurity import Insecurity
from adyton.proto.key_release_pb2 import KeyReleaseReply, KeyReleaseRequest
from adyton.sealing.sealer import Sealer
from adyton.sealing.store import SealedStore
from adyton.tee.evidence import Evidence
from adyton.tee.sealing import Binding, SealPolicy
from adyton.tee.simulated.device import SimulatedDevice

KEYS = MasterKey(service=b"s" * 16, master=b"m" * 32)
ALLOW = frozenset({Insecurity.SIMULATED})
GOOD = KeyReleaseReply(key=b"k" * 32, request=b"request", subject=b"subject")

Answer = Callable[[bytes, Any], bytes]


# --- the service's keys


def test_the_derivation_is_the_one_that_the_module_describes() -> None:
    made = KEYS.new_key("notes")
    rule = hashlib.sha256(b"adyton key release v1 rule\0notes").digest()
    assert made.request[:-32] == b"\1" + b"\0\0\0\1" + b"s" * 16 + rule
    assert made.subject == hashlib.sha256(b"adyton key release v1 subject\0" + b"s" * 16 + b"notes").digest()
    extracted = hmac.digest(bytes(32), b"m" * 32, "sha256")  # RFC 5869, without a salt
    assert made.key == hmac.digest(extracted, b"adyton key release v1 key\0" + made.request + b"\1", "sha256")


def test_each_new_key_is_another_and_each_is_had_again() -> None:
    made = [KEYS.new_key("notes") for _ in range(100)]
    assert len({each.key for each in made}) == len({each.request for each in made}) == 100
    assert all(KEYS.same_key("notes", each.request) == each for each in made)


def test_whatever_is_changed_in_a_request_gives_another_key_or_none() -> None:
    made = KEYS.new_key("notes")
    for bit in range(len(made.request) * 8):
        changed = bytearray(made.request)
        changed[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(ApplicationError):
            assert KEYS.same_key("notes", bytes(changed)).key != made.key


@pytest.mark.parametrize(
    ("keys", "rule", "change", "status", "field"),
    [
        (KEYS, "ledger", {}, StatusCode.PERMISSION_DENIED, "rule: "),
        (replace(KEYS, service=b"t" * 16), "notes", {}, StatusCode.PERMISSION_DENIED, "service: "),
        (KEYS, "notes", {4: 2}, StatusCode.PERMISSION_DENIED, "master key: there is no number 2"),
        (KEYS, "notes", {0: 2}, StatusCode.INVALID_ARGUMENT, "none of a key-release enclave's"),
    ],
)
def test_a_request_that_is_not_for_the_caller_is_refused_by_name(
    keys: MasterKey, rule: str, change: dict[int, int], status: StatusCode, field: str
) -> None:
    request = bytearray(KEYS.new_key("notes").request)
    for place, value in change.items():
        request[place] = value
    with pytest.raises(ApplicationError, match=field) as caught:
        keys.same_key(rule, bytes(request))
    assert caught.value.status is status


def test_the_subject_names_service_and_rule() -> None:
    others = [replace(KEYS, service=b"t" * 16).new_key("notes"), KEYS.new_key("ledger"), KEYS.new_key("notes")]
    assert [each.subject == KEYS.new_key("notes").subject for each in others] == [False, False, True]


def test_a_master_key_is_made_once_and_not_shown(tmp_path: Path) -> None:
    with SimulatedMachine(tmp_path / "machine") as machine:
        sealer = Sealer(machine.source())
        with SealedStore.open(tmp_path, "keys", sealer) as store:
            first = MasterKey.kept_in(store)
        with SealedStore.open(tmp_path, "keys", sealer) as store:
            assert MasterKey.kept_in(store) == first
        with SealedStore.open(tmp_path, "others", sealer) as store:
            assert MasterKey.kept_in(store).master != first.master
    assert repr(first.master) not in repr(first)


def test_a_store_of_something_else_is_not_written_over(tmp_path: Path) -> None:
    with SimulatedMachine(tmp_path / "machine") as machine:
        store = SealedStore.open(tmp_path, "keys", Sealer(machine.source()))
        store.put("service", b"something else")
        with store, pytest.raises(SealedDataError, match="holds something else"):
            MasterKey.kept_in(store)


# --- what a caller makes of answers


class Service:
    """A server that enrols its own code, and answers what it is told to; `asked` has the requests."""

    def __init__(self, device: SimulatedDevice, anchor: bytes) -> None:
        self.device = device
        self.policy = policy_text(anchor)
        self.answers: list[Answer] = []
        self.asked: list[KeyReleaseRequest] = []
        self.address = ""

    def add_servicers(self, server: Any) -> None:
        methods: dict[str, Any] = {"Key": grpc.unary_unary_rpc_method_handler(self._answer)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))

    def _answer(self, data: bytes, context: Any) -> bytes:
        self.asked.append(KeyReleaseRequest.FromString(data))
        return self.answers.pop(0)(data, context)

    def keys(self, address: str = "", **options: Any) -> ReleaseKeys:
        identity = CallerIdentity(role="caller", claims=CLAIMS, quotes=DeviceQuotes(self.device))
        policy = Policy.parse(self.policy)
        return ReleaseKeys(address or self.address, policy, identity=identity, allow_insecure=ALLOW, **options)


@contextlib.contextmanager
def serving(folder: Path, *, accepts: bytes = MEASUREMENT, add: bool = True) -> Iterator[Service]:
    with slow_device(folder, 0) as (device, hardware):
        made = Service(device, hardware.root.fingerprint(hashes.SHA256()))
        callers = Policy.parse(made.policy.replace(MEASUREMENT.hex().encode(), accepts.hex().encode()))
        identity = LocalIdentity(names=NAMES, claims=CLAIMS)
        registrar = Registrar(terms=Terms(policy=callers, allow=ALLOW), identity=identity)
        quotes = BatchedQuotes(DeviceQuotes(device))
        attester = Attester(identity=identity, quotes=quotes, names=frozenset(NAMES), registrar=registrar)
        settings = Settings(name="service", application="s:S", include=("s",))
        listen = Listen(address="127.0.0.1", ports={"attested": 0}, shared=False)
        server = ThreadedServing(settings, made.add_servicers if add else lambda _: None, (), listen, attester)
        made.address = f"127.0.0.1:{server.ports['attested']}"
        try:
            yield made
        finally:
            server.stop(0)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with serving(tmp_path) as made:
        yield made


@pytest.fixture
def keys(service: Service) -> Iterator[ReleaseKeys]:
    made = service.keys(ask_seconds=3)
    yield made
    made.close()


def saying(reply: KeyReleaseReply) -> Answer:
    return lambda _data, _context: reply.SerializeToString()


def failing(code: grpc.StatusCode, words: str = "words") -> Answer:
    def answer(_data: bytes, context: Any) -> bytes:
        context.abort(code, words)
        raise AssertionError

    return answer


def test_the_subject_is_asked_for_once(service: Service, keys: ReleaseKeys) -> None:
    service.answers = [saying(GOOD)]
    assert keys.current(SealPolicy.EXTERNAL) == keys.current(SealPolicy.EXTERNAL)
    assert service.asked == [KeyReleaseRequest()]
    with pytest.raises(UnsupportedError):
        keys.current(SealPolicy.MEASUREMENT)


def test_a_connection_that_is_lost_meanwhile_is_made_good_once(service: Service, keys: ReleaseKeys) -> None:
    service.answers = [failing(grpc.StatusCode.UNAVAILABLE), saying(GOOD)]
    assert keys.new_key(SealPolicy.EXTERNAL).key == GOOD.key
    service.answers = [failing(grpc.StatusCode.UNAVAILABLE)] * 3
    with pytest.raises(KeyUnavailableError):
        keys.new_key(SealPolicy.EXTERNAL)
    assert len(service.answers) == 1


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, UnsealError),
        (grpc.StatusCode.INVALID_ARGUMENT, SealedDataError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, KeyUnavailableError),
        (grpc.StatusCode.INTERNAL, KeyUnavailableError),
    ],
)
def test_a_refusal_becomes_an_error_with_its_words(
    service: Service, keys: ReleaseKeys, code: grpc.StatusCode, error: type[AdytonError]
) -> None:
    service.answers = [failing(code, "rule: another")]
    with pytest.raises(error, match="rule: another"):
        keys.same_key(Binding(policy=SealPolicy.EXTERNAL, subject=b"subject"), b"request")
    assert service.asked == [KeyReleaseRequest(request=b"request")]


@pytest.mark.parametrize(
    "reply",
    [
        KeyReleaseReply(),
        KeyReleaseReply(key=b"k" * 31, request=b"r", subject=b"s"),
        KeyReleaseReply(key=b"k" * 32, subject=b"s"),
        KeyReleaseReply(key=b"k" * 32, request=b"r"),
        KeyReleaseReply(key=b"k" * 32, request=b"r" * 8193, subject=b"s"),
        KeyReleaseReply(key=b"k" * 32, request=b"r", subject=b"s" * 65),
    ],
)
def test_an_answer_without_a_key_is_not_used(service: Service, keys: ReleaseKeys, reply: KeyReleaseReply) -> None:
    service.answers = [saying(reply)]
    with pytest.raises(KeyUnavailableError, match="answers with what is no key"):
        keys.new_key(SealPolicy.EXTERNAL)


def test_an_answer_that_is_no_message_is_not_used(service: Service, keys: ReleaseKeys) -> None:
    service.answers = [lambda _data, _context: b"\xff"]
    with pytest.raises(KeyUnavailableError, match="answers with what is no key"):
        keys.new_key(SealPolicy.EXTERNAL)


def test_a_key_of_another_subject_is_not_the_datas(service: Service, keys: ReleaseKeys) -> None:
    service.answers = [saying(GOOD)]
    with pytest.raises(UnsealError, match="subject"):
        keys.same_key(Binding(policy=SealPolicy.EXTERNAL, subject=b"another"), b"request")


@pytest.mark.parametrize("changed", [{"policy": SealPolicy.SIGNER}, {"product": b"p"}, {"version": 1}])
def test_a_binding_that_no_service_has_is_refused_by_name_and_not_asked_for(
    service: Service, keys: ReleaseKeys, changed: dict[str, Any]
) -> None:
    binding = replace(Binding(policy=SealPolicy.EXTERNAL, subject=b"subject"), **changed)
    with pytest.raises(UnsealError, match=next(iter(changed))):
        keys.same_key(binding, b"request")
    assert service.asked == []


def test_a_service_that_does_not_answer_takes_no_longer_than_was_said(service: Service) -> None:
    def sleep(_data: bytes, _context: Any) -> bytes:
        time.sleep(2)
        return b""

    service.answers = [sleep]
    with contextlib.closing(service.keys(ask_seconds=1)) as keys:
        before = time.monotonic()
        with pytest.raises(KeyUnavailableError, match="gives no key now: DEADLINE_EXCEEDED"):
            keys.new_key(SealPolicy.EXTERNAL)
        assert time.monotonic() - before < 1.9


def test_a_service_that_is_refused_is_asked_for_nothing(service: Service) -> None:
    service.policy = service.policy.replace(MEASUREMENT.hex().encode(), bytes(48).hex().encode())
    with contextlib.closing(service.keys()) as keys, pytest.raises(KeyUnavailableError, match="measurement is "):
        keys.new_key(SealPolicy.EXTERNAL)
    assert service.asked == []


def test_a_service_that_does_not_enrol_this_code_has_no_keys_for_it(tmp_path: Path) -> None:
    with (
        serving(tmp_path, accepts=bytes(48)) as service,
        contextlib.closing(service.keys()) as keys,
        pytest.raises(UnsealError, match="has no keys for this code"),
    ):
        keys.new_key(SealPolicy.EXTERNAL)


def test_an_enclave_of_the_same_owner_that_releases_no_keys_is_said_to_give_none(tmp_path: Path) -> None:
    with (
        serving(tmp_path, add=False) as service,
        contextlib.closing(service.keys()) as keys,
        pytest.raises(KeyUnavailableError, match="gives no key now: UNIMPLEMENTED"),
    ):
        keys.new_key(SealPolicy.EXTERNAL)


# --- as enclave.toml says


class Hardware:
    """Evidence of the simulation, from a device that says it is of another TEE."""

    def __init__(self, device: SimulatedDevice, tee: str) -> None:
        self.tee = tee
        self._device = device

    def collect_evidence(self, report_data: bytes) -> Evidence:
        return self._device.collect_evidence(report_data)


def context_of(service: Service, folder: Path, *, tee: str = "simulated", address: str, at: str = "") -> EnclaveContext:
    (folder / "p.toml").write_bytes(service.policy)
    sealing = SealingSettings(source="release", release=ReleaseSettings(policy="p.toml", address=address))
    network = NetworkSettings(outbound=True)
    settings = Settings(name="e", application="e:E", include=("p.toml",), network=network, sealing=sealing)
    return EnclaveContext(
        name="e",
        settings=settings,
        application_directory=folder,
        data_directory=folder,
        config_sha256=bytes(32),
        device=Hardware(service.device, tee),
        worker=None,
        keeper=None,
        request_stop=lambda _reason: None,
        key_release_address=at,
        vault=make_vault(settings=settings),
    )


@pytest.mark.parametrize("where", [{"address": "127.0.0.1:1", "at": "{}"}, {"address": "{}"}])
def test_the_hosts_address_goes_before_that_of_enclave_toml(
    service: Service, tmp_path: Path, where: dict[str, str]
) -> None:
    service.answers = [saying(GOOD)]
    context = context_of(service, tmp_path, **{key: text.format(service.address) for key, text in where.items()})
    with contextlib.closing(ReleaseKeys.of(context)) as keys:
        assert keys.new_key(SealPolicy.EXTERNAL).key == GOOD.key


def test_an_enclave_on_real_hardware_takes_no_keys_of_a_simulation(service: Service, tmp_path: Path) -> None:
    context = context_of(service, tmp_path, tee="tdx", address=service.address)
    with contextlib.closing(ReleaseKeys.of(context)) as keys, pytest.raises(KeyUnavailableError, match="simulated"):
        keys.new_key(SealPolicy.EXTERNAL)
    assert service.asked == []
