"""The answering end of the control protocol, against the real client and against bytes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from adyton.errors import ApplicationError, ConfigurationError, ControlProtocolError, EnclaveDiedError, StatusCode
from adyton.proto.control_client import ControlClient
from adyton.proto.control_pb2 import Finalize, FromEnclave, Ready, Reply, Request, Run, Status
from adyton.proto.control_server import MAX_CALLS, Accept, ControlServer
from adyton.proto.frames import MAX_FRAME_BYTES, encode_frame, read_frame

SECONDS = 10.0
GONE = EnclaveDiedError("the enclave is gone")


def answering(handler: Callable[[Request], Reply]) -> Accept:
    """A server's end that answers with what `handler` returns."""
    return lambda request: lambda send: send(handler(request))


@contextmanager
def serving(handler: Callable[[Request], Reply]) -> Iterator[ControlClient]:
    """A client of a real server that answers with `handler`."""
    stream, other = socket.socketpair()
    server = ControlServer(other, answering(handler))
    thread = threading.Thread(target=server.serve)
    thread.start()
    client = ControlClient(stream, explain=lambda problem: problem or GONE)
    try:
        yield client
    finally:
        client.close()
        thread.join(SECONDS)
        other.close()
    assert not thread.is_alive()


def run(data: bytes = b"") -> Request:
    return Request(run=Run(input=data))


def echo(request: Request) -> Reply:
    return Reply(status=Status(), result=request.run.input)


# --- against the real client


def test_a_server_says_that_it_is_ready_and_answers() -> None:
    with serving(echo) as client:
        assert client.ready.result(SECONDS) is None
        assert client.call(run(b"hello")).result(SECONDS) == b"hello"


def test_calls_overlap_and_are_answered_in_any_order() -> None:
    gate = threading.Event()

    def handler(request: Request) -> Reply:
        if request.run.input == b"slow":
            assert gate.wait(SECONDS)
        return echo(request)

    with serving(handler) as client:
        slow, fast = client.call(run(b"slow")), client.call(run(b"fast"))
        assert fast.result(SECONDS) == b"fast"
        assert not slow.done()
        gate.set()
        assert slow.result(SECONDS) == b"slow"


def test_many_calls_of_many_threads_each_get_their_own_answer() -> None:
    words = [b"%d" % number for number in range(400)]
    with serving(echo) as client, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda word: client.call(run(word)).result(SECONDS), words)) == words


def test_long_replies_are_not_mixed_up() -> None:
    with serving(lambda request: Reply(status=Status(), result=request.run.input * (1 << 20))) as client:
        futures = [client.call(run(bytes([number]))) for number in range(16)]
        assert [each.result(SECONDS) for each in futures] == [bytes([number]) * (1 << 20) for number in range(16)]


def test_stuck_calls_hold_up_neither_a_finalize_nor_the_end() -> None:
    gate = threading.Event()

    def handler(request: Request) -> Reply:
        assert request.HasField("finalize") or gate.wait(SECONDS)
        return Reply(status=Status())

    with serving(handler) as client:
        stuck = [client.call(run()) for _ in range(MAX_CALLS)]
        with pytest.raises(ApplicationError, match="256 calls are in flight") as caught:
            client.call(run()).result(SECONDS)
        assert caught.value.status is StatusCode.RESOURCE_EXHAUSTED
        assert client.call(Request(finalize=Finalize())).result(SECONDS) == b""
        assert not any(each.done() for each in stuck)
    gate.set()


def test_a_reply_that_is_too_long_becomes_a_status() -> None:
    def handler(request: Request) -> Reply:
        return Reply(status=Status(), result=bytes(MAX_FRAME_BYTES) if request.run.input else b"")

    with serving(handler) as client:
        with pytest.raises(ApplicationError, match="the control protocol takes 4194304") as caught:
            client.call(run(b"x")).result(SECONDS)
        assert caught.value.status is StatusCode.RESOURCE_EXHAUSTED
        assert client.call(run()).result(SECONDS) == b""


def test_a_request_that_is_too_long_is_refused_and_the_next_one_goes_through() -> None:
    with serving(echo) as client:
        with pytest.raises(ConfigurationError, match="the control protocol takes 4194304"):
            client.call(run(bytes(MAX_FRAME_BYTES)))
        assert client.call(run(b"short")).result(SECONDS) == b"short"


# --- against bytes


def serve(data: bytes, handler: Callable[[Request], Reply] = echo) -> list[FromEnclave]:
    """Serve a host that sends `data` and no more; what it was sent."""
    stream, other = socket.socketpair()
    with stream, other:
        stream.settimeout(SECONDS)
        stream.sendall(data)
        stream.shutdown(socket.SHUT_WR)
        server = ControlServer(other, answering(handler))
        try:
            server.serve()
        finally:
            server._pool.shutdown()
            other.shutdown(socket.SHUT_WR)
        answers = []
        while (frame := read_frame(stream)) is not None:
            answers.append(FromEnclave.FromString(frame))
        return answers


def numbered(*ids: int) -> bytes:
    return b"".join(encode_frame(Request(id=each, run=Run()).SerializeToString()) for each in ids)


def test_a_server_speaks_first_and_ends_with_its_host() -> None:
    assert serve(b"") == [FromEnclave(ready=Ready(version=1))]


def test_ids_may_leave_gaps() -> None:
    assert sorted(each.reply.id for each in serve(numbered(1, 5, 2**64 - 1))[1:]) == [1, 5, 2**64 - 1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (numbered(0), "a request that the protocol does not allow"),
        (numbered(1, 1), "a request that the protocol does not allow"),
        (numbered(2, 1), "a request that the protocol does not allow"),
        (encode_frame(Request(id=1).SerializeToString()), "a request that the protocol does not allow"),
        (encode_frame(b""), "a request that the protocol does not allow"),
        (encode_frame(b"\xff\xff"), "what is not a message of the control protocol"),
        (b"\xff\xff\xff\xff", "a frame of 4294967295 bytes"),
    ],
)
def test_a_host_that_breaks_the_protocol_is_not_heard_any_more(data: bytes, message: str) -> None:
    carried_out = []

    def handler(request: Request) -> Reply:
        carried_out.append(request.id)
        return echo(request)

    with pytest.raises(ControlProtocolError, match=message):
        serve(data + numbered(100), handler)
    assert 100 not in carried_out


def test_a_host_that_ends_within_a_frame_breaks_the_protocol() -> None:
    with pytest.raises(ControlProtocolError, match="the stream ended within a frame"):
        serve(numbered(1) + b"\0\0")


def test_a_host_that_is_gone_is_no_error() -> None:
    stream, other = socket.socketpair()
    with other:
        stream.close()
        server = ControlServer(other, answering(echo))
        server.request_stop("nobody listens")
        server.refuse("nobody listens")
        server.serve()


def test_a_server_can_refuse_and_ask_to_be_stopped() -> None:
    stream, other = socket.socketpair()
    with stream, other:
        server = ControlServer(other, answering(echo))
        server.refuse("not the locked packages")
        server.request_stop("done")
        sent = [FromEnclave.FromString(read_frame(stream) or b"") for _ in range(2)]
    assert (sent[0].refused.reason, sent[1].stop_requested.reason) == ("not the locked packages", "done")
