"""Frames of the control protocol: a length of 4 bytes, big endian, then that many bytes.

Ours, and not HTTP/2, because the enclave's side of it is reachable by a hostile host: see docs/adr/0002.
"""

from __future__ import annotations

import struct
from typing import Protocol

from adyton.errors import ControlProtocolError

#: The longest frame that either side sends or accepts, in bytes.
MAX_FRAME_BYTES = 4 * 1024 * 1024

_LENGTH = struct.Struct(">I")


class Stream(Protocol):
    """A reliable, ordered stream of bytes; a connected stream socket is one."""

    def recv(self, size: int, /) -> bytes:
        """Some bytes, at most `size`; none at the end of the stream."""

    def sendall(self, data: bytes, /) -> None:
        """Send all of `data`."""

    def shutdown(self, how: int, /) -> None:
        """Stop both directions (socket.SHUT_RDWR), which wakes whoever waits in recv or sendall."""

    def close(self) -> None:
        """Give the stream up."""


def encode_frame(payload: bytes) -> bytes:
    """The frame of `payload`. Raises ControlProtocolError if it is too long to send."""
    if len(payload) > MAX_FRAME_BYTES:
        raise ControlProtocolError(f"a message of {len(payload)} bytes; the control protocol takes {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(payload)) + payload


def read_frame(stream: Stream) -> bytes | None:
    """The next frame's payload, or None where the stream ends between two frames.

    Raises ControlProtocolError for a frame that is too long or cut off, OSError for a broken stream.
    """
    header = _read(stream, _LENGTH.size)
    if not header:
        return None
    if len(header) < _LENGTH.size:
        raise ControlProtocolError("the stream ended within a frame")
    (length,) = _LENGTH.unpack(header)
    if length > MAX_FRAME_BYTES:
        raise ControlProtocolError(f"a frame of {length} bytes; the control protocol takes {MAX_FRAME_BYTES}")
    payload = _read(stream, length)
    if len(payload) < length:
        raise ControlProtocolError("the stream ended within a frame")
    return payload


def _read(stream: Stream, size: int) -> bytes:
    parts: list[bytes] = []
    missing = size
    while missing:
        part = stream.recv(min(missing, 65536))
        if not part:
            break
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
