"""Is a TDX quote genuine: of a trust domain on a platform that Intel certified? No I/O; time is an argument.

What Intel signed about platforms comes as DCAP_COLLATERAL endorsements; event logs, which nobody signed, as EVENT_LOG.
Refused, for the library that verifies quotes gives no choice: TDs in debug mode, without SEPT_VE_DISABLE, that can be
migrated, or that are bound to a service TD. *Not* checked, because policy decides it: measurement and RTMRs, other
attributes and XFAM, the TDX module, TCB status and age, what the report data binds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import ClassVar, Final

from adyton.tee._dcap_verify import DCAP_STEPS, DcapPlatform, verify_dcap
from adyton.tee._event_log import Event, confirmed, parse_event_log
from adyton.tee._pins import INTEL_SGX_ROOT
from adyton.tee.evidence import EndorsementKind, Evidence, check_verifiable
from adyton.tee.steps import Step, Trace
from adyton.tee.tdx.format import DEBUG, TdReport, parse_tdx

_FORMAT: Final = Step(
    title="the quote parses to its last byte", reference="Intel TDX DCAP Quoting Library API, appendix A.3"
)
_EVENTS: Final = Step(
    title="event logs parse; events count as far as they replay to RTMRs", reference="UEFI 2.10, section 38.4.1"
)

ANCHORS: Final[frozenset[bytes]] = frozenset({INTEL_SGX_ROOT})
"""TDX's root is SGX's too."""

STEPS: Final[tuple[Step, ...]] = (_FORMAT, *DCAP_STEPS, _EVENTS)

_LOG_REGISTER_OF_RTMR0: Final = 1
"""In a log for TDs, register 0 is MRTD, and RTMRs follow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedTdx:
    """What a genuine TDX quote says of the trust domain (see `TdReport`) and Intel of the platform.

    `measurement` is MRTD. `events` are, by RTMR (0 to 3), those of a log that replays exactly to the signed register;
    a register without has none. Of an event, only the digest is proven.
    """

    tee: ClassVar[str] = "tdx"

    measurement: bytes
    report_data: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]
    events: Mapping[int, tuple[Event, ...]]
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    mr_service_td: bytes
    td_attributes: int
    debug: bool
    xfam: int
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: int
    tee_tcb_svn: bytes
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


def verify_tdx(
    evidence: Evidence, *, anchors: Collection[bytes], now: datetime, trace: Trace | None = None
) -> VerifiedTdx:
    """Verify in the order of `STEPS`; the first that fails raises `EvidenceError`.

    Trusted after: that the quoting enclave of a platform certified under the anchor signed the result, as far as the
    platform's TCB can be trusted.
    """
    check_verifiable(evidence, VerifiedTdx.tee, anchors, now)
    trace = trace or Trace()
    trace.begin(_FORMAT)
    parsed = parse_tdx(evidence.data)
    report = parsed.report
    signed = _signed(report)
    dcap = verify_dcap(evidence, parsed.quote, signed, tee="tdx", anchors=anchors, now=now, trace=trace)
    trace.begin(_EVENTS)
    events = _events(evidence.endorsed(EndorsementKind.EVENT_LOG), report.rtmrs)
    return VerifiedTdx(
        measurement=report.mrtd,
        report_data=report.report_data,
        rtmrs=report.rtmrs,
        events=events,
        mr_config_id=report.mr_config_id,
        mr_owner=report.mr_owner,
        mr_owner_config=report.mr_owner_config,
        mr_service_td=report.mr_service_td,
        td_attributes=report.td_attributes,
        debug=bool(report.td_attributes & DEBUG),
        xfam=report.xfam,
        mr_seam=report.mr_seam,
        mr_signer_seam=report.mr_signer_seam,
        seam_attributes=report.seam_attributes,
        tee_tcb_svn=report.tee_tcb_svn,
        platform_tcb=dcap.platform,
        evidence_sha256=hashlib.sha256(parsed.quote.signed_part).digest(),
        anchor_sha256=dcap.anchor_sha256,
    )


def _signed(report: TdReport) -> Mapping[str, bytes]:
    """What the library must have read too, by its names."""
    rtmrs = {f"rt_mr{index}": value for index, value in enumerate(report.rtmrs)}
    return rtmrs | {"mr_td": report.mrtd, "report_data": report.report_data}


def _events(logs: Iterable[bytes], rtmrs: tuple[bytes, ...]) -> Mapping[int, tuple[Event, ...]]:
    """By RTMR, the events of the first log that gives its value."""
    registers = {"sha384": dict(enumerate(rtmrs, _LOG_REGISTER_OF_RTMR0))}
    events: dict[int, tuple[Event, ...]] = {}
    for data in logs:
        for register, found in confirmed(parse_event_log(data), registers).items():
            events.setdefault(register - _LOG_REGISTER_OF_RTMR0, found)
    return MappingProxyType(dict(sorted(events.items())))
