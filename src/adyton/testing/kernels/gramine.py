"""Gramine's /dev/attestation in SGX (libos/src/fs/dev/attestation.c)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from adyton.testing.kernels.emulated import Content, Driver, OpenFile

ATTESTATION: Final = "/dev/attestation"
_REPORT_DATA_BYTES: Final = 64


class Gramine(Driver):
    """The files of one process, which has one user_report_data, whatever its threads do.

    `quote` is the hardware: report_data in, quote out. There is no file to read it from if `attestation_type` is none.
    """

    def __init__(self, *, quote: Callable[[bytes], bytes], attestation_type: bytes = b"dcap") -> None:
        self.user_report_data = bytes(_REPORT_DATA_BYTES)
        self._quote = quote
        self._attestation_type = attestation_type

    def open(self, path: str, flags: int) -> OpenFile | None:
        """What a file has is made when it is opened."""
        directory, _, name = path.rpartition("/")
        if directory != ATTESTATION:
            return None
        if name == "user_report_data" and flags == os.O_WRONLY:
            return _UserReportData(self)
        if name == "attestation_type":
            return Content(self._attestation_type)
        if name == "quote" and self._attestation_type != b"none":
            return Content(self._quote(self.user_report_data))
        return None


class _UserReportData(OpenFile):
    """Taken when it is closed, and padded with zeros."""

    def __init__(self, gramine: Gramine) -> None:
        self._gramine = gramine
        self._written = b""

    def write(self, data: bytes) -> int:
        """To a buffer."""
        assert not self._written, "a second write of user_report_data"
        self._written = data
        return len(data)

    def close(self) -> None:
        """Where it counts."""
        self._gramine.user_report_data = self._written.ljust(_REPORT_DATA_BYTES, b"\0")[:_REPORT_DATA_BYTES]
