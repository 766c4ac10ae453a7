"""The attested channel: an ordinary `grpc.Channel` that has connections only to an enclave that has proved itself."""

# ruff: noqa: D102  grpc.Channel and its multi-callables say what their methods do

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from adyton.atls.attestation import Attestation
from adyton.atls.calls import AttestedCall, AttestedStream, Progress, Requests
from adyton.atls.never_sent import unanswered
from adyton.atls.session import Opener
from adyton.atls.sessions import OPEN_SECONDS, Connection, Sessions, backoff_seconds

_log = logging.getLogger("adyton.atls")

_LOOK_AGAIN_SECONDS = 1.0

Observer = Callable[[grpc.ChannelConnectivity], None]


class AttestedChannel(grpc.Channel):
    """A channel for generated stubs and interceptors.

    It opens a session when a call needs one, and again after one is lost. An RPC is sent at most once: it is begun
    anew, once, only if it was never sent. Where no session can be had, a call raises an error that is both a
    `grpc.RpcError` and an `AdytonError`: `PolicyError`, `EvidenceError`, `UnreachableError`, `DeadlineError`.
    """

    def __init__(
        self,
        opener: Opener,
        *,
        backoff: Callable[[int], float] = backoff_seconds,
        open_seconds: float = OPEN_SECONDS,
    ) -> None:
        self._connectivity = Connectivity()
        self._open_seconds = open_seconds
        self._sessions = Sessions(opener, backoff=backoff, open_seconds=open_seconds, observe=self._connectivity.change)

    @property
    def attestation(self) -> Attestation | None:
        """What the other end has proved: of the current session, or of the last one; None before the first."""
        return self._sessions.attestation

    def open(self) -> None:
        """Connect and attest now, unless there is a session. Raises as a call does."""
        call = object()
        self._sessions.begin(call, _deadline(self._open_seconds), False).end(call)

    def unary_unary(self, method: str, *codecs: Any, **named_codecs: Any) -> Any:
        return UnaryUnary(self._sessions, lambda inner: inner.unary_unary(method, *codecs, **named_codecs))

    def unary_stream(self, method: str, *codecs: Any, **named_codecs: Any) -> Any:
        return UnaryStream(self._sessions, lambda inner: inner.unary_stream(method, *codecs, **named_codecs))

    def stream_unary(self, method: str, *codecs: Any, **named_codecs: Any) -> Any:
        return StreamUnary(self._sessions, lambda inner: inner.stream_unary(method, *codecs, **named_codecs))

    def stream_stream(self, method: str, *codecs: Any, **named_codecs: Any) -> Any:
        return StreamStream(self._sessions, lambda inner: inner.stream_stream(method, *codecs, **named_codecs))

    def subscribe(self, callback: Observer, try_to_connect: bool | None = False) -> None:
        self._connectivity.subscribe(callback)
        if try_to_connect:
            threading.Thread(target=self._connect, name="atls-connect", daemon=True).start()

    def unsubscribe(self, callback: Observer) -> None:
        self._connectivity.unsubscribe(callback)

    def close(self) -> None:
        self._sessions.close()

    def __enter__(self) -> AttestedChannel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self) -> None:
        """Until there is a session, or the enclave is refused, or nobody waits for it any more."""
        while self._connectivity.watched:
            call = object()
            try:
                connection = self._sessions.begin(call, time.monotonic() + _LOOK_AGAIN_SECONDS, True)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    continue
                return
            except ValueError:
                return
            connection.end(call)
            return


