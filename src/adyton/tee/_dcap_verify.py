"""Is a DCAP quote genuine, and what TCB has its platform? What SGX and TDX have in common. No I/O; time is an argument.

The library `dcap_qvl` verifies the signatures of collateral, PCK chain, QE report and quote, revocation, QE identity
and TCB levels. Around it stands what it leaves out, here and in `_dcap_collateral`: which collateral fits, with its
PCE-ID, and is valid to the microsecond, CRLs too; the signers' roles; one root for all; one reading of the quote.

Every TCB status but Revoked passes, as a fact for policy to judge. What the library refuses without a switch stays
refused, in its own words: debug enclaves and TDs; TDs without SEPT_VE_DISABLE (older ones of Azure), with migration, a
service TD, SERVTD_EXT, or reserved attributes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, Final

import dcap_qvl

from adyton.errors import EvidenceError
from adyton.tee._dcap_chain import PckCa, PckChain, parse_pck_chain, refusals_of_library
from adyton.tee._dcap_collateral import Collateral, Platforms, TeeName, parse_collateral, parse_time
from adyton.tee._dcap_quote import PCK_CHAIN, DcapQuote
from adyton.tee.evidence import EndorsementKind, Evidence
from adyton.tee.steps import Step, Trace

_SERVICES: Final = "Intel SGX and TDX services, API version 4"
_PROFILE: Final = "Intel SGX PCK Certificate and CRL Profile Specification, section 1.2"
_COLLATERAL: Final = Step(title="the collateral parses, and its signers are in their roles", reference=_SERVICES)
_CHAIN: Final = Step(title="the PCK's chain, valid now, ends in a trusted root", reference=_PROFILE)
_FIT: Final = Step(title="collateral of this platform is valid now, under the same root", reference=_SERVICES)
_LIBRARY: Final = Step(
    title="collateral, PCK, quoting enclave and quote are signed, none is revoked, and the TCB has a level",
    reference="Intel SGX ECDSA Quote Library API, appendix A.4; Intel SGX and TDX services, API version 4, TCB info",
)
_AGREEMENT: Final = Step(title="what was verified is what was parsed, and in words of Intel's", reference=_SERVICES)

DCAP_STEPS: Final = (_COLLATERAL, _CHAIN, _FIT, _LIBRARY, _AGREEMENT)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_QE_STATUSES: Final = ("UpToDate", "OutOfDate")
"""But for Revoked. Of any other, the library's status for all together would say nothing."""
_FLAGS: Final[Mapping[str, bool | None]] = MappingProxyType({"True": True, "False": False, "Undefined": None})


@dataclass(frozen=True, slots=True, kw_only=True)
class DcapPlatform:
    """What Intel says about the machine: of the PCK certificate, and of its TCB by the collateral.

    `tcb_status` is Intel's word for platform, TDX module and quoting enclave together, `qe_status` for the last alone;
    `tcb_date` is the date of the TCB level, `tcb_evaluation_number` the lower of TCB info's and QE identity's. `fmspc`
    has 6 bytes, `ppid` and `platform_instance_id` 16; the latter and the three flags are None under the processor CA.
    `collateral_expires` is when the first of the collateral's documents, or of their issuers' certificates, does.
    """

    tcb_status: str
    advisories: frozenset[str]
    tcb_evaluation_number: int
    tcb_date: datetime
    qe_status: str
    fmspc: bytes
    pck_ca: PckCa
    ppid: bytes
    platform_instance_id: bytes | None
    dynamic_platform: bool | None
    cached_keys: bool | None
    smt: bool | None
    sgx_type: int
    collateral_expires: datetime

    @property
    def tcb(self) -> str:
        """In a line: "UpToDate, evaluation 17, 2024-03-13"."""
        return f"{self.tcb_status}, evaluation {self.tcb_evaluation_number}, {self.tcb_date:%Y-%m-%d}"

    @property
    def name(self) -> str:
        """The platform instance ID, or the PPID where there is none, in hexadecimal."""
        return (self.platform_instance_id or self.ppid).hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedDcap:
    """That a quote is genuine, on which platform, and under which root."""

    platform: DcapPlatform
    anchor_sha256: bytes


def verify_dcap(
    evidence: Evidence,
    quote: DcapQuote,
    signed: Mapping[str, bytes],
    *,
    tee: TeeName,
    anchors: Collection[bytes],
    now: datetime,
    trace: Trace,
) -> VerifiedDcap:
    """Verify the `quote` that was parsed from `evidence`, in the order of `DCAP_STEPS`, or raise `EvidenceError`.

    `signed` are fields of its body as the caller will report them, by the library's names: what it verified must be the
    same.
    """
    trace.begin(_COLLATERAL)
    collaterals = [parse_collateral(data) for data in evidence.endorsed(EndorsementKind.DCAP_COLLATERAL)]
    trace.begin(_CHAIN)
    chain = parse_pck_chain(_pck_chain(quote, collaterals))
    chain.check(anchors, now)
    trace.begin(_FIT)
    platform = Platforms(tee=tee, fmspc=chain.fmspc, pce_id=chain.pce_id, pck_ca=chain.pck_ca)
    collateral = _fitting(collaterals, platform, now)
    if collateral.root_sha256 != chain.root_sha256:
        raise EvidenceError("the collateral is under another root than the PCK certificate")
    trace.begin(_LIBRARY)
    claims = _claims(quote, chain, collateral, now)
    trace.begin(_AGREEMENT)
    check_agreement(claims, signed, chain)
    return VerifiedDcap(platform=_platform(claims, chain, collateral), anchor_sha256=chain.root_sha256)


