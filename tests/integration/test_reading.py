"""Requests that do not arrive, and requests that do not parse: what they cost a server, and what its client is told."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import grpc
import grpc.aio
import pytest
from attested import open_channel
from grpc._server import _RPCState
from probe import probe_pb2, probe_pb2_grpc
from serving_here import Served, on_asyncio, with_threads

from adyton.atls.rpc_threads import RpcThreads
from adyton.bundle.access import AccessSettings, Word
from adyton.bundle.settings import LoggingSettings
from adyton.enclave import reading
from adyton.enclave.access import access_interceptors, aio_access_interceptors
from adyton.enclave.interceptors import AioGuardInterceptor, GuardInterceptor
from adyton.host.manager import EnclaveManager
from adyton.testing.probes import AIO_SERVER, SERVER, probe_bundle, server_config

Code = grpc.StatusCode
Text = probe_pb2.Text
NO_TEXT = b"\xff\xff"
LATE = {True: Code.CANCELLED, False: Code.DEADLINE_EXCEEDED}
MAKERS: tuple[Any, ...] = (
    grpc.unary_unary_rpc_method_handler,
    grpc.unary_stream_rpc_method_handler,
    grpc.stream_unary_rpc_method_handler,
    grpc.stream_stream_rpc_method_handler,
)
RESTRICTED = AccessSettings(default=Word.ANYONE, methods=(("/restricted.Probe/*", Word.NOBODY),))


def echo(request: Any, _context: Any) -> Any:
    return request


def count(request: Any, _context: Any) -> Iterator[Any]:
    yield request


def collect(requests: Iterator[Any], _context: Any) -> Any:
    return Text(text=" ".join(request.text for request in requests))


def chat(requests: Iterator[Any], _context: Any) -> Iterator[Any]:
    yield from requests


async def aio_echo(request: Any, _context: Any) -> Any:
    return request


async def aio_count(request: Any, _context: Any) -> AsyncIterator[Any]:
    yield request


async def aio_collect(requests: AsyncIterator[Any], _context: Any) -> Any:
    return Text(text=" ".join([request.text async for request in requests]))


async def aio_chat(requests: AsyncIterator[Any], _context: Any) -> AsyncIterator[Any]:
    async for request in requests:
        yield request


def add_service(server: Any, name: str, behaviors: Sequence[Any], parse: Any = None, serialize: Any = None) -> None:
    """One method of each kind."""
    methods: dict[str, Any] = {
        method: make(behavior, parse, serialize)
        for method, make, behavior in zip(("Echo", "Count", "Collect", "Chat"), MAKERS, behaviors, strict=True)
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, methods),))


@contextlib.contextmanager
def threaded(timeout_ms: int) -> Iterator[Served]:
    def add(server: grpc.Server) -> None:
        behaviors = (echo, count, collect, chat)
        add_service(server, "probe.Probe", behaviors, Text.FromString, Text.SerializeToString)
        add_service(server, "restricted.Probe", behaviors)
        add_service(server, "adyton.Secrets", (echo, count, lambda requests, _: b"".join(requests), chat))

    guards = [GuardInterceptor(LoggingSettings(), 0), *access_interceptors(RESTRICTED), reading.Reading(timeout_ms)]
    with with_threads(add, guards) as served:
        yield served


@contextlib.contextmanager
def asynchronous(timeout_ms: int) -> Iterator[Served]:
    def add(server: grpc.aio.Server) -> None:
        behaviors = (aio_echo, aio_count, aio_collect, aio_chat)
        add_service(server, "probe.Probe", behaviors, Text.FromString, Text.SerializeToString)
        add_service(server, "restricted.Probe", behaviors)

    guards = [
        AioGuardInterceptor(LoggingSettings(), 0),
        *aio_access_interceptors(RESTRICTED),
        reading.AioReading(timeout_ms),
    ]
    with on_asyncio(add, guards) as served:
        yield served


both = pytest.mark.parametrize("kind", [threaded, asynchronous], ids=["threads", "asyncio"])
Kind = Callable[[int], contextlib.AbstractContextManager[Served]]


class HalfOpen:
    """A call of which the server gets the head at once, and the messages when they are put here."""

    def __init__(self, channel: grpc.Channel, path: str) -> None:
        self._more = threading.Semaphore(0)
        self._messages: list[bytes] = []
        rpc: Any = channel.stream_stream(path)
        self._call = rpc(self._each(), timeout=30)

    def _each(self) -> Iterator[bytes]:
        while True:
            self._more.acquire()
            if not self._messages:
                return
            yield self._messages.pop(0)

    def send(self, message: bytes) -> None:
        self._messages.append(message)
        self._more.release()

    def end(self) -> None:
        self._more.release()

    def answers(self) -> list[bytes]:
        return list(self._call)

    def code(self) -> grpc.StatusCode:
        """How it ends; waits for that."""
        code: grpc.StatusCode = self._call.code()
        self.end()
        return code


def code_of(channel: grpc.Channel, path: str, request: bytes) -> tuple[grpc.StatusCode, str]:
    rpc: Any = channel.stream_stream(path)
    call = rpc(iter([request]), timeout=10)
    with contextlib.suppress(grpc.RpcError):
        list(call)
    return call.code(), call.details()


@both
@pytest.mark.parametrize("method", ["Echo", "Collect", "Chat"])
def test_a_request_that_does_not_parse(kind: Kind, method: str) -> None:
    with kind(0) as served, served.channel() as channel:
        assert code_of(channel, f"/probe.Probe/{method}", NO_TEXT) == (Code.INTERNAL, "the request does not parse")
        assert probe_pb2_grpc.ProbeStub(channel).Echo(Text(text="a"), timeout=10).text == "a"


@pytest.mark.parametrize("method", ["Echo", "Collect", "Chat"])
def test_what_does_not_parse_leaves_nothing_behind(method: str) -> None:
    """gRPC's own reading keeps the state of each such call for as long as the server runs."""
    with threaded(0) as served, served.channel() as channel:
        for _ in range(30):
            assert code_of(channel, f"/probe.Probe/{method}", NO_TEXT) == (Code.INTERNAL, "the request does not parse")
        until = time.monotonic() + 10
        while len(left := [each for each in gc.get_objects() if isinstance(each, _RPCState)]) > 2:
            assert time.monotonic() < until, len(left)
            time.sleep(0.1)
            gc.collect()