class Connectivity:
    """The state of a channel, and who wants to hear of it. A subscriber may miss a state that has passed already."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state = grpc.ChannelConnectivity.IDLE
        self._heard: list[tuple[Observer, grpc.ChannelConnectivity | None]] = []
        self._delivering = False

    @property
    def watched(self) -> bool:
        """Whether anybody subscribes."""
        return bool(self._heard)

    def change(self, state: grpc.ChannelConnectivity) -> None:
        """Tell the subscribers, in a thread of their own."""
        with self._lock:
            self._state = state
            self._deliver_soon()

    def subscribe(self, callback: Observer) -> None:
        """Tell `callback` the state now, and each new one."""
        with self._lock:
            self._heard.append((callback, None))
            self._deliver_soon()

    def unsubscribe(self, callback: Observer) -> None:
        """Tell it nothing any more."""
        with self._lock:
            self._heard = [(each, state) for each, state in self._heard if each != callback]

    def _deliver_soon(self) -> None:
        if self._heard and not self._delivering:
            self._delivering = True
            threading.Thread(target=self._deliver, name="atls-connectivity", daemon=True).start()

    def _deliver(self) -> None:
        while True:
            with self._lock:
                state = self._state
                due = [callback for callback, heard in self._heard if heard is not state]
                self._heard = [(callback, state) for callback, _ in self._heard]
                if not due:
                    self._delivering = False
                    return
            for callback in due:
                try:
                    callback(state)
                except Exception as error:  # noqa: BLE001  as gRPC does
                    _log.error("a subscriber to a channel's connectivity raised %s", type(error).__name__)


class Method:
    """One method of a service. gRPC's own object for it is made once for each session."""

    _request_streams = False

    def __init__(self, sessions: Sessions, make: Callable[[Any], Any]) -> None:
        self._sessions = sessions
        self._make = make
        self._bound: tuple[Connection | None, Any] = (None, None)

    def _on(self, connection: Connection) -> Any:
        bound = self._bound
        if bound[0] is not connection:
            bound = self._bound = (connection, connection.bind(self._make))
        return bound[1]

    def _begin(
        self,
        call: Callable[[Any, Any, float | None], Any],
        request: Any,
        timeout: float | None,
        wait_for_ready: bool | None,
    ) -> Progress:
        requests = Requests(request) if self._request_streams else None

        def start(connection: Connection, left: float | None) -> Any:
            return call(self._on(connection), request if requests is None else requests.messages(), left)

        progress = Progress(self._sessions, start, requests, _deadline(timeout), wait_for_ready)
        progress.begin()
        return progress


class _OneResponse(Method):
    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        return self._wait(
            lambda inner, body, left: inner(body, left, metadata, credentials, None, compression),
            request,
            timeout,
            wait_for_ready,
        )

    def with_call(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        return self._wait(
            lambda inner, body, left: inner.with_call(body, left, metadata, credentials, None, compression),
            request,
            timeout,
            wait_for_ready,
        )

    def future(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        progress = self._begin(
            lambda inner, body, left: inner.future(body, left, metadata, credentials, None, compression),
            request,
            timeout,
            wait_for_ready,
        )
        return AttestedCall(progress)

    def _wait(
        self,
        call: Callable[[Any, Any, float | None], Any],
        request: Any,
        timeout: float | None,
        wait_for_ready: bool | None,
    ) -> Any:
        """`call` gRPC's own object for the method, with the seconds that are left; twice, if the first was never sent.

        It never gets `wait_for_ready`: a lost connection does not come back, and the failure has to show.
        """
        deadline = _deadline(timeout)
        requests = Requests(request) if self._request_streams else None
        token, second = object(), False
        while True:
            connection = self._sessions.begin(token, deadline, wait_for_ready)
            try:
                body = request if requests is None else requests.messages()
                return call(self._on(connection), body, None if deadline is None else deadline - time.monotonic())
            except grpc.RpcError as error:
                if unanswered(error):
                    self._sessions.lost(connection)
                if second or not connection.session.never_sent(error) or not (requests is None or requests.rewind()):
                    raise
                second = True
            finally:
                connection.end(token)


class _ResponseStream(Method):
    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        progress = self._begin(
            lambda inner, body, left: inner(body, left, metadata, credentials, None, compression),
            request,
            timeout,
            wait_for_ready,
        )
        return AttestedStream(progress)


class UnaryUnary(_OneResponse, grpc.UnaryUnaryMultiCallable):  # type: ignore[type-arg]
    """A request, a response."""


class UnaryStream(_ResponseStream, grpc.UnaryStreamMultiCallable):  # type: ignore[type-arg]
    """A request, a stream of responses."""


class StreamUnary(_OneResponse, grpc.StreamUnaryMultiCallable):  # type: ignore[type-arg]
    """A stream of requests, a response."""

    _request_streams = True

    def __call__(self, request_iterator: Iterator[Any], *options: Any, **named: Any) -> Any:  # type: ignore[override]
        return super().__call__(request_iterator, *options, **named)

    def with_call(self, request_iterator: Iterator[Any], *options: Any, **named: Any) -> Any:  # type: ignore[override]
        return super().with_call(request_iterator, *options, **named)

    def future(self, request_iterator: Iterator[Any], *options: Any, **named: Any) -> Any:  # type: ignore[override]
        return super().future(request_iterator, *options, **named)


class StreamStream(_ResponseStream, grpc.StreamStreamMultiCallable):  # type: ignore[type-arg]
    """A stream of requests, a stream of responses."""

    _request_streams = True

    def __call__(self, request_iterator: Iterator[Any], *options: Any, **named: Any) -> Any:  # type: ignore[override]
        return super().__call__(request_iterator, *options, **named)


def _deadline(timeout: float | None) -> float | None:
    """By time.monotonic(): what a caller's `timeout` leaves for all of a call, sessions and both tries."""
    return None if timeout is None else time.monotonic() + timeout
