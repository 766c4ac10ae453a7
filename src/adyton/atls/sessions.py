"""Who holds the one current session: opens it when it is needed, renews it, and ends it when its connection is lost."""

from __future__ import annotations

import concurrent.futures
import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import grpc

from adyton.atls.attestation import Attestation
from adyton.atls.failures import cancelled, rpc_failure
from adyton.atls.session import NotAttestedError, Opener, Session
from adyton.errors import AdytonError, DeadlineError, StatusCode, UnreachableError, WrongStateError

_log = logging.getLogger("adyton.atls")

OPEN_SECONDS = 20.0
"""How long one attestation may take unless said otherwise, however short the deadline of the call that caused it."""
_LONGEST_BACKOFF_SECONDS = 60.0
_MAY_PASS = frozenset({StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED})

Attempt = concurrent.futures.Future["Connection"]


def backoff_seconds(failures: int) -> float:
    """How long to wait after so many failures in a row: 1 s, doubling up to 60 s, give or take a fifth."""
    doubled = min(2.0 ** min(failures - 1, 10), _LONGEST_BACKOFF_SECONDS)
    return doubled * random.uniform(0.8, 1.2)  # noqa: S311  not a secret: it only keeps clients apart


class Connection:
    """A session in use. It knows the calls that are under way, and once retired it is closed after the last of them.

    No lock where calls begin and end: a call is added before it looks at `retired`, and `retire` sets that before it
    looks at the calls, so one of the two sees the other.
    """

    __slots__ = ("__weakref__", "_calls", "_closed", "_lock", "retired", "session")

    def __init__(self, session: Session[grpc.Channel]) -> None:
        self.session = session
        self.retired = False
        self._calls: set[object] = set()
        self._closed = False
        self._lock = threading.Lock()

    def begin(self, call: object) -> bool:
        """Count `call` as under way; False if it is too late for another one."""
        self._calls.add(call)
        if not self.retired:
            return True
        self.end(call)
        return False

    def end(self, call: object) -> None:
        """`call` is over."""
        self._calls.discard(call)
        if self.retired:
            self._close_if_unused()

    def retire(self) -> None:
        """Let no call begin any more, and close when the last one has ended."""
        self.retired = True
        self._close_if_unused()

    def bind(self, make: Callable[[grpc.Channel], Any]) -> Any:
        """What `make` makes of the channel: one at a time, and never of a closed one; gRPC can't do either."""
        with self._lock:
            if self._closed:
                raise ValueError("Cannot invoke RPC on closed channel!")
            return make(self.session.channel)

    def close(self) -> None:
        """Close at once; calls under way end with CANCELLED."""
        self.retired = True
        with self._lock:
            self._closed = True
        self.session.channel.close()

    def _close_if_unused(self) -> None:
        """In a thread of its own: this may be gRPC's, which `close` would wait for."""
        if not self._calls and not self._closed:
            threading.Thread(target=self.close, name="atls-close", daemon=True).start()


