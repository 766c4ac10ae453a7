"""AWS Nitro's attestation document: bytes → `NitroDocument`. Total, bounded, no I/O; nothing here is trusted yet.

A COSE_Sign1 (RFC 9052, section 4.2), with its tag 18 or without, signed with ES384; its payload is one CBOR map:

    module_id     text           the instance's and the enclave's name
    digest        text           "SHA384"
    timestamp     unsigned       milliseconds since 1970-01-01T00:00:00Z
    pcrs          map            0..31 → 32, 48 or 64 bytes; all that are locked
    certificate   bytes          DER, of the key that signed
    cabundle      array          DER of the root first, then down to the issuer of `certificate`
    public_key    bytes or null  what the enclave gave, and so are the next two; each may be missing
    user_data     bytes or null
    nonce         bytes or null

The limits are those of AWS's attestation_process.md, section 3.2.2.2; where it contradicts itself or the hardware, the
laxer: user_data and nonce of up to 1024 bytes (section 2.2, not 512), and null, which the hardware writes. Other keys
are refused: section 3.2.2.1 lists those that are allowed, and AWS signs documents of other kinds under the same root,
NitroTPM's, whose registers are under a key of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from adyton.errors import EvidenceError
from adyton.tee._cbor import decode_cbor, field
from adyton.tee._cose import ALGORITHM_HEADER, Sign1, parse_sign1

ES384: Final = -35
DIGEST: Final = "SHA384"
MAX_PAYLOAD_BYTES: Final = 16384
MAX_MODULE_ID_CHARACTERS: Final = 128
PCR_INDEXES: Final = range(32)
PCR_BYTES: Final = (32, 48, 64)
BOOT_PCRS: Final = (0, 1, 2)
"""The enclave's image, its kernel with the boot ramdisk, and its application; all zero if it runs in debug mode."""

_CERTIFICATE_BYTES: Final = range(1, 1024 + 1)
_PUBLIC_KEY_BYTES: Final = range(1, 1024 + 1)
_USER_DATA_BYTES: Final = range(1024 + 1)
_KEYS: Final = frozenset(
    ("module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle", "public_key", "user_data", "nonce")
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_MILLISECOND: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)
_WHAT: Final = "the Nitro document"


@dataclass(frozen=True, slots=True, kw_only=True)
class NitroDocument:
    """A well-formed document, not verified: every field is only what somebody claims.

    `message.to_be_signed` are the bytes that were signed. `timestamp` is in UTC. `certificate` and `cabundle` are DER
    that nobody has parsed. What the enclave did not give is None.
    """

    message: Sign1
    module_id: str
    timestamp: datetime
    pcrs: Mapping[int, bytes]
    certificate: bytes
    cabundle: tuple[bytes, ...]
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None


def parse_nitro(data: bytes) -> NitroDocument:
    """Parse any bytes; what is not one attestation document to the last byte is an `EvidenceError`."""
    message = parse_sign1(data, _WHAT)
    if message.protected_header.get(ALGORITHM_HEADER) != ES384:
        raise EvidenceError(f"{_WHAT} is not signed with ES384")
    if len(message.payload) > MAX_PAYLOAD_BYTES:
        raise EvidenceError(f"{_WHAT} has a payload of {len(message.payload)} bytes; {MAX_PAYLOAD_BYTES} are allowed")
    claims = decode_cbor(message.payload, f"the payload of {_WHAT}")
    if not isinstance(claims, Mapping):
        raise EvidenceError(f"the payload of {_WHAT} is not a map")
    for key in claims.keys() - _KEYS:
        raise EvidenceError(f"{_WHAT} has the unknown key {key!r:.64}")
    if field(claims, "digest", str, _WHAT) != DIGEST:
        raise EvidenceError(f"{_WHAT} has PCRs of another digest than {DIGEST}")
    return NitroDocument(
        message=message,
        module_id=_module_id(claims),
        timestamp=_timestamp(claims),
        pcrs=_pcrs(claims),
        certificate=_sized(field(claims, "certificate", bytes, _WHAT), _CERTIFICATE_BYTES, "certificate"),
        cabundle=_cabundle(claims),
        public_key=_optional(claims, "public_key", _PUBLIC_KEY_BYTES),
        user_data=_optional(claims, "user_data", _USER_DATA_BYTES),
        nonce=_optional(claims, "nonce", _USER_DATA_BYTES),
    )


def _module_id(claims: Mapping[Any, Any]) -> str:
    module_id = field(claims, "module_id", str, _WHAT)
    if not 0 < len(module_id) <= MAX_MODULE_ID_CHARACTERS:
        characters = f"1 to {MAX_MODULE_ID_CHARACTERS}"
        raise EvidenceError(f"{_WHAT} has a module_id of {len(module_id)} characters; {characters} are allowed")
    if not (module_id.isascii() and module_id.isprintable()):
        raise EvidenceError(f"{_WHAT} has a module_id that is not printable ASCII")
    return module_id


def _timestamp(claims: Mapping[Any, Any]) -> datetime:
    milliseconds = field(claims, "timestamp", int, _WHAT)
    if not 0 < milliseconds <= _LAST_MILLISECOND:
        raise EvidenceError(f"{_WHAT} has a timestamp that is not after 1970 and before the year 10000")
    return _EPOCH + timedelta(milliseconds=milliseconds)


def _pcrs(claims: Mapping[Any, Any]) -> Mapping[int, bytes]:
    pcrs = claims.get("pcrs")
    if not isinstance(pcrs, Mapping):
        raise EvidenceError(f"{_WHAT} has no map of PCRs")
    for index, value in pcrs.items():
        if index not in PCR_INDEXES:
            raise EvidenceError(f"{_WHAT} has the PCR {index!r:.64}; they are from 0 to {PCR_INDEXES[-1]}")
        if not isinstance(value, bytes) or len(value) not in PCR_BYTES:
            raise EvidenceError(f"PCR {index} of {_WHAT} is not of 32, 48 or 64 bytes")
    for index in BOOT_PCRS:
        if index not in pcrs:
            raise EvidenceError(f"{_WHAT} lacks PCR {index}")
    return pcrs


def _cabundle(claims: Mapping[Any, Any]) -> tuple[bytes, ...]:
    bundle = field(claims, "cabundle", tuple, _WHAT)
    if not bundle:
        raise EvidenceError(f"{_WHAT} has an empty cabundle")
    for certificate in bundle:
        if not isinstance(certificate, bytes):
            raise EvidenceError(f"{_WHAT} has something in its cabundle that is no byte string")
        _sized(certificate, _CERTIFICATE_BYTES, "certificate in its cabundle")
    return bundle


def _optional(claims: Mapping[Any, Any], key: str, allowed: range) -> bytes | None:
    if claims.get(key) is None:
        return None
    return _sized(field(claims, key, bytes, _WHAT), allowed, key)


def _sized(value: bytes, allowed: range, what: str) -> bytes:
    if len(value) not in allowed:
        message = f"{_WHAT} has a {what} of {len(value)} bytes; {allowed[0]} to {allowed[-1]} are allowed"
        raise EvidenceError(message)
    return value
