"""The trunk: many streams over one pipe of bytes, between a host and its guest. No I/O here; `trunk_loop` does it.

A frame is a header of 9 bytes (type u8, stream u32, length of the payload u32, big endian) and the payload:

    OPEN    the kind, 1 to 64 printable ASCII characters      a new stream; the host's are odd, the guest's even
    DATA    1 to 32759 bytes                                  within the credit that the receiver gave
    WINDOW  u32, bytes                                        more credit, for what the receiver's local end took
    END     nothing                                           this side sends no more data
    CLOSE   u8, an `Ending`                                   this side's last frame on the stream
    PING    8 bytes, stream 0                                 answered by PONG with the same bytes
    PONG    8 bytes, stream 0

Each side closes each stream with exactly one CLOSE: IN_ORDER after both sent END, another ending to abort, and any in
answer to the other's abort. A stream is forgotten once CLOSE went both ways, so a late frame on a stream that this side
aborted is known as such and dropped, while a frame on any other unknown number breaks the protocol.
"""

from __future__ import annotations

import enum
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from adyton.errors import ControlProtocolError

#: How many bytes of a stream may be on their way, in each direction, before the receiver's local end took them.
WINDOW_BYTES = 256 * 1024
#: How many streams each side may have open at once.
MAX_STREAMS = 1024

_HEADER = struct.Struct(">BII")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
#: With its header a frame is 32 KiB: what Linux takes in one write to a virtio port.
MAX_PAYLOAD_BYTES = 32 * 1024 - _HEADER.size
#: More than this is queued only for a peer that writes and does not read: honest frames besides data are few and small.
MAX_OUTGOING_BYTES = 1024 * 1024
#: Credit is given back in pieces of at least this many bytes.
_GRANT_BYTES = WINDOW_BYTES // 4
_KIND = re.compile(rb"[!-~]{1,64}")

Side = Literal["host", "guest"]


class _Type(enum.IntEnum):
    OPEN = 1
    DATA = 2
    WINDOW = 3
    END = 4
    CLOSE = 5
    PING = 6
    PONG = 7


#: How long the payload of each type may be, in bytes: at least, at most.
_LENGTHS = {
    _Type.OPEN: (1, 64),
    _Type.DATA: (1, MAX_PAYLOAD_BYTES),
    _Type.WINDOW: (4, 4),
    _Type.END: (0, 0),
    _Type.CLOSE: (1, 1),
    _Type.PING: (8, 8),
    _Type.PONG: (8, 8),
}


class Ending(enum.IntEnum):
    """Why a stream was closed."""

    IN_ORDER = 0
    REFUSED = 1  # nobody there takes streams of this kind
    UNREACHABLE = 2  # the local end could not be connected
    BROKEN = 3  # the local end broke


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The peer opened stream `number`. Nothing but `kind` says what it is for."""

    number: int
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """The peer sent `payload`, which counts against its credit until `grant`."""

    number: int
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Credited:
    """More may be sent on stream `number`; see `Trunk.room`."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The peer sends no more data on stream `number`."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Aborted:
    """The peer aborted stream `number`, which is over on this side too."""

    number: int
    ending: Ending


@dataclass(frozen=True, slots=True, kw_only=True)
class Ponged:
    """The peer answered ping `ping`, so it has read all that was sent before that."""

    ping: int


Event = Opened | Received | Credited | Ended | Aborted | Ponged


class _Stream:
    """What both sides have said on one stream so far."""

    __slots__ = ("close_received", "close_sent", "credit", "end_received", "end_sent", "peer_credit", "taken")

    def __init__(self) -> None:
        self.credit = WINDOW_BYTES  # what this side may send
        self.peer_credit = WINDOW_BYTES  # what the peer may send
        self.taken = 0  # what the local end took and the peer has no credit for yet
        self.end_sent = self.end_received = False
        self.close_sent = self.close_received = False


