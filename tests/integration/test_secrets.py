"""Secrets from their owner's hands to the application: real enclaves, and what the host can see of it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import keeping
import pytest
from attested import policy_of, port_of
from channel_parties import NAMES
from cryptography.hazmat.primitives.asymmetric import ec
from observing import eventually
from owners import (
    LIST,
    ORDER,
    ROTATE_IDENTITY,
    SECRET,
    ask,
    attested,
    described,
    put,
    refusal,
    send,
    signed,
    told,
    write_keeping_project,
)

import adyton
from adyton.atls.certificates import parse_certificate, spki_sha256
from adyton.atls.connect import connector
from adyton.atls.connector import BlockingConnector
from adyton.atls.server_credentials import MIN_SWAP_SECONDS
from adyton.enclave.keeper import NOTICE_SECONDS
from adyton.errors import EnclaveDiedError, EvidenceError, PolicyError
from adyton.host.launch import registry
from adyton.host.launch.process import ProcessLauncher
from adyton.host.manager import EnclaveClient, EnclaveManager
from adyton.policy.document import Policy
from adyton.proto import grpc_application_pb2 as extensions
from adyton.proto.enclave_pb2 import EnclaveConfig, LoggingConfig
from adyton.proto.secrets_pb2 import Order, OrderReply
from adyton.testing.probes import server_config

OWNER = ec.generate_private_key(ec.SECP256R1())


class WithoutNamespaces(ProcessLauncher):
    """So that a process id inside is one outside."""

    def __init__(self) -> None:
        super().__init__(namespaces=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enclave:
    client: EnclaveClient
    policy: Policy

    @property
    def target(self) -> str:
        return self.client.address_of(port_of(self.client))

    def send(self, order: Order) -> OrderReply:
        return send(self.target, self.policy, OWNER, order)

    def told(self, name: str) -> bytes:
        return told(self.target, self.policy, name)

    def rotate_identity(self) -> bytes:
        """The new CA. A server that began, or rotated, within the last second shows the old certificate so long."""
        time.sleep(MIN_SWAP_SECONDS)
        return self.send(ROTATE_IDENTITY).ca

    def kill(self, how: str = "SIGKILL") -> None:
        with pytest.raises(grpc.RpcError):
            told(self.target, self.policy, how, "Die")
        with pytest.raises(EnclaveDiedError):
            self.client.destroy()


Start = Callable[..., Enclave]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def start(manager: EnclaveManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    monkeypatch.setitem(registry.LAUNCHERS, "process", f"{__name__}:WithoutNamespaces")

    def load(project: Path | None = None, state: Path | None = None, config: EnclaveConfig | None = None) -> Enclave:
        usual = tmp_path / "keeping"
        if project is None and not usual.exists():
            write_keeping_project(usual, OWNER)
        client = manager.load("keeping", project or usual, config or server_config(), state=state)
        return Enclave(client=client, policy=policy_of(client))

    return load


def files_with(folder: Path, text: bytes) -> list[Path]:
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # of an enclave that ends meanwhile
            if path.is_file() and text in path.read_bytes():
                found.append(path)
    return found


@pytest.mark.parametrize("application", ["Keeping", "AioKeeping"])
def test_a_secret_outlives_kill_and_restart(start: Start, state: Path, tmp_path: Path, application: str) -> None:
    project = write_keeping_project(tmp_path / "project", OWNER, application=application)
    enclave = start(project, state)
    assert enclave.told("db-password") == keeping.NOTHING
    assert enclave.send(put("db-password", SECRET)).durable
    assert enclave.told("db-password") == SECRET
    enclave.kill()
    enclave = start(project, state)
    assert enclave.told("db-password") == SECRET
    assert [each.version for each in enclave.send(put("db-password", b"next", replace=True)).secrets] == [2]
    enclave.kill()
    assert start(project, state).told("db-password") == b"next"


def test_without_a_state_folder_it_ends_with_the_enclave_and_the_owner_learns_that(start: Start) -> None:
    enclave = start()
    assert not enclave.send(put("db-password", SECRET)).durable
    assert enclave.told("db-password") == SECRET
    enclave.kill()
    assert start().told("db-password") == keeping.NOTHING


def test_an_application_may_wait_for_it(start: Start) -> None:
    enclave = start()
    with attested(enclave.target, enclave.policy) as session:
        call: Any = session.channel.unary_unary(f"/{keeping.SERVICE}/Wait")
        waiting = call.future(b"db-password", timeout=30)
        enclave.send(put("db-password", SECRET))
        assert waiting.result(30) == SECRET


def test_the_host_sees_no_secret(start: Start, state: Path, tmp_path: Path, runtime_directory: Path) -> None:
    settings = "[logging]\naccess = true\n"
    config = server_config()
    config.logging_config.level = LoggingConfig.DEBUG
    enclave = start(write_keeping_project(tmp_path / "project", OWNER, settings=settings), state, config)
    enclave.send(put("db-password", SECRET))
    enclave.send(LIST)
    assert enclave.told("db-password") == SECRET
    facts = described(enclave.target, enclave.policy)
    assert facts["shown"] == "<Secrets: 1>"
    assert SECRET.decode() not in str(facts["environment"])
    log = "\n".join(enclave.client.log_tail())
    assert "/adyton.Secrets/Order" in log
    assert SECRET.decode() not in log
    assert "db-password" not in log
    assert not files_with(state, SECRET)
    assert not files_with(state, b"db-password")
    assert not files_with(runtime_directory, SECRET)
    with contextlib.suppress(PermissionError):  # as an ordinary user, for it is not dumpable
        assert SECRET not in Path(f"/proc/{facts['pid']}/environ").read_bytes()


@pytest.mark.parametrize("how", ["SIGABRT", "SIGSEGV"])
def test_a_dying_enclave_leaves_no_core(start: Start, state: Path, runtime_directory: Path, how: str) -> None:
    enclave = start(state=state)
    enclave.send(put("db-password", SECRET))
    facts = described(enclave.target, enclave.policy)
    assert (facts["dumpable"], facts["core"]) == (0, [0, 0])
    limits = Path(f"/proc/{facts['pid']}/limits").read_text()
    assert [line.split()[4:6] for line in limits.splitlines() if line.startswith("Max core file size")] == [["0", "0"]]
    os.kill(facts["pid"], signal.Signals[how])
    eventually(lambda: not is_alive(facts["pid"]))
    assert not files_with(state, SECRET)
    assert not files_with(runtime_directory, SECRET)
    with pytest.raises(EnclaveDiedError, match=how):
        enclave.client.destroy()


def is_alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())  # empty once it is a zombie
    return False


def test_changed_code_has_none_of_it_and_gets_nothing_from_the_owner(start: Start, state: Path, tmp_path: Path) -> None:
    project = tmp_path / "keeping"
    genuine = start(state=state)
    genuine.send(put("db-password", SECRET))
    genuine.kill()
    code = (project / "keeping.py").read_text()
    (project / "keeping.py").write_text(code.replace("\\0none", "\\0nonE"))
    changed = start(project, state)
    assert changed.told("db-password") == keeping.NOTHING.replace(b"none", b"nonE")
    with pytest.raises(PolicyError):
        send(changed.target, genuine.policy, OWNER, put("api-key", SECRET))
    assert not [line for line in changed.client.log_tail() if "order" in line]
    changed.kill()
    (project / "keeping.py").write_text(code)
    assert start(project, state).told("db-password") == SECRET


# --- the enclave's CA


def ca_of(enclave: Enclave) -> bytes:
    """The CA as the enclave's evidence names it, on a new connection."""
    made = connector(enclave.target, enclave.policy, allow_insecure=["simulated"])
    made = dataclasses.replace(made, terms=dataclasses.replace(made.terms, bind_ca=True))
    session = BlockingConnector(made).open(20)
    session.channel.close()
    return session.attestation.anchor_certificate


