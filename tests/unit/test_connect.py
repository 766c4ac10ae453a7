"""What `connect` is given: what is refused before anything is connected, and what becomes of the rest."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from channel_parties import answer_to, ask, judged, policy_text

import adyton
from adyton.atls.ages import EXTENDABLE_MAX_AGE_SECONDS, MAX_AGE_SECONDS
from adyton.atls.attestation import BindingLevel
from adyton.atls.certificates import DEFAULT_AUDIENCE
from adyton.atls.connect import connector, load_policy
from adyton.atls.connector import BlockingConnector
from adyton.errors import ConfigurationError, UnreachableError
from adyton.policy.document import MAX_POLICY_BYTES, Policy
from adyton.policy.insecurity import Insecurity

POLICY = policy_text(b"\x01" * 32)
TARGET = "127.0.0.1:1"


def test_by_default_nothing_is_agreed_to_and_the_connection_itself_is_bound() -> None:
    made = connector(TARGET, POLICY)
    assert made.target.text == TARGET
    assert (made.audience, made.level) == (DEFAULT_AUDIENCE, BindingLevel.CONNECTION)
    assert (made.terms.allow, made.terms.refuse, made.terms.bind_ca) == (frozenset(), None, False)
    assert made.max_age_seconds is None
    assert made.options == ()


def test_what_is_given_is_used() -> None:
    def refuse(_verified: object) -> list[str]:
        return []

    made = connector(
        "[::1]:2",
        Policy.parse(POLICY),
        server_name="translator.example",
        allow_insecure=["simulated", Insecurity.DEBUG],
        refuse=refuse,
        level="key",
        max_age_seconds=7,
        options=[("grpc.max_receive_message_length", 9)],
    )
    assert (made.audience, made.level, made.max_age_seconds) == ("translator.example", BindingLevel.KEY, 7)
    assert made.terms.allow == {Insecurity.SIMULATED, Insecurity.DEBUG}
    assert made.terms.refuse is refuse
    assert list(made.options) == [("grpc.max_receive_message_length", 9)]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a target without a port": ({"target": "localhost"}, "is not HOST:PORT"),
    "an unknown insecurity": ({"allow_insecure": ["simulation"]}, "'simulation' is none of these words"),
    "an unknown level": ({"level": "session"}, "'session' is none of these words"),
    "an empty level": ({"level": ""}, "'' is none of these words"),
    "an empty name": ({"server_name": ""}, "is not the name of a server"),
    "a name that is too long": ({"server_name": "a." * 127}, "is not the name of a server"),
    "a label that is too long": ({"server_name": "a" * 64}, "is not the name of a server"),
    "an empty label": ({"server_name": "a..b"}, "is not the name of a server"),
    "an address": ({"server_name": "192.0.2.1"}, "is not the name of a server"),
    "a name that is not ASCII": ({"server_name": "ἄδυτον.example"}, "is not the name of a server"),
    "a maximum age of nothing": ({"max_age_seconds": 0}, "max_age_seconds must be more than 0"),
    "a negative maximum age": ({"max_age_seconds": -1}, "max_age_seconds must be more than 0"),
    "a policy that is none": ({"policy": b"version = 2"}, "of no version that is known"),
    "a policy that is too long": ({"policy": b" " * (MAX_POLICY_BYTES + 1)}, "are allowed"),
    "a policy that is not there": ({"policy": "no/such/policy.toml"}, "can't read no/such/policy.toml: No such file"),
    "a folder as a policy": ({"policy": "/"}, "can't read /: Is a directory"),
    "a path with a zero": ({"policy": "a\0b"}, r"'a\x00b' is no path: embedded null byte"),
    "reference values that are not there": (
        {"reference_values": ["no/such/document"]},
        "can't read no/such/document: No",
    ),
    "reference values beside a parsed policy": (
        {"policy": Policy.parse(POLICY), "reference_values": ["x"]},
        "has its reference values",
    ),
}


@pytest.mark.parametrize(("given", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_before_anything_is_connected(given: dict[str, Any], said: str) -> None:
    arguments = {"target": TARGET, "policy": POLICY, **given}
    with pytest.raises(ConfigurationError) as caught:
        connector(**arguments)
    assert said in caught.value.message
    with pytest.raises(ConfigurationError):
        adyton.connect(**arguments)
    with pytest.raises(ConfigurationError):
        adyton.aio.connect(**arguments)


OURS = [
    "grpc.ssl_target_name_override",
    "grpc.default_authority",
    "grpc.ssl_session_cache",
    "grpc.use_local_subchannel_pool",
    "grpc.enable_http_proxy",
    "grpc.http_proxy",
    "grpc.lb_policy_name",
]


@pytest.mark.parametrize("name", OURS)
def test_options_that_decide_whom_one_is_connected_with_are_not_the_callers(name: str) -> None:
    options = [("grpc.max_receive_message_length", 9), (name, "x")]
    with pytest.raises(ConfigurationError, match=f"the channel option {name} is not the caller's to set"):
        connector(TARGET, POLICY, options=options)


def test_names_as_long_as_dns_allows_are_taken() -> None:
    assert connector(TARGET, POLICY, server_name="a." * 126 + "a").audience == "a." * 126 + "a"


def test_a_policy_may_be_a_file_or_its_content_or_parsed(tmp_path: Path) -> None:
    file = tmp_path / "a policy.toml"
    file.write_bytes(POLICY)
    parsed = Policy.parse(POLICY)
    assert load_policy(file) == load_policy(str(file)) == load_policy(POLICY) == load_policy(parsed) == parsed


def test_no_more_of_a_file_is_read_than_a_policy_may_have(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"has {MAX_POLICY_BYTES + 1} bytes"):
        load_policy("/dev/zero")


def test_nothing_is_connected_until_it_is_opened() -> None:
    made = connector(TARGET, POLICY)
    begun = time.monotonic()
    with pytest.raises(UnreachableError, match="Connection refused"):
        BlockingConnector(made).open(10)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("tee", "asked", "seconds"),
    [
        ("sgx", None, MAX_AGE_SECONDS),
        ("simulated", None, MAX_AGE_SECONDS),
        ("tpm", None, EXTENDABLE_MAX_AGE_SECONDS),
        ("azure", None, EXTENDABLE_MAX_AGE_SECONDS),
        ("tdx", None, EXTENDABLE_MAX_AGE_SECONDS),
        ("cca", None, EXTENDABLE_MAX_AGE_SECONDS),
        ("nitro", None, EXTENDABLE_MAX_AGE_SECONDS),
        ("sgx", 5.0, 5.0),
        ("sgx", 1e9, MAX_AGE_SECONDS),
        ("tdx", 3000.0, EXTENDABLE_MAX_AGE_SECONDS),
    ],
)
def test_an_attestation_gets_as_old_as_the_caller_and_the_tee_allow(
    tee: str, asked: float | None, seconds: float
) -> None:
    genuine = judged(answer_to(ask()).SerializeToString())
    attestation = replace(genuine, appraisal=replace(genuine.appraisal, tee=tee))
    made = connector(TARGET, POLICY, max_age_seconds=asked)
    assert made.renew_at(attestation, None, 1000.0) == 1000.0 + seconds


def test_an_attestation_gets_no_older_than_the_signed_values_of_its_policy() -> None:
    attestation = judged(answer_to(ask()).SerializeToString())
    made = connector(TARGET, POLICY)
    soon = replace(made.terms.policy, expires=datetime.now(UTC) + timedelta(seconds=5))
    made = replace(made, terms=replace(made.terms, policy=soon))
    now = time.monotonic()
    assert made.renew_at(attestation, None, now) == pytest.approx(now + 5, abs=1)
    assert made.renew_at(attestation, None, now - MAX_AGE_SECONDS) == pytest.approx(now)