def _pck_chain(quote: DcapQuote, collaterals: Sequence[Collateral]) -> bytes:
    """The quote's own, or the first that came with collateral if the quote only names its PCK."""
    if quote.signature.pck_data_type == PCK_CHAIN:
        return quote.signature.pck_data
    for collateral in collaterals:
        if collateral.pck_chain is not None:
            return collateral.pck_chain
    raise EvidenceError(
        f"the quote only names its PCK (PCK data of type {quote.signature.pck_data_type}), and no collateral brings it"
    )


def _fitting(collaterals: Sequence[Collateral], platform: Platforms, now: datetime) -> Collateral:
    """Of the collateral for the platform that is valid now, the one with the highest evaluation number."""
    fitting = [each for each in collaterals if each.platforms == platform]
    if not fitting:
        others = f"only for {collaterals[0].platforms}" if collaterals else "and none at all"
        raise EvidenceError(f"no collateral for {platform}, {others}", mend="staple Intel's for this platform")
    refusals = []
    for collateral in sorted(fitting, key=lambda each: each.evaluation_number, reverse=True):
        try:
            collateral.check(now)
        except EvidenceError as error:
            refusals.append(error)
        else:
            return collateral
    raise refusals[0]


def _claims(quote: DcapQuote, chain: PckChain, collateral: Collateral, now: datetime) -> Mapping[str, Any]:
    """What the library verified."""
    with refusals_of_library("the quote is not genuine"):
        seconds = (now - _EPOCH) // timedelta(seconds=1)
        if quote.signature.pck_data_type == PCK_CHAIN:
            for_library = collateral.for_library
        else:
            for_library = collateral.with_pck_chain(chain.pem)
        policy = dcap_qvl.QuotePolicy.claims_only(seconds)
        try:
            verifier = dcap_qvl.QuoteVerifier(chain.root_der)
            claims = verifier.verify_with_policy(quote.canonical, for_library, seconds, policy)
        except ValueError:
            # It leaves the cause out; this names it, for a reader who wants to know which certificate was revoked.
            dcap_qvl.verify_with_root_ca(quote.canonical, for_library, chain.root_der, seconds)
            raise
        verified: dict[str, Any] = json.loads(claims.to_json())
    return verified


def check_agreement(claims: Mapping[str, Any], signed: Mapping[str, bytes], chain: PckChain) -> None:
    """Refuse unless the library read the same in the quote and in the PCK certificate as was read here."""
    (report,) = claims["report"].values()
    while "base" in report:  # newer bodies hold the older ones
        report = report | report.pop("base")
    if any(report.get(name) != value.hex() for name, value in signed.items()):
        raise EvidenceError("what was verified of the quote's body is not what was parsed")
    pck = claims["platform"]["pck"]
    if (bytes(pck["fmspc"]), bytes(pck["pce_id"])) != (chain.fmspc, chain.pce_id):
        raise EvidenceError("what was verified of the PCK certificate is not what was parsed")


def _platform(claims: Mapping[str, Any], chain: PckChain, collateral: Collateral) -> DcapPlatform:
    tcb, level, pck = claims["tcb"], claims["platform"]["tcb_level"], claims["platform"]["pck"]
    qe_status = claims["qe"]["tcb_level"]["tcbStatus"]
    if qe_status not in _QE_STATUSES:
        raise EvidenceError(f"the quoting enclave's TCB status is {qe_status}, which is none that Intel gives to one")
    instance = pck["platform_instance_id"]
    return DcapPlatform(
        tcb_status=tcb["status"],
        advisories=frozenset(tcb["advisory_ids"]),
        tcb_evaluation_number=tcb["eval_data_number"],
        tcb_date=parse_time(level["tcbDate"], "the TCB level"),
        qe_status=qe_status,
        fmspc=chain.fmspc,
        pck_ca=chain.pck_ca,
        ppid=bytes(pck["ppid"]),
        platform_instance_id=None if instance is None else bytes(instance),
        dynamic_platform=_FLAGS[pck["dynamic_platform"]],
        cached_keys=_FLAGS[pck["cached_keys"]],
        smt=_FLAGS[pck["smt_enabled"]],
        sgx_type=pck["sgx_type"],
        collateral_expires=collateral.expires,
    )
