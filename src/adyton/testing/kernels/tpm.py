"""A TPM 2.0 in two ways: the real code of one (swtpm), and as much of one as evidence takes, with its mind bared.

Either is a function from command to response; `TpmNode` is the /dev/tpmrm0 in front of it.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from adyton.testing.kernels.emulated import Driver, OpenFile, failure

DEVICE: Final = "/dev/tpmrm0"
_HEAD: Final = struct.Struct(">HII")
_START_SECONDS: Final = 10.0

Transmit = Callable[[bytes], bytes]


class TpmNode(Driver):
    """/dev/tpmrm0, in front of a TPM. A command is carried out when it is written, whole; then its response is read."""

    def __init__(self, transmit: Transmit) -> None:
        self._transmit = transmit

    def open(self, path: str, flags: int) -> OpenFile | None:
        """For reading and writing, by any number."""
        return _OpenTpm(self._transmit) if path == DEVICE and flags == os.O_RDWR else None


class _OpenTpm(OpenFile):
    def __init__(self, transmit: Transmit) -> None:
        self._transmit = transmit
        self._response = b""

    def write(self, data: bytes) -> int:
        """One whole command."""
        if self._response:
            raise failure(errno.EBUSY)
        _, size, _ = _HEAD.unpack_from(data)
        if size != len(data):
            raise failure(errno.EINVAL)
        self._response = self._transmit(data)
        return len(data)

    def read(self, count: int) -> bytes:
        """What is left of the response."""
        part, self._response = self._response[:count], self._response[count:]
        return part

    def close(self) -> None:
        """With a response unread, if somebody gave up."""


class Swtpm:
    """A running swtpm (Debian: `apt install swtpm`), fresh, with its state in `directory`. A context manager.

    It has no resource manager: who loads a key must flush it, or the fourth does not fit.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._socket = directory / "socket"

    @staticmethod
    def is_installed() -> bool:
        """Whether there is one to run."""
        return shutil.which("swtpm") is not None

    def __enter__(self) -> Self:
        state, server = f"dir={self._directory}", f"type=unixio,path={self._socket}"
        options = ("--tpm2", "--tpmstate", state, "--server", server, "--flags", "not-need-init,startup-clear")
        log = self._directory / "log"
        with log.open("wb") as stream:
            command = ("swtpm", "socket", *options)
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
        deadline = time.monotonic() + _START_SECONDS
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._stop()
                raise RuntimeError(f"swtpm does not run: {log.read_text()}")
            time.sleep(0.01)
        return self

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(self._socket))
            except (FileNotFoundError, ConnectionRefusedError):
                return False
        return True

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def transmit(self, command: bytes) -> bytes:
        """Carry out a command; one at a time."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_START_SECONDS)
            connection.connect(str(self._socket))
            connection.sendall(command)
            response = b""
            while len(response) < _HEAD.size or len(response) < _HEAD.unpack_from(response)[1]:
                part = connection.recv(4096)
                if not part:
                    raise RuntimeError("swtpm hung up")
                response += part
            return response
