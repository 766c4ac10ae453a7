"""Calls of the attested channel on asyncio: what an application holds while gRPC's own call may be begun anew."""

# ruff: noqa: D102  grpc.aio's classes say what their methods do

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any, Final, NamedTuple

import grpc
import grpc.aio

from adyton.atls.aio_requests import AioRequests
from adyton.atls.aio_sessions import AioSession, AioSessions
from adyton.atls.failures import aio_rpc_failure, cancelled
from adyton.errors import AdytonError

_NOTHING: Final = grpc.aio.Metadata()
_FAILURES: Final = (grpc.aio.AioRpcError, grpc.aio.InternalError, asyncio.InvalidStateError)
"""What gRPC's own call raises if a request can't be written, or it has no connection."""

InnerCall = Any
"""gRPC's own call, on the channel of a session."""


class Options(NamedTuple):
    """What an application asks of one call. A tuple: one is made for each."""

    timeout: float | None
    metadata: Any
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


class AioCall(grpc.aio.Call):
    """What all kinds have.

    `begin` begins gRPC's own call on a session's channel with a request, or with requests. The call begins at once
    where there is a live session. `_settled` is the task that ends with the inner call that the application gets,
    once the peer has answered it or it has ended, or with why there is none.
    """

    def __init__(self, sessions: AioSessions, begin: Callable[..., InnerCall], request: Any, options: Options) -> None:
        self._sessions = sessions
        self._begin = begin
        self._request = request
        self._options = options
        self._deadline = None if options.timeout is None else time.monotonic() + options.timeout
        self._inner: InnerCall = None
        self._session = sessions.live()
        self._cancelled = False
        self._sent = False
        self._begun: asyncio.Event | None = None
        self._callbacks: list[Callable[[Any], None]] | None = None
        if self._session is not None:
            self._inner = begin(self._session, self._first_request(), options, options.timeout)
        self._settled: asyncio.Task[InnerCall | AdytonError] = asyncio.create_task(self._settle())
        self._settled.add_done_callback(self._after_settling)

    def cancel(self) -> bool:
        if self.done():
            return False
        self._cancelled = True
        if self._inner is not None:
            self._inner.cancel()
        self._settled.cancel()
        return True

    def cancelled(self) -> bool:
        if self._cancelled or not self._settled.done():
            return self._cancelled
        ended = self._ended()
        if isinstance(ended, grpc.aio.AioRpcError):
            return ended.code() is grpc.StatusCode.CANCELLED
        return bool(ended.cancelled())

    def done(self) -> bool:
        if self._cancelled or not self._settled.done():
            return self._cancelled
        ended = self._ended()
        return isinstance(ended, grpc.aio.AioRpcError) or bool(ended.done())

    def time_remaining(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        if self._callbacks is None:
            self._callbacks = []
            self._settled.add_done_callback(self._await_end)
        if self.done():
            callback(self)
        else:
            self._callbacks.append(callback)

    async def initial_metadata(self) -> Any:
        return await self._ask("initial_metadata")

    async def trailing_metadata(self) -> Any:
        return await self._ask("trailing_metadata")

    async def code(self) -> grpc.StatusCode:
        code: grpc.StatusCode = await self._ask("code")
        return code

    async def details(self) -> str:
        details: str = await self._ask("details")
        return details

    async def debug_error_string(self) -> str | None:
        said: str | None = await self._ask("debug_error_string")
        return said

    async def wait_for_connection(self) -> None:
        ended = await self._outcome()
        if isinstance(ended, grpc.aio.AioRpcError):
            raise ended
        await ended.wait_for_connection()

    def _first_request(self) -> Any:
        return self._request

    def _can_begin_again(self) -> bool:
        return not self._sent

    async def _settle(self) -> InnerCall | AdytonError:
        try:
            await self._begin_once()
            await self._inner.initial_metadata()
            # Here a call that was never sent has ended: gRPC gives it empty metadata together with its status.
            assert self._session is not None
            if self._inner.done() and self._can_begin_again() and await _was_never_sent(self._inner, self._session):
                self._sessions.lost(self._session)
                await self._begin_again()
                await self._inner.initial_metadata()
        except AdytonError as error:
            return error
        except grpc.aio.UsageError:
            return cancelled("the channel was closed")
        finally:
            self._committed()
        return self._inner

    def _after_settling(self, settled: asyncio.Task[Any]) -> None:
        """A callback, for a task that is cancelled before its first step never gets to its `except`."""
        if settled.cancelled():
            self._cancelled = True
            if self._inner is not None:
                self._inner.cancel()

    async def _begin_once(self) -> None:
        if self._inner is None:
            await self._begin_again()

    async def _begin_again(self) -> None:
        self._session = await self._sessions.current(self.time_remaining(), self._options.wait_for_ready)
        self._inner = self._begin(self._session, self._first_request(), self._options, self.time_remaining())
        self._announce()

    def _committed(self) -> None:
        """There will be no other try."""
        self._announce()

    def _announce(self) -> None:
        """Wake those who wait for a try to begin."""
        if self._begun is not None:
            self._begun.set()
            self._begun = None

    async def _try_after(self, failed: InnerCall) -> InnerCall:
        """The inner call that has begun after `failed` (None: any); None if there will be no other."""
        while self._inner is failed and not self._settled.done():
            if self._begun is None:
                self._begun = asyncio.Event()
            waits = asyncio.ensure_future(self._begun.wait())
            try:
                await asyncio.wait((waits, self._settled), return_when="FIRST_COMPLETED")
            finally:
                waits.cancel()
        return None if self._inner is failed else self._inner

    async def _do(self, operation: Callable[[InnerCall], Any]) -> None:
        """Do it with the inner call, and again with the next one if there is one: the first was never sent."""
        inner = await self._try_after(None)
        while inner is not None:
            try:
                await operation(inner)
            except _FAILURES as failure:
                misused = isinstance(failure, asyncio.InvalidStateError) and not inner.done()
                following = None if misused else await self._try_after(inner)
                if following is None:
                    raise
                inner = following
            else:
                return
        if self._cancelled:
            raise asyncio.InvalidStateError("RPC already finished.")
        self._raise(self._ended())

    async def _outcome(self) -> InnerCall:
        if not self._settled.done():
            await asyncio.wait((self._settled,))  # whoever only asks does not cancel the call with himself
        return self._ended()

    def _ended(self) -> InnerCall:
        """The inner call, or an AioRpcError where there is none."""
        if self._inner is None and (self._cancelled or self._settled.cancelled()):
            details = "Locally cancelled by application!"
            return grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, _NOTHING, _NOTHING, details, "")
        error = self._error()
        if error is not None:
            return aio_rpc_failure(error)
        return self._inner

    def _error(self) -> AdytonError | None:
        """Why there is no inner call, or none any more."""
        if not self._settled.cancelled() and isinstance(outcome := self._settled.result(), AdytonError):
            return outcome
        return None if self._cancelled else self._sessions.refusal(self._session)

    async def _ask(self, name: str) -> Any:
        ended = await self._outcome()
        if not isinstance(ended, grpc.aio.AioRpcError):
            value = await getattr(ended, name)()
            if not ended.cancelled():
                return value
            ended = self._ended()  # a renewal that was refused meanwhile
        answer = getattr(ended, name)()
        return answer if isinstance(ended, grpc.aio.AioRpcError) else await answer

    def _raise(self, ended: Any) -> None:
        if isinstance(ended, grpc.aio.AioRpcError):
            raise asyncio.CancelledError if self._cancelled else ended

    def _explain(self, ended: Any) -> None:
        """Raise why the inner call is cancelled, if neither the application nor the waiting task was.

        gRPC cancels a call whose requests can't be written any more, for its connection is gone. To whoever waits that
        would look as if his own task were to end.
        """
        self._raise(ended)
        task = asyncio.current_task()
        if ended.cancelled() and not (self._cancelled or (task and task.cancelling()) or self._requests_failed()):
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.INTERNAL, _NOTHING, _NOTHING, "a request could not be written any more"
            )

    def _requests_failed(self) -> bool:
        """Whether the application's iterator of requests raised, which cancels the call as well."""
        return False

    def _await_end(self, _settled: object) -> None:
        ended = None if self._settled.cancelled() else self._ended()
        if ended is None or isinstance(ended, grpc.aio.AioRpcError):
            self._call_back()
        else:
            ended.add_done_callback(self._call_back)

    def _call_back(self, _inner: object = None) -> None:
        callbacks, self._callbacks = self._callbacks or [], []
        for callback in callbacks:
            callback(self)


