"""The asking end of the control protocol, against bytes that the other end should or should not send."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

import pytest

from adyton.errors import (
    AdytonError,
    ApplicationError,
    ControlProtocolError,
    EnclaveDiedError,
    LaunchError,
    StatusCode,
    WrongStateError,
)
from adyton.proto.control_client import ControlClient
from adyton.proto.control_pb2 import FromEnclave, Ready, Refused, Reply, Request, Run, Status, StopRequested
from adyton.proto.frames import encode_frame, read_frame

SECONDS = 10.0
GONE = EnclaveDiedError("the enclave is gone")


class Explanation:
    """What a client's owner says about the end of the connection, and what it was told about it."""

    def __init__(self) -> None:
        self.problems: list[AdytonError | None] = []

    def __call__(self, problem: AdytonError | None) -> AdytonError:
        self.problems.append(problem)
        return problem or GONE


class Enclave:
    """The raw other end of a client's connection."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream

    def send(self, **message: Any) -> None:
        self.stream.sendall(encode_frame(FromEnclave(**message).SerializeToString()))

    def reply(self, id: int, result: bytes = b"", **status: Any) -> None:
        self.send(reply=Reply(id=id, status=Status(**status), result=result))

    def take(self) -> Request:
        frame = read_frame(self.stream)
        assert frame is not None
        return Request.FromString(frame)


@pytest.fixture
def explanation() -> Explanation:
    return Explanation()


@pytest.fixture
def ends(explanation: Explanation) -> Iterator[tuple[ControlClient, Enclave]]:
    """A client and the raw other end. Afterwards no thread is left, and `explain` was called once."""
    before = set(threading.enumerate())
    stream, other = socket.socketpair()
    other.settimeout(SECONDS)
    client = ControlClient(stream, explain=explanation)
    with other:
        yield client, Enclave(other)
        client.close()
    assert set(threading.enumerate()) <= before
    assert len(explanation.problems) == 1


def run(data: bytes = b"") -> Request:
    return Request(run=Run(input=data))


def test_ids_are_sent_in_order_whoever_calls(ends: tuple[ControlClient, Enclave]) -> None:
    client, enclave = ends
    with ThreadPoolExecutor(8) as pool:
        for _ in range(200):
            pool.submit(client.call, run())
        assert [enclave.take().id for _ in range(200)] == list(range(1, 201))


@pytest.mark.parametrize(
    ("status", "kind", "code", "message"),
    [
        ({"code": 5, "message": "no"}, ApplicationError, StatusCode.NOT_FOUND, "NOT_FOUND: no"),
        ({"code": 9, "message": "no", "wrong_state": True}, WrongStateError, StatusCode.FAILED_PRECONDITION, "no"),
        ({"code": 99, "message": "no"}, ApplicationError, StatusCode.UNKNOWN, "UNKNOWN: no"),
        ({"code": -1}, ApplicationError, StatusCode.UNKNOWN, "UNKNOWN: "),
    ],
)
def test_a_status_becomes_an_error(
    ends: tuple[ControlClient, Enclave],
    status: dict[str, Any],
    kind: type[AdytonError],
    code: StatusCode,
    message: str,
) -> None:
    client, enclave = ends
    future = client.call(run())
    enclave.reply(1, **status)
    with pytest.raises(kind) as caught:
        future.result(SECONDS)
    assert (caught.value.status, str(caught.value)) == (code, message)


def test_ready_and_stop_requested_are_told_once(ends: tuple[ControlClient, Enclave]) -> None:
    client, enclave = ends
    for reason in ("first", "second"):
        enclave.send(ready=Ready(version=1))
        enclave.send(stop_requested=StopRequested(reason=reason))
    assert client.ready.result(SECONDS) is None
    assert client.stop_requested.result(SECONDS) == "first"
    future = client.call(run())
    enclave.reply(1, b"still here")
    assert future.result(SECONDS) == b"still here"


def _message(**message: Any) -> bytes:
    return encode_frame(FromEnclave(**message).SerializeToString())


NOT_ALLOWED: dict[str, tuple[bytes, type[AdytonError], str]] = {
    "another version": (_message(ready=Ready(version=2)), ControlProtocolError, "speaks version 2 of the protocol"),
    "no version": (_message(ready=Ready()), ControlProtocolError, "speaks version 0 of the protocol"),
    "a refusal": (_message(refused=Refused(reason="no")), LaunchError, "the enclave refused to start: no"),
    "an unknown id": (_message(reply=Reply(id=7)), ControlProtocolError, "answered what was not asked"),
    "an empty message": (encode_frame(b""), ControlProtocolError, "a message that the protocol does not know"),
    "garbage": (encode_frame(b"\xff\xff\xff"), ControlProtocolError, "not a message of the control protocol"),
    "a text that is none": (
        _message(stop_requested=StopRequested(reason="zz")).replace(b"zz", b"\xff\xff"),
        ControlProtocolError,
        "not a message of the control protocol",
    ),
    "a frame that is too long": (b"\xff\xff\xff\xff", ControlProtocolError, "a frame of 4294967295 bytes"),
}


@pytest.mark.parametrize(("data", "kind", "message"), NOT_ALLOWED.values(), ids=NOT_ALLOWED.keys())
def test_what_the_protocol_does_not_allow_ends_the_connection(
    ends: tuple[ControlClient, Enclave],
    explanation: Explanation,
    data: bytes,
    kind: type[AdytonError],
    message: str,
) -> None:
    client, enclave = ends
    future = client.call(run())
    enclave.stream.sendall(data)
    everybody: list[Future[Any]] = [future, client.ready, client.stop_requested]
    for each in everybody:
        with pytest.raises(kind, match=message):
            each.result(SECONDS)
    assert explanation.problems == [future.exception()]


def test_an_answer_is_taken_only_once(ends: tuple[ControlClient, Enclave]) -> None:
    client, enclave = ends
    first, second = client.call(run()), client.call(run())
    enclave.reply(1, b"a")
    enclave.reply(1, b"b")
    assert first.result(SECONDS) == b"a"
    with pytest.raises(ControlProtocolError, match="answered what was not asked"):
        second.result(SECONDS)


def test_the_end_of_the_stream_reaches_everybody_who_waits(
    ends: tuple[ControlClient, Enclave], explanation: Explanation
) -> None:
    client, enclave = ends
    futures = [client.call(run()) for _ in range(10)]
    enclave.stream.close()
    everybody: list[Future[Any]] = [*futures, client.ready, client.stop_requested]
    for each in everybody:
        assert each.exception(SECONDS) is GONE
    assert explanation.problems == [None]


def test_an_end_within_a_frame_is_a_problem(ends: tuple[ControlClient, Enclave]) -> None:
    client, enclave = ends
    enclave.stream.sendall(b"\0\0\0\x09half")
    enclave.stream.close()
    with pytest.raises(ControlProtocolError, match="the stream ended within a frame"):
        client.ready.result(SECONDS)


def test_no_thread_outlives_the_connection_though_nobody_closes_it(ends: tuple[ControlClient, Enclave]) -> None:
    client, enclave = ends
    enclave.stream.close()
    assert client.ready.exception(SECONDS) is GONE
    for thread in client._threads:
        thread.join(SECONDS)
        assert not thread.is_alive()


def test_a_call_after_the_end_fails_at_once(ends: tuple[ControlClient, Enclave]) -> None:
    client, enclave = ends
    enclave.stream.close()
    assert client.ready.exception(SECONDS) is GONE
    late = client.call(run())
    assert late.done()
    assert late.exception() is GONE


def test_a_peer_that_reads_nothing_blocks_neither_call_nor_close(ends: tuple[ControlClient, Enclave]) -> None:
    client, _ = ends
    begun = time.monotonic()
    futures = [client.call(run(bytes(1 << 20))) for _ in range(30)]
    client.close()
    assert time.monotonic() - begun < 5
    assert {each.exception(SECONDS) for each in futures} == {GONE}


def test_a_call_that_its_caller_cancelled_harms_no_other(ends: tuple[ControlClient, Enclave]) -> None:
    client, enclave = ends
    cancelled, other, third = (client.call(run()) for _ in range(3))
    assert cancelled.cancel()
    assert third.cancel()
    enclave.reply(1, b"too late")
    enclave.reply(3, code=13)
    enclave.reply(2, b"in time")
    assert other.result(SECONDS) == b"in time"
    with pytest.raises(CancelledError):
        cancelled.result()


def test_a_connection_can_be_closed_twice_and_by_its_own_callback(ends: tuple[ControlClient, Enclave]) -> None:
    client, enclave = ends
    closed = threading.Event()

    def close(_: object) -> None:
        client.close()
        closed.set()

    future = client.call(run())
    future.add_done_callback(close)
    enclave.reply(1)
    assert closed.wait(SECONDS)
    assert client.call(run()).exception(SECONDS) is GONE
