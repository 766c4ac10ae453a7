"""An RPC on an attested channel that its caller does not wait for: it may begin before there is a session.

It is sent at most once. If it turns out that nobody was there to get it, it is begun anew, once, on a new session, and
its caller sees nothing of that.
"""

# ruff: noqa: D102  grpc.Call and grpc.Future say what their methods do

from __future__ import annotations

import collections
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import grpc

from adyton.atls.failures import cancelled, rpc_failure
from adyton.atls.never_sent import unanswered
from adyton.atls.sessions import Connection, Sessions
from adyton.errors import AdytonError

_log = logging.getLogger("adyton.atls")

MOST_KEPT = 8
"""So many messages of a request stream are kept for a second try; a call that has taken more gets none."""


class Requests:
    """The messages of a caller's iterator, for one try or, after a call that was never sent, for two.

    gRPC takes them in a thread of its own, and may still be inside the caller's iterator when that try is over. The
    second try gets what the first had taken, then goes on with the same iterator, when the first has left it.
    """

    def __init__(self, source: Iterator[Any]) -> None:
        self._source = source
        self._changed = threading.Condition()
        self._kept: collections.deque[Any] | None = collections.deque()
        self._taking = False
        self._end: BaseException | None = None
        self._current = 1

    def messages(self) -> Iterator[Any]:
        """What gRPC iterates over in this try."""
        return _Try(self._next, self._current)

    def rewind(self) -> bool:
        """Make ready for the second try, from the first message on; False if that can't be had."""
        with self._changed:
            if self._kept is None:
                return False
            self._current = 2
            self._changed.notify_all()
            return True

    def commit(self) -> None:
        """Keep nothing for a second try any more."""
        with self._changed:
            if self._current == 1:
                self._kept = None

    def close(self) -> None:
        """The call is over; let go of whoever waits for a message."""
        with self._changed:
            self._current = 0
            self._kept = None
            self._changed.notify_all()

    def _next(self, number: int) -> Any:
        with self._changed:
            while True:
                if number != self._current:
                    raise StopIteration
                if number == 2 and self._kept:
                    return self._kept.popleft()
                if self._end is not None:
                    raise self._end
                if not self._taking:
                    break
                self._changed.wait()
            self._taking = True
        return self._take(number)

    def _take(self, number: int) -> Any:
        """Without the lock, for a caller's iterator takes as long as it likes."""
        try:
            message = next(self._source)
        except BaseException as end:
            self._end = end
            self._taken()
            raise
        self._taken(*([message] if number == 1 else []))
        return message

    def _taken(self, *to_keep: Any) -> None:
        with self._changed:
            self._taking = False
            if self._kept is not None:
                self._kept.extend(to_keep)
                if self._current == 1 and len(self._kept) > MOST_KEPT:
                    self._kept = None
            self._changed.notify_all()


class _Try(Iterator[Any]):
    """One try's iterator."""

    __slots__ = ("_next", "_number")

    def __init__(self, following: Callable[[int], Any], number: int) -> None:
        self._next = following
        self._number = number

    def __next__(self) -> Any:
        return self._next(self._number)


