"""Arm CCA attestation tokens: bytes → `CcaToken`. Total, bounded, no I/O; nothing here is trusted yet.

    token  = 399({44234: platform, 44241: realm})                   RMM specification 1.0, section A7.2.3
           / 907({44234: [263, platform], 44241: [263, realm]})     the same as a collection of CMWs (RFC 9999)

`platform` and `realm` are byte strings with a tagged COSE_Sign1 each, of which the protected header and the claims are
signed, as received. The platform's claims are PSA's, and three more; the realm's name the key that signed them:

    realm without a profile                               the key is a point of P-384 (SEC 1, section 2.3.3), 97 bytes
    2023:realm#1.0.0, 2024:realm#2.0.0 (has MEC policy)   the key is a COSE_Key (RFC 9052, section 7)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec

from adyton.errors import EvidenceError
from adyton.tee._cbor import field
from adyton.tee._cose import SIGN1_TAG, Sign1, sign1_of
from adyton.tee._psa_claims import (
    CWT_KEYS,
    HASH_SIZES,
    RootOfTrustClaims,
    bytes_under,
    decode_map,
    decode_tagged,
    optional_text_under,
    parse_root_of_trust,
    text_under,
)

CCA_TAG: Final = 399
CMW_TAG: Final = 907
PLATFORM: Final = "the CCA platform token"
REALM: Final = "the CCA realm token"

HASHES: Final[Mapping[str, Callable[[bytes], Any]]] = MappingProxyType(
    {"sha-256": hashlib.sha256, "sha-384": hashlib.sha384, "sha-512": hashlib.sha512}
)
"""What may bind the realm's key to the platform token, by IANA's names."""

_WHAT: Final = "the CCA token"
_PLATFORM_LABEL: Final = 44234
_REALM_LABEL: Final = 44241
_EAT_CWT: Final = 263
"""CoAP's number for application/eat+cwt."""

_PROFILE: Final = 265
_PLATFORM_PROFILES: Final = ("http://arm.com/CCA-SSD/1.0.0", "tag:arm.com,2023:cca_platform#1.0.0")
_REALM_2: Final = "tag:arm.com,2024:realm#2.0.0"
_REALM_PROFILES: Final = (None, "tag:arm.com,2023:realm#1.0.0", _REALM_2)
_REGISTERS: Final = 4
_MEC_POLICY: Final = 44243
_MEC_POLICIES: Final = ("shared", "private")

_KEY: Final = f"the key of {REALM}"
_POINT_BYTES: Final = 97
_EC2: Final = 2
_VERIFY: Final = 2
_KTY, _ALG, _KEY_OPS, _CRV, _X, _Y = 1, 3, 4, -1, -2, -3
_CURVES: Final[Mapping[int, tuple[ec.EllipticCurve, int]]] = {
    1: (ec.SECP256R1(), -7),
    2: (ec.SECP384R1(), -35),
    3: (ec.SECP521R1(), -36),
}
"""COSE's curves (RFC 9053, section 7.1), each with the one algorithm that it is used for here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformToken:
    """A well-formed platform token, not verified. `config` means what the platform's maker says."""

    message: Sign1
    profile: str
    root_of_trust: RootOfTrustClaims
    config: bytes
    hash_algorithm: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RealmKey:
    """A well-formed key of a realm token: a curve, and a point that may not be on it, uncompressed."""

    curve: ec.EllipticCurve
    point: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RealmToken:
    """A well-formed realm token, not verified.

    `challenge` and `personalization_value` have 64 bytes, `initial_measurement` and each of the four
    `extensible_measurements` 32, 48 or 64; `public_key` is as received, and `key` what it says; `key_hash` is a name
    in `HASHES`.
    """

    message: Sign1
    profile: str | None
    challenge: bytes
    personalization_value: bytes
    initial_measurement: bytes
    extensible_measurements: tuple[bytes, ...]
    hash_algorithm: str
    public_key: bytes
    key: RealmKey
    key_hash: str
    mec_policy: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CcaToken:
    """A well-formed pair of tokens, not verified, and not known to belong together."""

    platform: PlatformToken
    realm: RealmToken


def parse_cca(data: bytes) -> CcaToken:
    """Parse any bytes; what is not a platform and a realm token of known profiles is an `EvidenceError`."""
    container = decode_tagged(data, _WHAT, (CCA_TAG, CMW_TAG))
    entries = container.value
    if not isinstance(entries, Mapping) or set(entries) != {_PLATFORM_LABEL, _REALM_LABEL}:
        raise EvidenceError(f"{_WHAT} is not a map of a platform token and a realm token, and nothing else")
    if container.tag == CMW_TAG:
        entries = {label: _unwrap(record) for label, record in entries.items()}
    return CcaToken(
        platform=_parse_platform(field(entries, _PLATFORM_LABEL, bytes, _WHAT)),
        realm=_parse_realm(field(entries, _REALM_LABEL, bytes, _WHAT)),
    )


