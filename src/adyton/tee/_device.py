"""What the devices of all TEEs have in common: asked for evidence one call at a time, and bounded in what they give."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, Final

from adyton.errors import EvidenceError
from adyton.tee._kernel import Kernel, LinuxKernel, read_to_end
from adyton.tee.evidence import (
    MAX_ENDORSEMENT_BYTES,
    MAX_ENDORSEMENTS,
    MAX_EVIDENCE_BYTES,
    Endorsement,
    EndorsementKind,
    Evidence,
)

REPORT_DATA_BYTES: Final = 64

_ALONE: Final = threading.RLock()
"""The hardware is one for the whole process, so the lock is too. A child that is forked finds it free.

Whoever holds it may fork: Azure's device calls what its caller gave it.
"""
os.register_at_fork(before=_ALONE.acquire, after_in_parent=_ALONE.release, after_in_child=_ALONE.release)


class HardwareDevice(ABC):
    """The hardware that an enclave runs on. Asked one question at a time; safe in threads; holds nothing open.

    The evidence is not verified: who relies on it does that. `kernel` is this machine's but in tests.
    """

    tee: ClassVar[str]
    """The label of its evidence, as in adyton.tee.registry."""

    def __init__(self, *, kernel: Kernel | None = None) -> None:
        self._kernel = kernel or LinuxKernel()

    def collect_evidence(self, report_data: bytes) -> Evidence:
        """Evidence over exactly 64 bytes, else `ValueError`.

        Hardware that is not here, or not for this process: `UnsupportedError`, with how to mend it. Hardware, firmware
        or a host that refuses, or answers what can't be: `EvidenceError`; it may be asked again.
        """
        if len(report_data) != REPORT_DATA_BYTES:
            raise ValueError(f"report_data has {REPORT_DATA_BYTES} bytes, not {len(report_data)}")
        with _ALONE:
            evidence = self._collect(report_data)
        _check_size(evidence)
        return evidence

    @abstractmethod
    def check_present(self) -> None:
        """`UnsupportedError` unless the hardware is here. No evidence is made."""

    @abstractmethod
    def _collect(self, report_data: bytes) -> Evidence:
        """Ask the hardware, alone. Must bound what it reads, and close what it opens."""


def _check_size(evidence: Evidence) -> None:
    """What a verifier refuses for its size is not sent."""
    if not 0 < len(evidence.data) <= MAX_EVIDENCE_BYTES:
        message = f"the hardware gave {len(evidence.data)} bytes of evidence; 1 to {MAX_EVIDENCE_BYTES} are allowed"
        raise EvidenceError(message)
    if len(evidence.endorsements) > MAX_ENDORSEMENTS:
        raise EvidenceError(f"{len(evidence.endorsements)} endorsements; {MAX_ENDORSEMENTS} are allowed")
    if any(len(item.data) > MAX_ENDORSEMENT_BYTES for item in evidence.endorsements):
        raise EvidenceError(f"an endorsement of more than {MAX_ENDORSEMENT_BYTES} bytes")


def stapled_certificates(certificates: Iterable[bytes]) -> tuple[Endorsement, ...]:
    """DER certificates as endorsements."""
    return tuple(Endorsement(kind=EndorsementKind.CERTIFICATE, data=der) for der in certificates)


def stapled_event_log(kernel: Kernel, path: str) -> tuple[Endorsement, ...]:
    """The firmware's event log as an endorsement; nothing if it can't be read or is empty. Too large, `EvidenceError`.

    Evidence without a log is genuine all the same; a policy that asks for events refuses it.
    """
    try:
        log = read_to_end(kernel, path, at_most=MAX_ENDORSEMENT_BYTES)
    except OSError:
        return ()
    return (Endorsement(kind=EndorsementKind.EVENT_LOG, data=log),) if log else ()
