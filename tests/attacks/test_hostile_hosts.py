"""The attacker is the host of real enclaves: it starts them, gives them their configuration, and asks for evidence."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import grpc
import pytest
from attack_expectations import learnt_nothing, of_another_connection
from attacked_clients import Tell
from attacker import Attacker
from observing import eventually
from translator import translator_pb2, translator_pb2_grpc

import adyton
from adyton.atls.channel import AttestedChannel
from adyton.atls.connect import connector
from adyton.atls.connector import BlockingConnector
from adyton.errors import PolicyError
from adyton.host.manager import EnclaveClient, EnclaveManager
from adyton.policy.document import Policy
from adyton.proto import grpc_application_pb2 as extensions
from adyton.testing.policies import launcher_policy

TRANSLATOR = Path(__file__).parents[2] / "examples" / "translator"
WORD = translator_pb2.GetTranslationRequest(input_word="asylo")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The translator, with a line in its log for each RPC."""
    folder = tmp_path_factory.mktemp("project") / "translator"
    shutil.copytree(TRANSLATOR, folder)
    with (folder / "enclave.toml").open("a") as file:
        file.write("[logging]\naccess = true\n")
    return folder


@pytest.fixture(scope="module")
def bundle(project: Path) -> adyton.Bundle:
    return adyton.Bundle.build(project)


@pytest.fixture
def technology() -> str:
    """What the host starts enclaves on."""
    return "process"


MEASURED = {"process": ["measurement"], "vm": ["launch", "pcrs"]}
"""What a policy looks at that knows the code, by technology."""


def load(
    manager: EnclaveManager, bundle: adyton.Bundle, on: str, *, port: int = 0, grace_ms: int = 500
) -> EnclaveClient:
    config = adyton.EnclaveConfig()
    config.Extensions[extensions.server_address] = "127.0.0.1"
    config.Extensions[extensions.port] = port
    config.Extensions[extensions.shutdown_grace_ms] = grace_ms
    return manager.load("translator", bundle, config, on=on)


def port_of(enclave: EnclaveClient) -> int:
    inside = enclave.enter_and_run().Extensions[extensions.actual_server_port]
    return int(enclave.address_of(inside).rpartition(":")[2])


def served(enclave: EnclaveClient) -> bool:
    """Whether a request reached the application, by the enclave's own log."""
    return any("GetTranslation" in line for line in enclave.log_tail())


def channel_to(port: int, policy: Policy) -> AttestedChannel:
    options: dict[str, Any] = {"allow_insecure": ["simulated"]}
    opener = BlockingConnector(connector(f"127.0.0.1:{port}", policy, **options))
    return AttestedChannel(opener, backoff=lambda _failures: 0.05)


def refused(stub: translator_pb2_grpc.TranslatorStub) -> PolicyError:
    """How a call fails, once the connection that was lost is made anew."""
    with contextlib.suppress(grpc.RpcError):  # of the connection that was lost
        stub.GetTranslation(WORD, timeout=20)
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetTranslation(WORD, timeout=20)
    assert isinstance(caught.value, PolicyError)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    return caught.value


def test_evidence_that_the_host_asks_for_over_bytes_of_its_choice(
    attacker: Attacker, project: Path, bundle: adyton.Bundle, secret: bytes, tell: Tell, technology: str
) -> None:
    attack = attacker.attack("terminate", answer="forge_by_question", bundle=str(project), technology=technology)
    with pytest.raises(PolicyError) as caught:
        tell(attack.target, launcher_policy(bundle, on=technology), secret)
    assert of_another_connection(caught.value)
    assert "forged" in attack.events
    assert learnt_nothing(attack, secret)


def test_an_impostor_that_differs_in_one_byte_takes_the_port_over(
    manager: EnclaveManager, project: Path, bundle: adyton.Bundle, tmp_path: Path, technology: str
) -> None:
    shutil.copytree(project, tmp_path / "impostor")
    dictionary = tmp_path / "impostor" / "translator" / "dictionary.toml"
    content = dictionary.read_bytes()
    dictionary.write_bytes(content.replace(b"a", b"b", 1))
    assert sum(one != other for one, other in zip(content, dictionary.read_bytes(), strict=True)) == 1

    genuine = load(manager, bundle, technology)
    port = port_of(genuine)
    with channel_to(port, launcher_policy(bundle, on=technology)) as channel:
        stub = translator_pb2_grpc.TranslatorStub(channel)
        assert stub.GetTranslation(WORD, timeout=20).translated_word
        eventually(lambda: served(genuine))
        genuine.destroy()
        impostor = load(manager, adyton.Bundle.build(tmp_path / "impostor"), technology, port=port)
        assert port_of(impostor) == port
        error = refused(stub)
    assert [finding.subject for finding in error.findings] == MEASURED[technology]
    assert not served(impostor)


def test_a_genuine_enclave_with_a_configuration_that_is_not_the_pinned_one(
    manager: EnclaveManager, bundle: adyton.Bundle, technology: str
) -> None:
    enclave = load(manager, bundle, technology)
    port = port_of(enclave)
    with channel_to(port, launcher_policy(bundle, on=technology)) as channel:
        assert translator_pb2_grpc.TranslatorStub(channel).GetTranslation(WORD, timeout=20).translated_word
        assert channel.attestation is not None
        wanted = channel.attestation.claims["config_sha256"]
    pinned = launcher_policy(bundle, on=technology, channel=f'config_sha256 = ["{wanted}"]')
    with channel_to(port, pinned) as channel:
        stub = translator_pb2_grpc.TranslatorStub(channel)
        assert stub.GetTranslation(WORD, timeout=20).translated_word
        eventually(lambda: served(enclave))
        enclave.destroy()
        enclave = load(manager, bundle, technology, port=port, grace_ms=501)
        error = refused(stub)
    assert [finding.subject for finding in error.findings] == ["channel.config_sha256"]
    assert not served(enclave)
