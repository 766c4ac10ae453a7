"""Waiting for a signal that wakes nobody."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time

import pytest

from adyton.cli.waiting import wait_for_next


@pytest.mark.timeout(20)
def test_a_signal_that_another_thread_got() -> None:
    arrivals: queue.SimpleQueue[str] = queue.SimpleQueue()
    before = signal.signal(signal.SIGUSR1, lambda number, _frame: arrivals.put(signal.Signals(number).name))
    other = threading.Thread(target=_kill_while_main_waits)
    other.start()  # and so it hears the signal, unlike this thread
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        assert wait_for_next(arrivals) == "SIGUSR1"
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGUSR1, before)
        other.join()


def _kill_while_main_waits() -> None:
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGUSR1)


def test_what_is_there_already() -> None:
    arrivals: queue.SimpleQueue[int] = queue.SimpleQueue()
    arrivals.put(1)
    arrivals.put(2)
    assert [wait_for_next(arrivals), wait_for_next(arrivals)] == [1, 2]
