"""What an enclave checks of a question before it asks its hardware, and what it answers."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from channel_parties import (
    CLAIMS,
    CLIENT_SHA256,
    NAMES,
    NONCE,
    VendorDevice,
    ask,
    attester,
    binding_of,
    connection,
    identity,
    judged,
)

from adyton.atls.attester import Attester, Connection
from adyton.atls.batch import BatchedQuotes, DeviceQuotes
from adyton.atls.binding import Purpose, report_data
from adyton.atls.certificates import make_ca
from adyton.atls.identity import LocalIdentity
from adyton.errors import ApplicationError, EvidenceError, StatusCode
from adyton.proto.attestation_pb2 import AttestRequest, AttestResponse
from adyton.testing.forgery import NOW

DAY = timedelta(days=1)


def request(**changes: Any) -> bytes:
    """A question in order but for these fields; those that are None are left out."""
    fields = {
        "version": 1,
        "nonce": NONCE,
        "purpose": 1,
        "audience": NAMES[0],
        "pinned_sha256": identity().leaf.spki_sha256,
        **changes,
    }
    return AttestRequest(**{name: value for name, value in fields.items() if value is not None}).SerializeToString()


def answered(made: Attester, question: bytes, facts: Connection) -> AttestResponse:
    pending = made.begin(question, facts)
    return AttestResponse.FromString(pending.finish(pending.quote.result(10)))


@pytest.mark.parametrize("purpose", [Purpose.INSTANCE, Purpose.FLEET])
@pytest.mark.parametrize("audience", NAMES)
def test_a_question_in_order_is_answered_so_that_its_client_believes_it(purpose: Purpose, audience: str) -> None:
    device = VendorDevice()
    question = ask(purpose=purpose, audience=audience)
    made = attester(DeviceQuotes(device))
    answer = answered(made, question.encode(), connection(server_name=audience))
    assert device.asked == [report_data(binding_of(question).leaf())]
    assert (answer.version, answer.claims, list(answer.batch_path)) == (1, CLAIMS, [])
    assert answer.ca_certificate == (identity().ca.der if purpose is Purpose.FLEET else b"")
    assert judged(answer.SerializeToString(), question).audience == audience


def test_what_is_bound_is_the_client_of_this_connection_whatever_it_says() -> None:
    device = VendorDevice()
    made = attester(DeviceQuotes(device))
    for client in (b"\x23" * 32, b""):
        answered(made, request(), connection(client_sha256=client))
    keys = [report_data(replace(binding_of(ask()), client_sha256=client).leaf()) for client in (b"\x23" * 32, b"")]
    assert device.asked == keys


REFUSALS: list[tuple[str, bytes, dict[str, Any], StatusCode, str]] = [
    ("no message", b"\xff", {}, StatusCode.INVALID_ARGUMENT, "not an AttestRequest"),
    (
        "a name of bytes",
        request().replace(b"atls", b"\xfftls"),
        {},
        StatusCode.INVALID_ARGUMENT,
        "not an AttestRequest",
    ),
    ("nothing", b"", {}, StatusCode.UNIMPLEMENTED, "speaks version 1"),
    ("version 0", request(version=0), {}, StatusCode.UNIMPLEMENTED, "speaks version 1"),
    ("version 2", request(version=2), {}, StatusCode.UNIMPLEMENTED, "speaks version 1"),
    ("no nonce", request(nonce=None), {}, StatusCode.INVALID_ARGUMENT, "a nonce has 32 bytes"),
    ("31 bytes", request(nonce=bytes(31)), {}, StatusCode.INVALID_ARGUMENT, "a nonce has 32 bytes"),
    ("33 bytes", request(nonce=bytes(33)), {}, StatusCode.INVALID_ARGUMENT, "a nonce has 32 bytes"),
    ("no purpose", request(purpose=None), {}, StatusCode.INVALID_ARGUMENT, "the purpose is none"),
    ("ENROL", request(purpose=3), {}, StatusCode.INVALID_ARGUMENT, "the purpose is none"),
    ("CA_JOIN", request(purpose=4), {}, StatusCode.INVALID_ARGUMENT, "the purpose is none"),
    ("purpose 257", request(purpose=257), {}, StatusCode.INVALID_ARGUMENT, "the purpose is none"),
    ("TLS 1.2", request(), {"tls_version": "TLSv1.2"}, StatusCode.FAILED_PRECONDITION, r"needs TLS 1\.3"),
    ("no TLS", request(), {"tls_version": ""}, StatusCode.FAILED_PRECONDITION, r"needs TLS 1\.3"),
    ("resumed", request(), {"session_reused": True}, StatusCode.FAILED_PRECONDITION, "not a resumed session"),
    ("no pin", request(pinned_sha256=None), {}, StatusCode.FAILED_PRECONDITION, "is none of this enclave"),
    ("another pin", request(pinned_sha256=bytes(32)), {}, StatusCode.FAILED_PRECONDITION, "is none of this enclave"),
    (
        "the CA as pin",
        request(pinned_sha256=identity().ca.spki_sha256),
        {},
        StatusCode.FAILED_PRECONDITION,
        "is none of this enclave",
    ),
    ("no audience", request(audience=None), {}, StatusCode.INVALID_ARGUMENT, "the audience is not"),
    ("no SNI", request(), {"server_name": ""}, StatusCode.INVALID_ARGUMENT, "the audience is not"),
    ("neither", request(audience=None), {"server_name": ""}, StatusCode.INVALID_ARGUMENT, "the audience is not"),
    ("another SNI", request(), {"server_name": NAMES[1]}, StatusCode.INVALID_ARGUMENT, "the audience is not"),
    (
        "no name of the server's",
        request(audience="other.example"),
        {"server_name": "other.example"},
        StatusCode.INVALID_ARGUMENT,
        "the audience is not",
    ),
    (
        "a name in capitals",
        request(audience="ATLS.internal"),
        {"server_name": "ATLS.internal"},
        StatusCode.INVALID_ARGUMENT,
        "the audience is not",
    ),
]


@pytest.mark.parametrize(
    ("question", "facts", "status", "said"), [each[1:] for each in REFUSALS], ids=[each[0] for each in REFUSALS]
)
def test_a_question_that_is_not_in_order_costs_no_quote(
    question: bytes, facts: dict[str, Any], status: StatusCode, said: str
) -> None:
    device = VendorDevice()
    with pytest.raises(ApplicationError, match=said) as caught:
        attester(DeviceQuotes(device)).begin(question, connection(**facts))
    assert caught.value.status is status
    assert device.asked == []


def test_the_checks_come_in_the_protocols_order() -> None:
    wrong: dict[str, Any] = {
        "audience": "other.example",
        "pinned_sha256": b"",
        "purpose": 9,
        "nonce": b"",
        "version": 9,
    }
    facts = connection(session_reused=True, tls_version="TLSv1.2")
    made, said = attester(), []
    for mend in ("version", "nonce", "purpose", "tls_version", "session_reused", "pinned_sha256", "audience"):
        with pytest.raises(ApplicationError) as caught:
            made.begin(request(**wrong), facts)
        said.append(caught.value.message)
        wrong.pop(mend, None)
        if hasattr(facts, mend):
            facts = replace(facts, **{mend: getattr(connection(), mend)})
    assert [words.split()[-1] for words in said] == ["ATLS", "bytes", "answers", "1.3", "session", "enclave", "TLS"]
    assert made.begin(request(**wrong), facts).quote.exception(10) is None


def test_a_question_of_4096_bytes_is_read_and_a_longer_one_is_not() -> None:
    room = 4096 - len(request()) - 4
    padded = request() + b"\x82\x01" + bytes([room & 0x7F | 0x80, room >> 7])  # a field that nobody knows
    assert attester().begin(padded + bytes(room), connection()).quote.exception(10) is None
    with pytest.raises(ApplicationError, match="has 4096 bytes at most") as caught:
        attester().begin(padded + bytes(room) + b"\x08", connection())
    assert caught.value.status is StatusCode.INVALID_ARGUMENT


def test_where_too_many_wait_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adyton.atls.batch.MAX_WAITING", 0)
    with pytest.raises(ApplicationError) as caught:
        attester().begin(request(), connection())
    assert caught.value.status is StatusCode.RESOURCE_EXHAUSTED


def test_a_device_that_fails_is_heard_of_by_who_waits() -> None:
    class Broken(VendorDevice):
        def collect_evidence(self, report_data: bytes) -> Any:
            raise EvidenceError("the device is out of order")

    waiting: Future[Any] = attester(DeviceQuotes(Broken())).begin(request(), connection()).quote
    problem = waiting.exception(10)
    assert isinstance(problem, ApplicationError)
    assert problem.status is StatusCode.UNAUTHENTICATED


# --- between two certificates


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


def test_who_has_pinned_an_earlier_leaf_is_answered_about_that_one_and_under_its_own_ca() -> None:
    clock, device = Clock(), VendorDevice()
    source = LocalIdentity(names=NAMES, claims=CLAIMS, clock=clock, leaf_lifetime=10 * DAY)
    made = Attester(identity=source, quotes=BatchedQuotes(DeviceQuotes(device)), names=frozenset(NAMES))
    shown = [source.current().leaf]
    for _ in range(3):  # 5, 10 and 15 days on: the last time with another CA
        clock.now += 5 * DAY
        shown.append(source.current().leaf)
    assert [leaf.issuer == shown[0].issuer for leaf in shown] == [True, True, True, False]
    for leaf in shown:
        assert leaf.issuer is not None
        for purpose, anchor in ((Purpose.INSTANCE, leaf), (Purpose.FLEET, leaf.issuer)):
            question = ask(purpose=purpose, pinned=leaf.der)
            answer = answered(made, question.encode(), connection())
            bound = replace(binding_of(question), anchor_sha256=anchor.spki_sha256)
            assert device.asked[-1] == report_data(bound.leaf())
            assert judged(answer.SerializeToString(), question).anchor_certificate == anchor.der


def test_a_question_about_another_enclaves_certificate_is_none_of_this_ones() -> None:
    with pytest.raises(ApplicationError, match="is none of this enclave"):
        attester().begin(ask(pinned=make_ca(NOW).der).encode(), connection())


def test_what_is_hashed_of_the_claims_is_what_is_sent() -> None:
    answer = answered(attester(), request(), connection())
    assert binding_of(ask()).claims_sha256 == hashlib.sha256(answer.claims).digest()
    assert binding_of(ask()).client_sha256 == CLIENT_SHA256
