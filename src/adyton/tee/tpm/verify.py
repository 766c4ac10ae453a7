"""Is TPM evidence genuine: did a TPM whose key the caller has reason to trust quote these PCRs? No I/O.

A quote is worth what its attestation key is worth. That the key is in a TPM, and signs nothing but what the TPM itself
attests, is known to whoever certified or enrolled it (TPM2_ActivateCredential): a root that certifies keys of other
kinds, or a pin of a key that nobody checked, makes the evidence worthless. The attributes that come with the evidence
are checked against honest mistakes only, for nobody signs them. *Not* checked, because policy decides it: the PCRs,
their bank, the nonce, the clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Final, Literal

from cryptography import x509

from adyton.errors import EvidenceError
from adyton.tee._tpm import QUOTE_STEPS, VerifiedQuote, verify_quote
from adyton.tee._x509 import certificate_sha256, load_certificate, pinned, spki, verify_path
from adyton.tee.evidence import EndorsementKind, Evidence, check_verifiable
from adyton.tee.steps import Step, Trace
from adyton.tee.tpm.format import TpmEvidence, parse_tpm

ANCHORS: Final[frozenset[bytes]] = frozenset()
"""None: there are as many roots as makers of TPMs, clouds and enrolment services. Whoever relies on one names it."""

AK_USAGES: Final = frozenset({x509.ObjectIdentifier("2.23.133.8.3"), x509.ObjectIdentifier("2.23.133.8.1")})
"""tcg-kp-AIKCertificate; and tcg-kp-EKCertificate, with which Google certifies the attestation keys of its machines. A
real endorsement key does no harm here: it decrypts, and can't sign."""

VIRTUAL_ROOT: Final = b"Adyton virtual TPM root"
"""What is in the name of a root that certifies TPMs that are programs of its host's."""

FORMAT: Final = Step(
    title="the evidence and the TPM's structures in it are well formed",
    reference="TPM 2.0 Library, Part 2, sections 10.12.12, 11.3.4 and 12.2.4",
)
RESTRICTED: Final = Step(
    title="the attestation key is said to be one that signs only what its TPM attests",
    reference="TPM 2.0 Library, Part 2, section 8.3",
)
VOUCHED_FOR: Final = Step(
    title="the attestation key is pinned, or a trusted root certified it",
    reference="TCG TPM 2.0 Keys for Device Identity and Attestation; RFC 5280, section 6.1",
)
STEPS: Final[tuple[Step, ...]] = (FORMAT, RESTRICTED, VOUCHED_FOR, *QUOTE_STEPS)

_DECRYPT: Final = 1 << 17
_REQUIRED_ATTRIBUTES: Final = {
    "fixedTPM": 1 << 1,
    "fixedParent": 1 << 4,
    "sensitiveDataOrigin": 1 << 5,
    "restricted": 1 << 16,
    "sign": 1 << 18,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedTpm:
    """What genuine evidence says. `report_data` is what the quote's caller gave, `measurement` the quoted PCR digest.

    `ak_sha256` is the SHA-256 of the attestation key's DER SubjectPublicKeyInfo.
    """

    tee: ClassVar[str] = "tpm"

    report_data: bytes
    measurement: bytes
    quote: VerifiedQuote
    ak_sha256: bytes
    ak_provenance: Literal["certificate", "pinned"]
    tcb: str
    platform: str
    evidence_sha256: bytes
    anchor_sha256: bytes


def verify_tpm(
    evidence: Evidence, *, anchors: Collection[bytes], now: datetime, trace: Trace | None = None
) -> VerifiedTpm:
    """Go through `STEPS`; the first that fails raises `EvidenceError`. A `now` without time zone is a ValueError.

    `anchors` are SHA-256 of root certificates, or of the SubjectPublicKeyInfo of attestation keys.
    """
    check_verifiable(evidence, VerifiedTpm.tee, anchors, now)
    trace = trace or Trace()
    trace.begin(FORMAT)
    parsed = parse_tpm(evidence.data)
    trace.begin(RESTRICTED)
    _check_attributes(parsed)
    trace.begin(VOUCHED_FOR)
    ak_sha256 = hashlib.sha256(parsed.ak.spki).digest()
    is_pinned = ak_sha256 in anchors
    anchor = ak_sha256 if is_pinned else _verify_certified(parsed.ak.spki, evidence, anchors, now)
    logs = evidence.endorsed(EndorsementKind.EVENT_LOG)
    quote = verify_quote(parsed.quote, parsed.ak.key, (parsed.ak.scheme,), logs, trace)
    return VerifiedTpm(
        report_data=quote.extra_data,
        measurement=quote.pcr_digest,
        quote=quote,
        ak_sha256=ak_sha256,
        ak_provenance="pinned" if is_pinned else "certificate",
        tcb=f"{_maker(evidence, anchor)} firmware 0x{quote.firmware_version:016x}",
        platform=ak_sha256.hex(),
        evidence_sha256=quote.sha256,
        anchor_sha256=anchor,
    )


def _maker(evidence: Evidence, anchor: bytes) -> str:
    """Whether the trusted root says of itself that its TPMs are programs. No word from a root that lies."""
    for der in evidence.endorsed(EndorsementKind.CERTIFICATE):
        if hashlib.sha256(der).digest() == anchor and VIRTUAL_ROOT in der:
            return "a virtual TPM, which its host controls;"
    return "TPM"


def _check_attributes(parsed: TpmEvidence) -> None:
    ak = parsed.ak
    lacking = [name for name, bit in _REQUIRED_ATTRIBUTES.items() if not ak.attributes & bit]
    if lacking:
        raise EvidenceError(f"the attestation key lacks the attribute {lacking[0]}")
    if ak.attributes & _DECRYPT:
        raise EvidenceError("the attestation key has the attribute decrypt")
    signer = parsed.quote.attest.qualified_signer
    if signer[:2] != ak.name_algorithm.to_bytes(2, "big"):
        raise EvidenceError(f"the quote's signer {signer.hex()[:64]} has no name of the attestation key's algorithm")


def _verify_certified(ak_spki: bytes, evidence: Evidence, anchors: Collection[bytes], now: datetime) -> bytes:
    """The SHA-256 of the trusted root under which one of the certificates is the attestation key's."""
    stapled = evidence.endorsed(EndorsementKind.CERTIFICATE)
    certificates = [load_certificate(der, "a certificate of the evidence") for der in stapled]
    leaf = _leaf(ak_spki, certificates)
    root = pinned(certificates, anchors, "the attestation key's certificate")
    _check_role(leaf)
    others = [certificate for certificate in certificates if certificate not in (leaf, root)]
    verify_path(leaf, others, root, now, "the attestation key's certificate")
    return certificate_sha256(root)


def _leaf(ak_spki: bytes, certificates: Sequence[x509.Certificate]) -> x509.Certificate:
    for certificate in certificates:
        if spki(certificate) == ak_spki:
            return certificate
    raise EvidenceError("the attestation key is not pinned, and none of the certificates is its own")


def _check_role(leaf: x509.Certificate) -> None:
    for extension in leaf.extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints) and value.ca:
            raise EvidenceError("the attestation key's certificate is a CA's")
        if isinstance(value, x509.ExtendedKeyUsage) and AK_USAGES.isdisjoint(value):
            raise EvidenceError("the attestation key's certificate is for another use than attestation")
