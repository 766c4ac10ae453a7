"""Simulated evidence, version 1: bytes ↔ `SimulatedEvidence`. Total, bounded, no I/O; nothing here is trusted yet.

Big endian, no padding, nothing after the end:

    magic            16   "ADYTON-SIMULATED"
    version           2   1
    flags             2   0
    report_data      64   what the enclave wanted signed
    measurement      48   SHA-384, see `simulated_measurement`
    issued_at         8   seconds since 1970-01-01T00:00:00Z
    leaf           2 + n  length, then the DER certificate of the key that signed, n in 1..2048
    signature      2 + m  length, then DER ECDSA-Sig-Value, m in 8..72, over `signature_input(all bytes above)`
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from adyton.errors import EvidenceError

MAX_EVIDENCE_BYTES: Final = 8 * 1024
REPORT_DATA_BYTES: Final = 64
MEASUREMENT_BYTES: Final = 48
LEAF_BYTES: Final = range(1, 2048 + 1)
SIGNATURE_BYTES: Final = range(8, 72 + 1)

MAGIC: Final = b"ADYTON-SIMULATED"
VERSION: Final = 1
SIGNATURE_DOMAIN: Final = b"adyton simulated evidence v1\0"
MEASUREMENT_DOMAIN: Final = b"adyton simulated measurement v1\0"

_HEAD: Final = struct.Struct(f">16sHH{REPORT_DATA_BYTES}s{MEASUREMENT_BYTES}sQ")
HEAD_BYTES: Final = _HEAD.size
_LENGTH: Final = struct.Struct(">H")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_SECOND: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(seconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedEvidence:
    """Well-formed evidence, not verified: every field is only what somebody claims.

    `issued_at` is in UTC and of whole seconds; `signed_part` is the bytes before the signature's length, as received.
    """

    report_data: bytes
    measurement: bytes
    issued_at: datetime
    leaf_certificate_der: bytes
    signature: bytes
    signed_part: bytes


def simulated_measurement(bundle_sha256: bytes) -> bytes:
    """The measurement (48 bytes) of the bundle with that SHA-256 (32 bytes, else `ValueError`)."""
    if len(bundle_sha256) != hashlib.sha256().digest_size:
        raise ValueError(f"a SHA-256 has 32 bytes, not {len(bundle_sha256)}")
    return hashlib.sha384(MEASUREMENT_DOMAIN + bundle_sha256).digest()


def parse_simulated(data: bytes) -> SimulatedEvidence:
    """Parse any bytes; what is not version 1 to the last byte is an `EvidenceError`. The certificate stays unparsed."""
    if len(data) > MAX_EVIDENCE_BYTES:
        raise EvidenceError(f"simulated evidence has {len(data)} bytes, more than {MAX_EVIDENCE_BYTES}")
    if len(data) < HEAD_BYTES:
        raise EvidenceError(f"simulated evidence ends after {len(data)} bytes, inside its header")
    magic, version, flags, report_data, measurement, seconds = _HEAD.unpack_from(data)
    _check_head(magic, version, flags, seconds)
    leaf, signed_end = _take(data, HEAD_BYTES, LEAF_BYTES, "leaf certificate")
    signature, end = _take(data, signed_end, SIGNATURE_BYTES, "signature")
    if end != len(data):
        raise EvidenceError(f"simulated evidence goes on after its end, for {len(data) - end} bytes")
    return SimulatedEvidence(
        report_data=report_data,
        measurement=measurement,
        issued_at=_EPOCH + timedelta(seconds=seconds),
        leaf_certificate_der=leaf,
        signature=signature,
        signed_part=data[:signed_end],
    )


def _check_head(magic: bytes, version: int, flags: int, issued_at_unix_seconds: int) -> None:
    if magic != MAGIC:
        raise EvidenceError("simulated evidence does not begin with its magic bytes")
    if version != VERSION:
        raise EvidenceError(f"simulated evidence is of version {version}; only version {VERSION} is known")
    if flags != 0:
        raise EvidenceError(f"simulated evidence has unknown flags 0x{flags:04x}")
    if issued_at_unix_seconds > _LAST_SECOND:
        raise EvidenceError("simulated evidence was issued after the year 9999")


def _take(data: bytes, start: int, allowed: range, what: str) -> tuple[bytes, int]:
    """The length-prefixed field that begins at `start`, and where it ends."""
    begin = start + _LENGTH.size
    if begin > len(data):
        raise EvidenceError(f"simulated evidence ends before its {what}")
    (length,) = _LENGTH.unpack_from(data, start)
    if length not in allowed:
        raise EvidenceError(
            f"simulated evidence has a {what} of {length} bytes; {allowed[0]} to {allowed[-1]} are allowed"
        )
    if begin + length > len(data):
        raise EvidenceError(f"simulated evidence ends inside its {what}")
    return data[begin : begin + length], begin + length


def encode_signed_part(
    *, report_data: bytes, measurement: bytes, issued_at: datetime, leaf_certificate_der: bytes
) -> bytes:
    """Everything before the signature's length; `ValueError` if it can't be. Fractions of a second are dropped."""
    if len(report_data) != REPORT_DATA_BYTES:
        raise ValueError(f"report_data has {REPORT_DATA_BYTES} bytes, not {len(report_data)}")
    if len(measurement) != MEASUREMENT_BYTES:
        raise ValueError(f"a measurement has {MEASUREMENT_BYTES} bytes, not {len(measurement)}")
    if issued_at.utcoffset() is None or issued_at < _EPOCH:
        raise ValueError("issued_at must have a time zone and not be before 1970")
    seconds = (issued_at - _EPOCH) // timedelta(seconds=1)
    head = _HEAD.pack(MAGIC, VERSION, 0, report_data, measurement, seconds)
    return head + _prefixed(leaf_certificate_der, LEAF_BYTES, "leaf certificate")


def signature_input(signed_part: bytes) -> bytes:
    """What the signature is over; both the signer and the verifier take it from here."""
    return SIGNATURE_DOMAIN + signed_part


def encode_simulated(signed_part: bytes, signature: bytes) -> bytes:
    """The whole evidence, of what `encode_signed_part` gave and a signature over its `signature_input`."""
    return signed_part + _prefixed(signature, SIGNATURE_BYTES, "signature")


def _prefixed(field: bytes, allowed: range, what: str) -> bytes:
    if len(field) not in allowed:
        raise ValueError(f"a {what} has {allowed[0]} to {allowed[-1]} bytes, not {len(field)}")
    return _LENGTH.pack(len(field)) + field
