"""What an enclave prints: kept for error reports, and copied to where the host wants it."""

from __future__ import annotations

import os
import re
import selectors
import threading
from collections import deque
from pathlib import Path
from typing import IO

from adyton.errors import LaunchError

#: Control characters but tab and line feed, C1 in UTF-8 among them.
_TERMINAL_OBEYS = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]")
KEPT_LINES = 100
MAX_LINE_BYTES = 16 * 1024


class LogPump:
    """Reads pipes until all of them end.

    A sink that fails (a full disk, a closed pipe) is dropped; the enclave is not.
    """

    def __init__(self, pipes: dict[IO[bytes], int | None], log_file: int | None) -> None:
        """`pipes`: what to read, each with a descriptor to copy it to. The pump closes the pipes.

        The copies go through duplicates: the host may close its descriptors, whose numbers then become other files'.
        """
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._sinks = {pipe.fileno(): [_duplicate(copy), _duplicate(log_file)] for pipe, copy in pipes.items()}
        self._copies = [each for sinks in self._sinks.values() for each in sinks if each is not None]
        self._pipes = tuple(pipes)
        self._thread = threading.Thread(target=self._pump, name="adyton-log", daemon=True)
        self._thread.start()

    def tail(self, lines: int = 20) -> tuple[str, ...]:
        """The last lines, oldest first."""
        return tuple(self._lines)[-lines:]

    def join(self, timeout_seconds: float) -> None:
        """Wait until everything that was printed is here."""
        self._thread.join(timeout_seconds)

    def _pump(self) -> None:
        partial = dict.fromkeys(self._sinks, b"")
        with selectors.DefaultSelector() as selector:
            for pipe in self._sinks:
                selector.register(pipe, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select():
                    data = os.read(key.fd, 65536)
                    if not data:
                        selector.unregister(key.fd)
                    partial[key.fd] = self._take(key.fd, partial[key.fd] + (data or b"\n"), ended=not data)
        for each in self._pipes:
            each.close()
        for sink in self._copies:
            os.close(sink)

    def _take(self, pipe: int, data: bytes, *, ended: bool) -> bytes:
        *lines, rest = data.split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            lines, rest = [*lines, rest], b""
        if ended:
            lines = [line for line in lines if line]
        for line in lines:
            self._lines.append(_TERMINAL_OBEYS.sub(b"?", line[:MAX_LINE_BYTES]).decode("utf-8", "replace"))
        if lines:
            self._copy(pipe, b"\n".join(lines) + b"\n")
        return rest

    def _copy(self, pipe: int, data: bytes) -> None:
        for index, sink in enumerate(self._sinks[pipe]):
            if sink is None:
                continue
            try:
                view = memoryview(_TERMINAL_OBEYS.sub(b"?", data) if os.isatty(sink) else data)
                while view:
                    view = view[os.write(sink, view) :]
            except OSError:
                self._sinks[pipe][index] = None


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
