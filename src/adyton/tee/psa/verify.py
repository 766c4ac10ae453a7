"""Is a PSA token genuine: signed by an attestation key that the caller pinned? No I/O; time is an argument.

*Not* checked, because policy decides it: lifecycle, software, client id, which device it is. The caller who pins a key
knows whose it is; that the key's owner says the truth about its instance id is a matter of trust in its root of trust.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import ClassVar, Final

from adyton.errors import EvidenceError
from adyton.tee._cose import ALGORITHM_HEADER, Sign1, verify_sign1
from adyton.tee._psa_claims import SoftwareComponent, attestation_key, pinned_keys, verify_under
from adyton.tee.evidence import EndorsementKind, Evidence, check_verifiable
from adyton.tee.psa.format import WHAT, Mac0, parse_psa
from adyton.tee.steps import Step, Trace

ANCHORS: Final[frozenset[bytes]] = frozenset()
"""None: Arm certifies no device. A policy names the SHA-256 of each attestation key, be it public or symmetric."""

MIN_SYMMETRIC_KEY_BYTES: Final = 32
MAX_SYMMETRIC_KEY_BYTES: Final = 64

_FORMAT: Final = Step(
    title="the token parses and has the claims that its profile demands", reference="RFC 9783, sections 4 and 5.1.1"
)
_KEY: Final = Step(title="an attestation key that is pinned comes with it", reference="RFC 9783, section 8")
_SIGNATURE: Final = Step(
    title="that key signed it, or made its MAC", reference="RFC 9052, sections 4.4 and 6.3; RFC 9783, section 5.2"
)

STEPS: Final = (_FORMAT, _KEY, _SIGNATURE)

_MACS: Final[Mapping[int, str]] = {5: "sha256", 6: "sha384", 7: "sha512"}
"""HMAC with all of the hash's bytes (RFC 9053, section 3.1)."""

_KEY_KINDS: Final[Mapping[type[Sign1 | Mac0], EndorsementKind]] = {
    Sign1: EndorsementKind.PUBLIC_KEY,
    Mac0: EndorsementKind.SYMMETRIC_KEY,
}
_DER_SEQUENCE: Final = 0x30


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedPsa:
    """What a genuine token says (RFC 9783, section 4).

    `measurement` is `software_measurement(components)`, `report_data` the nonce (32, 48 or 64 bytes), `platform` the
    instance id in hex. `lifecycle` has its state in bits 15 to 8, of which `secured` and `debug` are read.
    """

    tee: ClassVar[str] = "psa"

    measurement: bytes
    report_data: bytes
    profile: str
    client_id: int
    lifecycle: int
    secured: bool
    debug: bool
    implementation_id: bytes
    instance_id: bytes
    boot_seed: bytes | None
    certification_reference: str | None
    verification_service: str | None
    components: tuple[SoftwareComponent, ...]
    tcb: str
    platform: str
    evidence_sha256: bytes
    anchor_sha256: bytes


def software_measurement(components: Sequence[SoftwareComponent]) -> bytes:
    """The SHA-256 over every component in order: its type (empty if it has none), measurement and signer id.

    Each of the three is preceded by its length in bytes, as two bytes, big endian. The type is in UTF-8.
    """
    digest = hashlib.sha256()
    for component in components:
        for part in ((component.measurement_type or "").encode(), component.measurement, component.signer_id):
            digest.update(len(part).to_bytes(2, "big") + part)
    return digest.digest()


def verify_psa(
    evidence: Evidence, *, anchors: Collection[bytes], now: datetime, trace: Trace | None = None
) -> VerifiedPsa:
    """Verify in the order of `STEPS`; the first that fails raises `EvidenceError`.

    The key comes as a PUBLIC_KEY endorsement, for a COSE_Mac0 as a SYMMETRIC_KEY, and is one if its SHA-256 is among
    `anchors`; of several, one must fit. Trusted after: that its owner made the token, some time.
    """
    check_verifiable(evidence, VerifiedPsa.tee, anchors, now)
    trace = trace or Trace()
    trace.begin(_FORMAT)
    token = parse_psa(evidence.data)
    trace.begin(_KEY)
    message, root = token.message, token.root_of_trust
    keys = pinned_keys(evidence, _KEY_KINDS[type(message)], anchors)
    trace.begin(_SIGNATURE)
    anchor_sha256 = verify_under(keys, partial(_verify, message))
    return VerifiedPsa(
        measurement=software_measurement(root.components),
        report_data=root.nonce,
        profile=token.profile,
        client_id=token.client_id,
        lifecycle=root.lifecycle,
        secured=root.secured,
        debug=root.debug,
        implementation_id=root.implementation_id,
        instance_id=root.instance_id,
        boot_seed=token.boot_seed,
        certification_reference=token.certification_reference,
        verification_service=root.verification_service,
        components=root.components,
        tcb=root.tcb,
        platform=root.instance_id.hex(),
        evidence_sha256=hashlib.sha256(message.to_be_signed).digest(),
        anchor_sha256=anchor_sha256,
    )


def _verify(message: Sign1 | Mac0, key: bytes) -> None:
    if isinstance(message, Sign1):
        verify_sign1(message, attestation_key(key), WHAT)
    else:
        _verify_mac0(message, key)


def _verify_mac0(message: Mac0, key: bytes) -> None:
    if not MIN_SYMMETRIC_KEY_BYTES <= len(key) <= MAX_SYMMETRIC_KEY_BYTES:
        allowed = f"{MIN_SYMMETRIC_KEY_BYTES} to {MAX_SYMMETRIC_KEY_BYTES}"
        raise EvidenceError(f"the pinned symmetric key has {len(key)} bytes; {allowed} are wanted")
    if key[:2] == bytes([_DER_SEQUENCE, len(key) - 2]):
        # Whoever sends evidence says which kind an endorsement is of. A public key is pinned by its SHA-256 too; taken
        # for a secret, it would let anybody make a MAC. In this range of lengths only DER of this form could be one.
        raise EvidenceError("the pinned symmetric key is a DER structure, perhaps a public key that anybody can know")
    algorithm = message.protected_header.get(ALGORITHM_HEADER)
    if type(algorithm) is not int or algorithm not in _MACS:
        raise EvidenceError(f"{WHAT} has no known MAC algorithm in its protected header")
    if not hmac.compare_digest(hmac.digest(key, message.to_be_signed, _MACS[algorithm]), message.tag):
        raise EvidenceError(f"the MAC of {WHAT} does not verify")
