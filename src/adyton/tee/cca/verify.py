"""Is a CCA token genuine: from a platform whose key the caller pinned, and a realm on that platform? No I/O.

*Not* checked, because policy decides it: the platform's lifecycle and software, the realm's measurements, what its
challenge binds. The caller who pins a key knows whose it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Final

from cryptography.hazmat.primitives.asymmetric import ec

from adyton.errors import EvidenceError
from adyton.tee._cose import verify_sign1
from adyton.tee._psa_claims import SoftwareComponent, attestation_key, pinned_keys, verify_under
from adyton.tee.cca.format import HASHES, PLATFORM, REALM, CcaToken, RealmKey, parse_cca
from adyton.tee.evidence import EndorsementKind, Evidence, check_verifiable
from adyton.tee.steps import Step, Trace

ANCHORS: Final[frozenset[bytes]] = frozenset()
"""None: there is no root over all platforms. A policy names the SHA-256 of each platform's attestation key."""

_FORMAT: Final = Step(
    title="both tokens parse and have the claims that their profiles demand",
    reference="RMM specification 1.0, section A7.2.3",
)
_KEY: Final = Step(title="a platform attestation key that is pinned comes with it", reference="RFC 9783, section 8")
_PLATFORM: Final = Step(title="that key signed the platform token", reference="RFC 9052, section 4.4")
_BINDING: Final = Step(
    title="the platform token's nonce is the hash of the realm's key",
    reference="RMM specification 1.0, section A7.2.3.2.2",
)
_REALM: Final = Step(title="the realm's key signed the realm token", reference="RFC 9052, section 4.4")

STEPS: Final = (_FORMAT, _KEY, _PLATFORM, _BINDING, _REALM)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedCca:
    """What a genuine pair of tokens says (RMM specification 1.0, section A7.2.3).

    Of the realm: `measurement` is its initial measurement (RIM), `rems` are the four extensible ones, `report_data` is
    its challenge and has 64 bytes like `personalization_value`, `hash_algorithm` made its measurements, and
    `mec_policy` is "shared", "private", or None in a profile without it. Of the platform: all from `platform_profile`
    on. `lifecycle` has its state in bits 15 to 8, of which `secured` and `debug` are read; `platform` is the instance
    id in hex. `evidence_sha256` is over both Sig_structures, one after the other.
    """

    tee: ClassVar[str] = "cca"

    measurement: bytes
    rems: tuple[bytes, ...]
    personalization_value: bytes
    report_data: bytes
    realm_profile: str | None
    hash_algorithm: str
    realm_public_key: bytes
    mec_policy: str | None
    platform_profile: str
    implementation_id: bytes
    instance_id: bytes
    platform_config: bytes
    lifecycle: int
    secured: bool
    debug: bool
    components: tuple[SoftwareComponent, ...]
    tcb: str
    platform: str
    evidence_sha256: bytes
    anchor_sha256: bytes


def verify_cca(
    evidence: Evidence, *, anchors: Collection[bytes], now: datetime, trace: Trace | None = None
) -> VerifiedCca:
    """Verify in the order of `STEPS`; the first that fails raises `EvidenceError`.

    The platform's key comes as a PUBLIC_KEY endorsement and is one if its SHA-256 is among `anchors`; of several, one
    must fit. Trusted after: that its owner vouched for the realm's key, and that key for what the realm is.
    """
    check_verifiable(evidence, VerifiedCca.tee, anchors, now)
    trace = trace or Trace()
    trace.begin(_FORMAT)
    token = parse_cca(evidence.data)
    trace.begin(_KEY)
    keys = pinned_keys(evidence, EndorsementKind.PUBLIC_KEY, anchors)
    trace.begin(_PLATFORM)
    anchor_sha256 = verify_under(keys, lambda key: _verify_platform(token, key))
    trace.begin(_BINDING)
    _check_binding(token)
    trace.begin(_REALM)
    verify_sign1(token.realm.message, _load_realm_key(token.realm.key), REALM)
    return _verified(token, anchor_sha256)


def _verify_platform(token: CcaToken, key: bytes) -> None:
    verify_sign1(token.platform.message, attestation_key(key), PLATFORM)


def _check_binding(token: CcaToken) -> None:
    # By the hash that the realm names for its key: the one for its measurements may be another.
    realm = token.realm
    if HASHES[realm.key_hash](realm.public_key).digest() != token.platform.root_of_trust.nonce:
        raise EvidenceError(f"{PLATFORM} is not bound to the realm: its nonce is not the {realm.key_hash} of its key")


def _load_realm_key(key: RealmKey) -> ec.EllipticCurvePublicKey:
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(key.curve, key.point)
    except ValueError:
        raise EvidenceError(f"the key of {REALM} is no point of {key.curve.name}") from None


def _verified(token: CcaToken, anchor_sha256: bytes) -> VerifiedCca:
    platform, realm, root = token.platform, token.realm, token.platform.root_of_trust
    return VerifiedCca(
        measurement=realm.initial_measurement,
        rems=realm.extensible_measurements,
        personalization_value=realm.personalization_value,
        report_data=realm.challenge,
        realm_profile=realm.profile,
        hash_algorithm=realm.hash_algorithm,
        realm_public_key=realm.public_key,
        mec_policy=realm.mec_policy,
        platform_profile=platform.profile,
        implementation_id=root.implementation_id,
        instance_id=root.instance_id,
        platform_config=platform.config,
        lifecycle=root.lifecycle,
        secured=root.secured,
        debug=root.debug,
        components=root.components,
        tcb=root.tcb,
        platform=root.instance_id.hex(),
        evidence_sha256=hashlib.sha256(platform.message.to_be_signed + realm.message.to_be_signed).digest(),
        anchor_sha256=anchor_sha256,
    )
