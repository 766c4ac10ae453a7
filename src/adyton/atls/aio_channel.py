"""The attested channel on asyncio: an ordinary `grpc.aio.Channel` that reaches only an enclave that proved itself."""

# ruff: noqa: D102  grpc.aio's classes say what their methods do

from __future__ import annotations

import asyncio
import contextlib
import functools
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

import grpc
import grpc.aio

from adyton.atls.aio_calls import AioCall, AioStreamStream, AioStreamUnary, AioUnaryStream, AioUnaryUnary, Options
from adyton.atls.aio_sessions import AioSession, AioSessions
from adyton.atls.attestation import Attestation
from adyton.atls.failures import aio_rpc_failure
from adyton.atls.session import AioOpener
from adyton.atls.sessions import OPEN_SECONDS, backoff_seconds
from adyton.errors import AdytonError


@dataclass(frozen=True, slots=True, kw_only=True)
class _Core:
    """What a channel and its multi-callables share."""

    sessions: AioSessions
    calls: weakref.WeakSet[AioCall]
    interceptors: Sequence[grpc.aio.ClientInterceptor]
    around: weakref.WeakSet[grpc.aio.Channel]
    """gRPC's machinery for the interceptors, one for each method."""


class AttestedAioChannel(grpc.aio.Channel):
    """A channel for generated stubs. Made and used on one event loop.

    Close it: a gRPC channel with a signer of its own that is still open may keep the interpreter from ending.

    It opens a session when a call needs one, and again after one is lost; `async with` opens one at once. An RPC is
    sent at most once: it is begun anew, once, only if it was never sent. Where no session can be had, a call raises an
    error that is both a `grpc.aio.AioRpcError` and an `AdytonError`: `PolicyError`, `EvidenceError`, ….

    `interceptors` are grpc.aio's client interceptors, the outermost first. They see each of the application's RPCs
    once, whether it is begun anew or not, and nothing else: no attestation passes through them.
    """

    def __init__(
        self,
        opener: AioOpener,
        *,
        interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
        backoff: Callable[[int], float] = backoff_seconds,
        open_seconds: float = OPEN_SECONDS,
    ) -> None:
        self._open_seconds = open_seconds
        self._sessions = AioSessions(opener, backoff=backoff, open_seconds=open_seconds)
        self._core = _Core(
            sessions=self._sessions,
            calls=weakref.WeakSet(),
            interceptors=tuple(interceptors),
            around=weakref.WeakSet(),
        )

    @property
    def attestation(self) -> Attestation | None:
        """What the other end has proved: of the current session, or of the last one; None before the first."""
        return self._sessions.attestation

    def unary_unary(self, method: str, *codecs: Any, **named_codecs: Any) -> Any:
        return UnaryUnary(self._core, method, *codecs, **named_codecs)

    def unary_stream(self, method: str, *codecs: Any, **named_codecs: Any) -> Any:
        return UnaryStream(self._core, method, *codecs, **named_codecs)

    def stream_unary(self, method: str, *codecs: Any, **named_codecs: Any) -> Any:
        return StreamUnary(self._core, method, *codecs, **named_codecs)

    def stream_stream(self, method: str, *codecs: Any, **named_codecs: Any) -> Any:
        return StreamStream(self._core, method, *codecs, **named_codecs)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        state = self._sessions.state()
        if try_to_connect and state is grpc.ChannelConnectivity.IDLE:
            self._sessions.begin()
            state = self._sessions.state()
        return state

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._sessions.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Wait for a session, however long nobody answers; raises if the enclave is refused."""
        await self._connect(None, wait_for_ready=True)

    async def close(self, grace: float | None = None) -> None:
        """Let no call begin any more; those under way may go on for `grace` seconds, and are cancelled then."""
        self._sessions.refuse_calls()
        running = [call for call in self._core.calls if not call.done()]
        if grace and running:
            ends = asyncio.gather(*(call.code() for call in running), return_exceptions=True)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ends, grace)
        for call in running:
            call.cancel()
        for around in list(self._core.around):
            await around.close()
        await self._sessions.close()

    async def __aenter__(self) -> Self:
        try:
            await self._connect(self._open_seconds, wait_for_ready=False)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _connect(self, timeout_seconds: float | None, *, wait_for_ready: bool) -> None:
        try:
            await self._sessions.current(timeout_seconds, wait_for_ready)
        except AdytonError as error:
            raise aio_rpc_failure(error) from error


class _MultiCallable:
    """What begins the calls of one method: with interceptors around, if there are any."""

    kind: ClassVar[str]
    call: ClassVar[type[AioCall]]

    def __init__(self, core: _Core, method: str, *codecs: Any, **named_codecs: Any) -> None:
        self._core = core
        self._method = method
        self._codecs = (codecs, named_codecs)
        self._bound: tuple[AioSession, Any] | None = None
        self._intercepted = self._of(self._around(), method) if core.interceptors else None

    def invoke(self, request: Any, options: Options) -> Any:
        """Begin one call, through the interceptors if there are any."""
        if self._intercepted is None:
            return self.start(request, options, self._method)
        return _invoke(self._intercepted, request, options, options.timeout, options.wait_for_ready)

    def start(self, request: Any, options: Options, method: str) -> AioCall:
        """Begin one call. Raises as `AioSessions.live`."""
        begin = self._begin if method == self._method else functools.partial(self._begin_other, method)
        try:
            call = self.call(self._core.sessions, begin, request, options)
        except AdytonError as error:
            raise aio_rpc_failure(error) from error
        self._core.calls.add(call)
        return call

    def _begin(self, session: AioSession, request: Any, options: Options, timeout: float | None) -> Any:
        if self._bound is None or self._bound[0] is not session:
            self._bound = (session, self._of(session.channel, self._method))
        return _invoke(self._bound[1], request, options, timeout, None)

    def _begin_other(
        self, method: str, session: AioSession, request: Any, options: Options, timeout: float | None
    ) -> Any:
        """An interceptor may send a request to another method."""
        return _invoke(self._of(session.channel, method), request, options, timeout, None)

    def _around(self) -> grpc.aio.Channel:
        around = intercepting(self._core.interceptors, self)
        self._core.around.add(around)
        return around

    def _of(self, channel: grpc.aio.Channel, method: str) -> Any:
        codecs, named_codecs = self._codecs
        return getattr(channel, self.kind)(method, *codecs, **named_codecs)


def _invoke(
    multi_callable: Any, request: Any, options: Options, timeout: float | None, wait_for_ready: bool | None
) -> Any:
    """`wait_for_ready` is not for a session's channel: gRPC would wait for a connection that can't come back."""
    return multi_callable(
        request,
        timeout=timeout,
        metadata=options.metadata,
        credentials=options.credentials,
        wait_for_ready=wait_for_ready,
        compression=options.compression,
    )


class _UnaryRequest(_MultiCallable):
    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        return self.invoke(request, Options(timeout, metadata, credentials, wait_for_ready, compression))


class _StreamRequest(_MultiCallable):
    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        return self.invoke(request_iterator, Options(timeout, metadata, credentials, wait_for_ready, compression))


class UnaryUnary(_UnaryRequest, grpc.aio.UnaryUnaryMultiCallable[Any, Any]):
    """One request, one response."""

    kind = "unary_unary"
    call = AioUnaryUnary


class UnaryStream(_UnaryRequest, grpc.aio.UnaryStreamMultiCallable[Any, Any]):
    """One request, a stream of responses."""

    kind = "unary_stream"
    call = AioUnaryStream


class StreamUnary(_StreamRequest, grpc.aio.StreamUnaryMultiCallable[Any, Any]):
    """A stream of requests, one response."""

    kind = "stream_unary"
    call = AioStreamUnary


class StreamStream(_StreamRequest, grpc.aio.StreamStreamMultiCallable[Any, Any]):
    """A stream of requests, and one of responses."""

    kind = "stream_stream"
    call = AioStreamStream


NOWHERE: Final = "unix:/dev/null"


def intercepting(interceptors: Sequence[grpc.aio.ClientInterceptor], calling: _MultiCallable) -> grpc.aio.Channel:
    """A channel with gRPC's own machinery for interceptors around the calls of one method, and nothing behind it.

    The innermost interceptor begins the attested call and never lets gRPC go on, so this channel is never used, and
    could connect to nobody. It is of that method alone: gRPC tells an interceptor neither whose call it is nor how to
    encode a request, and an interceptor may let a call go on in another task, beside calls of another channel.
    """
    innermost = [kind(calling) for kind in (_LastUnaryUnary, _LastUnaryStream, _LastStreamUnary, _LastStreamStream)]
    return grpc.aio.insecure_channel(NOWHERE, interceptors=[*interceptors, *innermost])


class _Last:
    """The innermost interceptor: begins the attested call of that method."""

    def __init__(self, calling: _MultiCallable) -> None:
        self._calling = calling

    def _start(self, details: Any, request: Any) -> Any:
        method = details.method.decode() if isinstance(details.method, bytes) else details.method
        compression = None  # gRPC has made metadata of it
        options = Options(details.timeout, details.metadata, details.credentials, details.wait_for_ready, compression)
        return self._calling.start(request, options, method)


class _LastUnaryUnary(_Last, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:  # noqa: ARG002
        return self._start(client_call_details, request)


class _LastUnaryStream(_Last, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:  # noqa: ARG002
        return self._start(client_call_details, request)


class _LastStreamUnary(_Last, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:  # noqa: ARG002
        return self._start(client_call_details, request_iterator)


class _LastStreamStream(_Last, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:  # noqa: ARG002
        return self._start(client_call_details, request_iterator)
