"""SGX quotes: bytes → `SgxQuote`. Total, bounded, no I/O; nothing here is trusted yet.

Around the body they are like TDX's, see `adyton.tee._dcap_quote`. Only version 3 is taken, as the library that verifies
quotes takes no other of SGX. The body (Intel SGX ECDSA Quote Library API, appendix A.4, Enclave Report Body), little
endian, 384 bytes; what lies between these fields is reserved:

    0   CPUSVN           16      128  MRSIGNER         32
    16  MISCSELECT        4      192  CONFIGID         64
    32  ISVEXTPRODID     16      256  ISVPRODID         2
    48  ATTRIBUTES: flags 8      258  ISVSVN            2
    56  ATTRIBUTES: XFRM  8      260  CONFIGSVN         2
    64  MRENCLAVE        32      304  ISVFAMILYID      16
                                 320  report data      64
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from adyton.tee._binary import Reader
from adyton.tee._dcap_quote import BODY_SGX, TEE_SGX, DcapQuote, parse_quote

DEBUG: Final = 0x02
"""The flag of ATTRIBUTES that lets the host read and change the enclave (Intel SDM, volume 3D, section 35.7.1)."""

_BODIES: Final = {3: (BODY_SGX,)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SgxReport:
    """The body of an SGX quote. `attributes` are the flags, without XFRM."""

    cpu_svn: bytes
    misc_select: int
    isv_ext_prod_id: bytes
    attributes: int
    xfrm: int
    mrenclave: bytes
    mrsigner: bytes
    config_id: bytes
    isv_prod_id: int
    isv_svn: int
    config_svn: int
    isv_family_id: bytes
    report_data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SgxQuote:
    """A well-formed SGX quote, not verified: every field is only what somebody claims."""

    quote: DcapQuote
    report: SgxReport


def parse_sgx(data: bytes) -> SgxQuote:
    """Parse any bytes; what is not an SGX quote of version 3, and zeros after it, is an `EvidenceError`."""
    quote = parse_quote(data, "the SGX quote", tee_type=TEE_SGX, bodies=_BODIES)
    return SgxQuote(quote=quote, report=parse_report(quote.body))


def parse_report(body: bytes) -> SgxReport:
    """The body of a report, 384 bytes (SDM, volume 3D, REPORT), as a quote has it and EREPORT makes it."""
    reader = Reader(body, "the SGX report", order="little")
    cpu_svn, misc_select = reader.take(16, "CPUSVN"), reader.number(4, "MISCSELECT")
    reader.take(12, "reserved bytes")
    isv_ext_prod_id = reader.take(16, "ISVEXTPRODID")
    attributes, xfrm = reader.number(8, "ATTRIBUTES"), reader.number(8, "XFRM")
    mrenclave = reader.take(32, "MRENCLAVE")
    reader.take(32, "reserved bytes")
    mrsigner = reader.take(32, "MRSIGNER")
    reader.take(32, "reserved bytes")
    config_id = reader.take(64, "CONFIGID")
    isv_prod_id, isv_svn = reader.number(2, "ISVPRODID"), reader.number(2, "ISVSVN")
    config_svn = reader.number(2, "CONFIGSVN")
    reader.take(42, "reserved bytes")
    return SgxReport(
        cpu_svn=cpu_svn,
        misc_select=misc_select,
        isv_ext_prod_id=isv_ext_prod_id,
        attributes=attributes,
        xfrm=xfrm,
        mrenclave=mrenclave,
        mrsigner=mrsigner,
        config_id=config_id,
        isv_prod_id=isv_prod_id,
        isv_svn=isv_svn,
        config_svn=config_svn,
        isv_family_id=reader.take(16, "ISVFAMILYID"),
        report_data=reader.take(64, "report data"),
    )
