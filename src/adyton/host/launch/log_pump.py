"""What an enclave prints: kept for error reports, and copied to where the host wants it."""

from __future__ import annotations

import contextlib
import math
import os
import re
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from adyton.errors import LaunchError

#: Control characters but tab and line feed, C1 in UTF-8 among them.
_TERMINAL_OBEYS = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]")
KEPT_LINES = 100
MAX_LINE_BYTES = 16 * 1024
#: What of the time that `join` allows is for sinks that don't read; the rest is for reading what was printed.
_SINKS_SHARE = 0.5


class LogPump:
    """Reads pipes until all of them end.

    A sink that fails (a full disk, a closed pipe) is dropped; the enclave is not. One that does not read holds the
    enclave up, until `hurry` or `join` says how long it may.
    """

    def __init__(self, pipes: dict[IO[bytes], int | None], log_file: int | None) -> None:
        """`pipes`: what to read, each with a descriptor to copy it to. The pump closes the pipes.

        The copies go through duplicates: the host may close its descriptors, whose numbers then become other files'.
        Raises OSError, and then has closed the pipes too.
        """
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._guard = threading.Lock()  # for what follows
        self._until = self._sinks_until = math.inf  # by time.monotonic()
        self._alarm = -1
        self._closing = contextlib.ExitStack()
        try:
            self._sinks = self._open(pipes, log_file)
            self._thread = threading.Thread(target=self._run, name="adyton-log", daemon=True)
            self._thread.start()
        except BaseException:
            self._closing.close()
            raise

    def tail(self, lines: int = 20) -> tuple[str, ...]:
        """The last lines, oldest first."""
        return tuple(self._lines)[-lines:]

    def hurry(self, seconds: float) -> None:
        """From now on sinks that don't read get no more than that, all together."""
        self._end_by(math.inf, time.monotonic() + seconds)

    def join(self, timeout_seconds: float) -> None:
        """Wait until everything that was printed is here and was copied, or until it is time to give that up.

        The first call decides when that is; sinks that don't read get no more after half of the time.
        """
        now = time.monotonic()
        self._end_by(now + timeout_seconds, now + timeout_seconds * _SINKS_SHARE)
        self._thread.join(timeout_seconds)

    def _end_by(self, until: float, sinks_until: float) -> None:
        with self._guard:
            if self._alarm >= 0:
                self._until, self._sinks_until = min(until, self._until), min(sinks_until, self._sinks_until)
                os.eventfd_write(self._alarm, 1)

    def _open(self, pipes: dict[IO[bytes], int | None], log_file: int | None) -> dict[int, list[int | None]]:
        for pipe in pipes:
            self._closing.callback(pipe.close)
        sinks = {pipe.fileno(): [_duplicate(copy), _duplicate(log_file)] for pipe, copy in pipes.items()}
        for each in [each for copies in sinks.values() for each in copies if each is not None]:
            self._closing.callback(os.close, each)
        self._alarm = os.eventfd(0, os.EFD_CLOEXEC)
        self._closing.callback(self._close_alarm)
        return sinks

    def _close_alarm(self) -> None:
        with self._guard:
            os.close(self._alarm)
            self._alarm = -1

    def _run(self) -> None:
        with self._closing:
            partial = dict.fromkeys(self._sinks, b"")
            while partial and time.monotonic() < self._until:
                for pipe in self._wait(partial, select.POLLIN, lambda: self._until):
                    data = _read(pipe)
                    rest = self._take(pipe, partial.pop(pipe) + (data or b"\n"), ended=not data)
                    if data:
                        partial[pipe] = rest

    def _wait(self, descriptors: Iterable[int], event: int, until: Callable[[], float]) -> list[int]:
        """Those of them that are ready, as soon as one is; when it is `until`, which may change, whatever is then."""
        poll = select.poll()
        poll.register(self._alarm, select.POLLIN)
        for each in descriptors:
            poll.register(each, event)
        while True:
            seconds = max(0.0, until() - time.monotonic())
            ready = {descriptor for descriptor, _ in poll.poll(None if seconds == math.inf else seconds * 1000)}
            if self._alarm in ready:
                os.eventfd_read(self._alarm)
                ready.remove(self._alarm)
            if ready or not seconds:
                return list(ready)

    def _take(self, pipe: int, data: bytes, *, ended: bool) -> bytes:
        *lines, rest = data.split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            lines, rest = [*lines, rest], b""
        lines = [line.rstrip(b"\r") for line in lines]  # a guest's console ends its lines with both
        if ended:
            lines = [line for line in lines if line]
        for line in lines:
            self._lines.append(_TERMINAL_OBEYS.sub(b"?", line[:MAX_LINE_BYTES]).decode("utf-8", "replace"))
        if lines:
            self._copy(pipe, b"\n".join(lines) + b"\n")
        return rest

    def _copy(self, pipe: int, data: bytes) -> None:
        for index, sink in enumerate(self._sinks[pipe]):
            if sink is not None and not self._write(sink, data):
                self._sinks[pipe][index] = None

    def _write(self, sink: int, data: bytes) -> bool:
        """Whether the sink took it all: it has not failed, and was not too slow for the end."""
        try:
            view = memoryview(_TERMINAL_OBEYS.sub(b"?", data) if os.isatty(sink) else data)
            while view and self._wait([sink], select.POLLOUT, lambda: self._sinks_until):
                view = view[os.write(sink, view[: select.PIPE_BUF]) :]  # as much as a ready pipe takes without waiting
        except OSError:
            return False
        return not view


def _read(pipe: int) -> bytes:
    try:
        return os.read(pipe, 65536)
    except OSError:
        return b""  # whatever it is, nothing more comes


def _duplicate(descriptor: int | None) -> int | None:
    try:
        return None if descriptor is None else os.dup(descriptor)
    except OSError:
        return None


def open_log(path: Path) -> int:
    """A descriptor that appends to `path`, made 0600 where it is new. Raises LaunchError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as problem:
        raise LaunchError(f"the log can't be written to {path}: {problem.strerror}") from problem
