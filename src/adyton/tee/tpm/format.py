"""TPM evidence, version 1: bytes ↔ `TpmEvidence`. Total, bounded, no I/O; nothing here is trusted yet.

A TPM has structures but no message, so this one is Adyton's: a CBOR map of

    "version"      1
    "quoted"       the TPMS_ATTEST that TPM2_Quote returned; what the TPM signed is exactly these bytes
    "signature"    the TPMT_SIGNATURE that TPM2_Quote returned
    "ak_public"    the TPMT_PUBLIC of the attestation key
    "pcrs"         the PCR values: {bank: {index: digest}}, banks by name ("sha1", "sha256", "sha384", …)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cbor2

from adyton.errors import EvidenceError
from adyton.tee._cbor import decode_cbor, field
from adyton.tee._tpm import Pcrs, Quote, check_fields, quote_of
from adyton.tee._tpm_structures import TpmPublic, parse_public

VERSION: Final = 1

_WHAT: Final = "the TPM evidence"
_FIELDS: Final = frozenset({"version", "quoted", "signature", "ak_public", "pcrs"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmEvidence:
    """Well-formed evidence, not verified: every field is only what somebody claims."""

    quote: Quote
    ak: TpmPublic


def parse_tpm(data: bytes) -> TpmEvidence:
    """Parse any bytes; what is not version 1 to the last byte, and of each structure too, is an `EvidenceError`."""
    items = check_fields(decode_cbor(data, _WHAT), _FIELDS, _WHAT)
    version = field(items, "version", int, _WHAT)
    if version != VERSION:
        raise EvidenceError(f"{_WHAT} is of version {str(version)[:64]}; only version {VERSION} is known")
    return TpmEvidence(quote=quote_of(items, _WHAT), ak=parse_public(field(items, "ak_public", bytes, _WHAT)))


def encode_tpm(*, quoted: bytes, signature: bytes, ak_public: bytes, pcrs: Pcrs) -> bytes:
    """The evidence, in deterministic CBOR (RFC 8949, section 4.2). Nothing is checked."""
    values = {bank: dict(of_bank) for bank, of_bank in pcrs.items()}
    items = {"version": VERSION, "quoted": quoted, "signature": signature, "ak_public": ak_public, "pcrs": values}
    return cbor2.dumps(items, canonical=True)
