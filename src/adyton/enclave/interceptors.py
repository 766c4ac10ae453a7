"""What stands around every servicer: an exception becomes a status, an RPC has an end, and the log says no content.

Two forms, as gRPC has two kinds of server. Both answer `adyton.ApplicationError` with its own status, and any other
exception with INTERNAL and its type; the message stays inside, for it may quote what another caller must not see.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeAlias

import grpc
import grpc.aio

from adyton.atls.failures import GRPC_CODES
from adyton.atls.never_sent import ANSWERED_KEY
from adyton.bundle.settings import LoggingSettings
from adyton.enclave.logs import log_uncaught
from adyton.errors import AdytonError, StatusCode

_log = logging.getLogger("adyton.rpc")

#: What tells a client that an UNAVAILABLE came from the servicer, so that the RPC is not to be sent again.
_MARK = (ANSWERED_KEY, "1")

_TOO_LONG = (grpc.StatusCode.DEADLINE_EXCEEDED, "the RPC took longer than this server allows")

Behavior = Callable[[Any, Any], Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


def _answer_for(error: BaseException, method: str, logging_settings: LoggingSettings) -> tuple[grpc.StatusCode, str]:
    if isinstance(error, AdytonError):
        return GRPC_CODES[error.status], error.message
    messages = logging_settings.exception_messages
    log_uncaught(_log, "uncaught exception in a servicer", error, messages=messages, rpc=method)
    return GRPC_CODES[StatusCode.INTERNAL], f"uncaught {type(error).__name__}"


def _code_of(context: Any) -> grpc.StatusCode | None:
    """The status that a servicer has set, if it has; gRPC's kinds of context say it in three ways."""
    code = context.code() if hasattr(context, "code") else None
    return GRPC_CODES.get(code) if isinstance(code, int) else code


def _log_access(method: str, code: grpc.StatusCode, begun: float) -> None:
    duration_ms = round((time.monotonic() - begun) * 1000, 3)
    _log.info("rpc", extra={"rpc": method, "status": code.name, "duration_ms": duration_ms})


#: (request streams, response streams) → how gRPC makes a handler of that kind.
_KINDS: dict[tuple[bool, bool], Any] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def rebuild(handler: Handler, wrapped: Behavior) -> Handler:
    """A handler of the same kind around another behavior."""
    made: Handler = _KINDS[bool(handler.request_streaming), bool(handler.response_streaming)](
        wrapped, handler.request_deserializer, handler.response_serializer
    )
    return made


def behavior_of(handler: Handler) -> Behavior:
    """What a handler calls, whichever of the four kinds it is."""
    found: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    behavior: Behavior = found
    return behavior


class RpcTimer:
    """Ends RPCs that last longer than they may. All get the same time, so the oldest is always the next to end."""

    def __init__(self, limit_seconds: float) -> None:
        self._limit = limit_seconds
        self._running: dict[object, tuple[float, Callable[[], object]]] = {}
        self._changed = threading.Condition()
        threading.Thread(target=self._watch, name="rpc-timer", daemon=True).start()

    def begin(self, token: object, cancel: Callable[[], object]) -> None:
        """Call `cancel` if `end(token)` does not come in time."""
        with self._changed:
            self._running[token] = (time.monotonic() + self._limit, cancel)
            self._changed.notify()

    def end(self, token: object) -> None:
        """The RPC is over."""
        with self._changed:
            self._running.pop(token, None)

    def _watch(self) -> None:
        while True:
            with self._changed:
                while not self._running:
                    self._changed.wait()
                token, (ends, cancel) = next(iter(self._running.items()))
                left = ends - time.monotonic()
                if left > 0:
                    self._changed.wait(left)
                    continue
                del self._running[token]
            cancel()


class _Guard:
    """Around one RPC of a server with threads. A class, for a generator would cost each RPC some microseconds more."""

    __slots__ = ("_begun", "_context", "_interceptor", "_method")

    def __init__(self, interceptor: GuardInterceptor, context: Any, method: str) -> None:
        self._interceptor = interceptor
        self._context = context
        self._method = method

    def __enter__(self) -> None:
        self._begun = time.monotonic()
        if self._interceptor.on_asyncio:
            # Now, for context.abort() sends the status at once there; and for good, for such a context can't be read.
            self._context.set_trailing_metadata((_MARK,))
        if self._interceptor.timer is not None:
            self._interceptor.timer.begin(self, self._context.cancel)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.end(error)

    def end(self, error: BaseException | None) -> None:
        """The RPC is over; `error` is what its handler raised. Raises if it answers that with a status."""
        if self._interceptor.timer is not None:
            self._interceptor.timer.end(self)
        answer = None
        if error is not None and not isinstance(error, GeneratorExit) and not _is_abort(error, self._context):
            answer = _answer_for(error, self._method, self._interceptor.logging_settings)
        code = answer[0] if answer else _code_of(self._context)
        if code is grpc.StatusCode.UNAVAILABLE and not self._interceptor.on_asyncio:
            self._context.set_trailing_metadata((*(self._context.trailing_metadata() or ()), _MARK))
        if self._interceptor.logging_settings.access:
            _log_access(self._method, code or _unsaid(error), self._begun)
        if answer is not None:
            self._context.abort(*answer)


