"""The sessions with one enclave on asyncio: who holds the one that calls go to, and opens, renews and ends it."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import weakref
from collections.abc import Callable
from typing import Final

import grpc
import grpc.aio

from adyton.atls.attestation import Attestation
from adyton.atls.session import AioOpener, NotAttestedError, Session
from adyton.atls.sessions import OPEN_SECONDS, backoff_seconds
from adyton.errors import AdytonError, DeadlineError, StatusCode, UnreachableError, WrongStateError

_log = logging.getLogger("adyton.atls")

AioSession = Session[grpc.aio.Channel]

DRAIN_SECONDS: Final = 24 * 3600.0
"""How long calls that are under way on a connection that takes no more may go on."""
_MAY_PASS: Final = frozenset({StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED})


class AioSessions:
    """The sessions with one enclave, one after the other. Made and used on one event loop.

    `open_seconds` is how long one attestation may take. `backoff` says how many seconds to wait after so many failures
    in a row.
    """

    def __init__(
        self,
        opener: AioOpener,
        *,
        backoff: Callable[[int], float] = backoff_seconds,
        open_seconds: float = OPEN_SECONDS,
    ) -> None:
        self._opener = opener
        self._backoff = backoff
        self._open_seconds = open_seconds
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()
        self._session: AioSession | None = None
        self._opening: asyncio.Task[AioSession | AdytonError] | None = None
        self._failures = 0
        self._failed: AdytonError | None = None
        self._not_before = 0.0
        self._closed = False
        self._draining: dict[asyncio.Task[None], AioSession] = {}
        self._changed = asyncio.Event()
        self._refusals: weakref.WeakKeyDictionary[AioSession, AdytonError] = weakref.WeakKeyDictionary()
        self.attestation: Attestation | None = None
        """Of the current session, or of the last one; None before the first."""

    def live(self) -> AioSession | None:
        """The current session; None if there is none, if its connection is gone, or if it must be renewed first.

        Raises `WrongStateError` in another event loop or process, and grpc.aio's UsageError after `close`.
        """
        if os.getpid() != self._process:
            raise WrongStateError("the channel was made in another process; make one after the fork")
        if asyncio.get_running_loop() is not self._loop:
            raise WrongStateError("the channel was made on another event loop")
        if self._closed:
            raise grpc.aio.UsageError("Channel is closed.")
        session = self._session
        if session is None:
            return None
        # It was ready when it was attested, and it connects once: whatever else it is now, it will not be ready again.
        if session.channel.get_state() is not grpc.ChannelConnectivity.READY:
            self.lost(session)
            return None
        return session if time.monotonic() < session.renew_at else None

    async def current(self, timeout_seconds: float | None, wait_for_ready: bool | None = False) -> AioSession:
        """The live session; opens or renews one if it has to, once for all who wait.

        Raises why there is none: `DeadlineError` after `timeout_seconds`, while the attempt goes on for the others. For
        some time after a failure the same one is raised at once, unless `wait_for_ready` and it may pass.
        """
        ends = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            session = self.live()
            if session is not None:
                return session
            outcome = await self._attempt(ends)
            if isinstance(outcome, Session):
                return outcome
            if not wait_for_ready or outcome.status not in _MAY_PASS:
                raise outcome.with_traceback(None)
            await self._wait_for_change(self._not_before if ends is None else min(self._not_before, ends))
            if ends is not None and time.monotonic() >= ends:
                raise DeadlineError(f"the deadline passed; the last attempt failed: {outcome}")

    def lost(self, session: AioSession) -> None:
        """The session's connection is gone, or takes no more calls. Those under way on it may end."""
        if self._session is session:
            self._session = None
            self._end(session, DRAIN_SECONDS)

    def refusal(self, session: AioSession | None) -> AdytonError | None:
        """Why a renewal ended the session with all calls on it, if one has."""
        return None if session is None else self._refusals.get(session)

    def state(self) -> grpc.ChannelConnectivity:
        """What there is now, in gRPC's words."""
        if self._closed:
            return grpc.ChannelConnectivity.SHUTDOWN
        if self.live() is not None:
            return grpc.ChannelConnectivity.READY
        if self._opening is not None:
            return grpc.ChannelConnectivity.CONNECTING
        fresh = self._failed is not None and time.monotonic() < self._not_before
        return grpc.ChannelConnectivity.TRANSIENT_FAILURE if fresh else grpc.ChannelConnectivity.IDLE

    def begin(self) -> None:
        """Begin to open or to renew, if it is needed and no failure is fresh."""
        if self.live() is None and self._opening is None and time.monotonic() >= self._not_before:
            self._opening = self._loop.create_task(self._open())
            self._announce()

    async def wait_for_state_change(self, last: grpc.ChannelConnectivity) -> None:
        """Until `state` is not `last`."""
        while self.state() is last:
            if last is not grpc.ChannelConnectivity.READY:
                fresh = last is grpc.ChannelConnectivity.TRANSIENT_FAILURE
                await self._wait_for_change(self._not_before if fresh else None)
                continue
            assert self._session is not None
            watch = asyncio.ensure_future(self._session.channel.wait_for_state_change(last))
            try:
                await self._wait_for_change(self._session.renew_at, watch)
            finally:
                watch.cancel()

    def refuse_calls(self) -> None:
        """Let no call begin any more; callers who wait for a session still get it."""
        self._closed = True

    async def close(self) -> None:
        """End everything. Returns when every connection is closed."""
        self._closed = True
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait((self._opening,))
        if self._session is not None:
            session, self._session = self._session, None
            self._end(session, None)
        for task, session in list(self._draining.items()):
            task.cancel()  # it may wait for calls that nobody holds any more
            self._end(session, None)
        self._announce()
        if self._draining:
            await asyncio.wait(list(self._draining))

    async def _attempt(self, ends: float | None) -> AioSession | AdytonError:
        """What comes of the attempt under way, or of a new one; while a failure is fresh, that."""
        self.begin()
        if self._opening is None:
            assert self._failed is not None
            return self._failed
        left = None if ends is None else max(0.0, ends - time.monotonic())
        done, pending = await asyncio.wait((self._opening,), timeout=left)
        if pending:
            del pending  # the error keeps this frame, and the task would keep its connection
            raise DeadlineError("the deadline passed before the enclave was attested")
        attempt = done.pop()
        if attempt.cancelled():
            raise grpc.aio.UsageError("Channel is closed.")
        return attempt.result()

    async def _open(self) -> AioSession | AdytonError:
        """One attempt, in a task of its own: no caller's deadline ends it for the others."""
        try:
            session = await self._renewed() or await self._opener.open(self._open_seconds)
        except Exception as problem:  # noqa: BLE001  callers wait for it, whatever it is
            error = _as_error(problem)
            self._failures += 1
            self._failed, self._not_before = error, time.monotonic() + self._backoff(self._failures)
            return error
        else:
            self._failures, self._failed, self._not_before = 0, None, 0.0
            self._session, self.attestation = session, session.attestation
            return session
        finally:
            self._opening = None
            self._announce()

    async def _renewed(self) -> AioSession | None:
        """The session, renewed; None if there is none, or it is lost. A peer that fails loses calls under way too."""
        session = self._session
        if session is None:
            return None
        try:
            await self._opener.renew(session, self._open_seconds)
        except Exception as problem:
            if isinstance(problem, UnreachableError) and not isinstance(problem, NotAttestedError):
                self.lost(session)
                return None
            self._refusals[session] = _as_error(problem)
            self._session = None
            self._end(session, None)
            raise
        return session

    def _end(self, session: AioSession, grace_seconds: float | None) -> None:
        """Close its channel when the last call has ended; at once, calls too, without `grace_seconds`."""
        task = self._loop.create_task(session.channel.close(grace_seconds))
        self._draining[task] = session
        task.add_done_callback(self._draining.pop)
        self._announce()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait_for_change(self, until: float | None, watch: asyncio.Future[None] | None = None) -> None:
        """Until the next change, the end of `watch`, or `until` by time.monotonic()."""
        change = asyncio.ensure_future(self._changed.wait())
        left = None if until is None else max(0.0, until - time.monotonic())
        try:
            await asyncio.wait((change, watch) if watch else (change,), timeout=left, return_when="FIRST_COMPLETED")
        finally:
            change.cancel()


def _as_error(problem: Exception) -> AdytonError:
    if isinstance(problem, AdytonError):
        return problem
    _log.error("uncaught %s while attesting", type(problem).__name__)
    error = AdytonError(f"uncaught {type(problem).__name__} while attesting")
    error.__cause__ = problem
    return error
