"""TDX quotes, versions 4 and 5: bytes → `TdxQuote`. Total, bounded, no I/O; nothing here is trusted yet.

Around the body they are like SGX's, see `adyton.tee._dcap_quote`. The body (Intel TDX DCAP Quoting Library API,
appendix A.3, TD Quote Body), little endian, fields one after the other:

    TDX 1.0, 584 bytes   TEE_TCB_SVN 16, MRSEAM 48, MRSIGNERSEAM 48, SEAMATTRIBUTES 8, TDATTRIBUTES 8, XFAM 8, MRTD 48,
                         MRCONFIGID 48, MROWNER 48, MROWNERCONFIG 48, RTMR0 to RTMR3 48 each, report data 64
    TDX 1.5, 648 bytes   and TEE_TCB_SVN_2 16, MRSERVICETD 48
    with migration, 885  and VMID 1, TDID 32, device information 48; then, of the service TD that was bound first: hash
                         48, attributes 8, CPUSVN 16, TEE_TCB_SVN 16, FMSPC 12; and of the current one: hash 48,
                         attributes 8
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from adyton.tee._binary import Reader
from adyton.tee._dcap_quote import (
    BODY_TD_1_0,
    BODY_TD_1_5,
    BODY_TD_1_5_EX,
    TEE_TDX,
    DcapQuote,
    parse_quote,
)

DEBUG: Final = 0x01
"""The bit of TDATTRIBUTES that lets the host read and change the TD (Intel TDX Module, ATTRIBUTES)."""
MR_BYTES: Final = 48

_BODIES: Final = {4: (BODY_TD_1_0,), 5: (BODY_TD_1_0, BODY_TD_1_5, BODY_TD_1_5_EX)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TdReportMigration:
    """What the body has beyond TDX 1.5. The initial FMSPC's 12 bytes are not a PCK certificate's FMSPC."""

    vmid: int
    td_id: bytes
    device_info: bytes
    initial_service_td_hash: bytes
    initial_service_td_attributes: int
    initial_cpu_svn: bytes
    initial_tee_tcb_svn: bytes
    initial_fmspc: bytes
    service_td_hash: bytes
    service_td_attributes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TdReport:
    """The body of a TDX quote. Before TDX 1.5, `tee_tcb_svn_2` and `mr_service_td` are zeros."""

    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: int
    td_attributes: int
    xfam: int
    mrtd: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes
    tee_tcb_svn_2: bytes
    mr_service_td: bytes
    migration: TdReportMigration | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxQuote:
    """A well-formed TDX quote, not verified: every field is only what somebody claims."""

    quote: DcapQuote
    report: TdReport


def parse_tdx(data: bytes) -> TdxQuote:
    """Parse any bytes; what is not a TDX quote of version 4 or 5, and zeros after it, is an `EvidenceError`."""
    quote = parse_quote(data, "the TDX quote", tee_type=TEE_TDX, bodies=_BODIES)
    return TdxQuote(quote=quote, report=_report(quote.body, quote.body_type))


def _report(body: bytes, body_type: int) -> TdReport:
    reader = Reader(body, "the TD report", order="little")
    is_1_5 = body_type >= BODY_TD_1_5
    return TdReport(  # the fields in their order in the body
        tee_tcb_svn=reader.take(16, "TEE_TCB_SVN"),
        mr_seam=reader.take(MR_BYTES, "MRSEAM"),
        mr_signer_seam=reader.take(MR_BYTES, "MRSIGNERSEAM"),
        seam_attributes=reader.number(8, "SEAMATTRIBUTES"),
        td_attributes=reader.number(8, "TDATTRIBUTES"),
        xfam=reader.number(8, "XFAM"),
        mrtd=reader.take(MR_BYTES, "MRTD"),
        mr_config_id=reader.take(MR_BYTES, "MRCONFIGID"),
        mr_owner=reader.take(MR_BYTES, "MROWNER"),
        mr_owner_config=reader.take(MR_BYTES, "MROWNERCONFIG"),
        rtmrs=(
            reader.take(MR_BYTES, "RTMR0"),
            reader.take(MR_BYTES, "RTMR1"),
            reader.take(MR_BYTES, "RTMR2"),
            reader.take(MR_BYTES, "RTMR3"),
        ),
        report_data=reader.take(64, "report data"),
        tee_tcb_svn_2=reader.take(16, "TEE_TCB_SVN_2") if is_1_5 else bytes(16),
        mr_service_td=reader.take(MR_BYTES, "MRSERVICETD") if is_1_5 else bytes(MR_BYTES),
        migration=_migration(reader) if body_type == BODY_TD_1_5_EX else None,
    )


def _migration(reader: Reader) -> TdReportMigration:
    return TdReportMigration(
        vmid=reader.number(1, "VMID"),
        td_id=reader.take(32, "TDID"),
        device_info=reader.take(48, "device information"),
        initial_service_td_hash=reader.take(MR_BYTES, "initial service TD's hash"),
        initial_service_td_attributes=reader.number(8, "initial service TD's attributes"),
        initial_cpu_svn=reader.take(16, "initial CPUSVN"),
        initial_tee_tcb_svn=reader.take(16, "initial TEE_TCB_SVN"),
        initial_fmspc=reader.take(12, "initial FMSPC"),
        service_td_hash=reader.take(MR_BYTES, "service TD's hash"),
        service_td_attributes=reader.number(8, "service TD's attributes"),
    )