def key_of(certificate: bytes) -> bytes:
    return spki_sha256(parse_certificate(certificate)[1])


def tls_config(enclave: Enclave | None = None) -> EnclaveConfig:
    """A configuration with the ports of that enclave, or any."""
    config = server_config()
    if enclave is not None:
        output = enclave.client.enter_and_run()
        config.Extensions[extensions.port] = output.Extensions[extensions.actual_server_port]
        config.Extensions[extensions.plain_tls_port] = output.Extensions[extensions.actual_plain_tls_port]
    return config


def test_a_tls_client_that_has_the_ca_notices_no_restart(start: Start, state: Path, tmp_path: Path) -> None:
    project = write_keeping_project(tmp_path / "project", OWNER, settings="[server]\nplain_tls = true\n")
    enclave = start(project, state, tls_config())
    ca, again = ca_of(enclave), tls_config(enclave)
    credentials = grpc.ssl_channel_credentials(ssl.DER_cert_to_PEM_cert(ca).encode())
    options = [("grpc.ssl_target_name_override", NAMES[0]), ("grpc.max_reconnect_backoff_ms", 500)]
    address = f"127.0.0.1:{again.Extensions[extensions.plain_tls_port]}"
    with grpc.secure_channel(address, credentials, options) as channel:
        tell: Any = channel.unary_unary(f"/{keeping.SERVICE}/Tell")
        assert tell(b"x", timeout=20) == keeping.NOTHING
        enclave.kill()
        enclave = start(project, state, again)
        assert tell(b"x", timeout=20, wait_for_ready=True) == keeping.NOTHING
    assert ca_of(enclave) == ca


