"""What stands around every servicer: an exception becomes a status, an RPC has an end, and the log says no content.

Two forms, as gRPC has two kinds of server. Both answer `adyton.ApplicationError` with its own status, and any other
exception with INTERNAL and its type; the message stays inside, for it may quote what another caller must not see.
Adyton's own services answer with the status of any AdytonError.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent import futures
from typing import Any, TypeGuard

import grpc
import grpc.aio

from adyton.atls.failures import GRPC_CODES
from adyton.atls.never_sent import ANSWERED_KEY
from adyton.bundle.access import OWN_PREFIXES
from adyton.bundle.settings import LoggingSettings
from adyton.enclave.handlers import LEFT_OUT, AioGuard, Behavior, Guard, Handler, Serializer, behavior_of, rebuild
from adyton.enclave.logs import log_uncaught
from adyton.enclave.rpc_timer import RpcTimer
from adyton.errors import AdytonError, ApplicationError, StatusCode

_log = logging.getLogger("adyton.rpc")

#: What tells a client that an UNAVAILABLE came from the servicer, so that the RPC is not to be sent again.
_MARK = (ANSWERED_KEY, "1")

_UNSERIALIZED = "the response does not serialize"
_TOO_LONG = (grpc.StatusCode.DEADLINE_EXCEEDED, "the RPC took longer than this server allows")

#: For the first exception of the process that is logged without its message.
_HINTS = iter(({"hint": "logging.exception_messages in enclave.toml makes the host see what exceptions say"},))


def _is_answer(error: BaseException, method: str) -> TypeGuard[AdytonError]:
    """Whether an exception is meant for the caller.

    Of a servicer's, an `ApplicationError` is, unless it is how a call failed that the servicer made itself: other
    errors of Adyton speak of what the caller has no part in, a store or another server.
    """
    if method.startswith(OWN_PREFIXES):
        return isinstance(error, AdytonError)
    return isinstance(error, ApplicationError) and not isinstance(error, grpc.RpcError)


def _answer_for(error: BaseException, method: str, logging_settings: LoggingSettings) -> tuple[grpc.StatusCode, str]:
    if _is_answer(error, method):
        return GRPC_CODES[error.status], error.message
    messages = logging_settings.exception_messages
    hint = {} if messages else next(_HINTS, {})
    log_uncaught(_log, "uncaught exception in a servicer", error, messages=messages, rpc=method, **hint)
    return GRPC_CODES[StatusCode.INTERNAL], f"uncaught {type(error).__name__}"


def _code_of(context: Any) -> grpc.StatusCode | None:
    """The status that a servicer has set, if it has; gRPC's kinds of context say it in three ways."""
    code = context.code() if hasattr(context, "code") else None
    return GRPC_CODES.get(code) if isinstance(code, int) else code


def _log_access(method: str, code: grpc.StatusCode, begun: float) -> None:
    duration_ms = round((time.monotonic() - begun) * 1000, 3)
    _log.info("rpc", extra={"rpc": method, "status": code.name, "duration_ms": duration_ms})


def _telling(handler: Handler, method: str, logging_settings: LoggingSettings) -> Serializer | None:
    """The handler's serializer. Where it fails the log tells: gRPC would not, and on asyncio quotes it to callers."""
    serialize = handler.response_serializer

    def serialize_or_tell(response: Any) -> bytes:
        try:
            serialized: bytes = serialize(response)  # type: ignore[misc]
        except Exception as error:  # noqa: BLE001
            log_uncaught(
                _log, "a response does not serialize", error, messages=logging_settings.exception_messages, rpc=method
            )
            raise ValueError(_UNSERIALIZED) from None
        return serialized

    return serialize and serialize_or_tell


