"""Reading requests within a time, and where their failing costs nothing; two forms, for two kinds of server.

gRPC would wait for a request as long as its client likes, before any guard saw the call and, on a server with threads,
with one of these; and there one that does not parse is answered twice, and its call is kept for ever. So methods are
registered as ones that take a stream of bytes, and what stands here does the rest. It is the innermost of the
runtime's guards: of a caller who is refused nothing is read.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

from adyton.atls.failures import GRPC_CODES
from adyton.atls.rpc_threads import refuses_here
from adyton.bundle.access import OWN_PREFIXES
from adyton.enclave.handlers import AioGuard, Guard, Handler, behavior_of, for_asyncio, reading_bytes
from adyton.enclave.rpc_timer import RpcTimer
from adyton.errors import ApplicationError, StatusCode

OWN_SECONDS: Final = 10.0
"""How long a request of Adyton's own services and of gRPC's standard ones may take to arrive: they are small."""
_STANDARD_PREFIX: Final = "/grpc."

#: What a guard outside of this one answers; the first two are gRPC's own codes for these cases.
_UNPARSED: Final = (StatusCode.INTERNAL, "the request does not parse")
_MISSING: Final = (StatusCode.UNIMPLEMENTED, "this method takes exactly one request")
_LATE: Final = (StatusCode.DEADLINE_EXCEEDED, "the request did not arrive in time")
_BUSY: Final = (StatusCode.RESOURCE_EXHAUSTED, "too many calls of this service at once")

Parse = Callable[[bytes], Any]


class Reading(Guard):
    """For grpc.server(). A request that does not arrive in time ends its RPC: CANCELLED."""

    def __init__(self, request_timeout_ms: int) -> None:
        """`request_timeout_ms`: for the one request of the application's unary methods; 0 for no limit.

        When the next request of a stream comes is between the application and its clients.
        """
        self._own = RpcTimer(OWN_SECONDS)
        self._applications = RpcTimer(request_timeout_ms / 1000) if request_timeout_ms else None

    def wrap(self, handler: Handler, method: str) -> Handler:
        """The same method, as one that takes a stream of bytes."""
        timer = self._own if _is_own(method) else None if handler.request_streaming else self._applications
        behavior, parse = behavior_of(handler), _parser(handler)

        def read_one(received: Iterator[bytes], context: Any, *callback: Any) -> Any:
            if refuses_here():
                raise ApplicationError(*_BUSY)
            message = _wait_for_one(received, context, timer)
            if message is None:
                raise ApplicationError(*_MISSING)
            return behavior(parse(message), context, *callback)

        def read_each(received: Iterator[bytes], context: Any, *callback: Any) -> Any:
            if refuses_here():
                raise ApplicationError(*_BUSY)
            return behavior(_Requests(received, parse, context, timer), context, *callback)

        return reading_bytes(handler, read_each if handler.request_streaming else read_one)


class _Requests:
    """What a client sends, parsed. Ends the RPC if one takes too long."""

    __slots__ = ("_context", "_parse", "_received", "_timer")

    def __init__(self, received: Iterator[bytes], parse: Parse, context: Any, timer: RpcTimer | None) -> None:
        self._received = received
        self._parse = parse
        self._context = context
        self._timer = timer

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        message = _wait_for_one(self._received, self._context, self._timer)
        if message is None:
            raise StopIteration
        try:
            return self._parse(message)
        except ApplicationError as problem:  # said to gRPC too: whoever reads may be another than who answers
            self._context.set_code(GRPC_CODES[problem.status])
            self._context.set_details(problem.message)
            raise

    next = __next__  # gRPC's own has it too


def _wait_for_one(received: Iterator[bytes], context: Any, timer: RpcTimer | None) -> bytes | None:
    """The next message, or None if there is none."""
    if timer is None:
        return next(received, None)
    timer.begin(received, context.cancel)
    try:
        return next(received, None)
    finally:
        timer.end(received)


class AioReading(AioGuard):
    """For grpc.aio.server(): the one request of a unary method, late: DEADLINE_EXCEEDED.

    Streams are read by gRPC, for a servicer may ask its context for the next request.
    """

    def __init__(self, request_timeout_ms: int) -> None:
        """As for Reading."""
        self._seconds = request_timeout_ms / 1000 if request_timeout_ms else None

    def wrap(self, handler: Handler, method: str) -> Handler:
        """The same method, as one that takes a stream: of bytes, if it is unary."""
        behavior, parse = for_asyncio(behavior_of(handler), method), _parser(handler)
        seconds = OWN_SECONDS if _is_own(method) else self._seconds

        async def answer_once(received: AsyncIterator[bytes], context: Any) -> Any:
            return await behavior(parse(await _await_one(received, seconds)), context)

        async def answer_in_turn(received: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
            async for response in behavior(parse(await _await_one(received, seconds)), context):
                yield response

        if handler.request_streaming:
            return reading_bytes(handler, behavior, parse)
        return reading_bytes(handler, answer_in_turn if inspect.isasyncgenfunction(behavior) else answer_once)


async def _await_one(received: AsyncIterator[bytes], seconds: float | None) -> bytes:
    try:
        async with asyncio.timeout(seconds):
            return await anext(received)
    except TimeoutError:
        raise ApplicationError(*_LATE) from None
    except StopAsyncIteration:
        raise ApplicationError(*_MISSING) from None


def _is_own(method: str) -> bool:
    return method.startswith((*OWN_PREFIXES, _STANDARD_PREFIX))


def _parser(handler: Handler) -> Parse:
    """The handler's deserializer. That may raise what it likes, and its words may quote the message."""
    deserialize = handler.request_deserializer or bytes

    def parse(message: bytes) -> Any:
        try:
            request = deserialize(message)
        except Exception:  # noqa: BLE001
            request = None
        if request is None:
            raise ApplicationError(*_UNPARSED)
        return request

    return parse
