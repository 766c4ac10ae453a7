"""/dev/nsm as a character device of the real kernel, by CUSE: its one ioctl, whose argument points to more memory."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import Any

import cbor2

from adyton.testing.kernels.emulated import failure
from adyton.testing.kernels.nsm import IOCTL_RAW, REQUEST_BYTES, RESPONSE_BYTES
from guest_devices import protocol
from guest_devices.protocol import Channel, Request

_UNRESTRICTED_IOCTL = 1
_RETRY = 4
_MOST_BYTES = 64 * 1024
_INIT_REPLY = struct.Struct("<IIIIIIII40x")
_IOCTL, _IOCTL_REPLY = struct.Struct("<QIIQII"), struct.Struct("<iIII")
_AREA = struct.Struct("<QQ")
"""Address and length, in the memory of whoever calls."""
_IOVECS = struct.Struct("<QQQQ")


class NsmDevice:
    """The device, there as soon as this is made. `respond` is the hardware: a request in, decoded, a response out."""

    def __init__(self, respond: Callable[[Any], bytes]) -> None:
        self._respond = respond
        self._channel = Channel("/dev/cuse")
        request = self._channel.receive()
        assert request.opcode == protocol.CUSE_INIT
        facts = _INIT_REPLY.pack(*protocol.VERSION, 0, _UNRESTRICTED_IOCTL, _MOST_BYTES, _MOST_BYTES, 0, 0)
        self._channel.reply(request, facts + b"DEVNAME=nsm\0")

    def serve(self) -> None:
        """Until the machine's end."""
        self._channel.serve(
            {
                protocol.OPEN: lambda _: bytes(16),
                protocol.IOCTL: self._ioctl,
                protocol.FLUSH: lambda _: b"",
                protocol.RELEASE: lambda _: b"",
            }
        )

    def _ioctl(self, request: Request) -> bytes:
        """The kernel has to be told, step by step, which of the caller's memory to copy."""
        _, _, command, argument, size, _ = _IOCTL.unpack_from(request.body)
        content = request.body[_IOCTL.size : _IOCTL.size + size]
        if command != IOCTL_RAW:
            raise failure(errno.ENOTTY)
        if not content:
            return _again([(argument, _IOVECS.size)], [])
        asked_at, asked_bytes, answered_at, room = _IOVECS.unpack_from(content)
        if asked_bytes > REQUEST_BYTES:
            raise failure(errno.EMSGSIZE)
        room = min(room, RESPONSE_BYTES)
        areas = [(argument, _IOVECS.size), (asked_at, asked_bytes)]
        if len(content) == _IOVECS.size:
            return _again(areas, [(answered_at, room), (argument, _IOVECS.size)])
        response = self._respond(cbor2.loads(content[_IOVECS.size :]))[:room]
        iovecs = _IOVECS.pack(asked_at, asked_bytes, answered_at, len(response))
        return _IOCTL_REPLY.pack(0, 0, 0, 0) + response.ljust(room, b"\0") + iovecs


def _again(wanted: list[tuple[int, int]], written: list[tuple[int, int]]) -> bytes:
    """Ask for these areas of memory; and those will be written."""
    areas = b"".join(_AREA.pack(*each) for each in (*wanted, *written))
    return _IOCTL_REPLY.pack(0, _RETRY, len(wanted), len(written)) + areas