def _unmark(context: Any, code: grpc.StatusCode | None) -> None:
    """Take the mark away, unless it is needed or the servicer has put metadata of its own in its place."""
    if code is not grpc.StatusCode.UNAVAILABLE and tuple(context.trailing_metadata() or ()) == (_MARK,):
        context.set_trailing_metadata(())


def _unsaid(error: BaseException | None) -> grpc.StatusCode:
    return grpc.StatusCode.OK if error is None else grpc.StatusCode.UNKNOWN


class GuardInterceptor(grpc.ServerInterceptor):
    """For grpc.server(): the outermost interceptor. An RPC over its time ends with CANCELLED."""

    def __init__(self, logging_settings: LoggingSettings, max_rpc_ms: int, *, on_asyncio: bool = False) -> None:
        self.logging_settings = logging_settings
        self.on_asyncio = on_asyncio
        self.timer = RpcTimer(max_rpc_ms / 1000) if max_rpc_ms else None
        #: Whether there is something to do for an RPC that begins and ends in order.
        self._watches = bool(max_rpc_ms) or logging_settings.access or on_asyncio

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Wrap the method's handler."""
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        return self.wrap(handler, handler_call_details.method)

    def wrap(self, handler: Handler, method: str) -> Handler:
        """The same handler with the guard around it; one that answers by a callback, holding no thread, as it is."""
        behavior = behavior_of(handler)
        if getattr(behavior, "experimental_non_blocking", False):
            return handler

        def answer_once(request: Any, context: Any) -> Any:
            with _Guard(self, context, method):
                return behavior(request, context)

        def answer_once_unless_it_fails(request: Any, context: Any) -> Any:
            try:
                response = behavior(request, context)
                if context.code() is None:
                    return response
            except BaseException as error:
                _Guard(self, context, method).end(error)
                raise
            _Guard(self, context, method).end(None)
            return response

        def answer_in_turn(request: Any, context: Any) -> Iterator[Any]:
            with _Guard(self, context, method):
                yield from behavior(request, context)

        at_once = answer_once if self._watches else answer_once_unless_it_fails
        wrapped: Any = answer_in_turn if handler.response_streaming else at_once
        if pool := getattr(behavior, "experimental_thread_pool", None):
            wrapped.experimental_thread_pool = pool
        return rebuild(handler, wrapped)


def _is_abort(error: BaseException, context: Any) -> bool:
    """Whether it is how gRPC ends a handler.

    context.abort() raises a bare Exception, or AbortError for a blocking handler on asyncio; reading a client that has
    gone away raises RpcError.
    """
    bare = type(error) is Exception and not error.args and _code_of(context) is not None
    client_is_gone = isinstance(error, grpc.RpcError) and not context.is_active()
    return bare or client_is_gone or isinstance(error, grpc.aio.AbortError)


class AioGuardInterceptor(grpc.aio.ServerInterceptor):
    """For grpc.aio.server(): the outermost interceptor. An RPC over its time ends with DEADLINE_EXCEEDED."""

    def __init__(self, logging_settings: LoggingSettings, max_rpc_ms: int) -> None:
        self._logging = logging_settings
        self._limit = max_rpc_ms / 1000 if max_rpc_ms else None
        self._blocking = GuardInterceptor(logging_settings, max_rpc_ms=0, on_asyncio=True)

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """Wrap the method's handler; a blocking one too, which gRPC runs in a thread."""
        handler = await continuation(handler_call_details)
        return None if handler is None else self.wrap(handler, handler_call_details.method)

    def wrap(self, handler: Handler, method: str) -> Handler:
        """The same handler with the guard around it."""
        behavior = behavior_of(handler)
        if inspect.iscoroutinefunction(behavior):
            return rebuild(handler, self._coroutine(behavior, method))
        if inspect.isasyncgenfunction(behavior):
            return rebuild(handler, self._generator(behavior, method))
        return self._blocking.wrap(handler, method)

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
        except (grpc.aio.AbortError, asyncio.CancelledError, GeneratorExit):
            code = _code_of(context) or code
            raise
        except BaseException as error:  # noqa: BLE001  SystemExit too: it would end the event loop
            code, message = _TOO_LONG if limit.expired() else _answer_for(error, method, self._logging)
            await context.abort(code, message)
        finally:
            if self._logging.access:
                _log_access(method, code, begun)