def test_a_stream_that_is_read_by_another_thread() -> None:
    """One that takes any exception for the end of the stream."""

    def hear(requests: Iterator[Any], _context: Any) -> Any:
        heard: list[str] = []

        def listen() -> None:
            with contextlib.suppress(Exception):
                heard.extend(request.text for request in requests)

        listener = threading.Thread(target=listen)
        listener.start()
        listener.join()
        return Text(text=" ".join(heard))

    def add(server: grpc.Server) -> None:
        behaviors = (echo, count, hear, chat)
        add_service(server, "probe.Probe", behaviors, Text.FromString, Text.SerializeToString)

    with with_threads(add, [GuardInterceptor(LoggingSettings(), 0), reading.Reading(0)]) as served:  # noqa: SIM117
        with served.channel() as channel:
            assert code_of(channel, "/probe.Probe/Collect", NO_TEXT) == (Code.INTERNAL, "the request does not parse")
            assert code_of(channel, "/probe.Probe/Collect", b"") == (Code.OK, "")


@both
@pytest.mark.parametrize("method", ["Echo", "Count"])
def test_no_request_where_there_has_to_be_one(kind: Kind, method: str) -> None:
    with kind(0) as served, served.channel() as channel:
        nothing = HalfOpen(channel, f"/probe.Probe/{method}")
        nothing.end()
        assert nothing.code() is Code.UNIMPLEMENTED


