"""What the launcher hears from QEMU's monitor; a socket plays QEMU, with what QEMU 7.2 says."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from observing import eventually

from adyton.host.launch.qemu.monitor import Monitor

GREETING = {"QMP": {"version": {"qemu": {"micro": 19, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}
STOPPED = {"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}
SECONDS = 10


class Qemu:
    """The other end."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = connection.makefile("rb")

    def say(self, *messages: object) -> None:
        self._connection.sendall(b"".join(json.dumps(each).encode() + b"\r\n" for each in messages))

    def hear(self) -> str:
        asked = json.loads(self._lines.readline())
        assert isinstance(asked, dict)
        return str(asked["execute"])

    def close(self) -> None:
        self._lines.close()
        self._connection.close()


@contextmanager
def monitored() -> Iterator[tuple[Monitor, Qemu]]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(SECONDS)
    qemu, monitor = Qemu(theirs), Monitor(ours)
    try:
        assert qemu.hear() == "qmp_capabilities"
        yield monitor, qemu
    finally:
        monitor.close()
        qemu.close()


@pytest.mark.parametrize(
    ("status", "why"),
    [("internal-error", "the processor could not go on"), ("io-error", "a device failed")],
)
def test_a_machine_that_can_not_go_on_is_stuck(status: str, why: str) -> None:
    with monitored() as (monitor, qemu):
        qemu.say(GREETING, {"return": {}}, STOPPED)
        assert qemu.hear() == "query-status"
        qemu.say({"return": {"status": status, "running": False, "singlestep": False}})
        assert monitor.stuck.wait(SECONDS)
        assert monitor.stopped_for == why


@pytest.mark.parametrize("status", ["paused", "shutdown", "suspended"])
def test_a_machine_that_stops_otherwise_is_not(status: str) -> None:
    with monitored() as (monitor, qemu):
        qemu.say(GREETING, {"return": {}}, STOPPED)
        assert qemu.hear() == "query-status"
        qemu.say({"return": {"status": status, "running": False}}, STOPPED)
        assert qemu.hear() == "query-status"  # so the answer was taken
        assert not monitor.stuck.is_set()
        assert monitor.stopped_for == ""


@pytest.mark.parametrize(
    "nonsense",
    [
        b"{}\n",
        b"no JSON\n",
        b"[1]\n",
        b"\xff\n",
        b'"text"\n',
        b'{"return": {"status": []}}\n',
        b"[" * 100_000 + b"\n",
        b"x" * (1 << 20),
    ],
    ids=["empty", "text", "list", "not UTF-8", "string", "no status", "deep", "long"],
)
def test_what_is_not_the_protocol_ends_the_listening_and_nothing_else(nonsense: bytes) -> None:
    with monitored() as (monitor, qemu):
        qemu._connection.sendall(nonsense)
        qemu.say(GREETING)
    assert not monitor.stuck.is_set()


def test_closing_twice_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    with monitored() as (monitor, _):
        monitor.close()
    eventually(lambda: set(threading.enumerate()) <= before)
