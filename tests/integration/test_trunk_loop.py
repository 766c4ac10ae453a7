"""Trunks at work: real sockets, threads and servers on both sides of a pipe."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from adyton.errors import ControlProtocolError
from adyton.proto.trunk import MAX_PAYLOAD_BYTES, WINDOW_BYTES, Aborted, Ending, Trunk
from adyton.proto.trunk_loop import TrunkLoop

SECONDS = 20.0
MIB = 1024 * 1024


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def read_all(source: socket.socket) -> bytes:
    return b"".join(iter(lambda: source.recv(65536), b""))


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=2048)


def dial(port: int) -> socket.socket:
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
        until(lambda: kind in self.offered)
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


@pytest.fixture
def trunks() -> Iterator[Trunks]:
    before = descriptors()
    made = Trunks()
    yield made
    made.close()
    assert made.host.problem is made.guest.problem is None
    assert descriptors() == before


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
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(65536):
            connection.sendall(data)


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
        until(lambda: len(aborted) == 13)
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
    with dial(trunks.forward(unused)) as connection, pytest.raises(ConnectionResetError):
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
            until(lambda: listener.fileno() < 0)
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
    until(lambda: trunks.pongs == 1)
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
    until(lambda: b"." in seen)
    trunks.guest.loop.ping()
    until(lambda: trunks.guest.loop.last_pong is not None)  # the loop has been round since
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
    assert descriptors() == before


def _overrun() -> bytes:
    return _frame(1, 1, b"sink") + _frame(2, 1, bytes(MAX_PAYLOAD_BYTES)) * 40


def _frame(kind: int, number: int, payload: bytes = b"") -> bytes:
    return struct.pack(">BII", kind, number, len(payload)) + payload


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(_overrun(), id="overrun of credit"),
        pytest.param(b"".join(_frame(1, 1 + 2 * each, b"sink") for each in range(2000)), id="2000 streams"),
        pytest.param(_frame(1, 2, b"sink"), id="wrong parity"),
        pytest.param(struct.pack(">BII", 2, 1, 2**32 - 1), id="huge length"),
        pytest.param(_frame(77, 1), id="unknown type"),
        pytest.param(_frame(1, 1, b"sink") + _frame(4, 1) + _frame(2, 1, b"x"), id="data after the end"),
        pytest.param(_frame(1, 1, "größe".encode()), id="kind not ASCII"),
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
    assert descriptors() == before


def test_a_peer_that_asks_and_never_reads_ends_the_loop() -> None:
    one, other = socket.socketpair()
    guest = Side(one, TrunkLoop(one.fileno(), side="guest", accept=connecting))
    with other, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        other.settimeout(SECONDS)
        for _ in range(100):
            other.sendall(_frame(6, 0, bytes(8)) * 10_000)
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


def _unary(request: bytes, context: grpc.ServicerContext) -> bytes:
    return request[::-1]


def _stream(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    for request in requests:
        yield request * 2


def test_grpc_works_across_the_trunk() -> None:
    trunks = Trunks()  # not the fixture's: gRPC keeps descriptors of its own for the next channel
    with contextlib.closing(trunks), ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool)
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "unary": grpc.unary_unary_rpc_method_handler(_unary),
            "stream": grpc.stream_stream_rpc_method_handler(_stream),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("probe", handlers),))
        port = trunks.forward(server.add_insecure_port("127.0.0.1:0"))
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            _call_all(channel)
        server.stop(None).wait(SECONDS)


def _call_all(channel: grpc.Channel) -> None:
    unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/probe/unary")
    stream: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream("/probe/stream")
    for each in range(50):
        assert unary(b"ab" * each, timeout=SECONDS) == b"ba" * each
    assert unary(bytes(3 * MIB), timeout=SECONDS) == bytes(3 * MIB)
    sent = [bytes([each]) * 100_000 for each in range(40)]
    assert list(stream(iter(sent), timeout=SECONDS)) == [each * 2 for each in sent]
    endless = stream(itertools.repeat(bytes(1000)))
    next(endless)
    endless.cancel()
    assert unary(b"ab", timeout=SECONDS) == b"ba"