class _UnaryResponse(AioCall):
    def __await__(self) -> Generator[Any, None, Any]:
        inner = yield from self._settled.__await__()
        if isinstance(inner, AdytonError):
            raise aio_rpc_failure(inner)
        try:
            return (yield from inner.__await__())
        except asyncio.CancelledError:
            self._explain(self._ended())
            raise


class _StreamResponse(AioCall):
    _responses: AsyncIterator[Any] | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        if self._responses is None:
            self._responses = self._each_response()
        return self._responses

    async def read(self) -> Any:
        inner = await self._settled
        if isinstance(inner, AdytonError):
            raise aio_rpc_failure(inner)
        try:
            return await inner.read()
        except asyncio.CancelledError:
            self._explain(self._ended())
            raise

    async def _each_response(self) -> AsyncIterator[Any]:
        inner = await self._settled
        if isinstance(inner, AdytonError):
            raise aio_rpc_failure(inner)
        try:
            async for response in inner:
                yield response
        except asyncio.CancelledError:
            self._explain(self._ended())
            raise


class _StreamRequest(AioCall):
    """`_request` is the application's iterator, wrapped, or None: then it calls `write`."""

    _done_writing_flag = False  # the name that gRPC's intercepted calls look for

    def __init__(self, sessions: AioSessions, begin: Callable[..., InnerCall], request: Any, options: Options) -> None:
        super().__init__(sessions, begin, None if request is None else AioRequests(request), options)

    def cancel(self) -> bool:
        if super().cancel():
            if self._request is not None:
                self._request.stop()
            return True
        return False

    def _requests_failed(self) -> bool:
        return self._request is not None and self._request.failed

    async def write(self, request: Any) -> None:
        await self._do(lambda inner: inner.write(request))
        self._sent = True

    async def done_writing(self) -> None:
        self._done_writing_flag = True
        await self._do(lambda inner: inner.done_writing())

    async def wait_for_connection(self) -> None:
        await self._do(lambda inner: inner.wait_for_connection())

    async def _begin_again(self) -> None:
        await super()._begin_again()
        if self._request is None and self._done_writing_flag:
            with contextlib.suppress(*_FAILURES):
                await self._inner.done_writing()

    def _first_request(self) -> Any:
        return None if self._request is None else self._request.again()

    def _can_begin_again(self) -> bool:
        return not self._sent if self._request is None else bool(self._request.replayable)

    def _committed(self) -> None:
        super()._committed()
        if self._request is not None:
            self._request.commit()


class AioUnaryUnary(_UnaryResponse, grpc.aio.UnaryUnaryCall[Any, Any]):
    """One request, one response."""


class AioUnaryStream(_StreamResponse, grpc.aio.UnaryStreamCall[Any, Any]):
    """One request, a stream of responses."""


class AioStreamUnary(_StreamRequest, _UnaryResponse, grpc.aio.StreamUnaryCall[Any, Any]):
    """A stream of requests, one response."""


class AioStreamStream(_StreamRequest, _StreamResponse, grpc.aio.StreamStreamCall[Any, Any]):
    """A stream of requests, and one of responses."""


async def _was_never_sent(inner: InnerCall, session: AioSession) -> bool:
    code = await inner.code()
    if code is not grpc.StatusCode.UNAVAILABLE:
        return False
    initial, trailing = await inner.initial_metadata(), await inner.trailing_metadata()
    return session.never_sent(grpc.aio.AioRpcError(code, initial, trailing, await inner.details()))
