"""Is an attestation document genuine: signed by AWS's Nitro hypervisor, for an enclave of its own? No I/O, no clock.

*Not* checked, because policy decides it: which PCRs the enclave has, whether it runs in debug mode, how old the
document is, what its user_data, nonce and public_key bind. Revocation is not looked at either, as AWS prescribes
(section 3.2.4): the certificate that signed lives three hours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar, Final

from cryptography import x509

from adyton.errors import EvidenceError
from adyton.tee._cose import verify_sign1
from adyton.tee._pins import AWS_NITRO_ROOT_G1
from adyton.tee._x509 import certificate_sha256, constraints_and_usage, load_certificate, verify_path
from adyton.tee.evidence import EndorsementKind, Evidence, check_verifiable
from adyton.tee.nitro.format import BOOT_PCRS, NitroDocument, parse_nitro
from adyton.tee.steps import Step, Trace

ANCHORS: Final = frozenset({AWS_NITRO_ROOT_G1})
MAX_AHEAD: Final = timedelta(minutes=5)
"""How far the hypervisor's clock may be ahead of the verifier's."""

_AWS: Final = "AWS, attestation_process.md"
FORMAT: Final = Step(title="the document is well formed and within its limits", reference=f"{_AWS}, 3.2.2")
ROOT: Final = Step(title="its root is trusted", reference=f"{_AWS}, 3.2.3")
CHAIN: Final = Step(
    title="its certificates lead to that root and are valid now",
    reference=f"{_AWS}, 3.2.3.1, 3.2.3.2 and 3.2.4; RFC 5280, 6.1",
)
LEAF: Final = Step(title="its own certificate may sign and may not certify", reference=f"{_AWS}, 3.2.3.3")
SIGNATURE: Final = Step(title="that certificate's key signed it", reference=f"{_AWS}, 3.2.1; RFC 9052, 4.4")
TIME: Final = Step(
    title="it is not from the future, nor older than its certificate", reference=f"{_AWS}, 2.2 (timestamp)"
)
STEPS: Final = (FORMAT, ROOT, CHAIN, LEAF, SIGNATURE, TIME)

_WHAT: Final = "the Nitro document"
_LEAF: Final = "the certificate of the Nitro document"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedNitro:
    """What a genuine document says.

    `measurement` is PCR0, of the enclave's whole image, and `pcrs` has 1 and 2 too. `report_data` is the user_data,
    empty if the enclave gave none; `public_key`, `user_data` and `nonce` are None if it did not give them. `debug` is
    whether the enclave runs in debug mode, in which its console is open and PCR0 to PCR2 are zero. `platform` is the
    module id: of the instance, and of this enclave on it. `timestamp` is in UTC, to the millisecond. `evidence_sha256`
    is of COSE's Sig_structure, which holds the payload.
    """

    tee: ClassVar[str] = "nitro"
    tcb: ClassVar[str] = "Nitro"
    """AWS says no more about the platform's state than that it is its own."""

    measurement: bytes
    report_data: bytes
    platform: str
    module_id: str
    timestamp: datetime
    debug: bool
    pcrs: Mapping[int, bytes]
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None
    evidence_sha256: bytes
    anchor_sha256: bytes


def verify_nitro(
    evidence: Evidence, *, anchors: Collection[bytes], now: datetime, trace: Trace | None = None
) -> VerifiedNitro:
    """Verify in the order of `STEPS`; the first that fails raises `EvidenceError`. A naive `now` is a `ValueError`.

    Trusted before: `anchors` and `now`. Trusted after: that the hypervisor which the anchor's owner certified said so.
    """
    trace = trace or Trace()
    check_verifiable(evidence, VerifiedNitro.tee, anchors, now)
    trace.begin(FORMAT)
    document = parse_nitro(evidence.data)
    trace.begin(ROOT)
    root = _root(document, evidence, anchors)
    trace.begin(CHAIN)
    leaf = _leaf(document, root, now)
    trace.begin(LEAF)
    _check_may_sign(leaf)
    trace.begin(SIGNATURE)
    verify_sign1(document.message, leaf.public_key(), _WHAT)
    trace.begin(TIME)
    _check_timestamp(document.timestamp, leaf, now)
    return _verified(document, root)


def _verified(document: NitroDocument, root: x509.Certificate) -> VerifiedNitro:
    return VerifiedNitro(
        measurement=document.pcrs[0],
        report_data=document.user_data or b"",
        platform=document.module_id,
        module_id=document.module_id,
        timestamp=document.timestamp,
        debug=not any(any(document.pcrs[index]) for index in BOOT_PCRS),
        pcrs=document.pcrs,
        public_key=document.public_key,
        user_data=document.user_data,
        nonce=document.nonce,
        evidence_sha256=hashlib.sha256(document.message.to_be_signed).digest(),
        anchor_sha256=certificate_sha256(root),
    )


def _root(document: NitroDocument, evidence: Evidence, anchors: Collection[bytes]) -> x509.Certificate:
    """The certificate of an anchor: the bundle's first, or one that came stapled. No other is parsed."""
    for der in (document.cabundle[0], *evidence.endorsed(EndorsementKind.CERTIFICATE)):
        if hashlib.sha256(der).digest() in anchors:
            return load_certificate(der, f"the root of {_WHAT}")
    raise EvidenceError(f"{_WHAT} does not end in a root that is trusted")


def _leaf(document: NitroDocument, root: x509.Certificate, now: datetime) -> x509.Certificate:
    leaf = load_certificate(document.certificate, _LEAF)
    issuers = [load_certificate(der, f"a certificate in the cabundle of {_WHAT}") for der in document.cabundle[1:]]
    verify_path(leaf, issuers, root, now, _LEAF)
    return leaf


def _check_may_sign(leaf: x509.Certificate) -> None:
    constraints, usage = constraints_and_usage(leaf, _LEAF)
    if constraints.ca:
        raise EvidenceError(f"{_LEAF} is a CA")
    if not usage.digital_signature:
        raise EvidenceError(f"{_LEAF} may not sign: its keyUsage lacks digitalSignature")


def _check_timestamp(timestamp: datetime, leaf: x509.Certificate, now: datetime) -> None:
    if timestamp - now > MAX_AHEAD:
        raise EvidenceError(f"{_WHAT} is from the future: of {timestamp}, now it is {now}")
    if timestamp < leaf.not_valid_before_utc:
        raise EvidenceError(f"{_WHAT} is of {timestamp}, before its certificate: {leaf.not_valid_before_utc}")
