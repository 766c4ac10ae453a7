"""Is an SGX quote genuine: of an SGX enclave on a platform that Intel certified? No I/O; time is an argument.

What Intel signed about platforms comes as DCAP_COLLATERAL endorsements. Debug enclaves are refused: the library that
verifies quotes gives no choice. *Not* checked, because policy decides it: measurement and signer, other attributes, TCB
status and age, what the report data binds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Final

from adyton.tee._dcap_verify import DCAP_STEPS, DcapPlatform, verify_dcap
from adyton.tee._pins import INTEL_SGX_ROOT
from adyton.tee.evidence import Evidence, check_verifiable
from adyton.tee.sgx.format import DEBUG, parse_sgx
from adyton.tee.steps import Step, Trace

_FORMAT: Final = Step(
    title="the quote parses to its last byte", reference="Intel SGX ECDSA Quote Library API, appendix A.4"
)

ANCHORS: Final[frozenset[bytes]] = frozenset({INTEL_SGX_ROOT})

STEPS: Final[tuple[Step, ...]] = (_FORMAT, *DCAP_STEPS)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedSgx:
    """What a genuine SGX quote says of the enclave (see `SgxReport`) and Intel of the platform.

    `measurement` is MRENCLAVE. `attributes` are the flags of ATTRIBUTES, `xfrm` its other half.
    """

    tee: ClassVar[str] = "sgx"

    measurement: bytes
    report_data: bytes
    mrsigner: bytes
    isv_prod_id: int
    isv_svn: int
    isv_ext_prod_id: bytes
    isv_family_id: bytes
    config_id: bytes
    config_svn: int
    attributes: int
    xfrm: int
    misc_select: int
    debug: bool
    platform_tcb: DcapPlatform
    evidence_sha256: bytes
    anchor_sha256: bytes

    @property
    def tcb(self) -> str:
        """Status, evaluation number and date of the platform's TCB."""
        return self.platform_tcb.tcb

    @property
    def platform(self) -> str:
        """The platform instance ID, or the PPID where there is none, in hexadecimal."""
        return self.platform_tcb.name


def verify_sgx(
    evidence: Evidence, *, anchors: Collection[bytes], now: datetime, trace: Trace | None = None
) -> VerifiedSgx:
    """Verify in the order of `STEPS`; the first that fails raises `EvidenceError`.

    Trusted after: that the quoting enclave of a platform certified under the anchor signed the result, as far as the
    platform's TCB can be trusted.
    """
    check_verifiable(evidence, VerifiedSgx.tee, anchors, now)
    trace = trace or Trace()
    trace.begin(_FORMAT)
    parsed = parse_sgx(evidence.data)
    report = parsed.report
    signed = {"mr_enclave": report.mrenclave, "mr_signer": report.mrsigner, "report_data": report.report_data}
    dcap = verify_dcap(evidence, parsed.quote, signed, tee="sgx", anchors=anchors, now=now, trace=trace)
    return VerifiedSgx(
        measurement=report.mrenclave,
        report_data=report.report_data,
        mrsigner=report.mrsigner,
        isv_prod_id=report.isv_prod_id,
        isv_svn=report.isv_svn,
        isv_ext_prod_id=report.isv_ext_prod_id,
        isv_family_id=report.isv_family_id,
        config_id=report.config_id,
        config_svn=report.config_svn,
        attributes=report.attributes,
        xfrm=report.xfrm,
        misc_select=report.misc_select,
        debug=bool(report.attributes & DEBUG),
        platform_tcb=dcap.platform,
        evidence_sha256=hashlib.sha256(parsed.quote.signed_part).digest(),
        anchor_sha256=dcap.anchor_sha256,
    )
