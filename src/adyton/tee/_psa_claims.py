"""What a PSA token and a CCA platform token have in common: claims of the root of trust, and keys pinned one by one.

CCA took over PSA's claims (RMM specification 1.0, section A7.2.3.2), so both are parsed here as RFC 9783, section 4,
has them. Claims that are not known are passed over: RFC 9783, section 5.1.3, forbids a receiver to fail on them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import cbor2

from adyton.errors import EvidenceError
from adyton.tee._cbor import decode_cbor, field
from adyton.tee._x509 import load_public_key
from adyton.tee.evidence import EndorsementKind, Evidence

HASH_SIZES: Final = (32, 48, 64)
"""Lengths in bytes of the hashes that Arm allows: SHA-256, SHA-384, SHA-512."""
MAX_TEXT_CHARACTERS: Final = 256

_UEID_SIZE: Final = 33
_UEID_RAND: Final = 1  # the type of UEID (RFC 9711, section 4.2.1.1) whose other 32 bytes are unique and say nothing
_IMPLEMENTATION_ID_SIZE: Final = 32

_SECURED: Final = 0x30
_DEBUG: Final = (0x40, 0x50)
_LIFECYCLES: Final[Mapping[int, str]] = {
    0x00: "unknown",
    0x10: "assembly and test",
    0x20: "root of trust provisioning",
    _SECURED: "secured",
    0x40: "debug outside the root of trust",
    0x50: "recoverable debug of the root of trust",
    0x60: "decommissioned",
}
"""Bits 15 to 8 of the lifecycle claim (RFC 9783, section 4.3.1); the implementation defines the lower eight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftwareComponent:
    """One measured component of the root of trust (RFC 9783, section 4.4.1). `algorithm` is the measurement's hash.

    `measurement` and `signer_id` have 32, 48 or 64 bytes; the texts have 1 to 256 printable characters.
    """

    measurement_type: str | None
    measurement: bytes
    version: str | None
    signer_id: bytes
    algorithm: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimKeys:
    """Under which keys a profile has the claims that all profiles have."""

    nonce: int
    instance_id: int
    implementation_id: int
    lifecycle: int
    components: int
    verification_service: int


