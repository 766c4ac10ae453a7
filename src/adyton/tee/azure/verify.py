"""Is an Azure confidential VM's evidence genuine? No I/O.

The chain: the processor's vendor vouches for the SNP report or TD quote; it binds the paravisor's claims; these name
the vTPM's attestation key; and that key signs the quote, which holds what the enclave wanted signed. The vTPM is
software inside the paravisor, so it is as good as the `measurement` of that, which the hardware report has.

The attestation key comes without its public area, so its attributes and name can't be looked at: that it signs only
what the vTPM attests is the paravisor's word. *Not* checked, because policy decides it: the measurement, the PCRs, the
claims (secure boot, console, …), the nonce, the TCB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, ClassVar, Final

from adyton.errors import EvidenceError
from adyton.tee._pins import AMD_ARK_GENOA, AMD_ARK_MILAN, AMD_ARK_TURIN, INTEL_SGX_ROOT
from adyton.tee._tpm import QUOTE_STEPS, VerifiedQuote, verify_quote
from adyton.tee._tpm_structures import Scheme
from adyton.tee.azure.format import TDREPORT_REPORT_DATA, AzureEvidence, HardwareTee, HclReport, parse_azure
from adyton.tee.evidence import EndorsementKind, Evidence, VerifiedEvidence, check_verifiable
from adyton.tee.registry import tee
from adyton.tee.steps import Step, Trace

ANCHORS: Final[frozenset[bytes]] = frozenset({INTEL_SGX_ROOT, AMD_ARK_MILAN, AMD_ARK_GENOA, AMD_ARK_TURIN})

FORMAT: Final = Step(
    title="the evidence, the HCL report and the TPM's structures are well formed",
    reference="openvmm, openhcl_attestation_protocol, igvm_attest/get.rs",
)
HARDWARE: Final = Step(
    title="the SNP report or TD quote is genuine, by the verifier of its own TEE",
    reference="SEV-SNP Firmware ABI, section 7.3; Intel TDX DCAP Quoting Library API, appendix A",
)
PARAVISOR: Final = Step(
    title="the paravisor asked for it: an SNP report is of VMPL 0",
    reference="SEV-SNP Firmware ABI, section 7.3, table 23",
)
BOUND: Final = Step(
    title="it binds the paravisor's claims, and so the attestation key",
    reference="openvmm, openhcl_attestation_protocol, igvm_attest/get.rs, RuntimeClaims",
)
STEPS: Final[tuple[Step, ...]] = (FORMAT, HARDWARE, PARAVISOR, BOUND, *QUOTE_STEPS)

_SCHEMES: Final = tuple(
    Scheme(algorithm=algorithm, hash=hash_)
    for algorithm in ("rsassa", "rsapss")
    for hash_ in ("sha256", "sha384", "sha512")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedAzure:
    """What genuine evidence says. `report_data` is what the caller of the vTPM's quote gave.

    `hardware` is what the verifier of `hardware_tee` made of its report; `measurement`, `tcb`, `platform` and
    `anchor_sha256` are its. `runtime` is the paravisor's claims, and `secure_boot` the one of its "vm-configuration",
    or None if it has none. `evidence_sha256` is over the two digests of what the hardware and what the vTPM signed.
    """

    tee: ClassVar[str] = "azure"

    hardware: VerifiedEvidence
    hardware_tee: HardwareTee
    quote: VerifiedQuote
    runtime: Mapping[str, Any]
    secure_boot: bool | None
    report_data: bytes
    measurement: bytes
    tcb: str
    platform: str
    evidence_sha256: bytes
    anchor_sha256: bytes


def verify_azure(
    evidence: Evidence, *, anchors: Collection[bytes], now: datetime, trace: Trace | None = None
) -> VerifiedAzure:
    """Go through `STEPS`; the first that fails raises `EvidenceError`. A `now` without time zone is a ValueError.

    `anchors` and the endorsements are those that SEV-SNP or TDX takes; an event log is the vTPM's.
    """
    check_verifiable(evidence, VerifiedAzure.tee, anchors, now)
    trace = trace or Trace()
    trace.begin(FORMAT)
    parsed = parse_azure(evidence.data)
    hcl = parsed.hcl
    trace.begin(HARDWARE)
    hardware = tee(hcl.hardware_tee).verifier()(_hardware_evidence(evidence, parsed), anchors=anchors, now=now)
    trace.begin(PARAVISOR)
    if hcl.hardware_tee == "snp":
        _check_vmpl(hardware)
    trace.begin(BOUND)
    _check_bound(hcl, hardware)
    quote = verify_quote(parsed.quote, hcl.ak, _SCHEMES, evidence.endorsed(EndorsementKind.EVENT_LOG), trace)
    return VerifiedAzure(
        hardware=hardware,
        hardware_tee=hcl.hardware_tee,
        quote=quote,
        runtime=hcl.runtime,
        secure_boot=_secure_boot(hcl.runtime),
        report_data=quote.extra_data,
        measurement=hardware.measurement,
        tcb=hardware.tcb,
        platform=hardware.platform,
        evidence_sha256=hashlib.sha256(hardware.evidence_sha256 + quote.sha256).digest(),
        anchor_sha256=hardware.anchor_sha256,
    )


def _hardware_evidence(evidence: Evidence, parsed: AzureEvidence) -> Evidence:
    # The event log is of the vTPM's registers. TDX has registers of its own, and must not take it for theirs.
    others = tuple(item for item in evidence.endorsements if item.kind is not EndorsementKind.EVENT_LOG)
    return replace(evidence, tee=parsed.hcl.hardware_tee, data=parsed.hardware_evidence, endorsements=others)


def _check_vmpl(hardware: Any) -> None:
    # A guest of the paravisor runs at another level, and may ask the firmware for reports of any report data.
    if hardware.vmpl != 0:
        raise EvidenceError(f"the SNP report is of VMPL {hardware.vmpl}, not of the paravisor's, 0")


def _check_bound(hcl: HclReport, hardware: VerifiedEvidence) -> None:
    bound = hashlib.new(hcl.claims_hash, hcl.claims).digest().ljust(64, b"\0")
    if hardware.report_data != bound:
        raise EvidenceError("the report data of the hardware report is not the hash of the runtime claims")
    if hcl.hardware_tee == "tdx" and hcl.hardware_report[TDREPORT_REPORT_DATA] != bound:
        raise EvidenceError("the report data of the TDREPORT is not that of the TD quote")


def _secure_boot(runtime: Mapping[str, Any]) -> bool | None:
    configuration = runtime.get("vm-configuration")
    told = configuration.get("secure-boot") if isinstance(configuration, Mapping) else None
    return told if isinstance(told, bool) else None
