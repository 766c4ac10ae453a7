"""Waiting for what a signal's handler or another thread puts into a queue."""

from __future__ import annotations

import contextlib
import queue
from typing import Final, TypeVar

LOOK_SECONDS: Final = 0.5

T = TypeVar("T")


def wait_for_next(arrivals: queue.SimpleQueue[T]) -> T:
    """The next thing in the queue; for the main thread, which is the one that runs handlers.

    It wakes now and then: a signal that comes when Python has looked for signals and does not sleep yet, or that the
    kernel gives to another thread, wakes nobody.
    """
    while True:
        with contextlib.suppress(queue.Empty):
            return arrivals.get(timeout=LOOK_SECONDS)
