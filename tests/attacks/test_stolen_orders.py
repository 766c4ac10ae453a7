"""An owner's request in the wrong hands: another enclave's that the owner trusts too, and of who finds it later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import keeping
import pytest
from attested import policy_of, port_of
from cryptography.hazmat.primitives.asymmetric import ec
from owners import (
    LIST,
    ORDER,
    ROTATE_IDENTITY,
    SECRET,
    ask,
    attested,
    put,
    refusal,
    send,
    signed,
    told,
    write_keeping_project,
)

from adyton.atls.certificates import parse_certificate, spki_sha256
from adyton.host.manager import EnclaveManager
from adyton.policy.document import Policy
from adyton.proto.secrets_pb2 import Order, SignedOrder
from adyton.testing.probes import server_config

OWNER = ec.generate_private_key(ec.SECP256R1())
ORDERS = {"put": put("api-key", SECRET), "list": LIST, "rotate-identity": ROTATE_IDENTITY}


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """An enclave, and the policy by which the owner accepts it."""

    target: str
    policy: Policy


Load = Callable[[str], Party]


@pytest.fixture(scope="module")
def load(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    with EnclaveManager() as manager:

        def start(application: str) -> Party:
            folder = tmp_path_factory.mktemp("projects") / application
            owners = [OWNER] if application == "Keeping" else []  # without any, the runtime has no such service
            project = write_keeping_project(folder, *owners, application=application)
            client = manager.load(application, project, server_config())
            return Party(target=client.address_of(port_of(client)), policy=policy_of(client))

        yield start


@pytest.fixture(scope="module")
def victim(load: Load) -> Party:
    return load("Keeping")


@pytest.fixture(scope="module")
def evil(load: Load) -> Party:
    """Other code, that the owner accepts as well. It takes orders by itself, and gives them away."""
    return load("Listening")


def overheard(evil: Party, order: Order) -> bytes:
    send(evil.target, evil.policy, OWNER, order)
    return told(evil.target, evil.policy, "", "Overheard")


def refused(victim: Party, request: bytes) -> grpc.StatusCode:
    """What the victim answers to somebody who attests it as its owner does, and sends that."""
    with attested(victim.target, victim.policy) as session:
        return refusal(session.channel, request)


def state_of(victim: Party) -> tuple[list[str], bytes]:
    """Names of its secrets, and its certificate."""
    with attested(victim.target, victim.policy) as session:
        pinned = session.question.pinned
    return [each.name for each in send(victim.target, victim.policy, OWNER, LIST).secrets], pinned


@pytest.mark.parametrize("order", ORDERS)
def test_another_enclave_can_not_pass_an_order_on(victim: Party, evil: Party, order: str) -> None:
    request, before = overheard(evil, ORDERS[order]), state_of(victim)
    assert SignedOrder.FromString(request).order == ORDERS[order].SerializeToString()  # it is what the owner sent
    assert refused(victim, request) is grpc.StatusCode.FAILED_PRECONDITION
    assert state_of(victim) == before
    assert told(victim.target, victim.policy, "api-key") == keeping.NOTHING


@pytest.mark.parametrize("order", ORDERS)
def test_nor_by_naming_the_victims_certificate_in_it(victim: Party, evil: Party, order: str) -> None:
    request, before = SignedOrder.FromString(overheard(evil, ORDERS[order])), state_of(victim)
    request.leaf_sha256 = spki_sha256(parse_certificate(before[1])[1])
    assert refused(victim, request.SerializeToString()) is grpc.StatusCode.PERMISSION_DENIED
    assert state_of(victim) == before


def test_an_order_that_was_carried_out_can_not_be_sent_again_by_who_finds_it(victim: Party) -> None:
    """A secret that was replaced since would be back."""
    with attested(victim.target, victim.policy) as session:
        request = signed(session, OWNER, put("db-password", b"the first"))
        ask(session.channel, ORDER, request)
    send(victim.target, victim.policy, OWNER, put("db-password", b"the second", replace=True))
    assert refused(victim, request) is grpc.StatusCode.PERMISSION_DENIED
    assert told(victim.target, victim.policy, "db-password") == b"the second"
