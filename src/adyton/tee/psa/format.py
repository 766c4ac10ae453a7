"""PSA attestation tokens (RFC 9783): bytes → `PsaToken`. Total, bounded, no I/O; nothing here is trusted yet.

    token  = 18([protected, unprotected, claims, signature])    COSE_Sign1
           / 17([protected, unprotected, claims, tag])          COSE_Mac0

The outer tag is required and CWT's 61 is not used (section 5.1.1). Signed are `protected` and `claims`, byte strings
both, as received. Three profiles are known, which differ in keys:

                              nonce  instance  client  boot seed        certification reference
    2023:psa#tfm                 10       256    2394    268, 8 to 32   2398, EAN-13 and five digits
    psa/2.0.0 (draft 09)         10       256    2394   2397, 8 to 32   2398, EAN-13 and five digits
    PSA_IOT_PROFILE_1        -75008    -75009  -75001  -75004, always   -75005, EAN-13, or the same with five digits

PSA_IOT_PROFILE_1 lets a token say that it measures no software. Here that is refused: it names no code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import cbor2

from adyton.errors import EvidenceError
from adyton.tee._cbor import field
from adyton.tee._cose import SIGN1_TAG, Sign1, sign1_of
from adyton.tee._psa_claims import (
    CWT_KEYS,
    ClaimKeys,
    RootOfTrustClaims,
    bytes_under,
    decode_map,
    decode_tagged,
    optional_text_under,
    parse_root_of_trust,
    text_under,
)

MAC0_TAG: Final = 17
WHAT: Final = "the PSA token"

_PROFILE: Final = 265
_OLD_PROFILE: Final = -75000
_CLIENT_ID_LIMIT: Final = 1 << 31
_EAN_13_AND_5: Final = re.compile(r"[0-9]{13}-[0-9]{5}")
_EAN_13_MAYBE_5: Final = re.compile(r"[0-9]{13}(-[0-9]{5})?")  # TF-M writes the new form under the old key


@dataclass(frozen=True, slots=True, kw_only=True)
class _Profile:
    keys: ClaimKeys
    client_id: int
    boot_seed: int
    boot_seed_sizes: Sequence[int]
    boot_seed_required: bool
    reference: int
    reference_pattern: re.Pattern[str]


def _cwt_profile(boot_seed: int) -> _Profile:
    return _Profile(
        keys=CWT_KEYS,
        client_id=2394,
        boot_seed=boot_seed,
        boot_seed_sizes=range(8, 32 + 1),
        boot_seed_required=False,
        reference=2398,
        reference_pattern=_EAN_13_AND_5,
    )


_PROFILES: Final[Mapping[tuple[int, str], _Profile]] = {
    (_PROFILE, "tag:psacertified.org,2023:psa#tfm"): _cwt_profile(boot_seed=268),
    (_PROFILE, "http://arm.com/psa/2.0.0"): _cwt_profile(boot_seed=2397),
    (_OLD_PROFILE, "PSA_IOT_PROFILE_1"): _Profile(
        keys=ClaimKeys(
            nonce=-75008,
            instance_id=-75009,
            implementation_id=-75003,
            lifecycle=-75002,
            components=-75006,
            verification_service=-75010,
        ),
        client_id=-75001,
        boot_seed=-75004,
        boot_seed_sizes=(32,),
        boot_seed_required=True,
        reference=-75005,
        reference_pattern=_EAN_13_MAYBE_5,
    ),
}
"""By the key of the profile claim and its value (RFC 9783, sections 4.5.2 and 4.6)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mac0:
    """A well-formed COSE_Mac0 message (RFC 9052, section 6.2), not verified. It is no `Sign1`."""

    protected: bytes
    protected_header: Mapping[Any, Any]
    payload: bytes
    tag: bytes

    @property
    def to_be_signed(self) -> bytes:
        """The MAC_structure of RFC 9052, section 6.3, with no external data."""
        return cbor2.dumps(["MAC0", self.protected, b"", self.payload])


@dataclass(frozen=True, slots=True, kw_only=True)
class PsaToken:
    """A well-formed token, not verified: every field is only what somebody claims.

    `client_id` is negative for a caller outside the secure processing environment, positive inside, never 0;
    `boot_seed` has 8 to 32 bytes.
    """

    message: Sign1 | Mac0
    profile: str
    root_of_trust: RootOfTrustClaims
    client_id: int
    boot_seed: bytes | None
    certification_reference: str | None


def parse_psa(data: bytes) -> PsaToken:
    """Parse any bytes; what is not a token of a known profile, with all claims that it demands, is `EvidenceError`."""
    message = _message(decode_tagged(data, WHAT, (SIGN1_TAG, MAC0_TAG)))
    claims = decode_map(message.payload, f"the claims set of {WHAT}")
    name, profile = _profile(claims)
    return PsaToken(
        message=message,
        profile=name,
        root_of_trust=parse_root_of_trust(claims, profile.keys, WHAT),
        client_id=_client_id(claims, profile.client_id),
        boot_seed=_boot_seed(claims, profile),
        certification_reference=_certification_reference(claims, profile),
    )


def _message(tagged: cbor2.CBORTag) -> Sign1 | Mac0:
    message = sign1_of(tagged.value, WHAT)  # a COSE_Mac0 has the same four parts
    if tagged.tag == SIGN1_TAG:
        return message
    return Mac0(
        protected=message.protected,
        protected_header=message.protected_header,
        payload=message.payload,
        tag=message.signature,
    )


def _profile(claims: Mapping[Any, Any]) -> tuple[str, _Profile]:
    key = _OLD_PROFILE if _OLD_PROFILE in claims and _PROFILE not in claims else _PROFILE
    name = text_under(claims, key, WHAT)
    profile = _PROFILES.get((key, name))
    if profile is None:
        raise EvidenceError(f"{WHAT} has the profile {name[:64]!r} under {key}, which is not known")
    return name, profile


def _client_id(claims: Mapping[Any, Any], key: int) -> int:
    client_id = field(claims, key, int, WHAT)
    if client_id == 0 or not -_CLIENT_ID_LIMIT <= client_id < _CLIENT_ID_LIMIT:
        raise EvidenceError(f"{WHAT} has the client id {client_id}; one of 32 bits that is not 0 is wanted")
    return client_id


def _boot_seed(claims: Mapping[Any, Any], profile: _Profile) -> bytes | None:
    if profile.boot_seed not in claims and not profile.boot_seed_required:
        return None
    return bytes_under(claims, profile.boot_seed, profile.boot_seed_sizes, WHAT)


def _certification_reference(claims: Mapping[Any, Any], profile: _Profile) -> str | None:
    reference = optional_text_under(claims, profile.reference, WHAT)
    if reference is not None and not profile.reference_pattern.fullmatch(reference):
        raise EvidenceError(
            f"{WHAT} has the certification reference {reference[:64]!r}, which is no EAN-13 and version"
        )
    return reference
