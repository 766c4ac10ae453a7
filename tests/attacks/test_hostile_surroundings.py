"""The client's own environment and its resolver are in the attacker's hands; the client is a process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attacked_clients
import pytest
from attack_expectations import LEVELS, learnt_nothing, relaying
from attacked_clients import TELLERS
from attacked_servers import AttackedServer
from attacker import Attacker
from conversing import Conversation

HOW = sorted(TELLERS)
HERE, THERE, NOWHERE = "127.0.0.1", "127.0.0.2", "127.0.0.3"


def client(environment: Mapping[str, str]) -> Conversation:
    return Conversation(Path(attacked_clients.__file__), environment)


def told(client: Conversation, target: str, policy: bytes, secret: bytes, **options: Any) -> dict[str, Any]:
    return client.ask(target=target, policy=policy.decode(), secret=secret.decode(), **options)


@pytest.mark.parametrize("name", ["https_proxy", "http_proxy", "grpc_proxy", "all_proxy", "HTTPS_PROXY", "ALL_PROXY"])
def test_a_proxy_of_the_environment_is_not_used(
    attacker: Attacker, genuine: AttackedServer, policy: bytes, secret: bytes, name: str
) -> None:
    attack = attacker.attack("silence")
    with client({name: f"http://{attack.target}", "no_proxy": "", "NO_PROXY": ""}) as victim:
        for how in HOW:
            assert told(victim, genuine.target, policy, secret, how=how) == {"answer": f"genuine: {secret.decode()}"}
        assert attack.events == []
        if name in ("https_proxy", "http_proxy", "grpc_proxy"):
            assert victim.ask(target=genuine.target) != {"code": "OK"}
            attack.settle()
            assert attack.received.startswith(f"CONNECT {genuine.target} ".encode()), "others do use this proxy"
    assert secret not in attack.received


@pytest.mark.parametrize("level", LEVELS)
def test_the_environments_roots_are_not_used(
    attacker: Attacker, genuine: AttackedServer, policy: bytes, secret: bytes, level: str, tmp_path: Path
) -> None:
    roots = tmp_path / "roots.pem"
    attack = relaying(attacker, genuine, demands_certificate=False, ca=str(roots))
    names = ("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "SSL_CERT_FILE")
    with client(dict.fromkeys(names, str(roots))) as victim:
        assert victim.ask(target=attack.target) == {"code": "OK"}, "others do trust these roots"
        ordinary = len(attack.received)
        for how in HOW:
            assert told(victim, genuine.target, policy, secret, how=how) == {"answer": f"genuine: {secret.decode()}"}
            assert told(victim, attack.target, policy, secret, how=how, level=level)["error"] == "PolicyError"
    attack.settle()
    assert attack.events.count("relayed") == len(HOW)
    assert len(attack.received) > ordinary
    assert secret not in attack.received


@pytest.mark.parametrize("how", HOW)
def test_no_key_is_written_to_the_environments_key_log(
    attacker: Attacker, genuine: AttackedServer, policy: bytes, secret: bytes, how: str, tmp_path: Path
) -> None:
    log = tmp_path / "keys"
    attack = relaying(attacker, genuine, "genuine")
    with client({"SSLKEYLOGFILE": str(log)}) as victim:
        assert told(victim, attack.target, policy, secret, how=how) == {"answer": f"genuine: {secret.decode()}"}
        assert not log.exists()
        victim.ask(target=attack.target)
        assert log.exists(), "others do open this file"
    assert learnt_nothing(attack, secret)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("addresses", [(HERE, THERE), (NOWHERE, HERE, THERE)], ids=" ".join)
def test_a_hostile_address_after_a_genuine_one_is_never_dialled(
    attacker: Attacker, genuine: AttackedServer, policy: bytes, secret: bytes, addresses: tuple[str, ...], how: str
) -> None:
    attack = relaying(attacker, genuine, address=THERE, port=genuine.port)
    target = f"enclave.example:{genuine.port}"
    with client({}) as victim:
        answer = told(victim, target, policy, secret, how=how, addresses=addresses)
    assert answer == {"answer": f"genuine: {secret.decode()}"}
    assert attack.events == []


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("key_has_leaked", [False, True], ids=["own certificate", "leaked key"])
def test_a_hostile_address_before_a_genuine_one_is_refused(
    attacker: Attacker, genuine: AttackedServer, policy: bytes, secret: bytes, how: str, key_has_leaked: bool
) -> None:
    attack = relaying(attacker, genuine, address=THERE, port=genuine.port, key_has_leaked=key_has_leaked)
    target = f"enclave.example:{genuine.port}"
    with client({}) as victim:
        answer = told(victim, target, policy, secret, how=how, addresses=(THERE, HERE))
    assert answer["error"] == "PolicyError"
    assert "relayed" in attack.events
    assert secret not in genuine.heard
    assert learnt_nothing(attack, secret)
