"""Real evidence of Azure confidential VMs: SEV-SNP on Milan and Genoa under AMD's roots, and TDX under Intel's."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from real_vectors import DIRECTORY, content, ids, manifest, needs_vectors

from adyton.errors import EvidenceError
from adyton.tee._tpm import VerifiedQuote, verify_quote
from adyton.tee._tpm_structures import parse_attest, parse_signature
from adyton.tee.azure.format import TDREPORT_REPORT_DATA, encode_azure, parse_azure, parse_hcl
from adyton.tee.azure.verify import ANCHORS, VerifiedAzure, verify_azure
from adyton.tee.evidence import Endorsement, EndorsementKind, Evidence
from adyton.tee.snp.verify import VerifiedSnp
from adyton.tee.steps import Trace
from adyton.tee.tdx.format import parse_tdx

pytestmark = needs_vectors

NOW = datetime(2026, 1, 1, tzinfo=UTC)
"""All VCEKs are valid then."""

BUNDLES = ids("az_vtpm", "evidence-bundle")
SNP = [name for name in BUNDLES if name.startswith("az_vtpm/snp_")]
TDX = [name for name in BUNDLES if name.startswith("az_vtpm/tdx_")]
REFUSALS = {
    "az_vtpm/negative/derived_tpm_sig.json": "the signature of the TPM's quote does not verify",
    "az_vtpm/negative/derived_tpm_magic.json": "the TPM's quote begins with 0xfe544347, not with TPM_GENERATED",
    "az_vtpm/negative/derived_tpm_type.json": "the TPM attests something of type 0x8017, not a quote",
    "az_vtpm/negative/derived_tpm_nonce.json": "the signature of the TPM's quote does not verify",
    "az_vtpm/negative/derived_tpm_pcrs.json": "the PCR values do not hash to the quoted digest",
    "az_vtpm/negative/derived_hcl_vardata.json": "is not the hash of the runtime claims",
}
PARTS = {
    "az_vtpm/snp_hcl-report.bin",
    "az_vtpm/snp_quote.bin",
    "az_vtpm/snp_tpm-quote-v1.json",
    "az_vtpm/snp_vcek.pem",
    "az_vtpm/snp_vcek-genoa.pem",
    "az_vtpm/snp_tpm-quote.msg",
    "az_vtpm/snp_tpm-quote.sig",
    "az_vtpm/tdx_hcl-report.bin",
    "az_vtpm/tdx_quote.bin",
    "az_vtpm/tdx_tpm-quote-v1.json",
}
CHAINS = ("snp/roots/ask_ark_milan.pem", "snp/roots/ask_ark_genoa.pem")
TD_QUOTE = "tdx/trustee_az_td_quote.bin"
"""The one that both TDX bundles have."""


def test_every_vector_is_used() -> None:
    assert {*SNP, *TDX, *REFUSALS, *PARTS} == set(ids("az_vtpm"))
    assert (len(SNP), len(TDX)) == (4, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bundle:
    """What the bundles of Confidential Containers hold, in whichever of their three versions."""

    hcl_report: bytes
    quoted: bytes
    signature: bytes
    pcrs: dict[str, dict[int, bytes]]
    td_quote: bytes | None
    vcek: bytes | None

    def encoded(self) -> bytes:
        """As evidence of ours. The vTPM signs with RSASSA and SHA-256, and the bundles have its bare signature."""
        signature = b"\x00\x14\x00\x0b\x01\x00" + self.signature
        return encode_azure(
            hcl_report=self.hcl_report,
            quoted=self.quoted,
            signature=signature,
            pcrs=self.pcrs,
            td_quote=self.td_quote,
        )


def _raw(value: Any) -> bytes:
    """Version 0 has lists of numbers, the later ones hex or base64url."""
    if isinstance(value, list):
        return bytes(value)
    try:
        return bytes.fromhex(value)
    except ValueError:
        return base64.urlsafe_b64decode(value + "==")


def _bundle(name: str) -> _Bundle:
    items = json.loads(content(name))
    quote, vcek = items.get("quote") or items["tpm_quote"], items.get("vcek")
    if vcek is not None:
        vcek = _der(vcek.encode())[0] if vcek.startswith("-----") else _raw(vcek)
    return _Bundle(
        hcl_report=_raw(items.get("report") or items["hcl_report"]),
        quoted=_raw(quote["message"]),
        signature=_raw(quote["signature"]),
        pcrs={"sha256": {index: _raw(value) for index, value in enumerate(quote["pcrs"])}},
        td_quote=_raw(items["td_quote"]) if "td_quote" in items else None,
        vcek=vcek,
    )


def _der(pem: bytes) -> list[bytes]:
    blocks = pem.split(b"-----BEGIN CERTIFICATE-----")[1:]
    return [base64.b64decode(block.split(b"-----END")[0]) for block in blocks]


def _verify_snp(bundle: _Bundle, *certificates: bytes) -> VerifiedAzure:
    """With the VCEK and AMD's chains for both products, as a client would have them."""
    roots = [der for name in CHAINS for der in _der(content(name))]
    stapled = [Endorsement(kind=EndorsementKind.CERTIFICATE, data=der) for der in (*certificates, *roots)]
    evidence = Evidence(tee="azure", data=bundle.encoded(), endorsements=tuple(stapled))
    return verify_azure(evidence, anchors=ANCHORS, now=NOW)