class Progress:
    """How far a call has come: it waits for a session, is under way, is begun anew, or has ended.

    `start` begins the RPC on a connection, with the seconds that are left, and returns gRPC's own object for it. The
    call's owner holds an `AttestedCall`, never this, so that a call whose owner drops it is cancelled, as gRPC's are.
    """

    def __init__(
        self,
        sessions: Sessions,
        start: Callable[[Connection, float | None], Any],
        requests: Requests | None,
        deadline: float | None,
        wait_for_ready: bool | None,
    ) -> None:
        self.deadline = deadline
        self.cancelled = False
        self._sessions = sessions
        self._start = start
        self._requests = requests
        self._wait_for_ready = wait_for_ready
        self._changed = threading.Condition()
        self._inner: Any = None
        self._outcome: Any = None
        self._second = False
        self._callbacks: list[Callable[[], object]] | None = []

    def begin(self) -> None:
        """Start the RPC here if there is a session, else in a thread that opens one."""
        connection = self._sessions.live(self)
        if connection is None:
            threading.Thread(target=self._begin_later, name="atls-call", daemon=True).start()
        else:
            self._begin_on(connection)

    @property
    def settled(self) -> bool:
        """Whether the call has ended."""
        return self._outcome is not None

    def started(self) -> Any:
        """gRPC's own object for the RPC, as soon as there is one. Raises why there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._inner is not None or self.settled)
            if self._inner is None:
                raise self._outcome
            return self._inner

    def ended(self, timeout: float | None = None) -> Any:
        """What has the status of the whole call, once it has ended. Raises grpc.FutureTimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.settled, timeout):
                raise grpc.FutureTimeoutError
            return self._outcome

    def stands(self, inner: Any) -> bool:
        """Whether the end of `inner` is the end of the call. Waits until that is known, or is being found out."""
        with self._changed:
            self._changed.wait_for(lambda: self.settled or self._inner is not inner)
            return self._inner is inner

    def commit(self) -> None:
        """The server has answered: there will be no second try."""
        if self._requests is not None:
            self._requests.commit()

    def cancel(self) -> bool:
        """False if the call has ended. If it was not under way, it never will be."""
        with self._changed:
            if self.settled or (self._inner is not None and not self._inner.cancel()):
                return False
            self.cancelled = True
            if self._inner is not None:
                return True  # gRPC calls `_ended`
        self._settle(rpc_failure(cancelled("Locally cancelled by application!")))
        return True

    def add_callback(self, callback: Callable[[], object]) -> bool:
        """Call it when the call has ended; False if it has."""
        with self._changed:
            if self._callbacks is None:
                return False
            self._callbacks.append(callback)
            return True

    def _begin_later(self) -> None:
        try:
            connection = self._sessions.begin(self, self.deadline, self._wait_for_ready)
        except grpc.RpcError as failure:
            self._settle(failure)
        except ValueError as closed:
            self._settle(rpc_failure(cancelled(str(closed))))
        else:
            try:
                self._begin_on(connection)
            except grpc.RpcError as failure:
                self._settle(failure)
            except Exception as problem:  # noqa: BLE001  gRPC's complaint of an argument, with nobody to raise it to
                error = AdytonError(f"the call could not be begun: {type(problem).__name__}")
                error.__cause__ = problem
                self._settle(rpc_failure(error))

    def _begin_on(self, connection: Connection) -> None:
        with self._changed:  # so that it is begun before it is cancelled, or never
            if self.settled:
                connection.end(self)
                return
            try:
                left = None if self.deadline is None else self.deadline - time.monotonic()
                inner = self._inner = self._start(connection, left)
            except BaseException:
                connection.end(self)
                raise
            self._changed.notify_all()
        ended = functools.partial(self._ended, inner, connection)
        if not inner.add_callback(ended):
            ended()

    def _ended(self, inner: Any, connection: Connection) -> None:
        """Mostly in gRPC's own thread, where nothing may wait."""
        connection.end(self)
        if inner.code() is not grpc.StatusCode.UNAVAILABLE:
            self._settle(inner)
            return
        with self._changed:
            self._inner = None
            self._changed.notify_all()
        judging = threading.Thread(target=self._judge, args=(inner, connection), name="atls-call", daemon=True)
        try:
            judging.start()
        except RuntimeError:  # no more threads: then there is no second try
            with self._changed:
                self._inner = inner
            self._settle(inner)

    def _judge(self, inner: Any, connection: Connection) -> None:
        if unanswered(inner):
            self._sessions.lost(connection)
        if not (self._second or self.settled) and connection.session.never_sent(inner) and self._rewound():
            self._second = True
            self._begin_later()
            return
        with self._changed:
            if not self.settled:
                self._inner = inner
        self._settle(inner)

    def _rewound(self) -> bool:
        return self._requests is None or self._requests.rewind()

    def _settle(self, outcome: Any) -> None:
        with self._changed:
            if self._callbacks is None:
                return
            self._outcome = outcome
            callbacks, self._callbacks = self._callbacks, None
            self._changed.notify_all()
        if self._requests is not None:
            self._requests.close()
        for callback in callbacks:
            try:
                callback()
            except Exception as error:  # noqa: BLE001  as gRPC does
                _log.error("a callback of a call raised %s", type(error).__name__)


class AttestedCall(grpc.Call, grpc.Future):  # type: ignore[type-arg]  # no generic when it runs
    """An RPC under way: what `future` returns. A caller sees no difference from gRPC's own."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __del__(self) -> None:
        self._progress.cancel()

    def code(self) -> grpc.StatusCode:
        code: grpc.StatusCode = self._progress.ended().code()
        return code

    def details(self) -> str:
        details: str = self._progress.ended().details()
        return details

    def debug_error_string(self) -> str:
        text: str = self._progress.ended().debug_error_string()
        return text

    def initial_metadata(self) -> Any:
        while True:
            try:
                inner = self._progress.started()
            except grpc.RpcError:
                return ()
            metadata = inner.initial_metadata()
            if metadata or inner.is_active() or self._progress.stands(inner):
                return metadata

    def trailing_metadata(self) -> Any:
        return self._progress.ended().trailing_metadata()

    def is_active(self) -> bool:
        return not self.done()

    def time_remaining(self) -> Any:
        deadline = self._progress.deadline
        return None if deadline is None else max(deadline - time.monotonic(), 0.0)

    def cancel(self) -> bool:
        return self._progress.cancel()

    def cancelled(self) -> bool:
        return self._progress.cancelled

    def running(self) -> bool:
        return not self.done()

    def done(self) -> bool:
        return self._progress.settled or self._progress.cancelled

    def result(self, timeout: float | None = None) -> Any:
        return self._completed(timeout).result()

    def exception(self, timeout: float | None = None) -> Exception | None:
        error: Exception | None = self._completed(timeout).exception()
        return error

    def traceback(self, timeout: float | None = None) -> TracebackType | None:
        trace: TracebackType | None = self._completed(timeout).traceback()
        return trace

    def add_callback(self, callback: Callable[[], None]) -> bool:
        return self._progress.add_callback(callback)

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        if not self._progress.add_callback(functools.partial(fn, self)):
            fn(self)

    def _completed(self, timeout: float | None) -> Any:
        outcome = self._progress.ended(timeout)
        if self._progress.cancelled:
            raise grpc.FutureCancelledError
        return outcome


class AttestedStream(AttestedCall):
    """The same with a stream of responses, which it iterates over."""

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        while True:
            inner = self._progress.started()
            try:
                response = next(inner)
            except grpc.RpcError:
                if self._progress.stands(inner):
                    raise
            else:
                self._progress.commit()
                return response

    def next(self) -> Any:
        """gRPC's own have it under this name too."""
        return self.__next__()
