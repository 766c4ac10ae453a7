"""The simulation's vendor and hardware, both on the host: the half that real TEEs have in silicon.

It signs any measurement that the launcher names. That is the whole difference from a TEE, and why it protects nothing.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from adyton.errors import LaunchError
from adyton.tee.simulated.certificates import make_leaf
from adyton.tee.simulated.format import (
    MEASUREMENT_BYTES,
    REPORT_DATA_BYTES,
    encode_signed_part,
    encode_simulated,
    signature_input,
)
from adyton.tee.simulated.root_file import SimulatedRoot, default_directory, load_or_make_root
from adyton.tee.simulated.sealing_platform import Registers, SealingHardware
from adyton.tee.simulated.signature import sign_low_s
from adyton.tee.simulated.signed_code import SignedCode

RENEW_BEFORE_END: Final = timedelta(hours=1)

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The clock that the platform uses unless it is given another."""
    return datetime.now(UTC)


class SimulatedPlatform:
    """One machine's simulation platform: its root, and the hardware of each enclave that it starts."""

    def __init__(self, root: SimulatedRoot, *, clock: Clock = utc_now, registers: Path | None = None) -> None:
        self._root = root
        self._clock = clock
        self._registers = Registers(registers)

    @classmethod
    def open(cls, directory: Path | None = None, *, clock: Clock = utc_now) -> Self:
        """The machine's platform; its root is made on first use, in `root_file.default_directory()` if none is given.

        A root that can't be kept, that others can read, or that does not parse: `LaunchError`, with how to mend it.
        """
        directory = directory or default_directory()
        return cls(load_or_make_root(directory, clock()), clock=clock, registers=directory / "registers")

    @property
    def root(self) -> x509.Certificate:
        """What a client must be given to believe this machine's simulation."""
        return self._root.certificate

    def enclave(self, measurement: bytes) -> SimulatedHardware:
        """The hardware under one enclave of that measurement (48 bytes, else `ValueError`)."""
        return SimulatedHardware(self._root, measurement, clock=self._clock)

    def sealing(self, measurement: bytes, *, signed: SignedCode | None = None, tcb: int = 1) -> SealingHardware:
        """What gives that enclave its sealing keys. A signature of another measurement: `LaunchError`.

        `tcb` is the security version that the simulation plays; more each time that it was updated.
        """
        if signed is not None and signed.measurement != measurement:
            raise LaunchError(
                f"the signed code is of the measurement {signed.measurement.hex()}; this is {measurement.hex()}",
                mend="sign this bundle: adyton sign",
            )
        return SealingHardware(
            self._root.key, measurement=measurement, signed=signed, tcb=tcb, registers=self._registers
        )


class SimulatedHardware:
    """Signs evidence for one enclave, with a key of its own that the root certified for 24 hours. Safe in threads."""

    def __init__(self, root: SimulatedRoot, measurement: bytes, *, clock: Clock = utc_now) -> None:
        if len(measurement) != MEASUREMENT_BYTES:
            raise ValueError(f"a measurement has {MEASUREMENT_BYTES} bytes, not {len(measurement)}")
        self._root = root
        self._measurement = measurement
        self._clock = clock
        self._lock = threading.Lock()
        self._renew_leaf(clock())

    @property
    def root(self) -> x509.Certificate:
        """What it is under; it goes with each quote, for a client knows only its digest."""
        return self._root.certificate

    def quote(self, report_data: bytes) -> bytes:
        """Evidence over exactly 64 bytes (else `ValueError`), issued now, under a leaf with an hour or more to live."""
        if len(report_data) != REPORT_DATA_BYTES:
            raise ValueError(f"report_data has {REPORT_DATA_BYTES} bytes, not {len(report_data)}")
        now = self._clock()
        with self._lock:
            if not self._leaf.not_valid_before_utc <= now <= self._leaf.not_valid_after_utc - RENEW_BEFORE_END:
                self._renew_leaf(now)
            key, leaf = self._key, self._leaf
        signed_part = encode_signed_part(
            report_data=report_data,
            measurement=self._measurement,
            issued_at=now,
            leaf_certificate_der=leaf.public_bytes(serialization.Encoding.DER),
        )
        return encode_simulated(signed_part, sign_low_s(key, signature_input(signed_part)))

    def _renew_leaf(self, now: datetime) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._leaf = make_leaf(self._key.public_key(), self._root.key, self._root.certificate, now)


def serve(hardware: SimulatedHardware, connection: socket.socket) -> None:
    """Answer the enclave's `SimulatedDevice`, until it ends: 64 bytes of report_data in, evidence and DER root out.

    Each of the two comes after its length, a big-endian u16. For a thread of the launcher. Returns when either side
    closes or the connection fails; does not close it.
    """
    root = _prefixed(hardware.root.public_bytes(serialization.Encoding.DER))
    with contextlib.suppress(OSError):
        while len(report_data := _receive(connection, REPORT_DATA_BYTES)) == REPORT_DATA_BYTES:
            connection.sendall(_prefixed(hardware.quote(report_data)) + root)


def _prefixed(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def _receive(connection: socket.socket, count: int) -> bytes:
    """That many bytes, or fewer if the stream ends before."""
    received = b""
    while len(received) < count and (part := connection.recv(count - len(received))):
        received += part
    return received
