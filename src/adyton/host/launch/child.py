"""A started program, which leads a session of its own: waited for, killed with all that it left, never mistaken."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading


class Child:
    """One process. `in_namespaces`: its first process is bubblewrap, which tells of signals in its own way."""

    def __init__(self, process: subprocess.Popen[bytes], *, in_namespaces: bool) -> None:
        self._process = process
        self._in_namespaces = in_namespaces
        self._exited = os.pidfd_open(process.pid)  # readable when it has ended, before it is waited for
        self._reaping = threading.Lock()

    @property
    def pid(self) -> int:
        """Its process id; bubblewrap's where there are namespaces."""
        return self._process.pid

    def wait(self, timeout_seconds: float) -> bool:
        """Whether it has ended within that time. What it started and left behind ends with it."""
        with self._reaping:
            if self._process.returncode is None:
                poll = select.poll()
                poll.register(self._exited, select.POLLIN)
                if not poll.poll(max(0.0, timeout_seconds) * 1000):
                    return False
                kill_group(self._process)
        return True

    def kill(self) -> None:
        """Ask the kernel to end it."""
        # Not Popen.kill(), which reaps a process that has ended: its group could not be killed safely any more.
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self._exited, signal.SIGKILL)

    def close(self) -> None:
        """Give up its descriptor, when it has been waited for. Safe to call twice."""
        with self._reaping:
            if self._exited >= 0:
                os.close(self._exited)
                self._exited = -1

    @property
    def status(self) -> int:
        """Its exit code, or a signal's number below zero."""
        status = self._process.returncode
        if status is None:
            return -signal.SIGKILL  # the kernel has not finished with it
        if self._in_namespaces and status - 128 in signal.valid_signals():  # how bubblewrap tells of a signal
            return 128 - status
        return status


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a process, with all of its group: it leads a session of its own. One that was waited for is let be."""
    if process.returncode is not None:
        return  # another group may have its number
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def describe_end(status: int) -> str:
    """How it ended, in words."""
    if status >= 0:
        return f"exit code {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
