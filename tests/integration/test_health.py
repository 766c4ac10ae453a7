"""The health service: what it says, and clients that end at the wrong moment or take no answer."""

from __future__ import annotations

import contextlib
import functools
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import serving_here
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from adyton.bundle.settings import LoggingSettings
from adyton.enclave import health
from adyton.enclave.interceptors import AioGuardInterceptor, GuardInterceptor

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    server: serving_here.Served
    end: Callable[[], Any]
    has_threads: bool

    def channel(self) -> grpc.Channel:
        return self.server.channel()


@contextlib.contextmanager
def threaded(most_watches: int = health.MAX_WATCHES) -> Iterator[Served]:
    servicer = health.Health(most_watches)
    servicer.serves(["a.Service"])
    add = functools.partial(health_pb2_grpc.add_HealthServicer_to_server, servicer)
    with serving_here.with_threads(add, [GuardInterceptor(LoggingSettings(), 0)]) as server:
        yield Served(server=server, end=servicer.end, has_threads=True)


@contextlib.contextmanager
def on_asyncio(most_watches: int = health.MAX_WATCHES) -> Iterator[Served]:
    servicer = health.AioHealth(most_watches)
    servicer.serves(["a.Service"])
    add = functools.partial(health_pb2_grpc.add_HealthServicer_to_server, servicer)
    with serving_here.on_asyncio(add, [AioGuardInterceptor(LoggingSettings(), 0)]) as server:
        yield Served(server=server, end=lambda: server.run(servicer.end()), has_threads=False)


@pytest.fixture(params=[threaded, on_asyncio], ids=["threads", "asyncio"])
def served(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(health, "TAKING_SECONDS", 0.5)
    with request.param() as served:
        yield served


@pytest.fixture
def stub(served: Served) -> Iterator[health_pb2_grpc.HealthStub]:
    with served.channel() as channel:
        yield health_pb2_grpc.HealthStub(channel)


@pytest.mark.parametrize("service", ["", "a.Service"])
def test_services_are_serving_until_the_end(served: Served, stub: health_pb2_grpc.HealthStub, service: str) -> None:
    asked = HealthCheckRequest(service=service)
    watch = stub.Watch(asked, timeout=20)
    assert next(watch).status == SERVING
    assert stub.Check(asked, timeout=10).status == SERVING
    served.end()
    assert next(watch).status == NOT_SERVING
    assert stub.Check(asked, timeout=10).status == NOT_SERVING
    assert next(stub.Watch(asked, timeout=10)).status == NOT_SERVING


def test_all_services_are_listed(served: Served, stub: health_pb2_grpc.HealthStub) -> None:
    def listed() -> dict[str, int]:
        statuses = stub.List(health_pb2.HealthListRequest(), timeout=10).statuses
        return {name: response.status for name, response in statuses.items()}

    assert listed() == {"": SERVING, "a.Service": SERVING}
    served.end()
    assert listed() == {"": NOT_SERVING, "a.Service": NOT_SERVING}


def test_a_service_that_there_is_not(served: Served, stub: health_pb2_grpc.HealthStub) -> None:
    watch = stub.Watch(HealthCheckRequest(service="no.Service"), timeout=3)
    assert next(watch).status == HealthCheckResponse.SERVICE_UNKNOWN
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(HealthCheckRequest(service="no.Service"), timeout=10)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    served.end()
    with pytest.raises(grpc.RpcError) as caught:  # nothing has changed, so nothing more is said
        next(watch)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_watches_that_come_and_go_stop_nobody(served: Served, stub: health_pb2_grpc.HealthStub) -> None:
    """A watch that ends while another one begins: this stops a server with grpcio-health-checking's servicer."""
    over = threading.Event()

    def come_and_go() -> int:
        count = 0
        with served.channel() as channel:
            mine = health_pb2_grpc.HealthStub(channel)
            while not over.is_set():
                watches = [mine.Watch(HealthCheckRequest(), timeout=20) for _ in range(10)]
                assert all(next(watch).status == SERVING for watch in watches)
                for watch in watches:
                    watch.cancel()
                count += 1
        return count

    with futures.ThreadPoolExecutor(3) as pool:
        comers = [pool.submit(come_and_go) for _ in range(3)]
        until = time.monotonic() + 3
        while time.monotonic() < until:
            assert stub.Check(HealthCheckRequest(), timeout=10).status == SERVING
        over.set()
        assert all(comer.result(30) > 0 for comer in comers)


def test_watches_that_go_at_the_end(served: Served, stub: health_pb2_grpc.HealthStub) -> None:
    watches = [stub.Watch(HealthCheckRequest(), timeout=30) for _ in range(60)]
    assert all(next(watch).status == SERVING for watch in watches)
    leavers, stayers = watches[:40], watches[40:]
    with futures.ThreadPoolExecutor(1) as pool:
        left = pool.submit(lambda: [watch.cancel() for watch in leavers])
        served.end()
        left.result(10)
    assert all(next(watch).status == NOT_SERVING for watch in stayers)
    assert stub.Check(HealthCheckRequest(), timeout=10).status == NOT_SERVING


class Taker:
    """A client of HTTP/2 (RFC 9113) by hand, whose streams may get `window` bytes and no more."""

    def __init__(self, port: int, window: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._received = self._socket.makefile("rb")
        initial_window_size = struct.pack(">HI", 4, window)
        self._socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + self._frame(4, 0, 0, initial_window_size))

    def watch(self, stream: int) -> None:
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": "/grpc.health.v1.Health/Watch",
            ":authority": "localhost",
            "te": "trailers",
            "content-type": "application/grpc",
        }
        text = b"".join(b"\0" + self._text(name) + self._text(value) for name, value in fields.items())
        self._socket.sendall(self._frame(1, 4, stream, text) + self._frame(0, 1, stream, bytes(5)))

    def wait_for_answers(self, streams: set[int]) -> None:
        """The first DATA of each."""
        self._wait_for(streams, lambda kind, _flags: kind == 0)

    def wait_for_the_ends_of(self, streams: set[int]) -> None:
        """By RST_STREAM, or by headers that end the stream."""
        self._wait_for(streams, lambda kind, flags: kind == 3 or (kind == 1 and bool(flags & 1)))

    def _wait_for(self, streams: set[int], is_it: Callable[[int, int], bool]) -> None:
        streams = set(streams)
        while streams:
            length, kind, flags, stream = struct.unpack(">IBBI", b"\0" + self._received.read(9))
            self._received.read(length)
            if is_it(kind, flags):
                streams.discard(stream)

    def close(self) -> None:
        self._received.close()
        self._socket.close()

    @staticmethod
    def _text(text: str) -> bytes:
        return bytes([len(text)]) + text.encode()

    @staticmethod
    def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


