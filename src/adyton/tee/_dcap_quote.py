"""Intel's DCAP quotes, as far as those of SGX and TDX are alike: bytes → `DcapQuote`. Total, bounded, no I/O.

Little endian. Version 3: Intel SGX ECDSA Quote Library API, appendix A.4; versions 4 and 5: Intel TDX DCAP Quoting
Library API, appendix A.3.

    header             48   version 2, attestation key type 2, TEE type 4, QE SVN 2, PCE SVN 2, QE vendor 16,
                            user data 20
    descriptor          6   version 5 only: body type 2, body size 4
    body                n   what the hardware reports, see `BODY_BYTES`
    signature data  4 + m   its size, then:
      signature        64   r, s: by the attestation key, over all of the above
      attestation key  64   x, y: of P-256
      certification     6   from version 4 on: type 2, always 6, and size 4, of all that follows
      QE report       384   of the quoting enclave: its report data begins with the hash of the attestation key
      its signature    64   r, s: by the platform's certified key, the PCK
      QE auth data  2 + k
      PCK data      6 + l   type 2 and size 4: the PCK's certificate, or what names it

Producers fill their buffers with zeros. Anything else after the end, and anything between the parts, is refused, so
nobody can make a second quote of one without the hardware.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from adyton.errors import EvidenceError
from adyton.tee._binary import Reader

TEE_SGX: Final = 0x00
TEE_TDX: Final = 0x81

BODY_SGX: Final = 1
BODY_TD_1_0: Final = 2
BODY_TD_1_5: Final = 3
BODY_TD_1_5_EX: Final = 4
BODY_BYTES: Final[Mapping[int, int]] = MappingProxyType(
    {BODY_SGX: 384, BODY_TD_1_0: 584, BODY_TD_1_5: 648, BODY_TD_1_5_EX: 885}
)
"""The size of a body by its type."""

PCK_CHAIN: Final = 5
"""The PCK data is a chain of certificates in PEM: the PCK's, its CA's, the root's."""
PCK_NAMES: Final = frozenset({1, 2, 3})
"""The PCK data only names the PCK: by PPID, in the clear or encrypted, CPUSVN, PCESVN and PCE-ID."""

_ECDSA_P256: Final = 2
_QE_CERTIFICATION: Final = 6
_FIRST_WITH_CERTIFICATION: Final = 4
_FIRST_WITH_DESCRIPTOR: Final = 5
_AFTER_HASH: Final = slice(352, 384)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteHeader:
    """Who made the quote, and in which version. From version 4 on, `qe_svn` and `pce_svn` are reserved."""

    version: int
    qe_svn: int
    pce_svn: int
    qe_vendor_id: bytes
    user_data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteSignature:
    """What is to prove the quote: by the attestation key, which the QE report names, which the PCK signed."""

    signature: bytes
    attestation_key: bytes
    qe_report: bytes
    qe_report_signature: bytes
    qe_auth_data: bytes
    pck_data_type: int
    pck_data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DcapQuote:
    """A well-formed quote, not verified: every field is only what somebody claims.

    `signed_part` is all before the signature data; `canonical` all but the padding.
    """

    header: QuoteHeader
    body_type: int
    body: bytes
    signature: QuoteSignature
    signed_part: bytes
    canonical: bytes


def parse_quote(data: bytes, what: str, *, tee_type: int, bodies: Mapping[int, tuple[int, ...]]) -> DcapQuote:
    """Parse any bytes as a quote of that TEE type, or raise `EvidenceError`.

    `bodies` has the body types of each version, of which there is one before version 5. `what` names the whole in
    messages: "the TDX quote".
    """
    reader = Reader(data, what, order="little")
    header = _header(reader, what, tee_type, bodies)
    body_type = _body_type(reader, what, header.version, bodies[header.version])
    body = reader.take(BODY_BYTES[body_type], "body")
    signed_part = data[: reader.position]
    signature_data = reader.take(reader.number(4, "size of its signature data"), "signature data")
    canonical = data[: reader.position]
    if reader.rest().strip(b"\0"):
        raise EvidenceError(f"{what} is followed by bytes that are not zero")
    return DcapQuote(
        header=header,
        body_type=body_type,
        body=body,
        signature=_signature(signature_data, f"the signature data of {what}", header.version),
        signed_part=signed_part,
        canonical=canonical,
    )


def _header(reader: Reader, what: str, tee_type: int, versions: Collection[int]) -> QuoteHeader:
    version = _known(reader.number(2, "version"), versions, f"the version of {what}")
    _known(reader.number(2, "attestation key type"), (_ECDSA_P256,), f"the attestation key type of {what}")
    _known(reader.number(4, "TEE type"), (tee_type,), f"the TEE type of {what}")
    return QuoteHeader(
        version=version,
        qe_svn=reader.number(2, "QE SVN"),
        pce_svn=reader.number(2, "PCE SVN"),
        qe_vendor_id=reader.take(16, "QE vendor"),
        user_data=reader.take(20, "user data"),
    )


def _body_type(reader: Reader, what: str, version: int, types: tuple[int, ...]) -> int:
    if version < _FIRST_WITH_DESCRIPTOR:
        return types[0]
    body_type = _known(reader.number(2, "body type"), types, f"the body type of {what}")
    _known(reader.number(4, "body size"), (BODY_BYTES[body_type],), f"the body size of {what}")
    return body_type


def _signature(data: bytes, what: str, version: int) -> QuoteSignature:
    reader = Reader(data, what, order="little")
    signature, attestation_key = reader.take(64, "signature"), reader.take(64, "attestation key")
    if version >= _FIRST_WITH_CERTIFICATION:
        reader = _certification(reader, what)
    qe_report, qe_report_signature = reader.take(384, "QE report"), reader.take(64, "signature of its QE report")
    if any(qe_report[_AFTER_HASH]):
        raise EvidenceError(f"{what} has a QE report with something after the hash of the attestation key")
    qe_auth_data = reader.take(reader.number(2, "size of its QE auth data"), "QE auth data")
    pck_data_type = _known(reader.number(2, "PCK data type"), (PCK_CHAIN, *PCK_NAMES), f"the PCK data type of {what}")
    pck_data = reader.take(reader.number(4, "size of its PCK data"), "PCK data")
    reader.end()
    return QuoteSignature(
        signature=signature,
        attestation_key=attestation_key,
        qe_report=qe_report,
        qe_report_signature=qe_report_signature,
        qe_auth_data=qe_auth_data,
        pck_data_type=pck_data_type,
        pck_data=pck_data,
    )


def _certification(outer: Reader, what: str) -> Reader:
    """The reader of what versions 4 and 5 wrap once more."""
    _known(outer.number(2, "certification type"), (_QE_CERTIFICATION,), f"the certification type of {what}")
    data = outer.take(outer.number(4, "size of its certification"), "certification")
    outer.end()
    return Reader(data, f"the certification in {what}", order="little")


def _known(number: int, known: Collection[int], what: str) -> int:
    if number not in known:
        raise EvidenceError(f"{what} is {number}; known are: {', '.join(str(each) for each in sorted(known))}")
    return number
