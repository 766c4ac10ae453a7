"""Ends RPCs that last longer than they may, on a server with threads."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable


class RpcTimer:
    """All RPCs get the same time, so the oldest is always the next to end.

    And none that begins while the watching thread sleeps is due before it wakes: an RPC costs two changes of a
    dictionary, and no lock.
    """

    def __init__(self, limit_seconds: float) -> None:
        self._limit = limit_seconds
        self._running: dict[object, tuple[float, Callable[[], object]]] = {}
        threading.Thread(target=self._watch, name="rpc-timer", daemon=True).start()

    def begin(self, token: object, cancel: Callable[[], object]) -> None:
        """Call `cancel` if `end(token)` does not come in time."""
        self._running[token] = (time.monotonic() + self._limit, cancel)

    def end(self, token: object) -> None:
        """The RPC is over."""
        self._running.pop(token, None)

    def _watch(self) -> None:
        while True:
            time.sleep(self._end_those_due())

    def _end_those_due(self) -> float:
        """In how many seconds there is something to do again."""
        now = time.monotonic()
        for token, (ends, cancel) in self._running.copy().items():
            if ends > now:
                return ends - now
            if self._running.pop(token, None):
                with contextlib.suppress(Exception):  # of an RPC; the others' limits have to hold
                    cancel()
        return self._limit