@pytest.mark.parametrize("window", [0, 7], ids=["takes nothing", "takes one answer"])
def test_a_client_that_takes_nothing_keeps_nobody_waiting(
    served: Served, stub: health_pb2_grpc.HealthStub, window: int
) -> None:
    """One message of 2 bytes takes 7 of a stream's window."""
    streams = set(range(1, 41, 2))
    taker = Taker(served.server.port, window)
    for stream in streams:
        taker.watch(stream)
    with contextlib.closing(taker):
        if window:
            taker.wait_for_answers(streams)  # who begins to watch at the end gets one answer only
        assert stub.Check(HealthCheckRequest(), timeout=5).status == SERVING
        watch = stub.Watch(HealthCheckRequest(), timeout=60)
        assert next(watch).status == SERVING
        begun = time.monotonic()
        served.end()
        assert time.monotonic() - begun < 4
        assert next(watch).status == NOT_SERVING
        assert stub.Check(HealthCheckRequest(), timeout=5).status == NOT_SERVING
        if served.has_threads:
            taker.wait_for_the_ends_of(streams)


@pytest.mark.parametrize("kind", [threaded, on_asyncio], ids=["threads", "asyncio"])
def test_one_watch_too_many(kind: Callable[[int], contextlib.AbstractContextManager[Served]]) -> None:
    with kind(2) as served, served.channel() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watches = [stub.Watch(HealthCheckRequest(), timeout=30) for _ in range(2)]
        assert all(next(watch).status == SERVING for watch in watches)
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.Watch(HealthCheckRequest(), timeout=10))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        watches[0].cancel()
        until = time.monotonic() + 10
        while not watches_again(stub):
            assert time.monotonic() < until


def test_no_service_has_so_long_a_name(stub: health_pb2_grpc.HealthStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        next(stub.Watch(HealthCheckRequest(service="a" * 2000), timeout=10))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def watches_again(stub: health_pb2_grpc.HealthStub) -> bool:
    with contextlib.suppress(grpc.RpcError):
        return bool(next(stub.Watch(HealthCheckRequest(), timeout=10)).status == SERVING)
    return False
