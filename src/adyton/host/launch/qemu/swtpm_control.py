"""swtpm's control channel: spoken by the launcher, and passed on for QEMU with one addition, the launch's measurement.

The protocol is that of swtpm_ioctls(3) and swtpm's tpm_ioctl.h over a Unix stream socket: a command's number as a
big-endian u32 and its body, then a response that begins with a TPM_RESULT; one at a time.
"""

from __future__ import annotations

import enum
import os
import select
import socket
import struct
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from adyton.errors import LaunchError

SECONDS: Final = 10.0
"""How long swtpm may take over a command."""


class Command(enum.IntEnum):
    """What the launcher or QEMU says. Not here: what moves a TPM's state to another machine."""

    GET_CAPABILITY = 1
    INIT = 2
    SHUTDOWN = 3
    GET_TPMESTABLISHED = 4
    SET_LOCALITY = 5
    HASH_START = 6
    HASH_DATA = 7
    HASH_END = 8
    CANCEL_TPM_CMD = 9
    RESET_TPMESTABLISHED = 11
    STOP = 14
    GET_CONFIG = 15
    SET_DATAFD = 16
    SET_BUFFERSIZE = 17


_FORWARDED: Final[Mapping[int, int]] = MappingProxyType(
    {
        Command.GET_CAPABILITY: 0,
        Command.INIT: 4,
        Command.SHUTDOWN: 0,
        Command.GET_TPMESTABLISHED: 0,
        Command.SET_LOCALITY: 1,
        Command.CANCEL_TPM_CMD: 0,
        Command.RESET_TPMESTABLISHED: 1,
        Command.STOP: 0,
        Command.GET_CONFIG: 0,
        Command.SET_DATAFD: 0,
        Command.SET_BUFFERSIZE: 4,
    }
)
"""What QEMU may command, with the least size of the body; some of QEMU's are padded. Measuring is not QEMU's."""
_RESULT: Final = struct.Struct(">I")
_MORE: Final[Mapping[int, int]] = MappingProxyType(
    {Command.GET_CAPABILITY: 4, Command.GET_TPMESTABLISHED: 4, Command.GET_CONFIG: 4, Command.SET_BUFFERSIZE: 12}
)
"""What follows the result in responses that have more; if the result is an error, nothing does."""
_SUCCESS: Final = _RESULT.pack(0)
_TPM_FAIL: Final = _RESULT.pack(9)
_REQUEST_BYTES: Final = 8
"""QEMU's longest."""


class SwtpmControl:
    """The side that commands. What swtpm refuses is a `LaunchError`, a connection that fails or hangs an OSError."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(SECONDS)
        self._connection = connection

    def fileno(self) -> int:
        """The connection's descriptor; readable between commands only when swtpm is gone."""
        return self._connection.fileno()

    def require(self, command: Command, body: bytes = b"", *, descriptors: Sequence[int] = ()) -> None:
        """Have it carried out."""
        response = self.attempt(command, body, descriptors=descriptors)
        if response[: _RESULT.size] != _SUCCESS:
            raise LaunchError(f"swtpm refused {command.name} with 0x{response[: _RESULT.size].hex()}")

    def attempt(self, command: Command, body: bytes = b"", *, descriptors: Sequence[int] = ()) -> bytes:
        """The response, whatever it says."""
        request = _RESULT.pack(command) + body
        sent = socket.send_fds(self._connection, [request], list(descriptors))
        if rest := request[sent:]:  # an empty write may come after the end of a swtpm that was told to end
            self._connection.sendall(rest)
        response = _receive_exactly(self._connection, _RESULT.size)
        if response == _SUCCESS or command is Command.GET_CAPABILITY:  # whose first half is no result
            response += _receive_exactly(self._connection, _MORE.get(command, 0))
        return response

    def measure(self, document: bytes) -> None:
        """As the H-CRTM: PCR 0 becomes that document's. After INIT, before the TPM is started."""
        self.require(Command.HASH_START)
        self.require(Command.HASH_DATA, struct.pack(">I", len(document)) + document)
        self.require(Command.HASH_END)


def pass_on(qemu: socket.socket, control: SwtpmControl, document: bytes | None) -> None:
    """Carry out QEMU's commands until it hangs up. With a `document`, each INIT measures it, or fails.

    The TPM's own commands don't come this way: SET_DATAFD gives swtpm a socket for them. Returns when QEMU has closed
    `qemu`. Raises OSError if swtpm is gone, and `LaunchError` for a command that is not QEMU's to give.
    """
    poll = select.poll()
    poll.register(qemu, select.POLLIN)
    poll.register(control, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if control.fileno() in ready:
            raise ConnectionResetError("swtpm has ended")
        request, descriptors = _receive_request(qemu)
        try:
            if not request:
                return
            qemu.sendall(_carry_out(request, descriptors, control, document))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


def _carry_out(request: bytes, descriptors: Sequence[int], control: SwtpmControl, document: bytes | None) -> bytes:
    command = Command(_RESULT.unpack_from(request)[0])
    response = control.attempt(command, request[_RESULT.size :], descriptors=descriptors)
    if command is not Command.INIT or response != _SUCCESS or document is None:
        return response
    try:
        control.measure(document)
    except LaunchError:
        control.require(Command.STOP)  # a TPM that did not measure must not run
        return _TPM_FAIL
    return _SUCCESS


def _receive_request(qemu: socket.socket) -> tuple[bytes, Sequence[int]]:
    """One request with the descriptors that came along; empty if QEMU has hung up."""
    request, descriptors, _, _ = socket.recv_fds(qemu, _REQUEST_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
    try:
        while request and len(request) < _request_bytes(request):
            more = qemu.recv(_REQUEST_BYTES)
            request = request + more if more else b""
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return request, descriptors


def _request_bytes(request: bytes) -> int:
    """How many bytes the request has at least, as far as its beginning says."""
    if len(request) < _RESULT.size:
        return _RESULT.size
    (command,) = _RESULT.unpack_from(request)
    if command not in _FORWARDED:
        raise LaunchError(f"QEMU gave the virtual TPM the command {command}, which is not passed on")
    return _RESULT.size + _FORWARDED[command]


def _receive_exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionResetError("swtpm hung up")
        data += part
    return data
