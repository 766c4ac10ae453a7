"""What every TEE's evidence has in common: the message, what comes stapled to it, and what a verifier makes of it."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Protocol

from adyton.errors import EvidenceError
from adyton.tee.steps import Trace

MAX_EVIDENCE_BYTES: Final = 64 * 1024
MAX_ENDORSEMENT_BYTES: Final = 512 * 1024
"""An event log of a guest fills 256 KiB."""
MAX_ENDORSEMENTS: Final = 32


class EndorsementKind(enum.StrEnum):
    """What may come stapled to evidence, by media type. Each is verified on its own, none believed for being there."""

    CERTIFICATE = "application/pkix-cert"
    """One DER certificate: of a device, of a CA, of a root."""
    CRL = "application/pkix-crl"
    """One DER certificate revocation list."""
    DCAP_COLLATERAL = "application/vnd.adyton.dcap-collateral+json"
    """Intel's collateral for one platform: JSON of the fields of QuoteCollateralV3."""
    PUBLIC_KEY = "application/vnd.adyton.spki"
    """One DER SubjectPublicKeyInfo: an attestation key that no certificate vouches for."""
    SYMMETRIC_KEY = "application/vnd.adyton.symmetric-key"
    """The raw bytes of a key that the verifier shares with the device (PSA's COSE_Mac0). Never sent by an enclave."""
    EVENT_LOG = "application/vnd.adyton.tcg-event-log"
    """A TCG event log. Nobody signed it: it counts as far as it replays to registers that were signed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endorsement:
    """Bytes that say something about the hardware, and of what kind they are. They may be a secret, so no repr."""

    kind: EndorsementKind
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What an enclave sends: the TEE's label, what the hardware signed, and endorsements. Nothing in it is trusted."""

    tee: str
    data: bytes
    endorsements: tuple[Endorsement, ...] = ()

    def endorsed(self, kind: EndorsementKind) -> Iterator[bytes]:
        """The endorsements of one kind, in the order in which they came."""
        return (item.data for item in self.endorsements if item.kind is kind)


class VerifiedEvidence(Protocol):
    """What every verifier's result says; the rest differs from TEE to TEE.

    Genuine is all that it is: whether this measurement, this TCB and these bindings are acceptable, policy decides.
    """

    @property
    def tee(self) -> str:
        """The label of the TEE whose verifier made this."""

    @property
    def report_data(self) -> bytes:
        """What the enclave had signed: 64 bytes, but as many as its caller gave for Nitro, TPM, and PSA."""

    @property
    def measurement(self) -> bytes:
        """The one value that names the code best: MRENCLAVE, MRTD, MEASUREMENT, PCR0, the RIM."""

    @property
    def tcb(self) -> str:
        """The platform's TCB in a line, for the record."""

    @property
    def platform(self) -> str:
        """What tells this machine from others, for the record; empty where the TEE does not say."""

    @property
    def evidence_sha256(self) -> bytes:
        """SHA-256 of the bytes that the hardware signed, which no second encoding of the same evidence changes."""

    @property
    def anchor_sha256(self) -> bytes:
        """Which of the trust anchors it is under."""


class Verifier(Protocol):
    """Raises `EvidenceError` unless the evidence is genuine. No I/O, no clock, no state."""

    def __call__(
        self, evidence: Evidence, *, anchors: Collection[bytes], now: datetime, trace: Trace | None = None
    ) -> VerifiedEvidence:
        """Return what the evidence proves.

        `anchors` are SHA-256 digests: of the DER of root certificates, or of the DER SubjectPublicKeyInfo of keys. The
        certificate or key itself comes with the evidence. No anchors, nothing is genuine. `now` has a time zone, else
        `ValueError`. `trace` is told each of the verifier's `STEPS` as it begins.
        """


def check_verifiable(evidence: Evidence, tee: str, anchors: Collection[bytes], now: datetime) -> None:
    """What every verifier asks first: its own label, sizes in bounds, an anchor, and a `now` with a time zone."""
    if now.utcoffset() is None:
        raise ValueError("now must have a time zone")
    if evidence.tee != tee:
        raise EvidenceError(f"evidence labelled {evidence.tee[:64]!r} was given to the verifier of {tee!r}")
    if len(evidence.data) > MAX_EVIDENCE_BYTES:
        raise EvidenceError(f"evidence of {len(evidence.data)} bytes; {MAX_EVIDENCE_BYTES} are allowed")
    if len(evidence.endorsements) > MAX_ENDORSEMENTS:
        raise EvidenceError(f"{len(evidence.endorsements)} endorsements; {MAX_ENDORSEMENTS} are allowed")
    if any(len(item.data) > MAX_ENDORSEMENT_BYTES for item in evidence.endorsements):
        raise EvidenceError(f"an endorsement of more than {MAX_ENDORSEMENT_BYTES} bytes")
    if not anchors:
        raise EvidenceError(f"no anchors are trusted, so no evidence of {tee!r} is genuine")