class _Rpc:
    """One RPC of a server with threads: when it began, and how it ends.

    A class, for a generator would cost each RPC some microseconds more.
    """

    __slots__ = ("_begun", "_context", "_interceptor", "_method")

    def __init__(self, interceptor: GuardInterceptor, context: Any, method: str) -> None:
        self._interceptor = interceptor
        self._context = context
        self._method = method

    def __enter__(self) -> None:
        self._begun = time.monotonic()
        if self._interceptor.timer is not None:
            self._interceptor.timer.begin(self, self._context.cancel)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        return self.end(error)

    def end(self, error: BaseException | None) -> bool:
        """The RPC is over; `error` is what its handler raised. Raises if it answers that; true if nobody else may."""
        if self._interceptor.timer is not None:
            self._interceptor.timer.end(self)
        answer = self._answer(error)
        code = answer[0] if answer else _code_of(self._context)
        if code is grpc.StatusCode.UNAVAILABLE:
            self._context.set_trailing_metadata((*(self._context.trailing_metadata() or ()), _MARK))
        if self._interceptor.logging_settings.access:
            _log_access(self._method, code or _unsaid(error), self._begun)
        if answer is not None:
            self._context.abort(*answer)
        return False

    def _answer(self, error: BaseException | None) -> tuple[grpc.StatusCode, str] | None:
        """What an exception is answered with, which also logs it; None for what is how an RPC may end."""
        if error is None or isinstance(error, GeneratorExit) or _is_abort(error, self._context):
            return None
        if isinstance(error, NotImplementedError) and _code_of(self._context) is grpc.StatusCode.UNIMPLEMENTED:
            return grpc.StatusCode.UNIMPLEMENTED, LEFT_OUT  # protoc's own method, of a servicer that leaves it out
        return _answer_for(error, self._method, self._interceptor.logging_settings)


class _CallbackRpc(_Rpc):
    """One whose handler answers by a callback: it holds no thread, and may return long before the end."""

    __slots__ = ("_ended", "_send")

    def __init__(self, interceptor: GuardInterceptor, context: Any, method: str, send: Callable[[Any], None]) -> None:
        super().__init__(interceptor, context, method)
        self._ended = threading.Lock()  # taken by the end, and for good: there may be several
        self._send = send

    def __enter__(self) -> None:
        super().__enter__()
        if self._interceptor.watches and not self._context.add_callback(self._leave_later):
            self._leave()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        return error is not None and self.end(error)

    def send(self, response: Any) -> None:
        """What the handler gets as its callback: sends a response, or for None ends the RPC."""
        if response is None:
            self.end(None)
        self._send(response)

    def end(self, error: BaseException | None) -> bool:
        """As with other handlers, once. An exception after the end is only logged: gRPC would send what it says."""
        if self._ended.acquire(blocking=False):
            return super().end(error)
        self._answer(error)
        return True

    def _leave_later(self) -> None:
        """Not here: the one thread that handles gRPC's events calls this, and a log may make whoever writes wait."""
        self._interceptor.leaving.submit(self._leave)

    def _leave(self) -> None:
        self.end(GeneratorExit())


def _unmark(context: Any, code: grpc.StatusCode | None) -> None:
    """Take the mark away, unless it is needed or the servicer has put metadata of its own in its place."""
    if code is not grpc.StatusCode.UNAVAILABLE and tuple(context.trailing_metadata() or ()) == (_MARK,):
        context.set_trailing_metadata(())


def _unsaid(error: BaseException | None) -> grpc.StatusCode:
    """How an RPC ends whose handler has said nothing of it: for gRPC, or for a client that has gone."""
    if error is None:
        return grpc.StatusCode.OK
    left = isinstance(error, GeneratorExit | asyncio.CancelledError | grpc.RpcError)
    return grpc.StatusCode.CANCELLED if left else grpc.StatusCode.UNKNOWN


