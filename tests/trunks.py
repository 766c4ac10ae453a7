"""Trunks at work, for tests: a host and a guest that are joined by a real pipe, and servers to reach across it."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from observing import eventually

from adyton.proto.trunk_loop import TrunkLoop

SECONDS = 20.0
MIB = 1024 * 1024


def frame(kind: int, number: int, payload: bytes = b"") -> bytes:
    """A frame's bytes: its type, its stream, its payload's length, its payload."""
    return struct.pack(">BII", kind, number, len(payload)) + payload


def descriptors() -> set[str]:
    """What this process has open. What an earlier test's gRPC has may go at any time, so only new ones are a leak."""
    found = set()
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):  # the one that lists the folder
            found.add(f"{entry.name}: {entry.readlink()}")
    return found


def read_all(source: socket.socket) -> bytes:
    """What comes until the peer's end."""
    return b"".join(iter(lambda: source.recv(65536), b""))


def listening() -> socket.socket:
    """A listener at a free port."""
    return socket.create_server(("127.0.0.1", 0), backlog=2048)


def dial(port: int) -> socket.socket:
    """A connection to a port of this machine."""
    return socket.create_connection(("127.0.0.1", port), timeout=SECONDS)


def connecting(kind: str) -> socket.socket | None:
    """What a guest does: a connection, not yet connected, to the port that a stream names."""
    name, _, port = kind.partition(":")
    if name != "tcp":
        return None
    local = socket.socket()
    local.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        local.connect(("127.0.0.1", int(port)))
    return local


class Side:
    """A loop in a thread of its own, and what came of it."""

    def __init__(self, pipe: socket.socket, loop: TrunkLoop) -> None:
        self.pipe = pipe
        self.loop = loop
        self.problem: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.loop.run()
        except BaseException as problem:
            self.problem = problem
        self.pipe.close()

    def join(self) -> None:
        self.thread.join(SECONDS)
        assert not self.thread.is_alive()


class Trunks:
    """A host and a guest. What the host is offered by the guest's streams comes to `offered`, by kind."""

    def __init__(self) -> None:
        self.offered: dict[str, socket.socket] = {}
        self.pongs = 0
        one, other = socket.socketpair()
        host = TrunkLoop(one.fileno(), side="host", accept=self._offer, on_pong=self._count)
        self.host = Side(one, host)
        self.guest = Side(other, TrunkLoop(other.fileno(), side="guest", accept=connecting))

    def forward(self, port: int) -> int:
        """A port of the host whose connections go to `port` of the guest."""
        listener = listening()
        self.host.loop.listen(listener, f"tcp:{port}")
        return int(listener.getsockname()[1])

    def offer(self, kind: str) -> tuple[socket.socket, socket.socket]:
        """Both ends of a stream that the guest opened: the guest's, the host's."""
        mine, its = socket.socketpair()
        self.guest.loop.open(kind, its)
        eventually(lambda: kind in self.offered, SECONDS)
        other = self.offered[kind]
        for each in (mine, other):
            each.settimeout(SECONDS)
        return mine, other

    def close(self) -> None:
        for side in (self.host, self.guest):
            side.loop.close()
            side.join()
        for each in self.offered.values():
            each.close()

    def _offer(self, kind: str) -> socket.socket | None:
        if kind == "unwanted":
            return None
        mine, self.offered[kind] = socket.socketpair()
        return mine

    def _count(self) -> None:
        self.pongs += 1


@contextlib.contextmanager
def joined() -> Iterator[Trunks]:
    """A host and a guest that end without a problem, and give back each descriptor."""
    before = descriptors()
    made = Trunks()
    yield made
    made.close()
    assert made.host.problem is made.guest.problem is None
    assert descriptors() <= before


@contextlib.contextmanager
def serving(handle: Callable[[socket.socket], None]) -> Iterator[int]:
    """A TCP server with a thread for each connection; its port."""
    listener = listening()
    threads: list[threading.Thread] = []

    def work(connection: socket.socket) -> None:
        with connection:
            connection.settimeout(SECONDS)
            handle(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threads.append(threading.Thread(target=work, args=(connection,), daemon=True))
                threads[-1].start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        acceptor.join(SECONDS)
        listener.close()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()


def echo(connection: socket.socket) -> None:
    """What comes goes back, piece by piece."""
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(65536):
            connection.sendall(data)