def _check_measured(quote: VerifiedQuote, measured: dict[str, Any]) -> None:
    attest = measured["attest"]
    assert quote.extra_data.hex() == attest["extra_data"]
    assert quote.pcr_digest.hex() == attest["pcr_digest"]
    assert [[11, sorted(quote.pcrs["sha256"])]] == attest["select"]
    assert (quote.clock_ms, quote.clock_safe) == (attest["clock"], attest["safe"] == 1)
    assert (quote.reset_count, quote.restart_count) == (attest["reset"], attest["restart"])
    assert quote.firmware_version == attest["fw"]


# --- SEV-SNP


@pytest.mark.parametrize("name", SNP)
def test_evidence_on_snp_is_genuine_and_says_what_was_measured(name: str) -> None:
    bundle, measured = _bundle(name), manifest()[name]["measured"]
    assert bundle.vcek is not None
    verified = _verify_snp(bundle, bundle.vcek)
    assert isinstance(verified.hardware, VerifiedSnp)
    assert (verified.hardware_tee, verified.hardware.vmpl) == ("snp", measured["snp"]["vmpl"])
    assert verified.measurement.hex() == measured["snp"]["measurement"]
    assert verified.hardware.product == measured["snp"]["checks"]["product"].partition("-")[0]
    assert verified.runtime["vm-configuration"] == measured["hcl"]["vmconf"]
    assert verified.runtime["user-data"].startswith(measured["hcl"]["user_data"])
    assert [key["kid"] for key in verified.runtime["keys"]] == measured["hcl"]["kids"]
    assert verified.secure_boot is measured["hcl"]["vmconf"]["secure-boot"]
    assert verified.report_data == verified.quote.extra_data
    _check_measured(verified.quote, measured)


@pytest.mark.parametrize("name", SNP)
def test_the_vtpms_key_is_named_as_measured(name: str) -> None:
    attest = parse_attest(_bundle(name).quoted)
    assert attest.qualified_signer.hex() == manifest()[name]["measured"]["attest"]["qualified_signer"]


def test_the_same_machine_speaks_in_two_versions_of_the_bundle() -> None:
    first, second = (_bundle(f"az_vtpm/snp_evidence-v{version}.json") for version in (0, 1))
    assert parse_hcl(first.hcl_report).claims == parse_hcl(second.hcl_report).claims
    assert parse_attest(first.quoted).clock_ms < parse_attest(second.quoted).clock_ms


def test_genoas_vcek_came_as_a_file_too() -> None:
    bundle = _bundle("az_vtpm/snp_evidence-genoa.json")
    assert _der(content("az_vtpm/snp_vcek-genoa.pem")) == [bundle.vcek]


@pytest.mark.parametrize("name", REFUSALS)
def test_derived_evidence_is_refused_for_what_was_changed(name: str) -> None:
    bundle = _bundle(name)
    assert bundle.vcek is not None
    with pytest.raises(EvidenceError, match=REFUSALS[name]):
        _verify_snp(bundle, bundle.vcek)


# --- parts in files of their own


