"""An attacker between a client and a genuine enclave. In each test but one no byte of the application reaches it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc
import pytest
from attack_expectations import LEVELS, at, learnt_nothing, of_another_connection, pinning, relaying
from attacked_clients import Tell
from attacked_servers import MEASUREMENT, OTHER_NAME, TELL, AttackedServer, AttackedServers
from attacker import Attacker
from observing import eventually

import adyton
import adyton.aio
from adyton.atls import one_dial
from adyton.atls.connect import connector
from adyton.atls.connector import BlockingConnector
from adyton.atls.never_sent import never_sent
from adyton.errors import EvidenceError, PolicyError, UnreachableError


@pytest.mark.parametrize("level", LEVELS)
def test_an_attacker_with_a_certificate_of_its_own_relays_in_vain(
    attacker: Attacker, genuine: AttackedServer, policy: bytes, secret: bytes, tell: Tell, level: str
) -> None:
    attack = relaying(attacker, genuine, **at(level, genuine))
    with pytest.raises(PolicyError) as caught:
        tell(attack.target, policy, secret, level=level)
    assert of_another_connection(caught.value)
    assert "relayed" in attack.events
    assert learnt_nothing(attack, secret)


@pytest.mark.parametrize("level", LEVELS)
def test_an_attacker_with_a_certificate_of_its_own_is_not_of_the_pinned_ca(
    attacker: Attacker, genuine: AttackedServer, secret: bytes, tell: Tell, level: str
) -> None:
    attack = relaying(attacker, genuine, **at(level, genuine))
    with pytest.raises(EvidenceError, match="not one of the CA that it names"):
        tell(attack.target, pinning(genuine), secret, level=level)
    assert "relayed" in attack.events
    assert learnt_nothing(attack, secret)


def test_at_level_key_a_relay_with_the_leaked_key_reads_everything(
    attacker: Attacker, genuine: AttackedServer, policy: bytes, secret: bytes, tell: Tell
) -> None:
    """The documented limit of level `key`, and proof that this attacker would do better if it could."""
    attack = relaying(attacker, genuine, **at("key", genuine), key_has_leaked=True)
    assert tell(attack.target, policy, secret, level="key") == b"attacker: " + secret
    assert secret in attack.received
    assert TELL.encode() in attack.received
    assert secret not in genuine.heard


@pytest.mark.parametrize("asks_victim", [True, False], ids=["client certificate", "none asked for"])
@pytest.mark.parametrize("asks_enclave", LEVELS, ids=["attested port", "plain port"])
@pytest.mark.parametrize("pins_ca", [False, True], ids=["leaf", "ca"])
def test_at_level_connection_a_relay_with_the_leaked_key_fails(
    attacker: Attacker,
    genuine: AttackedServer,
    secret: bytes,
    tell: Tell,
    asks_victim: bool,
    asks_enclave: str,
    pins_ca: bool,
) -> None:
    plan = {**at(asks_enclave, genuine), "demands_certificate": asks_victim}
    attack = relaying(attacker, genuine, **plan, key_has_leaked=True)
    with pytest.raises(PolicyError) as caught:
        tell(attack.target, pinning(genuine) if pins_ca else genuine.policy(), secret)
    assert of_another_connection(caught.value)
    assert "relayed" in attack.events
    assert learnt_nothing(attack, secret)


def test_the_leaked_key_and_the_clients_certificate_are_not_the_clients_key(
    attacker: Attacker, genuine: AttackedServer, policy: bytes, secret: bytes, tell: Tell
) -> None:
    attack = relaying(attacker, genuine, key_has_leaked=True, answer="relay_as_victim")
    with pytest.raises(UnreachableError):
        tell(attack.target, policy, secret)
    assert "signed" in attack.events
    assert "upstream:UNAVAILABLE" in attack.events
    assert "relayed" not in attack.events
    assert learnt_nothing(attack, secret)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("routes", [("genuine", "terminate"), ("terminate", "genuine")], ids="-".join)
def test_one_server_for_the_probe_and_another_for_the_connection(
    attacker: Attacker,
    genuine: AttackedServer,
    policy: bytes,
    secret: bytes,
    tell: Tell,
    routes: tuple[str, str],
    level: str,
) -> None:
    attack = relaying(attacker, genuine, *routes, **at(level, genuine))
    with pytest.raises(UnreachableError, match="one certificate to one connection and another to the next"):
        tell(attack.target, policy, secret, level=level)
    assert attack.events.count("genuine") >= 2, "there is a second attempt"
    assert "attest" not in attack.events
    assert learnt_nothing(attack, secret)


@pytest.mark.parametrize("routes", [("genuine", "terminate"), ("terminate", "genuine")], ids="-".join)
def test_with_the_leaked_key_it_matters_only_who_has_the_connection(
    attacker: Attacker, genuine: AttackedServer, policy: bytes, secret: bytes, tell: Tell, routes: tuple[str, str]
) -> None:
    attack = relaying(attacker, genuine, *routes, key_has_leaked=True)
    if routes[1] == "genuine":
        assert tell(attack.target, policy, secret) == b"genuine: " + secret
    else:
        with pytest.raises(PolicyError) as caught:
            tell(attack.target, policy, secret)
        assert of_another_connection(caught.value)
        assert "relayed" in attack.events
    assert learnt_nothing(attack, secret)


def test_an_attacker_that_only_passes_bytes_on_learns_nothing(
    attacker: Attacker, genuine: AttackedServer, policy: bytes, secret: bytes, tell: Tell
) -> None:
    attack = relaying(attacker, genuine, "genuine")
    assert tell(attack.target, policy, secret) == b"genuine: " + secret
    assert secret in genuine.heard
    assert len(attack.received) > 500
    assert learnt_nothing(attack, secret)


@pytest.mark.parametrize("asks_victim", [True, False], ids=["asks for a certificate", "asks for none"])
@pytest.mark.parametrize("key_has_leaked", [False, True], ids=["own certificate", "leaked key"])
def test_an_attacker_that_takes_over_when_the_client_connects_again(
    attacker: Attacker, genuine: AttackedServer, policy: bytes, secret: bytes, key_has_leaked: bool, asks_victim: bool
) -> None:
    plan = {"key_has_leaked": key_has_leaked, "demands_certificate": asks_victim}
    attack = relaying(attacker, genuine, "genuine", **plan)
    with adyton.connect(attack.target, policy, allow_insecure=["simulated"]) as channel:
        call: Any = channel.unary_unary(TELL)
        assert call(b"before", timeout=20) == b"genuine: before"
        attacker.turn("terminate")
        for _ in range(2):
            with pytest.raises(grpc.RpcError):
                call(secret, timeout=20)
        with pytest.raises(grpc.RpcError) as caught:
            call(secret, timeout=20)
        assert isinstance(caught.value, PolicyError)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "relayed" in attack.events
    assert learnt_nothing(attack, secret)


@pytest.mark.parametrize("asks_victim", [True, False], ids=["asks for a certificate", "asks for none"])
@pytest.mark.parametrize("key_has_leaked", [False, True], ids=["own certificate", "leaked key"])
def test_an_attacker_that_takes_over_when_a_client_on_asyncio_connects_again(
    attacker: Attacker, genuine: AttackedServer, policy: bytes, secret: bytes, key_has_leaked: bool, asks_victim: bool
) -> None:
    plan = {"key_has_leaked": key_has_leaked, "demands_certificate": asks_victim}
    attack = relaying(attacker, genuine, "genuine", **plan)

    async def run() -> Any:
        async with adyton.aio.connect(attack.target, policy, allow_insecure=["simulated"]) as channel:
            call: Any = channel.unary_unary(TELL)
            assert await call(b"before", timeout=20) == b"genuine: before"
            attacker.turn("terminate")
            for _ in range(2):
                with pytest.raises(grpc.RpcError):
                    await call(secret, timeout=20)
            with pytest.raises(grpc.RpcError) as caught:
                await call(secret, timeout=20)
            return caught.value

    error = asyncio.run(run())
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert isinstance(error, PolicyError)
    assert "relayed" in attack.events
    assert learnt_nothing(attack, secret)


@pytest.mark.parametrize("asks_victim", [True, False], ids=["asks for a certificate", "asks for none"])
def test_an_attacker_with_the_leaked_key_that_takes_over_between_attestations(
    attacker: Attacker, genuine: AttackedServer, policy: bytes, secret: bytes, asks_victim: bool
) -> None:
    """The session ends with its connection: gRPC may not dial again, so nobody can be what it dials."""
    attack = relaying(attacker, genuine, "genuine", key_has_leaked=True, demands_certificate=asks_victim)
    session = BlockingConnector(connector(attack.target, policy, allow_insecure=["simulated"])).open(20)
    attacker.turn("terminate")
    with session.channel as channel:
        call: Any = channel.unary_unary(TELL)

        def is_never_sent() -> bool:
            with pytest.raises(grpc.RpcError) as caught:
                call(secret, timeout=5)
            return never_sent(caught.value)

        eventually(is_never_sent)  # before, it may be written to the connection that is being cut
        assert [is_never_sent() for _ in range(3)] == [True] * 3
    assert "terminate" not in attack.events
    assert learnt_nothing(attack, secret)


@pytest.mark.parametrize("asks_victim", [True, False], ids=["asks for a certificate", "asks for none"])
def test_without_the_one_dial_the_attack_works(
    attacker: Attacker, genuine: AttackedServer, policy: bytes, secret: bytes, asks_victim: bool
) -> None:
    """The same attack on a channel that may dial again."""
    attack = relaying(attacker, genuine, "genuine", key_has_leaked=True, demands_certificate=asks_victim)
    dialled = connector(attack.target, policy, allow_insecure=["simulated"]).dial(20)
    may_dial_again = [option for option in dialled.options if option[0] != one_dial.ARGUMENT]
    with grpc.secure_channel(dialled.uri, dialled.credentials, may_dial_again) as channel:
        call: Any = channel.unary_unary(TELL)
        assert call(b"before", timeout=20) == b"genuine: before"
        attacker.turn("terminate")
        for _ in range(3):
            with contextlib.suppress(grpc.RpcError):
                call(secret, timeout=5)
    assert "terminate" in attack.events
    assert secret in attack.received


@pytest.mark.parametrize("level", LEVELS)
def test_an_old_answer_of_the_genuine_server(
    attacker: Attacker, genuine: AttackedServer, policy: bytes, secret: bytes, tell: Tell, level: str
) -> None:
    attack = relaying(attacker, genuine, **at(level, genuine), key_has_leaked=True, answer="replay")
    with contextlib.suppress(PolicyError):
        tell(attack.target, policy, b"at level key the first answer is good", level=level)
    with pytest.raises(PolicyError) as caught:
        tell(attack.target, policy, secret, level=level)
    assert of_another_connection(caught.value)
    assert "replayed" in attack.events
    assert secret not in attack.received


def test_a_relay_under_another_name(
    attacker: Attacker, genuine: AttackedServer, policy: bytes, secret: bytes, tell: Tell
) -> None:
    attack = relaying(attacker, genuine, name=OTHER_NAME)
    with pytest.raises(PolicyError) as caught:
        tell(attack.target, policy, secret, server_name=OTHER_NAME)
    assert of_another_connection(caught.value)
    assert "relayed" in attack.events
    assert learnt_nothing(attack, secret)


@pytest.mark.parametrize("level", LEVELS)
def test_a_certificate_for_another_name(
    attacker: Attacker, genuine: AttackedServer, policy: bytes, secret: bytes, tell: Tell, level: str
) -> None:
    attack = relaying(attacker, genuine, **at(level, genuine), name="elsewhere.example")
    with pytest.raises(EvidenceError, match="a certificate for another name"):
        tell(attack.target, policy, secret, level=level)
    assert "attest" not in attack.events
    assert learnt_nothing(attack, secret)


def test_a_genuine_server_goes_by_its_names_only(
    attacker: Attacker, genuine: AttackedServer, policy: bytes, secret: bytes, tell: Tell
) -> None:
    attack = relaying(attacker, genuine, "genuine")
    assert tell(attack.target, policy, secret, server_name=OTHER_NAME) == b"genuine: " + secret
    with pytest.raises(EvidenceError, match="a certificate for another name"):
        tell(attack.target, policy, secret, server_name="elsewhere.example")
    assert learnt_nothing(attack, secret)


def test_an_impostor_behind_the_same_port(
    attacker: Attacker, servers: AttackedServers, policy: bytes, secret: bytes, tell: Tell
) -> None:
    impostor = servers.start(measurement=(b"\x5b" + b"\x5a" * 47).hex())
    attack = attacker.attack("genuine", genuine=impostor.port)
    with pytest.raises(PolicyError) as caught:
        tell(attack.target, policy, secret)
    assert [finding.subject for finding in caught.value.findings] == ["measurement"]
    assert impostor.heard == b""
    assert learnt_nothing(attack, secret)


def test_a_clone_of_the_same_code_is_as_good_unless_the_policy_pins_the_ca(
    attacker: Attacker, servers: AttackedServers, genuine: AttackedServer, policy: bytes, secret: bytes, tell: Tell
) -> None:
    """Diversion, the documented limit of a policy that says what runs and not whose it is."""
    clone = servers.start()
    attack = attacker.attack("genuine", genuine=clone.port)
    assert tell(attack.target, policy, b"diverted") == b"genuine: diverted"
    with pytest.raises(PolicyError) as caught:
        tell(attack.target, pinning(genuine), secret)
    assert [finding.subject for finding in caught.value.findings] == ["channel.ca_sha256"]
    assert clone.heard == b"diverted\n"
    assert tell(genuine.target, pinning(genuine), secret) == b"genuine: " + secret
    assert learnt_nothing(attack, secret)


@pytest.mark.parametrize("pins_ca", [False, True], ids=["leaf", "ca"])
def test_who_could_make_hardware_sign_what_it_likes_would_be_believed(
    attacker: Attacker, genuine: AttackedServer, policy: bytes, secret: bytes, tell: Tell, pins_ca: bool
) -> None:
    """What the tests with hostile hosts rest on: the forged answer is right but for the hardware's signature.

    In a simulation the host is the hardware, and protects from nothing. A pinned CA it can't imitate even so.
    """
    attack = attacker.attack("terminate", answer="forge", measurement=MEASUREMENT.hex())
    if pins_ca:
        with pytest.raises(EvidenceError, match="certificate can't be read"):
            tell(attack.target, pinning(genuine), secret)
        assert learnt_nothing(attack, secret)
    else:
        assert tell(attack.target, policy, secret) == b"attacker: " + secret
        assert secret in attack.received
    assert "forged" in attack.events
