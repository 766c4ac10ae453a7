"""How trunks end: drained, closed, or by a peer that dies, lies or does not read."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from trunks import (
    SECONDS,
    Side,
    Trunks,
    connecting,
    descriptors,
    dial,
    echo,
    frame,
    joined,
    listening,
    read_all,
    serving,
)

from adyton.errors import ControlProtocolError
from adyton.proto.trunk import MAX_PAYLOAD_BYTES, WINDOW_BYTES, Aborted, Ending, Trunk
from adyton.proto.trunk_loop import TrunkLoop


@pytest.fixture
def trunks() -> Iterator[Trunks]:
    with joined() as made:
        yield made


def test_the_peer_s_death_ends_run_and_aborts_its_streams(trunks: Trunks) -> None:
    with serving(echo) as inner, dial(trunks.forward(inner)) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
        trunks.guest.loop.close()
        trunks.host.join()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    mine, its = socket.socketpair()
    with mine:
        trunks.host.loop.open("late", its)  # the loop is over, and closes what it gets
        assert mine.recv(1) == b""


def test_the_last_words_arrive_before_a_drained_loop_returns(trunks: Trunks) -> None:
    mine, its = trunks.offer("report")
    data = bytes(range(256)) * (WINDOW_BYTES // 256 * 8)  # much more than a window
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_all, its)
        mine.sendall(data)
        mine.close()
        trunks.guest.loop.close(drain_seconds=SECONDS)
        trunks.guest.join()
        assert reading.result(SECONDS) == data


def test_a_reader_that_is_late_gets_the_last_words_of_a_peer_that_is_gone(trunks: Trunks) -> None:
    mine, its = trunks.offer("stdout")
    its.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    mine.sendall(bytes(WINDOW_BYTES))
    mine.close()
    trunks.guest.loop.close(drain_seconds=SECONDS)
    trunks.guest.join()
    assert len(read_all(its)) == WINDOW_BYTES


def test_draining_a_stalled_trunk_ends_in_its_time(trunks: Trunks) -> None:
    stalled, _ = trunks.offer("stalled")
    stalled.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        for _ in range(2000):
            stalled.send(bytes(65536))
            time.sleep(0.001)
    began = time.monotonic()
    trunks.guest.loop.close(drain_seconds=0.3)
    trunks.guest.join()
    assert 0.3 <= time.monotonic() - began < 2
    stalled.close()


def test_close_before_run_is_an_end_and_gives_all_back() -> None:
    before = descriptors()
    one, other = socket.socketpair()
    with one, other:
        loop = TrunkLoop(one.fileno(), side="host", accept=connecting)
        loop.listen(listening(), "tcp:1")
        for _ in range(2):
            loop.close()
        loop.run()
    assert descriptors() <= before


def _overrun() -> bytes:
    return frame(1, 1, b"sink") + frame(2, 1, bytes(MAX_PAYLOAD_BYTES)) * 40


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(_overrun(), id="overrun of credit"),
        pytest.param(b"".join(frame(1, 1 + 2 * each, b"sink") for each in range(2000)), id="2000 streams"),
        pytest.param(frame(1, 2, b"sink"), id="wrong parity"),
        pytest.param(struct.pack(">BII", 2, 1, 2**32 - 1), id="huge length"),
        pytest.param(frame(77, 1), id="unknown type"),
        pytest.param(frame(1, 1, b"sink") + frame(4, 1) + frame(2, 1, b"x"), id="data after the end"),
        pytest.param(frame(1, 1, "größe".encode()), id="kind not ASCII"),
    ],
)
def test_a_hostile_peer_ends_the_loop_and_leaves_nothing(data: bytes) -> None:
    before = descriptors()
    stalled: list[socket.socket] = []

    def accept(kind: str) -> socket.socket:
        mine, its = socket.socketpair()
        stalled.append(its)
        return mine

    one, other = socket.socketpair()
    guest = Side(one, TrunkLoop(one.fileno(), side="guest", accept=accept))
    with other:
        other.settimeout(SECONDS)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            other.sendall(data)
        guest.join()
    assert isinstance(guest.problem, ControlProtocolError)
    for each in stalled:
        each.close()
    assert descriptors() <= before


def test_a_peer_that_asks_and_never_reads_ends_the_loop() -> None:
    one, other = socket.socketpair()
    guest = Side(one, TrunkLoop(one.fileno(), side="guest", accept=connecting))
    with other, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        other.settimeout(SECONDS)
        for _ in range(100):
            other.sendall(frame(6, 0, bytes(8)) * 10_000)
    guest.join()
    assert isinstance(guest.problem, ControlProtocolError)


def test_an_accept_that_finds_no_descriptor_refuses_that_stream_alone() -> None:
    def accept(kind: str) -> socket.socket:
        raise OSError(24, "Too many open files")

    one, other = socket.socketpair()
    guest = Side(one, TrunkLoop(one.fileno(), side="guest", accept=accept))
    peer = Trunk("host")
    peer.open("tcp:1")
    with other:
        other.settimeout(SECONDS)
        other.sendall(bytes(peer.outgoing))
        events = list(peer.receive(other.recv(100)))
    guest.join()
    assert events == [Aborted(number=1, ending=Ending.UNREACHABLE)]
    assert guest.problem is None
