"""Trunks that carry: many connections at once, none of which waits for another, and no needless work."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from observing import eventually
from trunks import MIB, SECONDS, Side, Trunks, connecting, dial, echo, joined, listening, read_all, serving

from adyton.proto.trunk import WINDOW_BYTES
from adyton.proto.trunk_loop import TrunkLoop


@pytest.fixture
def trunks() -> Iterator[Trunks]:
    with joined() as made:
        yield made


def echo_after_the_end(connection: socket.socket) -> None:
    connection.sendall(read_all(connection)[::-1])


def test_fifty_connections_at_once_carry_a_mebibyte_each_way(trunks: Trunks) -> None:
    with serving(echo) as inner:
        port = trunks.forward(inner)

        def converse(number: int) -> bool:
            data = number.to_bytes(4, "big") * (MIB // 4)
            with dial(port) as connection, ThreadPoolExecutor(1) as sender:
                sending = sender.submit(connection.sendall, data)
                sending.add_done_callback(lambda _: connection.shutdown(socket.SHUT_WR))
                return read_all(connection) == data

        with ThreadPoolExecutor(50) as pool:
            assert all(pool.map(converse, range(50)))


def test_the_end_of_one_direction_leaves_the_other_open(trunks: Trunks) -> None:
    with serving(echo_after_the_end) as inner, dial(trunks.forward(inner)) as connection:
        connection.sendall(b"abc" * 100_000)
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b"cba" * 100_000


def test_a_reader_that_stalls_stalls_only_its_own_stream(trunks: Trunks) -> None:
    stalled, its = trunks.offer("stalled")
    stalled.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        for _ in range(2000):
            sent += stalled.send(bytes(65536))
            time.sleep(0.001)
    assert WINDOW_BYTES < sent < 20 * WINDOW_BYTES, "more was taken than a window and the sockets' buffers"
    live, other = trunks.offer("live")
    for _ in range(100):
        live.sendall(bytes(10_000))
        assert len(other.recv(10_000, socket.MSG_WAITALL)) == 10_000
    stalled.shutdown(socket.SHUT_WR)
    assert len(read_all(its)) == sent
    stalled.close()
    live.close()


def test_a_small_message_does_not_wait_for_a_bulk_of_others(trunks: Trunks) -> None:
    with serving(echo) as inner:
        port = trunks.forward(inner)
        stop = threading.Event()

        def flood() -> None:
            with dial(port) as connection:
                while not stop.is_set():
                    connection.sendall(bytes(200_000))
                    connection.recv(200_000, socket.MSG_WAITALL)

        floods = [threading.Thread(target=flood) for _ in range(3)]
        for each in floods:
            each.start()
        with dial(port) as connection:
            worst = 0.0
            for _ in range(50):
                began = time.monotonic()
                connection.sendall(b"small")
                assert connection.recv(100) == b"small"
                worst = max(worst, time.monotonic() - began)
        stop.set()
        for each in floods:
            each.join(SECONDS)
    assert worst < 1.0


def test_a_client_that_aborts_is_aborted_inside_and_later_ones_are_served(trunks: Trunks) -> None:
    aborted: list[str] = []

    def handle(connection: socket.socket) -> None:
        try:
            echo_once = connection.recv(100)
            connection.sendall(echo_once)
            connection.recv(100)
        except ConnectionResetError:
            aborted.append("reset")

    with serving(handle) as inner:
        port = trunks.forward(inner)
        for _ in range(13):
            with dial(port) as connection:
                connection.sendall(b"x")
                assert connection.recv(1) == b"x"
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        eventually(lambda: len(aborted) == 13, SECONDS)
        with dial(port) as connection:
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"


def test_a_server_that_aborts_is_an_abort_for_the_client(trunks: Trunks) -> None:
    def abort(connection: socket.socket) -> None:
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with serving(abort) as inner, dial(trunks.forward(inner)) as connection:
        connection.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_a_port_that_nobody_listens_on_is_an_abort_for_the_client(trunks: Trunks) -> None:
    with listening() as listener:
        unused = listener.getsockname()[1]
    with pytest.raises(ConnectionResetError), dial(trunks.forward(unused)) as connection:  # dialling may see it too
        connection.recv(1)


def test_a_kind_that_the_peer_does_not_take_is_an_end(trunks: Trunks) -> None:
    mine, its = socket.socketpair()
    with mine:
        trunks.guest.loop.open("unwanted", its)
        mine.settimeout(SECONDS)
        assert mine.recv(1) == b""


def test_unlistening_leaves_connections_alone(trunks: Trunks) -> None:
    with serving(echo) as inner:
        listener = listening()
        port = listener.getsockname()[1]
        trunks.host.loop.listen(listener, f"tcp:{inner}")
        with dial(port) as connection:
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"
            trunks.host.loop.unlisten(listener)
            eventually(lambda: listener.fileno() < 0, SECONDS)
            with pytest.raises(ConnectionRefusedError):
                dial(port)
            connection.sendall(b"y")
            assert connection.recv(1) == b"y"


def test_connections_beyond_the_last_stream_wait_for_their_turn(
    trunks: Trunks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adyton.proto.trunk.MAX_STREAMS", 8)
    with serving(echo) as inner:
        port = trunks.forward(inner)
        streams = [dial(port) for _ in range(8)]
        for each in streams:
            each.sendall(b"x")
            assert each.recv(1) == b"x"
        with dial(port) as connection:
            connection.sendall(b"late")
            connection.settimeout(0.3)
            with pytest.raises(TimeoutError):
                connection.recv(4)
            streams.pop().close()
            connection.settimeout(SECONDS)
            assert connection.recv(4) == b"late"
        for each in streams:
            each.close()


def test_a_connection_that_finds_no_descriptor_waits_for_one(trunks: Trunks) -> None:
    with listening() as inner, socket.socket() as connection:
        port = trunks.forward(inner.getsockname()[1])
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket() as last:
            resource.setrlimit(resource.RLIMIT_NOFILE, (last.fileno() + 1, hard))
        with socket.socket():  # the one that was free
            connection.connect(("127.0.0.1", port))
            try:
                with pytest.raises(OSError, match="Too many open files"):
                    socket.socket()
                time.sleep(0.1)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            inner.settimeout(SECONDS)
            inner.accept()[0].close()


def test_a_ping_is_answered(trunks: Trunks) -> None:
    before = time.monotonic()
    trunks.host.loop.ping()
    eventually(lambda: trunks.pongs == 1, SECONDS)
    last = trunks.host.loop.last_pong
    assert last is not None
    assert before <= last <= time.monotonic()


def test_a_watched_descriptor_calls_until_it_has_enough(trunks: Trunks) -> None:
    source, sink = os.pipe()
    seen: list[bytes] = []

    def callback() -> bool:
        seen.append(os.read(source, 1))
        return seen[-1] != b"."

    trunks.guest.loop.watch(source, callback)
    os.write(sink, b"ab.c")
    eventually(lambda: b"." in seen, SECONDS)
    trunks.guest.loop.ping()
    eventually(lambda: trunks.guest.loop.last_pong is not None, SECONDS)  # the loop has been round since
    assert seen == [b"a", b"b", b"."]
    os.close(source)
    os.close(sink)


def test_an_idle_trunk_uses_no_time(trunks: Trunks) -> None:
    mine, its = trunks.offer("idle")
    mine.sendall(b"x")
    assert its.recv(1) == b"x"
    before = time.process_time()
    time.sleep(1)
    assert time.process_time() - before < 0.05
    mine.close()


def _used_seconds() -> float:
    before = time.process_time()
    time.sleep(0.4)
    return time.process_time() - before


def test_a_full_pipe_is_waited_for_without_work_and_so_is_an_empty_one_after_it() -> None:
    one, other = socket.socketpair()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    host = Side(one, TrunkLoop(one.fileno(), side="host", accept=connecting))
    mine, its = socket.socketpair()
    with other, mine:
        host.loop.open("bulk", its)
        mine.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for _ in range(100):
                mine.send(bytes(10_000))
                time.sleep(0.001)
        assert _used_seconds() < 0.05
        other.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            while other.recv(MIB):
                pass
        assert _used_seconds() < 0.05
        host.loop.close()
        host.join()