def _from_parts(tee: str) -> _Bundle:
    """`quote.bin` has signature, message and PCR values, each after its length; the JSON file is the same."""
    data = content(f"az_vtpm/{tee}_quote.bin")
    items = json.loads(content(f"az_vtpm/{tee}_tpm-quote-v1.json"))
    values = list(_split(data[402:], 32))
    signature, quoted = data[8:264], data[272:394]
    assert (_raw(items["signature"]), _raw(items["message"])) == (signature, quoted)
    assert [_raw(value) for value in items["pcrs"]] == values
    return _Bundle(
        hcl_report=content(f"az_vtpm/{tee}_hcl-report.bin"),
        quoted=quoted,
        signature=signature,
        pcrs={"sha256": dict(enumerate(values))},
        td_quote=content(TD_QUOTE) if tee == "tdx" else None,
        vcek=None,
    )


def _split(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def test_the_parts_of_snp_make_genuine_evidence() -> None:
    vcek, ask, ark = _der(content("az_vtpm/snp_vcek.pem"))
    verified = _verify_snp(_from_parts("snp"), vcek, ask)
    assert verified.anchor_sha256 == hashlib.sha256(ark).digest()
    assert verified.report_data == b"challenge"
    assert verified.secure_boot is True


def test_the_lone_quote_is_of_another_machine() -> None:
    # It came without PCR values, and none of the reports here names its key.
    message, signature = content("az_vtpm/snp_tpm-quote.msg"), content("az_vtpm/snp_tpm-quote.sig")
    assert parse_attest(message).selection == {"sha256": (*range(8), 14)}
    reports = [content("az_vtpm/snp_hcl-report.bin"), *(_bundle(name).hcl_report for name in SNP)]
    for key in (parse_hcl(report).ak for report in reports):
        with pytest.raises(InvalidSignature):
            key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
    parts = _from_parts("snp")
    lone = _Bundle(
        hcl_report=parts.hcl_report, quoted=message, signature=signature, pcrs=parts.pcrs, td_quote=None, vcek=None
    )
    with pytest.raises(EvidenceError, match="the signature of the TPM's quote does not verify"):
        _verify_snp(lone, *_der(content("az_vtpm/snp_vcek.pem"))[:2])


# --- TDX


def _tdx_evidence(bundle: _Bundle) -> tuple[Evidence, datetime]:
    run = manifest()[TD_QUOTE]["measured"]["full_verification"][0]
    collateral = (DIRECTORY.parent / run["collateral"]).read_bytes()
    stapled = Endorsement(kind=EndorsementKind.DCAP_COLLATERAL, data=collateral)
    evidence = Evidence(tee="azure", data=bundle.encoded(), endorsements=(stapled,))
    return evidence, datetime.fromtimestamp(run["verify_time"], UTC)


@pytest.mark.parametrize("name", [*TDX, "the parts"])
def test_evidence_on_tdx_is_refused_for_an_attribute_of_the_td(name: str) -> None:
    # The manifest has it as authentic, and so is everything but for one attribute that the quotes' verifier insists on:
    # machines of that time were started without SEPT_VE_DISABLE.
    evidence, now = _tdx_evidence(_from_parts("tdx") if name == "the parts" else _bundle(name))
    with pytest.raises(EvidenceError, match="SEPT_VE_DISABLE is not enabled"):
        verify_azure(evidence, anchors=ANCHORS, now=now)


@pytest.mark.parametrize("name", [*TDX, "the parts"])
def test_all_else_of_evidence_on_tdx_is_in_order(name: str) -> None:
    bundle = _from_parts("tdx") if name == "the parts" else _bundle(name)
    measured = manifest()[TDX[0] if name == "the parts" else name]["measured"]
    evidence = parse_azure(bundle.encoded())
    bound = hashlib.sha256(evidence.hcl.claims).digest().ljust(64, b"\0")
    td = parse_tdx(evidence.hardware_evidence)
    assert evidence.hcl.hardware_tee == "tdx"
    assert evidence.hcl.hardware_report[TDREPORT_REPORT_DATA] == bound
    assert td.report.report_data == bound
    assert evidence.hcl.runtime["vm-configuration"] == measured["hcl"]["vmconf"]
    scheme = parse_signature(b"\x00\x14\x00\x0b\x01\x00" + bundle.signature).scheme
    _check_measured(verify_quote(evidence.quote, evidence.hcl.ak, (scheme,), (), Trace()), measured)


def test_both_bundles_of_tdx_have_the_td_quote_that_is_among_the_quotes() -> None:
    assert {_bundle(name).td_quote for name in TDX} == {content(TD_QUOTE)}


def test_the_chain_that_came_with_a_vcek_is_amds() -> None:
    assert _der(content("az_vtpm/snp_vcek.pem"))[1:] == _der(content(CHAINS[0]))