class Sessions:
    """The sessions with one enclave, one after the other.

    `open_seconds` is how long one attestation may take, `backoff` says how many seconds to wait after so many failures
    in a row, and `observe` hears of each new state.
    """

    def __init__(
        self,
        opener: Opener,
        *,
        backoff: Callable[[int], float] = backoff_seconds,
        open_seconds: float = OPEN_SECONDS,
        observe: Callable[[grpc.ChannelConnectivity], None],
    ) -> None:
        self._opener = opener
        self._open_seconds = open_seconds
        self._backoff = backoff
        self._observe = observe
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._connection: Connection | None = None
        self._attempt: Attempt | None = None
        self._failures = 0
        self._refusal: tuple[AdytonError, float] | None = None
        self._closed = False
        self._last: Session[grpc.Channel] | None = None
        self._connections: weakref.WeakSet[Connection] = weakref.WeakSet()

    @property
    def attestation(self) -> Attestation | None:
        """Of the current session, or of the last one; None before the first."""
        return None if self._last is None else self._last.attestation

    def live(self, call: object) -> Connection | None:
        """The current connection, with `call` begun on it; None if there is none, or it has to be renewed first."""
        connection = self._connection
        if connection is None or time.monotonic() >= connection.session.renew_at or os.getpid() != self._process:
            self._check_usable()
            return None
        return connection if connection.begin(call) else None

    def begin(self, call: object, deadline: float | None, wait_for_ready: bool | None) -> Connection:
        """The same; opens or renews a session if it has to, and waits for that until `deadline`, by time.monotonic().

        Raises `rpc_failure` of why there is none. While failures are fresh, the last one is raised at once, unless
        `wait_for_ready` and it may pass. Raises ValueError after `close`, as gRPC does.
        """
        while True:
            connection = self.live(call)
            if connection is not None:
                return connection
            connection = self._wait(deadline, wait_for_ready)
            if connection.begin(call):
                return connection

    def lost(self, connection: Connection) -> None:
        """The connection is gone, or is as good as gone. What is still under way on it may end."""
        with self._changed:
            if self._connection is connection:
                self._connection = None
                self._observe(grpc.ChannelConnectivity.IDLE)
        connection.retire()

    def close(self) -> None:
        """End everything: calls under way and callers that wait get CANCELLED, later ones ValueError."""
        if os.getpid() != self._process:
            return
        with self._changed:
            self._closed = True
            connections = list(self._connections)  # while the current one is still referred to
            self._connection = None
            if self._attempt is not None:
                self._attempt.cancel()
            self._observe(grpc.ChannelConnectivity.SHUTDOWN)
            self._changed.notify_all()
        for connection in connections:
            connection.close()

    def _check_usable(self) -> None:
        if os.getpid() != self._process:
            raise rpc_failure(WrongStateError("the channel was made in another process; make one after the fork"))
        if self._closed:
            raise ValueError("Cannot invoke RPC on closed channel!")

    def _wait(self, deadline: float | None, wait_for_ready: bool | None) -> Connection:
        while True:
            attempt = self._join(deadline, wait_for_ready)
            try:
                error = attempt.exception(_left(deadline))
            except concurrent.futures.CancelledError:
                raise rpc_failure(cancelled("the channel was closed while the enclave was being attested")) from None
            except TimeoutError:
                raise rpc_failure(DeadlineError("the deadline passed before the enclave was attested")) from None
            if error is None:
                return attempt.result()
            if not isinstance(error, AdytonError):
                raise error
            if not wait_for_ready or error.status not in _MAY_PASS:
                raise rpc_failure(error)

    def _join(self, deadline: float | None, wait_for_ready: bool | None) -> Attempt:
        """The attempt that is under way, or a new one, after the time that the last failure asks for."""
        with self._changed:
            while True:
                self._check_usable()
                if self._attempt is not None:
                    return self._attempt
                if self._refusal is None or (seconds := self._refusal[1] - time.monotonic()) <= 0:
                    return self._begin_attempt()
                error = self._refusal[0]
                if not wait_for_ready or error.status not in _MAY_PASS:
                    raise rpc_failure(error)
                left = _left(deadline)
                if left is not None and left <= 0:
                    raise rpc_failure(DeadlineError(f"the deadline passed; the last attempt failed: {error}"))
                self._changed.wait(seconds if left is None else min(seconds, left))

    def _begin_attempt(self) -> Attempt:
        """In a thread of its own: a caller's deadline shall neither end it for the others nor be held up by it."""
        attempt: Attempt = concurrent.futures.Future()
        connection = self._connection
        if connection is not None and time.monotonic() < connection.session.renew_at:  # another thread was faster
            attempt.set_result(connection)
            return attempt
        threading.Thread(target=self._run, args=(attempt, connection), name="atls-open", daemon=True).start()
        self._attempt = attempt
        self._observe(grpc.ChannelConnectivity.CONNECTING)
        return attempt

    def _run(self, attempt: Attempt, connection: Connection | None) -> None:
        try:
            if connection is None or not self._renewed(connection):
                connection = Connection(self._opener.open(self._open_seconds))
        except AdytonError as error:
            self._end_attempt(attempt, error)
        except BaseException as bug:  # noqa: BLE001  callers wait for it, whatever it is
            _log.error("uncaught %s while attesting", type(bug).__name__)
            uncaught = AdytonError(f"uncaught {type(bug).__name__} while attesting")
            uncaught.__cause__ = bug
            self._end_attempt(attempt, uncaught)
        else:
            self._end_attempt(attempt, connection)

    def _renewed(self, connection: Connection) -> bool:
        """False if the connection is gone. A peer that can't prove itself any more loses the calls under way too."""
        try:
            self._opener.renew(connection.session, self._open_seconds)
        except BaseException as problem:
            self.lost(connection)
            if isinstance(problem, UnreachableError) and not isinstance(problem, NotAttestedError):
                return False
            connection.close()
            raise
        return True

    def _end_attempt(self, attempt: Attempt, outcome: Connection | AdytonError) -> None:
        with self._changed:
            self._attempt = None
            if not attempt.set_running_or_notify_cancel():
                pass  # closed meanwhile
            elif isinstance(outcome, AdytonError):
                self._failures += 1
                self._refusal = (outcome, time.monotonic() + self._backoff(self._failures))
                self._observe(grpc.ChannelConnectivity.TRANSIENT_FAILURE)
                attempt.set_exception(outcome)
            else:
                self._hold(outcome)
                attempt.set_result(outcome)
                return
        if isinstance(outcome, Connection):
            outcome.close()

    def _hold(self, connection: Connection) -> None:
        self._failures, self._refusal = 0, None
        self._last = connection.session
        self._connections.add(connection)
        if not connection.retired:
            self._connection = connection
            self._observe(grpc.ChannelConnectivity.READY)


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else min(max(deadline - time.monotonic(), 0.0), threading.TIMEOUT_MAX)
