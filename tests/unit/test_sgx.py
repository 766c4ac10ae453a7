"""SGX quotes: their parser and their verifier. What they have in common with TDX is in test_dcap.py."""

from __future__ import annotations

import hashlib
from dataclasses import fields

import pytest

from adyton.errors import EvidenceError
from adyton.tee.registry import tee
from adyton.tee.sgx.format import SgxReport, parse_sgx
from adyton.tee.sgx.verify import ANCHORS, VerifiedSgx, verify_sgx
from adyton.testing.dcap import QE_VENDOR_ID, REPORT_DATA, DcapVendor, QuoteRecipe, overwrite
from adyton.testing.dcap_forgeries import SGX_FORGERIES
from adyton.testing.dcap_pki import PROCESSOR_PLATFORM, PkiRecipe
from adyton.testing.forgery import Case
from adyton.testing.tees import TeeConformance

PROCESSOR = DcapVendor(recipe=PkiRecipe(pck_ca="processor", platform=PROCESSOR_PLATFORM))


class TestSgx(TeeConformance):
    label = "sgx"
    forgeries = SGX_FORGERIES

    def genuine(self) -> Case:
        return DcapVendor().case("sgx")


def _verify(case: Case) -> VerifiedSgx:
    verified = case.verify_with(verify_sgx)
    assert isinstance(verified, VerifiedSgx)
    return verified


def test_every_field_of_the_body_is_read_where_the_specification_has_it() -> None:
    body = bytes(range(256)) + bytes(range(128))
    report = parse_sgx(DcapVendor().quote("sgx", QuoteRecipe(edit_body=lambda _: body))).report
    assert report == SgxReport(
        cpu_svn=body[0:16],
        misc_select=int.from_bytes(body[16:20], "little"),
        isv_ext_prod_id=body[32:48],
        attributes=int.from_bytes(body[48:56], "little"),
        xfrm=int.from_bytes(body[56:64], "little"),
        mrenclave=body[64:96],
        mrsigner=body[128:160],
        config_id=body[192:256],
        isv_prod_id=int.from_bytes(body[256:258], "little"),
        isv_svn=int.from_bytes(body[258:260], "little"),
        config_svn=int.from_bytes(body[260:262], "little"),
        isv_family_id=body[304:320],
        report_data=body[320:384],
    )


def test_every_field_around_the_body_is_read_where_the_specification_has_it() -> None:
    data = DcapVendor().quote("sgx")
    quote = parse_sgx(data + bytes(9)).quote
    assert (quote.header.version, quote.header.qe_svn, quote.header.pce_svn) == (3, 9, 13)
    assert (quote.header.qe_vendor_id, quote.header.user_data) == (QE_VENDOR_ID, bytes(range(20)))
    assert (quote.body_type, quote.body) == (1, data[48:432])
    assert (quote.signed_part, quote.canonical) == (data[:432], data)
    signature = quote.signature
    assert (signature.signature, signature.attestation_key) == (data[436:500], data[500:564])
    assert (signature.qe_report, signature.qe_report_signature) == (data[564:948], data[948:1012])
    assert (signature.qe_auth_data, signature.pck_data_type) == (bytes(range(32)), 5)
    assert signature.pck_data == data[1052:]


def test_the_result_has_every_field_of_the_enclave() -> None:
    case = DcapVendor().case("sgx")
    verified = _verify(case)
    report = parse_sgx(case.evidence.data).report
    assert verified.measurement == report.mrenclave == b"\x22" * 32
    same = {field.name for field in fields(SgxReport)} - {"cpu_svn", "mrenclave"}
    assert {name: getattr(verified, name) for name in same} == {name: getattr(report, name) for name in same}
    assert (verified.attributes, verified.xfrm, verified.misc_select) == (0x85, 0xE7, 1)
    assert (verified.isv_prod_id, verified.isv_svn, verified.config_svn) == (5, 6, 7)
    assert verified.report_data == REPORT_DATA
    assert not verified.debug


def test_padding_and_the_signature_are_not_in_the_hash_of_the_evidence() -> None:
    vendor = DcapVendor()
    hashes = {_verify(vendor.case("sgx", QuoteRecipe(edit=edit))).evidence_sha256 for edit in (bytes, _padded)}
    assert hashes == {hashlib.sha256(vendor.quote("sgx")[:432]).digest()}


def _padded(data: bytes) -> bytes:
    return data.ljust(8000, b"\0")


def test_a_machine_with_one_processor_has_no_platform_instance() -> None:
    verified = _verify(PROCESSOR.case("sgx"))
    platform = verified.platform_tcb
    assert (platform.pck_ca, platform.sgx_type, platform.platform_instance_id) == ("processor", 0, None)
    assert (platform.dynamic_platform, platform.cached_keys, platform.smt) == (None, None, None)
    assert verified.platform == platform.ppid.hex() == bytes(range(16)).hex()


def test_a_tdx_quote_is_no_sgx_quote() -> None:
    with pytest.raises(EvidenceError, match="the version of the SGX quote is 4; known are: 3"):
        parse_sgx(DcapVendor().quote("tdx"))
    swapped = QuoteRecipe(edit_signed_part=overwrite(4, b"\x81"))
    with pytest.raises(EvidenceError, match="the TEE type of the SGX quote is 129; known are: 0"):
        parse_sgx(DcapVendor().quote("sgx", swapped))


def test_the_root_of_intel_is_the_anchor() -> None:
    assert tee("sgx").anchors() == ANCHORS == tee("tdx").anchors()
    assert [anchor.hex()[:8] for anchor in ANCHORS] == ["44a0196b"]