def _unwrap(record: object) -> object:
    if not isinstance(record, tuple) or len(record) != 2 or record[0] != _EAT_CWT:
        raise EvidenceError(f"{_WHAT} has an entry that is no CMW of the type {_EAT_CWT}")
    return record[1]


def _parse_message(data: bytes, what: str) -> tuple[Sign1, Mapping[Any, Any]]:
    message = sign1_of(decode_tagged(data, what, (SIGN1_TAG,)).value, what)
    return message, decode_map(message.payload, f"the claims set of {what}")


def _parse_platform(data: bytes) -> PlatformToken:
    message, claims = _parse_message(data, PLATFORM)
    profile = text_under(claims, _PROFILE, PLATFORM)
    if profile not in _PLATFORM_PROFILES:
        raise EvidenceError(f"{PLATFORM} has the profile {profile[:64]!r}, which is not known")
    return PlatformToken(
        message=message,
        profile=profile,
        root_of_trust=parse_root_of_trust(claims, CWT_KEYS, PLATFORM),
        config=field(claims, 2401, bytes, PLATFORM),
        hash_algorithm=text_under(claims, 2402, PLATFORM),
    )


def _parse_realm(data: bytes) -> RealmToken:
    message, claims = _parse_message(data, REALM)
    profile = optional_text_under(claims, _PROFILE, REALM)
    if profile not in _REALM_PROFILES:
        raise EvidenceError(f"{REALM} has the profile {profile[:64]!r}, which is not known")
    public_key = field(claims, 44237, bytes, REALM)
    return RealmToken(
        message=message,
        profile=profile,
        challenge=bytes_under(claims, 10, (64,), REALM),
        personalization_value=bytes_under(claims, 44235, (64,), REALM),
        initial_measurement=bytes_under(claims, 44238, HASH_SIZES, REALM),
        extensible_measurements=_extensible_measurements(claims),
        hash_algorithm=text_under(claims, 44236, REALM),
        public_key=public_key,
        key=_legacy_key(public_key) if profile is None else _cose_key(public_key),
        key_hash=_key_hash(claims),
        mec_policy=_mec_policy(claims, profile),
    )


def _extensible_measurements(claims: Mapping[Any, Any]) -> tuple[bytes, ...]:
    registers = dict(enumerate(field(claims, 44239, tuple, REALM)))
    if len(registers) != _REGISTERS:
        raise EvidenceError(f"{REALM} has {len(registers)} extensible measurements, not {_REGISTERS}")
    return tuple(bytes_under(registers, index, HASH_SIZES, f"the REM of {REALM}") for index in registers)


def _key_hash(claims: Mapping[Any, Any]) -> str:
    name = text_under(claims, 44240, REALM)
    if name not in HASHES:
        raise EvidenceError(f"{REALM} has its key hashed by {name[:64]!r}; {', '.join(HASHES)} are known")
    return name


def _mec_policy(claims: Mapping[Any, Any], profile: str | None) -> str | None:
    if _MEC_POLICY not in claims and profile != _REALM_2:
        return None
    policy = field(claims, _MEC_POLICY, int, REALM)
    if policy not in range(len(_MEC_POLICIES)):
        raise EvidenceError(f"{REALM} has the MEC policy {policy}; 0 (shared) and 1 (private) are known")
    return _MEC_POLICIES[policy]


def _legacy_key(point: bytes) -> RealmKey:
    if len(point) != _POINT_BYTES:
        raise EvidenceError(f"{_KEY} is a point of {len(point)} bytes, not of {_POINT_BYTES}")
    return RealmKey(curve=ec.SECP384R1(), point=point)


def _cose_key(data: bytes) -> RealmKey:
    key = decode_map(data, _KEY)
    if field(key, _KTY, int, _KEY) != _EC2:
        raise EvidenceError(f"{_KEY} is not of the type EC2")
    known = _CURVES.get(field(key, _CRV, int, _KEY))
    if known is None:
        raise EvidenceError(f"{_KEY} is of the COSE curve {key[_CRV]}; 1, 2 and 3 are known")
    curve, algorithm = known
    if _ALG in key and key[_ALG] != algorithm:
        raise EvidenceError(f"{_KEY} is for another algorithm than its curve's, {algorithm}")
    if _KEY_OPS in key and _VERIFY not in field(key, _KEY_OPS, tuple, _KEY):
        raise EvidenceError(f"{_KEY} is not for verifying")
    size = (curve.key_size + 7) // 8
    return RealmKey(
        curve=curve, point=b"\x04" + bytes_under(key, _X, (size,), _KEY) + bytes_under(key, _Y, (size,), _KEY)
    )
