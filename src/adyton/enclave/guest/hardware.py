"""The guest's hardware, which makes evidence: given to the enclave's unprivileged process by the first one.

A TPM, a Nitro security module and SNP's sealing keys are device files, and are handed over. The kernel's interface to
the reports of SNP, TDX and CCA is a folder that only root may use, so a process of root's own answers for it; it starts
when it is asked first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adyton.errors import AdytonError, ControlProtocolError, EvidenceError, UnsupportedError
from adyton.proto.frames import encode_frame, read_frame

if TYPE_CHECKING:
    from adyton.tee.devices import Device
    from adyton.tee.evidence import Evidence

EVENT_LOG: Final = "/run/event-log"
REPORTS: Final = "/sys/kernel/config/tsm/report"
_DEVICES: Final = ("/dev/tpmrm0", "/dev/nsm", "/dev/sev-guest")
_FIRMWARE_EVENT_LOG: Final = "/sys/kernel/security/tpm0/binary_bios_measurements"
_EVIDENCE, _PROBLEM = b"\0", b"\1"
_log = logging.getLogger(__name__)


def hand_over(uid: int, event_log: bytes) -> None:
    """Let that user use the device files, and read the log of what was measured: the firmware's, or the launcher's."""
    for path in _DEVICES:
        with contextlib.suppress(FileNotFoundError):
            os.chown(path, uid, uid)
    if not event_log:
        with contextlib.suppress(OSError):
            event_log = Path(_FIRMWARE_EVENT_LOG).read_bytes()
    Path(EVENT_LOG).write_bytes(event_log)


def needs_root() -> bool:
    """Whether the hardware is one that only root may ask: whether the kernel would make a report, if root asked."""
    probe = Path(REPORTS, "adyton-probe")
    try:
        probe.mkdir()
    except OSError:  # no such folder, or nobody who provides reports
        return False
    probe.rmdir()
    return True


def find_hardware(*, certificates: Sequence[str], broker_fd: int | None) -> Device | None:
    """What makes evidence here; None, and a line in the log, where nothing does.

    `certificates` (DER in hexadecimal) vouch for a TPM's attestation key. `broker_fd`: root's process answers there.
    """
    from adyton.tee.devices import find_device
    from adyton.tee.tpm.device import TpmDevice

    if broker_fd is not None:
        return BrokeredDevice(socket.socket(fileno=broker_fd))
    try:
        device = find_device()
    except UnsupportedError as problem:
        _log.warning("%s", problem.message)
        return None
    if isinstance(device, TpmDevice):
        vouching = tuple(map(bytes.fromhex, certificates))
        return TpmDevice(certificates=vouching, event_log=Path(EVENT_LOG).read_bytes())
    return device


class BrokeredDevice:
    """Hardware that root's process asks for us. Serial; safe in threads."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._guard = threading.Lock()
        self.tee = self._receive().decode()

    def collect_evidence(self, report_data: bytes) -> Evidence:
        """As `adyton.tee.devices.Device` says."""
        from adyton.tee.message import decode_evidence

        if len(report_data) != 64:
            raise ValueError(f"report_data has 64 bytes, not {len(report_data)}")
        with self._guard:
            self._connection.sendall(encode_frame(report_data))
            return decode_evidence(self._receive())

    def _receive(self) -> bytes:
        try:
            frame = read_frame(self._connection)
        except (OSError, ControlProtocolError) as problem:
            raise EvidenceError("root's process, which asks the hardware, does not answer") from problem
        if not frame:
            raise EvidenceError("root's process, which asks the hardware, is gone")
        if frame[:1] != _EVIDENCE:
            raise EvidenceError(frame[1:].decode("utf-8", "replace"))
        return frame[1:]


def serve_hardware(connection: socket.socket) -> None:
    """Answer a `BrokeredDevice` until it is gone. Runs as root, in a process of its own."""
    from adyton.tee.devices import find_device
    from adyton.tee.message import encode_evidence

    try:
        device = find_device()
    except AdytonError as problem:
        connection.sendall(encode_frame(_PROBLEM + problem.message.encode()))
        return
    connection.sendall(encode_frame(_EVIDENCE + device.tee.encode()))
    while (report_data := read_frame(connection)) is not None:
        try:
            answer = _EVIDENCE + encode_evidence(device.collect_evidence(report_data))
        except (AdytonError, ValueError) as problem:
            answer = _PROBLEM + str(problem).encode()
        connection.sendall(encode_frame(answer))
