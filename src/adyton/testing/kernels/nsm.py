"""The driver of the Nitro Security Module (drivers/misc/nsm.c): CBOR in memory that the caller points to."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from typing import Any, Final

import cbor2

from adyton.testing.kernels.emulated import Driver, OpenFile, failure

NSM: Final = "/dev/nsm"
IOCTL_RAW: Final = 0xC0200A00
REQUEST_BYTES: Final = 0x1000
RESPONSE_BYTES: Final = 0x3000
_IOVECS: Final = struct.Struct("=QQQQ")


class Nsm(Driver):
    """One NSM. `respond` is the hardware: a request in, decoded, and a response out, encoded; see `documents`."""

    def __init__(self, respond: Callable[[Any], bytes]) -> None:
        self._respond = respond

    def open(self, path: str, flags: int) -> OpenFile | None:
        """The device, for reading and writing."""
        return _Nsm(self._respond) if path == NSM and flags == os.O_RDWR else None


def documents(sign: Callable[[bytes], bytes]) -> Callable[[Any], bytes]:
    """What an NSM responds that signs documents over the user_data of attestation requests, and knows nothing else."""

    def respond(request: Any) -> bytes:
        match request:
            case {"Attestation": {"user_data": bytes(user_data), "nonce": None, "public_key": None}}:
                return cbor2.dumps({"Attestation": {"document": sign(user_data)}})
            case _:
                return cbor2.dumps({"Error": "InvalidArgument"})

    return respond


class _Nsm(OpenFile):
    def __init__(self, respond: Callable[[Any], bytes]) -> None:
        self._respond = respond

    def ioctl(self, request: int, buffer: bytearray) -> int:
        """One request and its response, which is cut to the caller's room without a word."""
        if request != IOCTL_RAW or len(buffer) != _IOVECS.size:
            raise failure(errno.EINVAL)
        request_at, request_size, response_at, room = _IOVECS.unpack(buffer)
        if request_size > REQUEST_BYTES:
            raise failure(errno.EMSGSIZE)
        response = self._respond(cbor2.loads(ctypes.string_at(request_at, request_size)))
        taken = min(len(response), RESPONSE_BYTES, room)
        ctypes.memmove(response_at, response, taken)
        _IOVECS.pack_into(buffer, 0, request_at, request_size, response_at, taken)
        return 0