CWT_KEYS: Final = ClaimKeys(
    nonce=10, instance_id=256, implementation_id=2396, lifecycle=2395, components=2399, verification_service=2400
)
"""The registered keys, which all but the oldest profile use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RootOfTrustClaims:
    """What the root of trust says of itself, well-formed; `components` are never none.

    `nonce` has 32, 48 or 64 bytes, `instance_id` 33 of which the first is 1, `implementation_id` 32.
    """

    nonce: bytes
    instance_id: bytes
    implementation_id: bytes
    lifecycle: int
    components: tuple[SoftwareComponent, ...]
    verification_service: str | None

    @property
    def secured(self) -> bool:
        """Nobody debugs the platform: 0x3000 to 0x30ff."""
        return self.lifecycle >> 8 == _SECURED

    @property
    def debug(self) -> bool:
        """Somebody may be debugging it: 0x4000 to 0x40ff and 0x5000 to 0x50ff."""
        return self.lifecycle >> 8 in _DEBUG

    @property
    def tcb(self) -> str:
        """The lifecycle's name and number, and each component's type and version, with a ? for what is not said."""
        components = ", ".join(f"{item.measurement_type or '?'} {item.version or '?'}" for item in self.components)
        return f"{_LIFECYCLES[self.lifecycle >> 8]} ({self.lifecycle:#06x}): {components}"


def decode_tagged(data: bytes, what: str, tags: Collection[int]) -> cbor2.CBORTag:
    """The one CBOR item in `data`, which must have one of `tags`."""
    item = decode_cbor(data, what, tags=tags)
    if not isinstance(item, cbor2.CBORTag):
        raise EvidenceError(f"{what} has no CBOR tag; {_listed(tags)} is wanted")
    return item


def decode_map(data: bytes, what: str) -> Mapping[Any, Any]:
    """The one CBOR item in `data`, which must be a map."""
    item: object = decode_cbor(data, what)
    if not isinstance(item, Mapping):
        raise EvidenceError(f"{what} is not a map")
    return item


def parse_root_of_trust(claims: Mapping[Any, Any], keys: ClaimKeys, what: str) -> RootOfTrustClaims:
    """The claims under `keys`; all but the verification service must be there."""
    return RootOfTrustClaims(
        nonce=bytes_under(claims, keys.nonce, HASH_SIZES, what),
        instance_id=_instance_id(claims, keys.instance_id, what),
        implementation_id=bytes_under(claims, keys.implementation_id, (_IMPLEMENTATION_ID_SIZE,), what),
        lifecycle=_lifecycle(claims, keys.lifecycle, what),
        components=_components(claims, keys.components, what),
        verification_service=optional_text_under(claims, keys.verification_service, what),
    )


def bytes_under(items: Mapping[Any, Any], key: int, sizes: Sequence[int], what: str) -> bytes:
    """The byte string under `key`, which must be there and have one of these lengths."""
    value = field(items, key, bytes, what)
    if len(value) not in sizes:
        raise EvidenceError(f"{what} has {len(value)} bytes under {key}; {_listed(sizes)} are wanted")
    return value


def text_under(items: Mapping[Any, Any], key: int, what: str) -> str:
    """The text under `key`, which must be there, short and printable: it ends up in policies and logs."""
    value = field(items, key, str, what)
    if not 0 < len(value) <= MAX_TEXT_CHARACTERS or not value.isprintable():
        raise EvidenceError(f"{what} has a text under {key} that is not of 1 to {MAX_TEXT_CHARACTERS} printable signs")
    return value


def optional_text_under(items: Mapping[Any, Any], key: int, what: str) -> str | None:
    """The same, or None if it is not there."""
    return text_under(items, key, what) if key in items else None


def _listed(numbers: Collection[int]) -> str:
    if isinstance(numbers, range):
        return f"{numbers[0]} to {numbers[-1]}"
    return " or ".join(map(str, numbers))


def _instance_id(claims: Mapping[Any, Any], key: int, what: str) -> bytes:
    instance_id = bytes_under(claims, key, (_UEID_SIZE,), what)
    if instance_id[0] != _UEID_RAND:
        raise EvidenceError(f"{what} has an instance id of UEID type {instance_id[0]}, not {_UEID_RAND}")
    return instance_id


def _lifecycle(claims: Mapping[Any, Any], key: int, what: str) -> int:
    lifecycle = field(claims, key, int, what)
    if lifecycle >> 8 not in _LIFECYCLES:
        raise EvidenceError(f"{what} is in the lifecycle state {lifecycle:#06x}, which there is not")
    return lifecycle


def _components(claims: Mapping[Any, Any], key: int, what: str) -> tuple[SoftwareComponent, ...]:
    items = field(claims, key, tuple, what)
    if not items:
        raise EvidenceError(f"{what} has no software components, so it says nothing about any code")
    return tuple(_component(item, f"software component {index} of {what}") for index, item in enumerate(items))


def _component(item: object, what: str) -> SoftwareComponent:
    if not isinstance(item, Mapping):
        raise EvidenceError(f"{what} is not a map")
    return SoftwareComponent(
        measurement_type=optional_text_under(item, 1, what),
        measurement=bytes_under(item, 2, HASH_SIZES, what),
        version=optional_text_under(item, 4, what),
        signer_id=bytes_under(item, 5, HASH_SIZES, what),
        algorithm=optional_text_under(item, 6, what),
    )


def pinned_keys(evidence: Evidence, kind: EndorsementKind, anchors: Collection[bytes]) -> Mapping[bytes, bytes]:
    """The endorsements of that kind whose SHA-256 is among `anchors`, by it; the others are not looked into."""
    by_digest = {hashlib.sha256(key).digest(): key for key in evidence.endorsed(kind)}
    pinned = {digest: key for digest, key in by_digest.items() if digest in anchors}
    if not pinned:
        raise EvidenceError(
            f"no endorsement of type {kind} has a SHA-256 among the {len(anchors)} anchors",
            mend="pin the attestation key of this device, and give the key with the evidence",
        )
    return pinned


def verify_under(pinned: Mapping[bytes, bytes], verify: Callable[[bytes], None]) -> bytes:
    """The digest of the first key that `verify` accepts; if there is none, what it says against the last."""
    *others, last = pinned
    for digest in others:
        with suppress(EvidenceError):
            verify(pinned[digest])
            return digest
    verify(pinned[last])
    return last


@lru_cache(maxsize=64)
def attestation_key(der: bytes) -> object:
    """The key of a pinned DER SubjectPublicKeyInfo. The same few keys are pinned for every token, hence the cache."""
    return load_public_key(der, "the pinned attestation key")
