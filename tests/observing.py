"""Looking at processes from outside, for tests that kill and count them, and at a runtime without its host."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from adyton.enclave.runtime import Runtime
from adyton.proto.control_pb2 import Reply, Request


def processes_that_mention(text: str) -> list[int]:
    """Process ids whose command line has `text` in it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if text.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def eventually(condition: Callable[[], bool], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "did not happen in time"
        time.sleep(0.02)


def children_of(ancestor: int) -> list[int]:
    """Process ids of everything that a process has started, and what that has started. Some may have just ended."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError):
        for task in Path(f"/proc/{ancestor}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += map(int, (task / "children").read_text().split())
    return [*found, *(each for child in found for each in children_of(child))]


def status_of(pid: int) -> dict[str, str]:
    """What the kernel says of a process, by name."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def answer_of(runtime: Runtime, request: Request) -> Reply:
    """What a runtime replies to a request that it accepts and carries out at once."""
    replies: list[Reply] = []
    runtime.accept(request)(replies.append)
    (reply,) = replies
    return reply
