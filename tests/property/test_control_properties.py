"""Whatever bytes one end of the control protocol sends: the other end ends, in one of the documented ways."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from adyton.errors import AdytonError, ControlProtocolError, EnclaveDiedError, LaunchError
from adyton.proto.control_client import ControlClient
from adyton.proto.control_pb2 import (
    FromEnclave,
    Initialize,
    Ready,
    Refused,
    Reply,
    Request,
    Run,
    Status,
    StopRequested,
)
from adyton.proto.control_server import ControlServer
from adyton.proto.frames import encode_frame

SECONDS = 10.0
GONE = EnclaveDiedError("the enclave is gone")

texts = st.text(max_size=5) | st.just("zz")
ids = st.integers(0, 6) | st.just(2**64 - 1)
statuses = st.builds(
    Status, code=st.integers(-1, 20) | st.just(0), message=st.none() | texts, wrong_state=st.none() | st.booleans()
)
from_enclave = st.one_of(
    st.builds(FromEnclave, reply=st.builds(Reply, id=ids, status=st.none() | statuses, result=st.binary(max_size=5))),
    st.builds(FromEnclave, ready=st.builds(Ready, version=st.none() | st.sampled_from([1, 1, 1, 0, 2]))),
    st.builds(FromEnclave, stop_requested=st.builds(StopRequested, reason=texts)),
    st.builds(FromEnclave, refused=st.builds(Refused, reason=texts)),
)
from_host = st.one_of(
    st.builds(Request, id=ids, run=st.builds(Run, input=st.none() | st.binary(max_size=5))),
    st.builds(Request, id=ids, initialize=st.builds(Initialize, name=texts)),
    st.builds(Request, id=st.none() | ids),
)


def _streams(messages: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """Frames with real messages, with their bytes changed, with garbage; then some bytes without a frame."""
    real = messages.map(lambda message: bytes(message.SerializeToString()))
    changed = st.builds(
        lambda data, at, byte: data[:at] + bytes([byte]) + data[at + 1 :], real, st.integers(0, 12), st.integers(0, 255)
    )
    not_utf_8 = real.map(lambda data: data.replace(b"zz", b"\xff\xff"))
    frames = st.lists(st.one_of(real, changed, not_utf_8, st.binary(max_size=20)).map(encode_frame), max_size=8)
    return st.builds(lambda some, rest: b"".join(some) + rest, frames, st.just(b"") | st.binary(max_size=12))


def _feed_client(data: bytes, calls: int) -> None:
    problems: list[AdytonError | None] = []

    def explain(problem: AdytonError | None) -> AdytonError:
        problems.append(problem)
        return problem or GONE

    before = set(threading.enumerate())
    stream, other = socket.socketpair()
    client = ControlClient(stream, explain=explain)
    with other:
        everybody: list[Future[Any]] = [client.call(Request(run=Run())) for _ in range(calls)]
        with suppress(BrokenPipeError):  # it may have ended the connection by the first frame
            other.sendall(data)
        other.shutdown(socket.SHUT_WR)
        errors = [each.exception(SECONDS) for each in (*everybody, client.ready, client.stop_requested)]
        assert all(error is None or isinstance(error, AdytonError) for error in errors)
        late = client.call(Request(run=Run()))
        client.close()
    assert len(problems) == 1
    assert isinstance(problems[0], ControlProtocolError | LaunchError | None)
    assert late.exception(0) is (problems[0] or GONE)
    assert [str(error) for error in errors]  # every message can be shown
    assert set(threading.enumerate()) <= before


def _feed_server(data: bytes) -> None:
    seen: list[Request] = []

    def handler(request: Request) -> Reply:
        seen.append(request)
        return Reply(status=Status())

    stream, other = socket.socketpair()
    with stream, other:
        server = ControlServer(other, lambda request: lambda send: send(handler(request)))
        stream.sendall(data)
        stream.shutdown(socket.SHUT_WR)
        with suppress(ControlProtocolError):
            server.serve()
        server._pool.shutdown()
    assert all(each.WhichOneof("call") and type(each.initialize.name) is str for each in seen)
    assert len({each.id for each in seen} - {0}) == len(seen)


@settings(max_examples=300)
@given(_streams(from_enclave), st.integers(0, 5))
def test_a_client_ends_once_and_leaves_nobody_waiting(data: bytes, calls: int) -> None:
    _feed_client(data, calls)


@settings(max_examples=300)
@given(_streams(from_host))
def test_a_server_returns_or_raises_a_protocol_error(data: bytes) -> None:
    _feed_server(data)


@given(st.binary(max_size=200))
def test_random_bytes_end_both(data: bytes) -> None:
    _feed_client(data, 1)
    _feed_server(data)
