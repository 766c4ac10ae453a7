"""What a launcher and a guest's first process say to each other beside the control protocol. Standard library only.

The boot document goes in, one JSON object; reports come out, one JSON object a line. Neither side trusts the other:
both are bounded, and what does not parse is a ControlProtocolError.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from typing import Any, Final

from adyton.errors import ControlProtocolError

MAX_BOOT_DOCUMENT_BYTES: Final = 1024 * 1024
MAX_REPORT_BYTES: Final = 4096
_MANY_SECONDS: Final = 1e9
_PCR: Final = re.compile(r"([0-9a-f]{64})?")
HOST_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class BootDocument:
    """What a guest is told when it boots.

    `time_ns`: since 1970. `event_log` and `certificates` (DER) are what the launcher knows of the guest's TPM: the
    log of what it measured, and who vouches for the attestation key; the guest staples them to its evidence.
    `approvals`: documents with which signers let that TPM give their code its keys; the guest verifies them.
    """

    time_ns: int
    host_name: str
    event_log: bytes
    certificates: tuple[bytes, ...]
    approvals: tuple[bytes, ...]

    def encode(self) -> bytes:
        """As JSON."""
        return json.dumps(
            {
                "time_ns": self.time_ns,
                "host_name": self.host_name,
                "event_log": _text(self.event_log),
                "certificates": [_text(each) for each in self.certificates],
                "approvals": [_text(each) for each in self.approvals],
            }
        ).encode()


def parse_boot_document(data: bytes) -> BootDocument:
    """Read one. Raises ControlProtocolError."""
    fields = _parse(data, MAX_BOOT_DOCUMENT_BYTES, "boot document")
    try:
        time_ns, host_name = fields["time_ns"], fields["host_name"]
        if type(time_ns) is not int or not 0 <= time_ns < 1 << 63 or not HOST_NAME.fullmatch(host_name):
            raise ValueError("time_ns or host_name")
        return BootDocument(
            time_ns=time_ns,
            host_name=host_name,
            event_log=_bytes(fields["event_log"]),
            certificates=tuple(_bytes(each) for each in fields["certificates"]),
            approvals=tuple(_bytes(each) for each in fields["approvals"]),
        )
    except (KeyError, TypeError, ValueError) as problem:
        raise ControlProtocolError("the boot document is not one") from problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The enclave's process runs. How long the kernel had run when the first process began, and when it forked.

    `pcr0`: what the guest's TPM has there in its SHA-256 bank, in hexadecimal; empty without a TPM. Nothing vouches for
    it: a verifier reads evidence.
    """

    seconds_to_pid1: float
    seconds_to_fork: float
    pcr0: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The enclave's process has ended: its exit code, or a signal's number below zero."""

    status: int
    out_of_memory: bool


def encode_report(report: Started | Ended) -> bytes:
    """One line."""
    fields: dict[str, Any] = (
        {
            "event": "started",
            "seconds_to_pid1": report.seconds_to_pid1,
            "seconds_to_fork": report.seconds_to_fork,
            "pcr0": report.pcr0,
        }
        if isinstance(report, Started)
        else {"event": "ended", "status": report.status, "out_of_memory": report.out_of_memory}
    )
    return json.dumps(fields).encode() + b"\n"


def parse_report(line: bytes) -> Started | Ended:
    """Read one. Raises ControlProtocolError."""
    fields = _parse(line, MAX_REPORT_BYTES, "guest's report")
    seconds = [fields.get(name) for name in ("seconds_to_pid1", "seconds_to_fork")]
    pcr0 = fields.get("pcr0")
    if fields.get("event") == "started" and all(map(_is_duration, seconds)) and _PCR.fullmatch(str(pcr0)):
        to_pid1, to_fork = map(float, seconds)  # type: ignore[arg-type]
        return Started(seconds_to_pid1=to_pid1, seconds_to_fork=to_fork, pcr0=str(pcr0))
    status, out_of_memory = fields.get("status"), fields.get("out_of_memory")
    if fields.get("event") == "ended" and type(status) is int and type(out_of_memory) is bool and abs(status) < 256:
        return Ended(status=status, out_of_memory=out_of_memory)
    raise ControlProtocolError("the guest's report is not one")


def _is_duration(value: object) -> bool:
    """Whether that is a number of seconds; Python's JSON has infinite ones too, and "not a number"."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _MANY_SECONDS


def _parse(data: bytes, limit: int, what: str) -> dict[str, Any]:
    try:
        if len(data) > limit:
            raise ValueError("too long")
        fields = json.loads(data)
        if isinstance(fields, dict):
            return fields
    except (ValueError, RecursionError) as problem:
        raise ControlProtocolError(f"the {what} is not JSON of at most {limit} bytes") from problem
    raise ControlProtocolError(f"the {what} is no JSON object")


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: object) -> bytes:
    if not isinstance(text, str):
        raise TypeError("not a string")
    return base64.b64decode(text, validate=True)
