"""Azure's evidence, version 1: bytes ↔ `AzureEvidence`. Total, bounded, no I/O; nothing here is trusted yet.

Azure has parts but no message, so this one is Adyton's: a CBOR map of

    "version"      1
    "hcl_report"   what the vTPM's NV index 0x01400001 holds, see below
    "quote"        a quote of the vTPM's, of the attestation key 0x81000003: "quoted", "signature" and "pcrs" as in the
                   evidence of a TPM
    "td_quote"     the TD quote that a quoting service made of the TDREPORT in the HCL report; for TDX only

The HCL report (openvmm, openhcl_attestation_protocol, igvm_attest/get.rs; little endian) is written by the paravisor:

    0     32    "HCLA", version, size of all, and fields that nobody signs or needs
    32    1184  the SNP report, or the TDREPORT and zeros
    1216  20    size from here, version 1, type of the report (2 SNP, 4 TDX), hash (1 SHA-256, 2 SHA-384, 3 SHA-512),
                size of the claims
    1236  n     the runtime claims in JSON, which the report binds; zeros after them
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

import cbor2
from cryptography.hazmat.primitives.asymmetric import rsa

from adyton.errors import EvidenceError
from adyton.tee._cbor import decode_cbor, field
from adyton.tee._tpm import Pcrs, Quote, check_fields, quote_of
from adyton.tee._tpm_structures import rsa_key

VERSION: Final = 1
HARDWARE_REPORT: Final = slice(32, 1216)
TDREPORT_REPORT_DATA: Final = slice(128, 192)
"""Where a TDREPORT has its report data (Intel TDX Module Base Architecture, REPORTMACSTRUCT)."""
AK_ID: Final = "HCLAkPub"

HardwareTee = Literal["snp", "tdx"]
ClaimsHash = Literal["sha256", "sha384", "sha512"]

_WHAT: Final = "the Azure evidence"
_HCL: Final = "the HCL report"
_FIELDS: Final = frozenset({"version", "hcl_report", "quote", "td_quote"})
_QUOTE_FIELDS: Final = frozenset({"quoted", "signature", "pcrs"})
_HEAD: Final = struct.Struct("<4sII20x")
_REQUEST: Final = struct.Struct("<IIIII")
_CLAIMS: Final = HARDWARE_REPORT.stop + _REQUEST.size
_HCL_VERSIONS: Final = (1, 2)
_REQUEST_VERSION: Final = 1
_HARDWARE: Final[Mapping[int, HardwareTee]] = {2: "snp", 4: "tdx"}
_HASHES: Final[Mapping[int, ClaimsHash]] = {1: "sha256", 2: "sha384", 3: "sha512"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HclReport:
    """A well-formed report of the paravisor, not verified. `claims` is the JSON as received, `runtime` what it says.

    `hardware_report` has 1184 bytes; of a TDREPORT only the first 1024 count. `ak` is the vTPM's attestation key.
    """

    hardware_tee: HardwareTee
    hardware_report: bytes
    claims: bytes
    claims_hash: ClaimsHash
    runtime: Mapping[str, Any]
    ak: rsa.RSAPublicKey


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureEvidence:
    """Well-formed evidence, not verified: every field is only what somebody claims.

    `hardware_evidence` is what the verifier of `hcl.hardware_tee` takes: the SNP report, or the TD quote.
    """

    hcl: HclReport
    quote: Quote
    hardware_evidence: bytes


def parse_azure(data: bytes) -> AzureEvidence:
    """Parse any bytes; what is not version 1 to the last byte, and of each part too, is an `EvidenceError`."""
    items = check_fields(decode_cbor(data, _WHAT), _FIELDS, _WHAT)
    version = field(items, "version", int, _WHAT)
    if version != VERSION:
        raise EvidenceError(f"{_WHAT} is of version {str(version)[:64]}; only version {VERSION} is known")
    quote = check_fields(items.get("quote"), _QUOTE_FIELDS, "the quote of the vTPM")
    hcl = parse_hcl(field(items, "hcl_report", bytes, _WHAT))
    if hcl.hardware_tee == "snp" and "td_quote" in items:
        raise EvidenceError(f"{_WHAT} has a TD quote, and an HCL report of SEV-SNP")
    is_td = hcl.hardware_tee == "tdx"
    return AzureEvidence(
        hcl=hcl,
        quote=quote_of(quote, "the quote of the vTPM"),
        hardware_evidence=field(items, "td_quote", bytes, _WHAT) if is_td else hcl.hardware_report,
    )


def encode_azure(
    *, hcl_report: bytes, quoted: bytes, signature: bytes, pcrs: Pcrs, td_quote: bytes | None = None
) -> bytes:
    """The evidence, in deterministic CBOR (RFC 8949, section 4.2). Nothing is checked."""
    values = {bank: dict(of_bank) for bank, of_bank in pcrs.items()}
    quote = {"quoted": quoted, "signature": signature, "pcrs": values}
    items: dict[str, Any] = {"version": VERSION, "hcl_report": hcl_report, "quote": quote}
    if td_quote is not None:
        items["td_quote"] = td_quote
    return cbor2.dumps(items, canonical=True)


def parse_hcl(data: bytes) -> HclReport:
    """Parse an HCL report, with the zeros that fill its NV index."""
    if len(data) < _CLAIMS:
        raise EvidenceError(f"{_HCL} ends after {len(data)} bytes, before its claims")
    magic, version, size = _HEAD.unpack_from(data)
    request_size, request_version, kind, hash_, claims_size = _REQUEST.unpack_from(data, HARDWARE_REPORT.stop)
    if magic != b"HCLA":
        raise EvidenceError(f"{_HCL} begins with 0x{magic.hex()}, not with HCLA")
    if version not in _HCL_VERSIONS or request_version != _REQUEST_VERSION:
        raise EvidenceError(f"{_HCL} is of the unknown version {version}, its request of {request_version}")
    if kind not in _HARDWARE:
        raise EvidenceError(f"{_HCL} holds a hardware report of type {kind}; 2 (SEV-SNP) and 4 (TDX) are allowed")
    if hash_ not in _HASHES:
        raise EvidenceError(f"{_HCL} binds its claims by the unknown hash {hash_}")
    end = _CLAIMS + claims_size
    if size != end or request_size != _REQUEST.size + claims_size or end > len(data):
        raise EvidenceError(f"the sizes in {_HCL} contradict each other: {size}, {request_size}, {claims_size}")
    if any(data[end:]):
        raise EvidenceError(f"{_HCL} goes on after its claims")
    runtime = _runtime(data[_CLAIMS:end])
    return HclReport(
        hardware_tee=_HARDWARE[kind],
        hardware_report=data[HARDWARE_REPORT],
        claims=data[_CLAIMS:end],
        claims_hash=_HASHES[hash_],
        runtime=runtime,
        ak=_attestation_key(runtime),
    )


def _runtime(claims: bytes) -> Mapping[str, Any]:
    """The claims, immutable: objects as a `Mapping` that is no dict, arrays as tuples."""
    try:
        runtime = json.loads(claims.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise EvidenceError("the runtime claims are no valid JSON") from error
    if not isinstance(runtime, Mapping):
        raise EvidenceError("the runtime claims are no JSON object")
    return runtime


def _object(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    items = {name: _frozen(value) for name, value in pairs}
    if len(items) != len(pairs):
        raise ValueError("a name comes twice in an object")
    return MappingProxyType(items)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _attestation_key(runtime: Mapping[str, Any]) -> rsa.RSAPublicKey:
    """The key that the claims name as the vTPM's, a JWK (RFC 7517; RFC 7518, section 6.3.1)."""
    keys = runtime.get("keys")
    listed = keys if isinstance(keys, tuple) else ()
    found = [key for key in listed if isinstance(key, Mapping) and key.get("kid") == AK_ID]
    if len(found) != 1:
        raise EvidenceError(f"the runtime claims have {len(found)} keys {AK_ID}, not one")
    if found[0].get("kty") != "RSA":
        raise EvidenceError(f"the key {AK_ID} is not of RSA")
    return rsa_key(_number(found[0], "n"), _number(found[0], "e"))


def _number(jwk: Mapping[str, Any], name: str) -> int:
    text = jwk.get(name)
    try:
        if isinstance(text, str):
            return int.from_bytes(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True), "big")
    except ValueError as error:
        raise EvidenceError(f"the {name} of the key {AK_ID} is no base64url number") from error
    raise EvidenceError(f"the key {AK_ID} has no {name}")