def test_a_rotation_is_for_good(start: Start, state: Path) -> None:
    enclave = start(state=state)
    before = ca_of(enclave)
    after = enclave.rotate_identity()
    assert key_of(after) != key_of(before)
    assert ca_of(enclave) == after
    enclave.kill()
    assert ca_of(start(state=state)) == after


def test_a_client_that_attests_again_is_told_of_a_rotation_and_then_goes_on(start: Start) -> None:
    enclave = start()
    options: Any = {"allow_insecure": ["simulated"], "max_age_seconds": MIN_SWAP_SECONDS}
    with adyton.connect(enclave.target, enclave.policy, **options) as channel:
        tell: Any = channel.unary_unary(f"/{keeping.SERVICE}/Tell")
        assert tell(b"x", timeout=20) == keeping.NOTHING
        before = channel.attestation
        enclave.rotate_identity()
        with pytest.raises(EvidenceError, match="the certificate that you have pinned is none of this enclave"):
            tell(b"x", timeout=20)
        time.sleep(1.5)  # for so long it does not ask again; see docs/atls.md
        assert tell(b"x", timeout=20) == keeping.NOTHING
        assert channel.attestation is not None
        assert before is not None
        assert channel.attestation.anchor_certificate != before.anchor_certificate


# --- several server processes


def test_what_one_server_process_is_sent_all_have(start: Start, state: Path, tmp_path: Path) -> None:
    project = write_keeping_project(tmp_path / "project", OWNER, settings="[server]\nworkers = 4\n")
    enclave = start(project, state)
    for index in range(6):
        assert enclave.send(put(f"secret {index}", SECRET + b"%d" % index)).durable
    asked = set()
    for _ in range(100):
        with attested(enclave.target, enclave.policy) as session:
            asked.add(ask(session.channel, f"/{keeping.SERVICE}/Describe"))
            for index in range(6):
                value = ask(session.channel, f"/{keeping.SERVICE}/Tell", f"secret {index}".encode())
                assert value == SECRET + b"%d" % index
        if len(asked) == 4:
            break
    assert len(asked) == 4
    after = enclave.rotate_identity()
    time.sleep(5 * NOTICE_SECONDS)
    assert {ca_of(enclave) for _ in range(20)} == {after}
    assert len(enclave.send(LIST).secrets) == 6


def test_an_order_that_is_signed_for_another_connection_is_refused_by_an_enclave_too(start: Start) -> None:
    enclave = start()
    with attested(enclave.target, enclave.policy) as one, attested(enclave.target, enclave.policy) as other:
        request = signed(one, OWNER, put("a", SECRET))
        assert refusal(other.channel, request) is grpc.StatusCode.PERMISSION_DENIED
        ask(one.channel, ORDER, request)
