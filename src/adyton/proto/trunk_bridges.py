"""The bridges of a trunk: each has one stream, and the local socket that its bytes come from and go to."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import select
import selectors
import socket
import struct
from collections.abc import Callable

from adyton.proto.trunk import Aborted, Credited, Ended, Ending, Received, Trunk

#: Local ends are read until this many bytes wait for the pipe.
ENOUGH_BYTES = 64 * 1024
#: How many local ends are read before the kernel is asked again whose turn it is.
_TURN = 4

_IP = (socket.AF_INET, socket.AF_INET6)
_LINGER_NOT = struct.pack("ii", 1, 0)  # SO_LINGER, on, for 0 seconds: close() sends a reset


class Bridge:
    """One stream and its local socket, both ways.

    Each method does what can be done at once. OSError means that the local end broke and `abort` has to follow. Once
    `is_over`, the stream is closed and only `close` is left to do.
    """

    def __init__(self, trunk: Trunk, number: int, local: socket.socket, *, connected: bool) -> None:
        local.setblocking(False)
        if local.family in _IP:
            local.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.number = number
        self.local = local
        self.is_over = False
        self.backlog = bytearray()  # from the peer, for the local end; the stream's window bounds it
        self._trunk = trunk
        self._is_connected = connected
        self._is_broken = False
        self._local_ended = self._peer_ended = False

    @property
    def wants_to_read(self) -> bool:
        """Whether `forward` is to be called when the local end is readable."""
        return self._is_connected and not self.is_over and not self._local_ended and not self.is_starved

    @property
    def wants_to_write(self) -> bool:
        """Whether `resume` is to be called when the local end is writable."""
        return not self.is_over and (not self._is_connected or bool(self.backlog))

    @property
    def is_starved(self) -> bool:
        """Whether the local end may have bytes that the peer gives no credit for."""
        return not self._local_ended and self._trunk.room(self.number) == 0

    def forward(self) -> None:
        """Send what the local end has to say, one frame at most."""
        try:
            payload = self.local.recv(self._trunk.room(self.number))
        except BlockingIOError:
            return
        if payload:
            self._trunk.send(self.number, payload)
            return
        self._local_ended = True
        self._trunk.end(self.number)
        self._close_if_both_ended()

    def deliver(self, payload: bytes) -> None:
        """Hand `payload` from the peer to the local end, or keep what that does not take yet."""
        count = self._write(payload) if self._is_connected and not self.backlog else 0
        if count < len(payload):
            self.backlog += payload[count:]

    def resume(self) -> None:
        """Go on, now that the local end is connected or takes bytes again."""
        if not self._is_connected:
            code = self.local.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
            self._is_connected = True
        if self.backlog:
            del self.backlog[: self._write(self.backlog)]
        self._hand_end_on()

    def end(self) -> None:
        """The peer has sent all."""
        self._peer_ended = True
        self._hand_end_on()

    def abort(self) -> None:
        """The local end broke, so the stream does."""
        self._trunk.close(self.number, Ending.BROKEN if self._is_connected else Ending.UNREACHABLE)
        self.be_aborted()

    def be_aborted(self) -> None:
        """The stream broke, so the local end does."""
        self.is_over = self._is_broken = True

    def close(self) -> None:
        """Close the local end: with an abort, unless it got all that the peer had to say."""
        if self._peer_ended and not self.backlog and not self._is_broken:
            self.local.close()
        else:
            reset(self.local)

    def _write(self, payload: bytes | bytearray) -> int:
        try:
            count = self.local.send(payload)
        except BlockingIOError:
            return 0
        self._trunk.grant(self.number, count)
        return count

    def _hand_end_on(self) -> None:
        if not self._peer_ended or self.backlog or not self._is_connected:
            return
        try:
            self.local.shutdown(socket.SHUT_WR)
        except OSError as problem:
            if problem.errno != errno.ENOTCONN:  # its other side has closed already, and that end is read in turn
                raise
        self._close_if_both_ended()

    def _close_if_both_ended(self) -> None:
        if self._local_ended and self._peer_ended and not self.backlog:
            self._trunk.close(self.number, Ending.IN_ORDER)
            self.is_over = True


class Bridges:
    """All bridges of a trunk, and who of them is waited for.

    Local ends that take bytes again are told by `selector`. Those that may be read are behind `sources`, a poll of its
    own that the caller waits for and hands to `read_sources`: so a full pipe silences all of them at once.
    """

    def __init__(self, trunk: Trunk, selector: selectors.BaseSelector) -> None:
        self.sources = select.epoll()
        self._trunk = trunk
        self._selector = selector
        self._bridges: dict[int, Bridge] = {}  # by stream
        self._readable: dict[int, Bridge] = {}  # by descriptor, those in sources
        self._writable: set[int] = set()  # streams, those in the selector

    def add(self, number: int, local: socket.socket, *, connected: bool) -> None:
        """Bridge stream `number` to `local`, which is connected or still connecting, and belongs to the bridge."""
        bridge = self._bridges[number] = Bridge(self._trunk, number, local, connected=connected)
        self._attend(bridge)

    def handle(self, event: Received | Credited | Ended | Aborted) -> None:
        """Do to a bridge what the peer said."""
        bridge = self._bridges[event.number]
        match event:
            case Received(payload=payload):
                self._do(bridge, functools.partial(bridge.deliver, payload))
            case Ended():
                self._do(bridge, bridge.end)
            case Aborted():
                self._do(bridge, bridge.be_aborted)
            case Credited():
                self._attend(bridge)

    def read_sources(self, _events: int) -> None:
        """Read local ends, in turn, until enough waits for the pipe."""
        # Few at a time: the kernel puts those that it named at the end of its queue, so that all have their turns.
        while len(self._trunk.outgoing) < ENOUGH_BYTES and (ready := self.sources.poll(0, _TURN)):
            for descriptor, _ in ready:
                bridge = self._readable[descriptor]
                self._do(bridge, bridge.forward)

    @property
    def are_quiet(self) -> bool:
        """Whether no local end has anything to say that was not sent."""
        return not self.sources.poll(0, 1) and not any(each.is_starved for each in self._bridges.values())

    @property
    def have_backlog(self) -> bool:
        """Whether local ends have still to take what the peer sent."""
        return any(each.backlog for each in self._bridges.values())

    def close(self) -> None:
        """Close all local ends."""
        for bridge in self._bridges.values():
            bridge.close()
        self._bridges.clear()
        self.sources.close()

    def _do(self, bridge: Bridge, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError:
            bridge.abort()
        self._attend(bridge)

    def _resume(self, number: int, _events: int) -> None:
        if number in self._writable:  # else something else of the same turn has ended it
            bridge = self._bridges[number]
            self._do(bridge, bridge.resume)

    def _attend(self, bridge: Bridge) -> None:
        """Wait for what the bridge can do next; if that is nothing more, close it."""
        number, descriptor = bridge.number, bridge.local.fileno()
        if bridge.wants_to_read != (descriptor in self._readable):
            if bridge.wants_to_read:
                self.sources.register(descriptor, select.EPOLLIN)
                self._readable[descriptor] = bridge
            else:
                self.sources.unregister(descriptor)
                del self._readable[descriptor]
        if bridge.wants_to_write != (number in self._writable):
            if bridge.wants_to_write:
                self._selector.register(descriptor, selectors.EVENT_WRITE, functools.partial(self._resume, number))
                self._writable.add(number)
            else:
                self._selector.unregister(descriptor)
                self._writable.remove(number)
        if bridge.is_over:
            del self._bridges[number]
            bridge.close()


def reset(local: socket.socket) -> None:
    """Close `local`; if it is a TCP connection, so that its other side sees an abort and not an end."""
    if local.family in _IP:
        with contextlib.suppress(OSError):  # closed already
            local.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    local.close()
