"""Inside the enclave: ask the simulation's hardware, at the other end of a stream socket, for evidence."""

from __future__ import annotations

import socket
import struct
import threading
import time
from typing import ClassVar, Final

from adyton.errors import EvidenceError
from adyton.tee.evidence import Endorsement, EndorsementKind, Evidence
from adyton.tee.simulated.format import MAX_EVIDENCE_BYTES, REPORT_DATA_BYTES

DEFAULT_TIMEOUT_SECONDS: Final = 10.0
MAX_ROOT_BYTES: Final = 2048
_LENGTH: Final = struct.Struct(">H")


class SimulatedDevice:
    """The enclave's end of the hardware; owns the connection. Serial, as real hardware is; safe in threads.

    The host is at the other end, so an answer is bounded in size and time and otherwise not believed: whoever gets the
    evidence verifies it.
    """

    tee: ClassVar[str] = "simulated"

    def __init__(self, connection: socket.socket, *, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> None:
        self._connection = connection
        self._timeout_seconds = timeout_seconds
        self._lock = threading.Lock()

    def collect_evidence(self, report_data: bytes) -> Evidence:
        """Evidence over exactly 64 bytes (else `ValueError`), with its platform's root stapled, not verified.

        No answer within the timeout, or a wrong one: `EvidenceError`, and the device is closed for good, since a late
        answer would be taken for that of the next question.
        """
        if len(report_data) != REPORT_DATA_BYTES:
            raise ValueError(f"report_data has {REPORT_DATA_BYTES} bytes, not {len(report_data)}")
        with self._lock:
            if self._connection.fileno() < 0:
                raise EvidenceError("the simulated device is closed, after an earlier failure or by its owner")
            try:
                return self._ask(report_data)
            except BaseException:
                self._connection.close()
                raise

    def _ask(self, report_data: bytes) -> Evidence:
        deadline = time.monotonic() + self._timeout_seconds
        try:
            self._allow_until(deadline)
            self._connection.sendall(report_data)
            data = self._receive_prefixed("evidence", MAX_EVIDENCE_BYTES, deadline)
            root = self._receive_prefixed("root certificate", MAX_ROOT_BYTES, deadline)
        except TimeoutError as error:
            raise EvidenceError(f"the simulated device did not answer in {self._timeout_seconds:g} s") from error
        except OSError as error:
            raise EvidenceError(f"the simulated device can't be reached: {error.strerror}") from error
        endorsement = Endorsement(kind=EndorsementKind.CERTIFICATE, data=root)
        return Evidence(tee=self.tee, data=data, endorsements=(endorsement,))

    def _receive_prefixed(self, what: str, at_most: int, deadline: float) -> bytes:
        (length,) = _LENGTH.unpack(self._receive(_LENGTH.size, deadline))
        if not 0 < length <= at_most:
            raise EvidenceError(f"the simulated device announced {length} bytes of {what}; 1 to {at_most} are allowed")
        return self._receive(length, deadline)

    def _receive(self, count: int, deadline: float) -> bytes:
        received = b""
        while len(received) < count:
            self._allow_until(deadline)
            part = self._connection.recv(count - len(received))
            if not part:
                raise EvidenceError(f"the simulated device hung up {count - len(received)} bytes too early")
            received += part
        return received

    def _allow_until(self, deadline: float) -> None:
        """Bound the next call on the socket: a timeout for each alone would let a slow host stretch the whole."""
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        self._connection.settimeout(remaining)