class Trunk:
    """One side of a trunk.

    `receive` turns the peer's bytes into events; the other methods append frames to `outgoing`, from whose front the
    caller deletes what it wrote. Streams go by number: one that this side closed, or that the peer aborted, is not to
    be named again. After a ControlProtocolError the trunk must not be used any more.
    """

    def __init__(self, side: Side) -> None:
        self.outgoing = bytearray()
        self._streams: dict[int, _Stream] = {}
        self._next, self._peer_next = (1, 2) if side == "host" else (2, 1)
        self._ours = 0  # how many of _streams this side opened
        self._pings = self._pongs = 0
        self._unread = bytearray()

    @property
    def may_open(self) -> bool:
        """Whether the peer takes another stream."""
        return self._ours < MAX_STREAMS

    def open(self, kind: str) -> int:
        """Open a stream of `kind`; its number. Raises ValueError for a kind that no peer takes, or one too many."""
        encoded = kind.encode()
        if not _KIND.fullmatch(encoded) or not self.may_open:
            raise ValueError(f"no stream of kind {kind!r} can be opened now")
        number = self._next
        self._queue(_Type.OPEN, number, encoded)
        self._streams[number] = _Stream()
        self._next += 2
        self._ours += 1
        return number

    def room(self, number: int) -> int:
        """How many bytes the next `send` may have."""
        return min(self._streams[number].credit, MAX_PAYLOAD_BYTES)

    def send(self, number: int, payload: bytes) -> None:
        """Send `payload`. Raises ValueError if it is empty, has no room, or follows `end`."""
        stream = self._streams[number]
        if not 0 < len(payload) <= self.room(number) or stream.end_sent:
            raise ValueError(f"{len(payload)} bytes cannot be sent on stream {number} now")
        stream.credit -= len(payload)
        self._queue(_Type.DATA, number, payload)

    def grant(self, number: int, count: int) -> None:
        """Say that the local end took `count` bytes of what was received, so that the peer may send as many more."""
        stream = self._streams[number]
        stream.taken += count
        if stream.taken >= _GRANT_BYTES and not stream.end_received:
            stream.peer_credit += stream.taken
            self._queue(_Type.WINDOW, number, _U32.pack(stream.taken))
            stream.taken = 0

    def end(self, number: int) -> None:
        """Send no more on the stream; what the peer sends is received as before."""
        self._streams[number].end_sent = True
        self._queue(_Type.END, number)

    def close(self, number: int, ending: Ending) -> None:
        """Forget the stream: IN_ORDER after both sides ended it, else whatever either still has to send is lost."""
        stream = self._streams[number]
        if ending is Ending.IN_ORDER and not (stream.end_sent and stream.end_received):
            raise ValueError(f"stream {number} has not ended on both sides")
        self._close(number, stream, ending)

    def ping(self) -> int:
        """Ask for a `Ponged` with the number that this returns."""
        self._pings += 1
        self._queue(_Type.PING, 0, _U64.pack(self._pings))
        return self._pings

    def receive(self, data: bytes | bytearray | memoryview) -> Iterator[Event]:
        """Take `data` from the peer; what happened, to be handled one by one while this goes on, to the end.

        Raises ControlProtocolError for what the protocol does not allow.
        """
        unread = self._unread
        unread += data
        while len(unread) >= _HEADER.size:
            code, number, length = _HEADER.unpack_from(unread)
            kind = _checked_type(code, number, length)
            end = _HEADER.size + length
            if len(unread) < end:
                return
            with memoryview(unread) as view:
                payload = bytes(view[_HEADER.size : end])
            del unread[:end]
            event = self._handle(kind, number, payload)
            if event is not None:
                yield event

    def _queue(self, kind: _Type, number: int, payload: bytes = b"") -> None:
        if len(self.outgoing) > MAX_OUTGOING_BYTES:
            raise ControlProtocolError("the other side of the trunk sends and does not read")
        if number > 0xFFFF_FFFF:
            raise ControlProtocolError("the trunk has no number left for another stream")
        self.outgoing += _HEADER.pack(kind, number, len(payload))
        self.outgoing += payload

    def _handle(self, kind: _Type, number: int, payload: bytes) -> Event | None:
        if kind is _Type.OPEN:
            return self._take_open(number, payload)
        if kind is _Type.PING:
            self._queue(_Type.PONG, 0, payload)
            return None
        if kind is _Type.PONG:
            return self._take_pong(payload)
        stream = self._streams.get(number)
        if stream is None or stream.close_received:
            raise ControlProtocolError(f"a frame on stream {number} of the trunk, which is not open")
        event = self._take(kind, number, payload, stream)
        return None if stream.close_sent and not isinstance(event, Aborted) else event

    def _take(self, kind: _Type, number: int, payload: bytes, stream: _Stream) -> Event | None:
        if kind is _Type.CLOSE:
            return self._take_close(number, payload[0], stream)
        if kind is _Type.WINDOW:
            return _take_window(number, payload, stream)
        if stream.end_received:
            raise ControlProtocolError(f"stream {number} of the trunk goes on after its end")
        if kind is _Type.END:
            stream.end_received = True
            return Ended(number=number)
        if len(payload) > stream.peer_credit:
            raise ControlProtocolError(f"stream {number} of the trunk has more data than it has credit for")
        stream.peer_credit -= len(payload)
        return Received(number=number, payload=payload)

    def _take_open(self, number: int, payload: bytes) -> Opened:
        if number != self._peer_next:
            raise ControlProtocolError(f"stream {number} of the trunk was opened out of turn")
        if len(self._streams) - self._ours >= MAX_STREAMS:
            raise ControlProtocolError(f"the other side of the trunk opened more than {MAX_STREAMS} streams")
        if not _KIND.fullmatch(payload):
            raise ControlProtocolError("the kind of a stream of the trunk is not printable ASCII")
        self._peer_next += 2
        self._streams[number] = _Stream()
        return Opened(number=number, kind=payload.decode("ascii"))

    def _take_pong(self, payload: bytes) -> Ponged:
        (ping,) = _U64.unpack(payload)
        if not self._pongs < ping <= self._pings:
            raise ControlProtocolError("the other side of the trunk answered a ping that was not sent")
        self._pongs = ping
        return Ponged(ping=ping)

    def _take_close(self, number: int, code: int, stream: _Stream) -> Aborted | None:
        try:
            ending = Ending(code)
        except ValueError:
            raise ControlProtocolError(f"stream {number} of the trunk was closed in an unknown way") from None
        both_ended = stream.end_sent and stream.end_received
        if ending is Ending.IN_ORDER and not (both_ended or stream.close_sent):
            raise ControlProtocolError(f"stream {number} of the trunk was closed before its end")
        stream.close_received = True
        if stream.close_sent:
            self._forget(number)
            return None
        if ending is Ending.IN_ORDER:
            return None  # this side may still have bytes to hand on
        self._close(number, stream, Ending.IN_ORDER)
        return Aborted(number=number, ending=ending)

    def _close(self, number: int, stream: _Stream, ending: Ending) -> None:
        stream.close_sent = True
        self._queue(_Type.CLOSE, number, bytes([ending]))
        if stream.close_received:
            self._forget(number)

    def _forget(self, number: int) -> None:
        del self._streams[number]
        self._ours -= number % 2 == self._next % 2


def _checked_type(code: int, number: int, length: int) -> _Type:
    """The type of a frame, from its header alone: nothing is kept for a frame that no side may send."""
    least, most = _LENGTHS.get(code, (1, 0))  # type: ignore[call-overload]
    if not least <= length <= most:
        raise ControlProtocolError(f"a frame of type {code} and {length} bytes, which the trunk does not have")
    kind = _Type(code)
    if (number == 0) != (kind in (_Type.PING, _Type.PONG)):
        raise ControlProtocolError(f"a frame of type {code} on stream {number} of the trunk")
    return kind


def _take_window(number: int, payload: bytes, stream: _Stream) -> Credited:
    (count,) = _U32.unpack(payload)
    if not 0 < count <= WINDOW_BYTES - stream.credit:
        raise ControlProtocolError(f"stream {number} of the trunk got credit for what was not sent")
    stream.credit += count
    return Credited(number=number)
