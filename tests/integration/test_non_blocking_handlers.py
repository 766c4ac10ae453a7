"""Handlers that answer by a callback (gRPC's `experimental_non_blocking`): the guard around them, in real servers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import grpc.aio
import pytest
from observing import eventually

from adyton.atls.never_sent import ANSWERED_KEY
from adyton.bundle.settings import LoggingSettings
from adyton.enclave.interceptors import AioGuardInterceptor, GuardInterceptor
from adyton.errors import ApplicationError, StatusCode

SECRET = "secret of the request"
METHOD = "/tests.Telling/Tell"
INTERNAL = (grpc.StatusCode.INTERNAL, "uncaught ValueError")
Send = Callable[[bytes | None], None]

#: What of the words below makes the handler raise what nobody should be told.
RAISES = {"fail": "ValueError", "leave": "SystemExit"}


class Telling:
    """Does what the request says, and notes in which thread."""

    experimental_non_blocking = True

    def __init__(self, pool: futures.Executor) -> None:
        self.experimental_thread_pool = pool
        self.thread = ""

    def __call__(self, request: bytes, context: Any, send: Send) -> None:
        self.thread = threading.current_thread().name
        self.obey_all(request.decode(), context, send)

    def obey_all(self, words: str, context: Any, send: Send) -> None:
        for word in words.split():
            self.obey(word, context, send)

    def obey(self, word: str, context: Any, send: Send) -> None:
        match word:
            case "send":
                send(b"a response")
            case "end":
                send(None)
            case "later":
                threading.Timer(0.1, self.obey_all, ("send end", context, send)).start()
            case "unavailable":
                context.set_code(grpc.StatusCode.UNAVAILABLE)
            case "abort":
                context.abort(grpc.StatusCode.OUT_OF_RANGE, "as asked")
            case "status":
                raise ApplicationError(StatusCode.DATA_LOSS, "as asked")
            case "fail":
                raise ValueError(SECRET)
            case "leave":
                raise SystemExit(SECRET)


class Served:
    """A server with threads that has the one method."""

    def __init__(self, guard: GuardInterceptor, pool: futures.ThreadPoolExecutor) -> None:
        self.telling = Telling(pool)
        handlers: dict[str, Any] = {"Tell": grpc.unary_stream_rpc_method_handler(self.telling)}
        self.server = grpc.server(futures.ThreadPoolExecutor(2, "rpc"), interceptors=[guard])
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("tests.Telling", handlers),))
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}")
        self.server.start()

    def tell(self, words: str) -> Any:
        call: Any = self.channel.unary_stream(METHOD)
        return call(words.encode(), timeout=10)

    def end_of(self, words: str) -> tuple[grpc.StatusCode, str]:
        rpc = self.tell(words)
        with contextlib.suppress(grpc.RpcError):
            list(rpc)
        return rpc.code(), rpc.details()


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    with contextlib.ExitStack() as stack:

        def start(*, access: bool = False, max_rpc_ms: int = 0) -> Served:
            pool = stack.enter_context(futures.ThreadPoolExecutor(2, "apart"))
            served = Served(GuardInterceptor(LoggingSettings(access=access), max_rpc_ms), pool)
            stack.callback(lambda: served.server.stop(0).wait(10))
            stack.enter_context(served.channel)
            return served

        yield start


Serve = Callable[..., Served]


def access_lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    told = [vars(each) for each in caplog.records if each.name == "adyton.rpc" and each.message == "rpc"]
    return [(each["rpc"], each["status"]) for each in told]


@pytest.mark.parametrize("access", [False, True])
@pytest.mark.parametrize(
    ("words", "end"),
    [
        ("send send end", (grpc.StatusCode.OK, "")),
        ("later", (grpc.StatusCode.OK, "")),
        ("fail", INTERNAL),
        ("send fail", INTERNAL),
        ("leave", (grpc.StatusCode.INTERNAL, "uncaught SystemExit")),
        ("status", (grpc.StatusCode.DATA_LOSS, "as asked")),
        ("send abort", (grpc.StatusCode.OUT_OF_RANGE, "as asked")),
        ("send end fail", (grpc.StatusCode.OK, "")),
        ("send end abort", (grpc.StatusCode.OK, "")),
    ],
)
def test_the_caller_is_told_what_it_is_by_other_handlers(
    serve: Serve,
    words: str,
    end: tuple[grpc.StatusCode, str],
    access: bool,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    served = serve(access=access)
    with caplog.at_level(logging.INFO):
        assert served.end_of(words) == end
        served.server.stop(5).wait(10)
        served.telling.experimental_thread_pool.shutdown()
    assert access_lines(caplog) == ([(METHOD, end[0].name)] if access else [])
    uncaught = [vars(each) for each in caplog.records if each.message == "uncaught exception in a servicer"]
    assert [each["exception"] for each in uncaught] == [RAISES[word] for word in words.split() if word in RAISES]
    assert SECRET not in repr([vars(each) for each in caplog.records])
    assert capfd.readouterr().err == ""


def test_it_keeps_the_threads_that_are_its_own(serve: Serve) -> None:
    served = serve()
    served.end_of("end")
    assert served.telling.thread.startswith("apart")


def test_a_client_that_leaves_ends_the_rpc_in_the_log(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    served = serve(access=True)
    with caplog.at_level(logging.INFO):
        rpc = served.tell("send")
        assert next(rpc) == b"a response"
        assert access_lines(caplog) == []
        rpc.cancel()
        eventually(lambda: access_lines(caplog) == [(METHOD, "CANCELLED")])


def test_a_log_that_makes_its_writers_wait_stops_no_other_rpc(serve: Serve) -> None:
    class Waiting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            begun.set()
            assert go_on.wait(30)  # longer than an RPC has

    begun, go_on = threading.Event(), threading.Event()
    served = serve(access=True)
    leaver = served.tell("send")
    log, handler = logging.getLogger("adyton.rpc"), Waiting(logging.INFO)
    next(leaver)
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    try:
        leaver.cancel()
        assert begun.wait(10)
        assert next(served.tell("send")) == b"a response"
    finally:
        go_on.set()
        log.setLevel(level)
        log.removeHandler(handler)


def test_it_has_an_end(serve: Serve) -> None:
    served = serve(max_rpc_ms=300)
    begun = time.monotonic()
    assert served.end_of("send")[0] is grpc.StatusCode.CANCELLED
    assert 0.25 < time.monotonic() - begun < 5
    assert served.end_of("send end")[0] is grpc.StatusCode.OK


def test_its_own_unavailable_is_told_from_a_lost_connections(serve: Serve) -> None:
    rpc = serve().tell("unavailable end")
    with pytest.raises(grpc.RpcError):
        list(rpc)
    assert rpc.code() is grpc.StatusCode.UNAVAILABLE
    assert ANSWERED_KEY in dict(rpc.trailing_metadata())


def test_on_asyncio_which_gives_no_callback_the_caller_is_told_the_type_only() -> None:
    async def end() -> tuple[grpc.StatusCode, str]:
        with futures.ThreadPoolExecutor(1) as pool:
            server = grpc.aio.server(pool, interceptors=[AioGuardInterceptor(LoggingSettings(), 0)])
            handlers: dict[str, Any] = {"Tell": grpc.unary_stream_rpc_method_handler(Telling(pool))}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("tests.Telling", handlers),))
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                call: Any = channel.unary_stream(METHOD)
                rpc = call(b"end", timeout=10)
                found = await rpc.code(), await rpc.details()
            await server.stop(0)
        return found

    assert asyncio.run(end()) == (grpc.StatusCode.INTERNAL, "uncaught TypeError")