class GuardInterceptor(Guard):
    """For grpc.server(): the outermost interceptor. An RPC over its time ends with CANCELLED."""

    def __init__(self, logging_settings: LoggingSettings, max_rpc_ms: int) -> None:
        self.logging_settings = logging_settings
        self.timer = RpcTimer(max_rpc_ms / 1000) if max_rpc_ms else None
        #: Whether there is something to do for an RPC that begins and ends in order.
        self.watches = bool(max_rpc_ms) or logging_settings.access
        #: For the ends of RPCs that hold no thread.
        self.leaving = futures.ThreadPoolExecutor(1, "rpc-ends")

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Wrap the method's handler, or answer what an interceptor of the application's raised."""
        try:
            return super().intercept_service(continuation, handler_call_details)
        except Exception as error:  # noqa: BLE001
            answer = _answer_for(error, handler_call_details.method, self.logging_settings)
            return grpc.stream_stream_rpc_method_handler(lambda _, context: context.abort(*answer))

    def wrap(self, handler: Handler, method: str) -> Handler:
        """The same handler with the guard around it."""
        behavior, serializer = behavior_of(handler), _telling(handler, method, self.logging_settings)
        if getattr(behavior, "experimental_non_blocking", False) and handler.response_streaming:
            return rebuild(handler, self._by_callback(behavior, method), serializer)

        def answer_once(request: Any, context: Any) -> Any:
            with _Rpc(self, context, method):
                return behavior(request, context)

        def answer_once_unless_it_fails(request: Any, context: Any) -> Any:
            try:
                response = behavior(request, context)
                if context.code() is None:
                    return response
            except BaseException as error:
                _Rpc(self, context, method).end(error)
                raise
            _Rpc(self, context, method).end(None)
            return response

        def answer_in_turn(request: Any, context: Any) -> Iterator[Any]:
            with _Rpc(self, context, method):
                yield from behavior(request, context)

        at_once = answer_once if self.watches else answer_once_unless_it_fails
        answer = answer_in_turn if handler.response_streaming else at_once
        return rebuild(handler, answer, serializer)

    def _by_callback(self, behavior: Any, method: str) -> Any:
        def answer_by_callback(request: Any, context: Any, send: Callable[[Any], None]) -> None:
            rpc = _CallbackRpc(self, context, method, send)
            with rpc:
                behavior(request, context, rpc.send)

        return answer_by_callback


def _is_abort(error: BaseException, context: Any) -> bool:
    """Whether it is how gRPC ends a handler.

    context.abort() raises a bare Exception; reading a client that has gone away raises RpcError.
    """
    bare = type(error) is Exception and not error.args and _code_of(context) is not None
    return bare or (isinstance(error, grpc.RpcError) and not context.is_active())


class AioGuardInterceptor(AioGuard):
    """For grpc.aio.server(): the outermost interceptor. An RPC over its time ends with DEADLINE_EXCEEDED."""

    def __init__(self, logging_settings: LoggingSettings, max_rpc_ms: int) -> None:
        self._logging = logging_settings
        self._limit = max_rpc_ms / 1000 if max_rpc_ms else None

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """As GuardInterceptor does."""
        try:
            return await super().intercept_service(continuation, handler_call_details)
        except Exception as error:  # noqa: BLE001
            answer = _answer_for(error, handler_call_details.method, self._logging)

            async def abort(_requests: Any, context: Any) -> None:
                await context.abort(*answer)

            return grpc.stream_stream_rpc_method_handler(abort)

    def wrap(self, handler: Handler, method: str) -> Handler:
        """The same handler with the guard around it."""
        behavior = behavior_of(handler)
        around = self._generator if inspect.isasyncgenfunction(behavior) else self._coroutine
        return rebuild(handler, around(behavior, method), _telling(handler, method, self._logging))

    def _coroutine(self, behavior: Behavior, method: str) -> Behavior:
        async def call(request: Any, context: Any) -> Any:
            async with self._around(context, method):
                return await behavior(request, context)

        return call

    def _generator(self, behavior: Behavior, method: str) -> Behavior:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            async with self._around(context, method):
                async for response in behavior(request, context):
                    yield response

        return call

    @contextlib.asynccontextmanager
    async def _around(self, context: Any, method: str) -> AsyncIterator[None]:
        begun, code = time.monotonic(), grpc.StatusCode.UNKNOWN
        limit = asyncio.timeout(self._limit)
        context.set_trailing_metadata((_MARK,))  # now, for context.abort() sends the status at once
        try:
            async with limit:
                yield
            code = _code_of(context) or grpc.StatusCode.OK
            _unmark(context, code)
        except (grpc.aio.AbortError, asyncio.CancelledError, GeneratorExit) as error:
            code = _code_of(context) or _unsaid(error)
            raise
        except BaseException as error:  # noqa: BLE001  SystemExit too: it would end the event loop
            code, message = _TOO_LONG if limit.expired() else _answer_for(error, method, self._logging)
            await context.abort(code, message)
        finally:
            if self._logging.access:
                _log_access(method, code, begun)
