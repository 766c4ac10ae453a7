"""One end of a trunk at work: a loop that bridges its streams to local sockets. The same code in host and guest.

All is done in the one thread that calls `run`. A local end that takes no bytes stalls its own stream, by the stream's
window, and no other; local ends that have bytes are read in turn, and only as fast as the pipe takes them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

from adyton.proto.trunk import Ending, Event, Opened, Ponged, Side, Trunk
from adyton.proto.trunk_bridges import ENOUGH_BYTES, Bridges, reset

#: How many bytes are read from the pipe before the loop looks at anything else.
_READ_BYTES = 256 * 1024
#: How long listeners rest when there is no stream or no file descriptor left for another connection.
_REST_SECONDS = 0.05
#: How long local ends have to take what the peer had sent when the pipe ended.
_LAST_SECONDS = 2.0

_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class TrunkLoop:
    """Bridges the streams of the trunk behind `descriptor`, which stays the caller's, to local sockets.

    `descriptor` is a stream socket or a character device that can be polled. `accept` gets the kind of each stream that
    the peer opens and gives the local end, which may still be connecting, or None to refuse it. `on_pong` is called for
    each answer to `ping`. Both are called in the loop, so they must not block. Sockets that are given to the loop are
    its own from then on. All methods but `run` may be called from any thread and at any time. What a loop that is never
    run holds, `close` gives back. Where no descriptor is left, making one raises OSError.
    """

    def __init__(
        self,
        descriptor: int,
        *,
        side: Side,
        accept: Callable[[str], socket.socket | None],
        on_pong: Callable[[], None] = lambda: None,
    ) -> None:
        #: When the peer last answered a ping, by time.monotonic().
        self.last_pong: float | None = None
        self._descriptor = descriptor
        self._accept = accept
        self._on_pong = on_pong
        self._trunk = Trunk(side)
        with contextlib.ExitStack() as on_failure:
            self._selector = selectors.DefaultSelector()
            on_failure.callback(self._selector.close)
            self._bridges = Bridges(self._trunk, self._selector)
            on_failure.callback(self._bridges.close)
            self._alarm = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            on_failure.pop_all()
        self._listeners: dict[socket.socket, str] = {}
        self._rest_ends: float | None = None
        self._pipe_is_open = True
        self._waits_to_write = self._waits_for_sources = False
        self._buffer = bytearray(_READ_BYTES)
        self._deadline: float | None = None
        self._farewell: int | None = None
        self._latest_answer = 0
        self._lock = threading.Lock()  # for what follows
        self._is_running = self._is_over = False
        self._calls: deque[tuple[Callable[[], None], socket.socket | None]] = deque()

    def open(self, kind: str, local: socket.socket) -> None:
        """Open a stream of `kind` and bridge it to `local`, which is connected."""
        self._call(functools.partial(self._open, kind, local), local)

    def listen(self, listener: socket.socket, kind: str) -> None:
        """Open a stream of `kind` for each connection that `listener` accepts."""
        self._call(functools.partial(self._listen, listener, kind), listener)

    def unlisten(self, listener: socket.socket) -> None:
        """Close `listener`; the connections that it accepted stay."""
        self._call(functools.partial(self._unlisten, listener), listener)

    def watch(self, descriptor: int, callback: Callable[[], bool]) -> None:
        """Call `callback` whenever `descriptor`, which stays the caller's, is readable, until it returns False."""
        self._call(functools.partial(self._watch, descriptor, callback))

    def ping(self) -> None:
        """Ask the peer for a sign of life; see `last_pong`."""
        self._call(self._ping)

    def close(self, drain_seconds: float = 0) -> None:
        """Make `run` return: at once, or when the peer has read all that local ends had to say, within that time."""
        self._call(functools.partial(self._stop, drain_seconds))
        with self._lock:
            if self._is_running or self._is_over:
                return
            self._is_over = True
        self._give_back()

    def run(self) -> None:
        """Bridge until the pipe ends, or `close`; then every socket that the loop owns is closed. To be called once.

        Raises ControlProtocolError if the peer breaks the protocol, and what callbacks raise.
        """
        with self._lock:
            if self._is_over:
                return
            self._is_running = True
        try:
            os.set_blocking(self._descriptor, False)
            self._selector.register(self._alarm, _READ, self._obey)
            self._selector.register(self._descriptor, _READ, self._on_pipe)
            while not self._has_finished():
                self._turn()
        finally:
            with self._lock:
                self._is_over = True
            self._give_back()

    def _turn(self) -> None:
        if self._pipe_is_open:
            self._write_pipe()
        if self._pipe_is_open:
            self._choose_waits()
        for key, events in self._selector.select(self._timeout()):
            key.data(events)
        if self._rest_ends is not None and time.monotonic() >= self._rest_ends:
            self._rest_ends = None
            for listener in self._listeners:
                self._attend(listener)

    def _timeout(self) -> float | None:
        times = [each for each in (self._deadline, self._rest_ends) if each is not None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    # The pipe.

    def _on_pipe(self, events: int) -> None:
        if events & _READ:  # writing is what every turn begins with
            self._read_pipe()

    def _read_pipe(self) -> None:
        total = 0
        while total < _READ_BYTES:  # a virtio port gives 4 KiB at a time
            try:
                count = os.readv(self._descriptor, [self._buffer])
            except BlockingIOError:
                return
            except OSError:
                count = 0
            if not count:
                self._lose_pipe()
                return
            total += count
            for event in self._trunk.receive(memoryview(self._buffer)[:count]):
                self._handle(event)

    def _write_pipe(self) -> None:
        outgoing = self._trunk.outgoing
        try:
            while outgoing:
                del outgoing[: os.write(self._descriptor, outgoing)]
        except BlockingIOError:
            pass
        except OSError:
            self._lose_pipe()

    def _lose_pipe(self) -> None:
        """The peer is gone. Local ends get its last bytes, if they take them soon."""
        self._pipe_is_open = False
        self._end_within(_LAST_SECONDS)
        self._selector.unregister(self._descriptor)
        if self._waits_for_sources:
            self._selector.unregister(self._bridges.sources)

    def _choose_waits(self) -> None:
        """Wait for the pipe to take bytes if there are any, and for local ends to have some if there are not enough."""
        waits_to_write = bool(self._trunk.outgoing)
        if waits_to_write != self._waits_to_write:
            self._selector.modify(self._descriptor, _READ | _WRITE if waits_to_write else _READ, self._on_pipe)
            self._waits_to_write = waits_to_write
        waits_for_sources = len(self._trunk.outgoing) < ENOUGH_BYTES
        if waits_for_sources != self._waits_for_sources:
            if waits_for_sources:
                self._selector.register(self._bridges.sources, _READ, self._bridges.read_sources)
            else:
                self._selector.unregister(self._bridges.sources)
            self._waits_for_sources = waits_for_sources

    # Streams.

    def _handle(self, event: Event) -> None:
        if isinstance(event, Ponged):
            self._latest_answer = event.ping
            self.last_pong = time.monotonic()
            self._on_pong()
        elif isinstance(event, Opened):
            self._take_stream(event)
        else:
            self._bridges.handle(event)

    def _take_stream(self, event: Opened) -> None:
        try:
            local = self._accept(event.kind)
        except OSError:  # no file descriptor left, most likely
            self._trunk.close(event.number, Ending.UNREACHABLE)
            return
        if local is None:
            self._trunk.close(event.number, Ending.REFUSED)
        else:
            self._bridges.add(event.number, local, connected=False)

    def _open(self, kind: str, local: socket.socket) -> None:
        if self._trunk.may_open:
            self._bridges.add(self._trunk.open(kind), local, connected=True)
        else:
            reset(local)

    # Listeners.

    def _listen(self, listener: socket.socket, kind: str) -> None:
        listener.setblocking(False)
        self._listeners[listener] = kind
        if self._rest_ends is None:
            self._attend(listener)

    def _attend(self, listener: socket.socket) -> None:
        self._selector.register(listener, _READ, functools.partial(self._accept_from, listener))

    def _unlisten(self, listener: socket.socket) -> None:
        if self._listeners.pop(listener, None) is not None and self._rest_ends is None:
            self._selector.unregister(listener)
        listener.close()

    def _accept_from(self, listener: socket.socket, _events: int) -> None:
        if self._rest_ends is not None or listener not in self._listeners:
            return  # something else of the same turn has changed that
        if not self._trunk.may_open:
            self._rest()
            return
        try:
            local, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:  # no file descriptor left, most likely
            self._rest()
        else:
            self._open(self._listeners[listener], local)

    def _rest(self) -> None:
        self._rest_ends = time.monotonic() + _REST_SECONDS
        for listener in self._listeners:
            self._selector.unregister(listener)

    # What other threads ask for.

    def _call(self, action: Callable[[], None], owned: socket.socket | None = None) -> None:
        with self._lock:
            if not self._is_over:
                self._calls.append((action, owned))
                os.eventfd_write(self._alarm, 1)
            elif owned is not None:
                reset(owned)

    def _obey(self, _events: int) -> None:
        os.eventfd_read(self._alarm)
        while self._calls:
            self._calls[0][0]()
            self._calls.popleft()  # only now, so that a socket whose action failed is closed with the rest

    def _watch(self, descriptor: int, callback: Callable[[], bool]) -> None:
        def on_readable(_events: int) -> None:
            if not callback():
                self._selector.unregister(descriptor)

        self._selector.register(descriptor, _READ, on_readable)

    def _ping(self) -> None:
        self._trunk.ping()

    # The end.

    def _stop(self, drain_seconds: float) -> None:
        for listener in list(self._listeners):
            self._unlisten(listener)
        self._end_within(drain_seconds)

    def _end_within(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        self._deadline = deadline if self._deadline is None else min(deadline, self._deadline)

    def _has_finished(self) -> bool:
        if self._deadline is None:
            return False
        if time.monotonic() >= self._deadline:
            return True
        return self._peer_has_read_all() if self._pipe_is_open else not self._bridges.have_backlog

    def _peer_has_read_all(self) -> bool:
        """Whether the peer has answered a ping that was sent after the last that local ends had to say."""
        if not self._bridges.are_quiet:
            self._farewell = None
        elif self._farewell is None:
            self._farewell = self._trunk.ping()
        return self._farewell is not None and self._latest_answer >= self._farewell

    def _give_back(self) -> None:
        self._bridges.close()
        for listener in self._listeners:
            listener.close()
        for _, owned in self._calls:
            if owned is not None:
                reset(owned)
        self._selector.close()
        os.close(self._alarm)