@both
def test_a_request_that_does_not_arrive_in_time(kind: Kind) -> None:
    with kind(500) as served, served.channel() as channel:
        begun = time.monotonic()
        waiting = [HalfOpen(channel, "/probe.Probe/Echo") for _ in range(6)]  # of a server with two threads
        assert probe_pb2_grpc.ProbeStub(channel).Echo(Text(text="a"), timeout=10).text == "a"
        assert {each.code() for each in waiting} == {LATE[served.has_threads]}
        assert 0.5 <= time.monotonic() - begun < 6


@both
def test_a_request_that_takes_its_time(kind: Kind) -> None:
    with kind(5000) as served, served.channel() as channel:
        late = HalfOpen(channel, "/probe.Probe/Echo")
        time.sleep(0.5)
        late.send(Text(text="late").SerializeToString())
        assert late.answers() == [Text(text="late").SerializeToString()]
        assert late.code() is Code.OK


@both
def test_a_stream_of_the_applications_may_stand_still(kind: Kind) -> None:
    with kind(200) as served, served.channel() as channel:
        stream = HalfOpen(channel, "/probe.Probe/Collect")
        time.sleep(1)
        stream.send(Text(text="a").SerializeToString())
        stream.end()
        assert stream.answers() == [Text(text="a").SerializeToString()]


@both
def test_of_a_caller_who_is_refused_nothing_is_read(kind: Kind) -> None:
    with kind(0) as served, served.channel() as channel:
        begun = time.monotonic()
        assert HalfOpen(channel, "/restricted.Probe/Count").code() is Code.PERMISSION_DENIED
        assert time.monotonic() - begun < 5


@pytest.mark.parametrize("method", ["Echo", "Collect"])
def test_services_of_adytons_own_wait_for_no_request_long(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "OWN_SECONDS", 0.5)
    with threaded(0) as served, served.channel() as channel:
        assert HalfOpen(channel, f"/adyton.Secrets/{method}").code() is Code.CANCELLED
        assert code_of(channel, f"/adyton.Secrets/{method}", b"a") == (Code.OK, "")


def test_calls_for_which_there_is_no_room_are_refused_at_once() -> None:
    may_end = threading.Event()

    def hold(request: bytes, context: Any) -> bytes:
        may_end.wait(20)
        return request

    hold.experimental_thread_pool = RpcThreads(1, "few", waiting=2)  # type: ignore[attr-defined]
    handlers: dict[str, Any] = {"Hold": grpc.unary_unary_rpc_method_handler(hold)}

    def add(server: grpc.Server) -> None:
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", handlers),))

    guards = [GuardInterceptor(LoggingSettings(), 0), reading.Reading(0)]
    with with_threads(add, guards) as served, served.channel() as channel:
        rpc: Any = channel.unary_unary("/a.B/Hold")
        calls = [rpc.future(b"a", timeout=20) for _ in range(23)]
        until = time.monotonic() + 10
        while len(held := [each for each in calls if not each.done()]) > 3:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert {each.code() for each in calls if each not in held} == {Code.RESOURCE_EXHAUSTED}
        may_end.set()
        assert [each.result() for each in held] == [b"a"] * 3
        assert rpc(b"c", timeout=10) == b"c"


@pytest.mark.parametrize("application", [SERVER, AIO_SERVER])
def test_the_setting_in_an_enclave(manager: EnclaveManager, application: str) -> None:
    bundle = probe_bundle(application, "[server]\nthreads = 1\nrequest_timeout_ms = 500\n")
    with open_channel(manager.load("server", bundle, server_config())) as channel:
        begun = time.monotonic()
        late = HalfOpen(channel, "/probe.Probe/Echo")
        assert late.code() is LATE[application == SERVER]
        assert 0.5 <= time.monotonic() - begun < 10
        assert code_of(channel, "/probe.Probe/Echo", NO_TEXT) == (Code.INTERNAL, "the request does not parse")
