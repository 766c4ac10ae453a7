"""What answers is no enclave at all, or answers what no enclave would: a clear error, soon, and nothing was sent."""

from __future__ import annotations

import time

import pytest
from attack_expectations import LEVELS, at, learnt_nothing, of_another_connection, relaying
from attacked_clients import Tell
from attacked_servers import AttackedServer
from attacker import Attacker

from adyton.errors import AdytonError, DeadlineError, EvidenceError, PolicyError, UnreachableError

SOON_SECONDS = 5.0
SEEDS = range(12)


def test_a_server_that_speaks_tls_1_2_only(
    attacker: Attacker, genuine: AttackedServer, policy: bytes, secret: bytes, tell: Tell
) -> None:
    attack = relaying(attacker, genuine, tls_at_most_1_2=True, key_has_leaked=True)
    with pytest.raises(EvidenceError, match=r"does not speak TLS 1\.3"):
        tell(attack.target, policy, secret)
    assert learnt_nothing(attack, secret)


@pytest.mark.parametrize("asks_victim", [True, False], ids=["asks for a certificate", "asks for none"])
def test_a_connection_over_tls_1_2(
    attacker: Attacker, genuine: AttackedServer, policy: bytes, secret: bytes, tell: Tell, asks_victim: bool
) -> None:
    """The client's signature there is none that TLS 1.3 would take, so it can't be passed on to the enclave."""
    plan = {"tls_at_most_1_2": True, "key_has_leaked": True, "demands_certificate": asks_victim}
    attack = relaying(attacker, genuine, "genuine", "terminate", **plan)
    with pytest.raises(PolicyError) as caught:
        tell(attack.target, policy, secret)
    assert of_another_connection(caught.value)
    assert "relayed" in attack.events
    assert learnt_nothing(attack, secret)


@pytest.mark.parametrize("level", LEVELS)
def test_a_server_without_tls(
    attacker: Attacker, genuine: AttackedServer, policy: bytes, secret: bytes, tell: Tell, level: str
) -> None:
    attack = relaying(attacker, genuine, "plaintext", **at(level, genuine))
    with pytest.raises(EvidenceError, match=r"does not speak TLS 1\.3"):
        tell(attack.target, policy, secret, level=level)
    assert learnt_nothing(attack, secret)


@pytest.mark.parametrize("level", LEVELS)
def test_a_connection_without_tls_after_a_genuine_probe(
    attacker: Attacker, genuine: AttackedServer, policy: bytes, secret: bytes, tell: Tell, level: str
) -> None:
    attack = relaying(attacker, genuine, "genuine", "plaintext", **at(level, genuine))
    with pytest.raises(UnreachableError, match="WRONG_VERSION_NUMBER"):
        tell(attack.target, policy, secret, level=level)
    assert "plaintext" in attack.events
    assert learnt_nothing(attack, secret)


@pytest.mark.parametrize("size", [1024 * 1024, 3 * 1024 * 1024, 8 * 1024 * 1024])
def test_an_answer_that_is_too_long(
    attacker: Attacker, genuine: AttackedServer, policy: bytes, secret: bytes, tell: Tell, size: int
) -> None:
    attack = relaying(attacker, genuine, answer="huge", size=size)
    with pytest.raises((EvidenceError, UnreachableError), match=r"bytes|larger than max"):
        tell(attack.target, policy, secret)
    assert "attest" in attack.events
    assert learnt_nothing(attack, secret)


@pytest.mark.parametrize("answer", ["never", "endless"])
def test_an_answer_that_does_not_come_to_an_end(
    attacker: Attacker, genuine: AttackedServer, policy: bytes, secret: bytes, tell: Tell, answer: str
) -> None:
    attack = relaying(attacker, genuine, answer=answer)
    begun = time.monotonic()
    with pytest.raises(AdytonError) as caught:
        tell(attack.target, policy, secret, timeout=0.7)
    assert isinstance(caught.value, DeadlineError if answer == "never" else (DeadlineError, EvidenceError))
    assert time.monotonic() - begun < SOON_SECONDS
    assert "attest" in attack.events
    assert learnt_nothing(attack, secret)


@pytest.mark.parametrize("routes", [("silence",), ("genuine", "silence")], ids="-".join)
def test_silence(
    attacker: Attacker, genuine: AttackedServer, policy: bytes, secret: bytes, tell: Tell, routes: tuple[str, ...]
) -> None:
    attack = relaying(attacker, genuine, *routes)
    begun = time.monotonic()
    with pytest.raises((DeadlineError, UnreachableError)):
        tell(attack.target, policy, secret, timeout=0.7)
    assert time.monotonic() - begun < SOON_SECONDS
    assert learnt_nothing(attack, secret)


@pytest.mark.parametrize("answer", ["never", "relay", "noise"])
def test_after_a_refusal_no_connection_is_left_open(
    attacker: Attacker, genuine: AttackedServer, policy: bytes, secret: bytes, tell: Tell, answer: str
) -> None:
    """Not even while somebody keeps the exception."""
    attack = relaying(attacker, genuine, answer=answer)
    with pytest.raises(AdytonError) as caught:
        tell(attack.target, policy, secret, timeout=0.7)
    assert attack.settle() == 0
    assert caught.value.message
    assert learnt_nothing(attack, secret)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["instead of TLS", "instead of TLS, after the probe", "inside TLS", "as the answer"])
def test_noise_is_a_clear_error_soon(
    attacker: Attacker, genuine: AttackedServer, policy: bytes, secret: bytes, tell: Tell, where: str
) -> None:
    for seed in SEEDS:
        routes = {"instead of TLS": ["noise"], "instead of TLS, after the probe": ["genuine", "noise"]}
        plan = {"noise_in_tls": where == "inside TLS", "answer": "noise", "seed": seed}
        attack = relaying(attacker, genuine, *routes.get(where, ["terminate"]), **plan, key_has_leaked=True)
        begun = time.monotonic()
        with pytest.raises(AdytonError) as caught:
            tell(attack.target, policy, secret, timeout=0.5)
        assert isinstance(caught.value, (EvidenceError, UnreachableError, DeadlineError)), f"seed {seed}"
        assert caught.value.message
        assert time.monotonic() - begun < SOON_SECONDS, f"seed {seed}"
        assert learnt_nothing(attack, secret), f"seed {seed}"
