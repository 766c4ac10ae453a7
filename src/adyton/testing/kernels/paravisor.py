"""What Azure's paravisor does with its vTPM: a report in NV memory, made anew some time after user data was written."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from adyton.testing.kernels.tpm import Transmit

HCL_REPORT_INDEX: Final = 0x01400001
USER_DATA_INDEX: Final = 0x01400002
_NV_WRITE: Final = 0x137
_NV_READ: Final = 0x14E
_OWNER: Final = 0x40000001
_CHUNK_BYTES: Final = 512
_COMMAND: Final = struct.Struct(">HIIII")
"""Head, authority and NV index."""
_PASSWORD: Final = bytes.fromhex("00000009 40000009 0000 00 0000")
_CONTENT_AT: Final = _COMMAND.size + len(_PASSWORD) + 2


class Paravisor:
    """A vTPM (`transmit`) and who reports on it.

    `report` makes the HCL report about some user data, at most `size` bytes. The index has that of no user data first;
    after a write of user data it takes `lag` readings until it has the new one.
    """

    def __init__(self, transmit: Transmit, report: Callable[[bytes], bytes], *, size: int = 2600, lag: int = 2) -> None:
        self._transmit = transmit
        self._report = report
        self._size = size
        self._lag = lag
        self._user_data: bytes | None = None
        self._readings = 0
        self._define()
        self._write(report(bytes(64)))

    def transmit(self, command: bytes) -> bytes:
        """A command of the guest's."""
        code, index = _COMMAND.unpack_from(command.ljust(_COMMAND.size, b"\0"))[2::2]
        if (code, index) == (_NV_READ, HCL_REPORT_INDEX) and command.endswith(bytes(2)):
            self._refresh()
        response = self._transmit(command)
        if (code, index) == (_NV_WRITE, USER_DATA_INDEX) and response[6:10] == bytes(4):
            self._user_data, self._readings = command[_CONTENT_AT:-2], 0
        return response

    def _refresh(self) -> None:
        self._readings += 1
        if self._user_data is not None and self._readings > self._lag:
            self._write(self._report(self._user_data))
            self._user_data = None

    def _define(self) -> None:
        public = struct.pack(">IHIHH", HCL_REPORT_INDEX, 0x000B, 0x00020002, 0, self._size)
        body = struct.pack(">I", _OWNER) + _PASSWORD + bytes(2) + struct.pack(">H", len(public)) + public
        self._check(struct.pack(">HII", 0x8002, 10 + len(body), 0x12A) + body)

    def _write(self, report: bytes) -> None:
        padded = report.ljust(self._size, b"\0")
        for offset in range(0, self._size, _CHUNK_BYTES):
            part = padded[offset : offset + _CHUNK_BYTES]
            body = _PASSWORD + struct.pack(">H", len(part)) + part + struct.pack(">H", offset)
            self._check(_COMMAND.pack(0x8002, _COMMAND.size + len(body), _NV_WRITE, _OWNER, HCL_REPORT_INDEX) + body)

    def _check(self, command: bytes) -> None:
        response = self._transmit(command)
        assert response[6:10] == bytes(4), response.hex()
