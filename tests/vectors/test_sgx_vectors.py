"""Real SGX quotes: what is read of them, and why altered ones and those without collateral are refused.

Real quotes with real collateral are in test_intel_collateral_vectors.py.
"""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from real_vectors import content, ids, manifest, needs_vectors

from adyton.errors import EvidenceError
from adyton.tee.evidence import Endorsement, EndorsementKind, Evidence
from adyton.tee.sgx.format import DEBUG, parse_sgx
from adyton.tee.sgx.verify import ANCHORS, verify_sgx

pytestmark = needs_vectors

BUNDLES = ids("sgx", "evidence-bundle")
DERIVED = [name for name in ids("sgx", "evidence") if "/derived_" in name]
MEASURED = [name for name in ids("sgx", "evidence") if "header" in manifest()[name].get("measured", {})]
UNQUOTED = ["sgx/negative/openenclave_sgx_report_bad.bin", "sgx/negative/openenclave_sgx_cert_ec_bad.der"]
"""A quote behind a header of Open Enclave's, and a certificate around a quote, both damaged."""

# Without full collateral here. The manifest calls the first one's root Intel's: by its key, of which this certificate
# is an older one than the pinned. The chain of the next two has its certificates in another order than Intel's.
WITHOUT_COLLATERAL = {
    "sgx/fortanix_pcs_quote.bin": "does not end in a root that is trusted",
    "sgx/fortanix_quote_pck_cert_chain.bin": "is 'Intel SGX Root CA', none of Intel's PCK CAs",
    "sgx/negative/fortanix_quote_pck_cert_chain_corrupted.bin": "is 'Intel SGX Root CA', none of Intel's PCK CAs",
    "sgx/fortanix_quote_raw_tcb.bin": "only names its PCK (PCK data of type 3), and no collateral brings it",
    "sgx/extracted_steward_i5_quote.bin": "no collateral for sgx under the processor CA, FMSPC 00706e470000",
}


def _refusal(name: str, collateral: str | None = None, seconds: int = 1751624924) -> str:
    names = [collateral] if collateral else []
    stapled = tuple(Endorsement(kind=EndorsementKind.DCAP_COLLATERAL, data=content(each)) for each in names)
    evidence = Evidence(tee="sgx", data=content(name), endorsements=stapled)
    with pytest.raises(EvidenceError) as caught:
        verify_sgx(evidence, anchors=ANCHORS, now=datetime.fromtimestamp(seconds, UTC))
    return caught.value.message


@pytest.mark.parametrize("name", MEASURED)
def test_a_real_quote_reads_as_was_measured(name: str) -> None:
    parsed = parse_sgx(content(name))
    header, claims = manifest()[name]["measured"]["header"], manifest()[name]["claims"]
    assert (parsed.quote.header.version, parsed.quote.signature.pck_data_type) == (3, header["cert_type"])
    assert len(content(name)) - len(parsed.quote.canonical) == header["trailing_bytes"]
    report = parsed.report
    assert claims == {
        "cpusvn": report.cpu_svn.hex(),
        "miscselect": report.misc_select.to_bytes(4, "little").hex(),
        "attributes": (report.attributes.to_bytes(8, "little") + report.xfrm.to_bytes(8, "little")).hex(),
        "mrenclave": report.mrenclave.hex(),
        "mrsigner": report.mrsigner.hex(),
        "isvprodid": report.isv_prod_id,
        "isvsvn": report.isv_svn,
        "report_data": report.report_data.hex(),
        "debug": bool(report.attributes & DEBUG),
    }


@pytest.mark.parametrize("name", WITHOUT_COLLATERAL)
def test_a_real_quote_without_collateral_is_refused(name: str) -> None:
    assert manifest()[name]["measured"]["full_verification"] == []
    assert WITHOUT_COLLATERAL[name] in _refusal(name)


@pytest.mark.parametrize("name", [name for name in MEASURED if name not in WITHOUT_COLLATERAL])
def test_no_real_quote_is_believed_without_collateral(name: str) -> None:
    seconds = manifest()[name]["measured"]["full_verification"][0]["verify_time"]
    assert "no collateral for sgx under the " in _refusal(name, seconds=seconds)


# Where the library would have spoken first, the manifest has its words; these are guards of ours before it.
OUR_WORDS = {
    "tee_type": "the TEE type of the SGX quote is 129; known are: 0",
    "version": "the version of the SGX quote is 4; known are: 3",
    "att_key_type": "the attestation key type of the SGX quote is 3; known are: 2",
    "truncated": "the SGX quote ends inside its signature data",
    "siglen_huge": "the SGX quote ends inside its signature data: 2147483647 bytes",
    "foreign_pck": "no collateral for sgx under the processor CA, FMSPC 00906ed50000",
    "missing_intermediate": "the chain of the PCK certificate has 2 certificates, not 3",
    "chain_reversed": "the extension of the PCK certificate does not parse",
    "trailing_garbage": "the SGX quote is followed by bytes that are not zero",
}


@pytest.mark.parametrize("name", [name for name in DERIVED if not name.endswith("trailing_zeros.bin")])
def test_an_altered_quote_is_refused_for_its_alteration(name: str) -> None:
    entry = manifest()[name]
    alteration = name.removeprefix("sgx/negative/derived_sgx_").removesuffix(".bin")
    library = entry["measured"]["dcap_qvl"].removeprefix("ERR ").splitlines()[0]
    assert OUR_WORDS.get(alteration, library) in _refusal(name, entry["collateral"], entry["verify_time"])


def test_zeros_after_a_quote_are_padding() -> None:
    name = "sgx/negative/derived_sgx_trailing_zeros.bin"
    entry = manifest()[name]
    stapled = Endorsement(kind=EndorsementKind.DCAP_COLLATERAL, data=content(entry["collateral"]))
    now = datetime.fromtimestamp(entry["verify_time"], UTC)
    verified = [
        verify_sgx(Evidence(tee="sgx", data=content(each), endorsements=(stapled,)), anchors=ANCHORS, now=now)
        for each in (name, "sgx/dcapqvl_sgx_quote.bin")
    ]
    assert verified[0] == verified[1]
    assert verified[0].platform_tcb.tcb_status == entry["measured"]["dcap_qvl"]


@pytest.mark.parametrize("name", UNQUOTED)
def test_what_holds_a_quote_is_no_quote(name: str) -> None:
    assert "the version of the SGX quote is " in _refusal(name)


@pytest.mark.parametrize("name", BUNDLES)
def test_a_quote_in_a_certificate_request_is_the_one_extracted_from_it(name: str) -> None:
    (extracted,) = (each for each in MEASURED if manifest()[each]["source"].get("via") == name)
    assert content(extracted) in content(name)
    assert parse_sgx(content(extracted)).quote.canonical == content(extracted)


def test_no_vector_is_left_out() -> None:
    with_collateral = {name for name in MEASURED if manifest()[name]["measured"]["full_verification"]}
    assert with_collateral | set(WITHOUT_COLLATERAL) == set(MEASURED)
    assert {*MEASURED, *DERIVED, *UNQUOTED, *BUNDLES} == set(ids("sgx"))
    assert {f"sgx/negative/derived_sgx_{alteration}.bin" for alteration in OUR_WORDS} <= set(DERIVED)
