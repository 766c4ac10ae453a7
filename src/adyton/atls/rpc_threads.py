"""Threads of a server's handlers, which refuse a call instead of keeping it waiting for ever.

gRPC gives a call to a pool in the one thread that handles all events, and counts it as running until the pool is done
with it. So a pool that raises would stop the server, and one that lets calls wait without bound would use up, for a
service that nobody needs to hurry, what all services of the server share.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from adyton.atls.sparing import SparingLog

_log = SparingLog(logging.getLogger(__name__))


class RpcThreads(ThreadPoolExecutor):
    """A pool for gRPC. `waiting`: how many calls may wait for a thread; None: the server's own bound is enough."""

    def __init__(self, threads: int, name: str, waiting: int | None = None) -> None:
        super().__init__(threads, name)
        self._room: threading.Semaphore | None = None
        if waiting is not None:
            self._room = threading.Semaphore(threads + waiting)
            _REFUSING.submit(int).result()  # its thread is there before it is needed: then there may be no more

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """As Executor has it. Where there is no room, the call is made at once, in a thread where it is refused."""
        if self._room is None:
            return super().submit(call, *arguments, **named)
        if not self._room.acquire(blocking=False):
            return _REFUSING.submit(call, *arguments, **named)
        future = super().submit(call, *arguments, **named)
        future.add_done_callback(self._leave)
        return future

    def _leave(self, _done: Future[Any]) -> None:
        assert self._room is not None
        self._room.release()

    def _adjust_thread_count(self) -> None:
        """Where the machine gives no more threads, those that there are do the work."""
        try:
            super()._adjust_thread_count()
        except RuntimeError as problem:
            _log.warning("a thread for calls could not be started", kind="", extra={"reason": str(problem)})


class _Here(threading.local):
    refuses = False


_here = _Here()


def refuses_here() -> bool:
    """Whether the call that this thread makes is one too many: whoever makes it answers that, and nothing else."""
    return _here.refuses


def _refuse() -> None:
    _here.refuses = True


#: One thread for all pools: a refusal takes some microseconds.
_REFUSING: Final = ThreadPoolExecutor(1, "refusing", initializer=_refuse)
