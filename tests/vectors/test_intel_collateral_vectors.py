"""Intel's real collateral: every pair of a real quote and collateral, every set, and every single document."""

from __future__ import annotations

import base64
import functools
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from real_vectors import content, ids, manifest, needs_vectors

from adyton.errors import EvidenceError
from adyton.tee._dcap_chain import parse_chain, parse_pck_chain
from adyton.tee._dcap_collateral import Collateral, parse_collateral, parse_time
from adyton.tee._dcap_verify import DcapPlatform
from adyton.tee._x509 import certificate_sha256, check_issued_by, spki
from adyton.tee.evidence import Endorsement, EndorsementKind, Evidence
from adyton.tee.registry import tee
from adyton.tee.sgx.verify import ANCHORS

pytestmark = needs_vectors

SETS = [name for name in ids("intel_collateral") if "/assembled/" in name or "/dcapqvl_" in name]
NEGATIVE = [name for name in ids("intel_collateral") if "/negative/" in name]
BASE = {
    "sgx": "intel_collateral/assembled/00A067110000_sgx_processor_20250619-20250719_eval17.json",
    "tdx": "intel_collateral/assembled/B0C06F000000_tdx_platform_20250619-20250719_eval17.json",
}


def _verify(quote: str, collateral: bytes, seconds: int) -> DcapPlatform:
    label = manifest()[quote]["format"]
    stapled = Endorsement(kind=EndorsementKind.DCAP_COLLATERAL, data=collateral)
    evidence = Evidence(tee=label, data=content(quote), endorsements=(stapled,))
    now = datetime.fromtimestamp(seconds, UTC)
    platform: DcapPlatform = tee(label).verifier()(evidence, anchors=ANCHORS, now=now).platform_tcb  # type: ignore[attr-defined]
    return platform


def _refusal(quote: str, collateral: bytes, seconds: int) -> str:
    with pytest.raises(EvidenceError) as caught:
        _verify(quote, collateral, seconds)
    return caught.value.message


@dataclass(frozen=True, slots=True)
class Run:
    """One quote with one set of collateral, at a time at which all of the latter is valid."""

    quote: str
    collateral: str
    seconds: int
    outcome: str
    advisories: frozenset[str]

    def __str__(self) -> str:
        return f"{self.quote} {self.collateral.rsplit('/')[-1]} {self.seconds}"


def _runs() -> list[Run]:
    return [
        Run(
            quote=name,
            collateral=run["collateral"].removeprefix("vectors/"),
            seconds=run["verify_time"],
            outcome=run["dcap_qvl"],
            advisories=frozenset(run["advisory_ids"] or ()),
        )
        for name in (*ids("sgx", "evidence"), *ids("tdx", "evidence"))
        for run in manifest()[name].get("measured", {}).get("full_verification", ())
    ]


RUNS = _runs()

# Here a guard of ours speaks before the library does.
NOT_PADDED_WITH_ZEROS = {"tdx/go-tdx-guest_prod_SPR_E4.bin": "the TDX quote is followed by bytes that are not zero"}


def _expected_refusal(run: Run) -> str:
    if "CertNotValidYet" in run.outcome:
        return "the PCK certificate is not yet valid: from "
    said = run.outcome.removeprefix("REJECT: ").splitlines()[0]
    return NOT_PADDED_WITH_ZEROS.get(run.quote, f"the quote is not genuine: {said}")


@pytest.mark.parametrize("run", [run for run in RUNS if not run.outcome.startswith("REJECT")], ids=str)
def test_a_real_quote_has_the_status_that_was_measured(run: Run) -> None:
    platform = _verify(run.quote, content(run.collateral), run.seconds)
    assert (platform.tcb_status, platform.advisories) == (run.outcome, run.advisories)
    measured = manifest()[run.quote]["measured"]
    assert (platform.fmspc.hex(), platform.pck_ca) == (measured["fmspc"].lower(), measured["pck_ca"])


@pytest.mark.parametrize("run", [run for run in RUNS if run.outcome.startswith("REJECT")], ids=str)
def test_a_real_quote_is_refused_as_was_measured(run: Run) -> None:
    assert _refusal(run.quote, content(run.collateral), run.seconds).startswith(_expected_refusal(run))


def test_there_are_runs_of_every_outcome() -> None:
    statuses = {run.outcome for run in RUNS}
    assert statuses >= {
        "UpToDate",
        "OutOfDate",
        "SWHardeningNeeded",
        "ConfigurationAndSWHardeningNeeded",
        "TDRelaunchAdvised",
    }


def test_of_several_sets_the_highest_evaluation_at_that_time_counts() -> None:
    quote = "sgx/mobilecoin_hw_quote.bin"
    runs = [run for run in RUNS if run.quote == quote]
    stapled = tuple(
        Endorsement(kind=EndorsementKind.DCAP_COLLATERAL, data=content(run.collateral)) for run in (*runs, *RUNS[:2])
    )
    evidence = Evidence(tee="sgx", data=content(quote), endorsements=stapled)
    now = datetime(2025, 6, 12, tzinfo=UTC)
    platform: DcapPlatform = tee("sgx").verifier()(evidence, anchors=ANCHORS, now=now).platform_tcb  # type: ignore[attr-defined]
    # Evaluation 19 of TCB info comes with 17 of the QE identity in these sets: the lower one counts.
    assert {parse_collateral(content(run.collateral)).evaluation_number for run in runs} == {17}
    assert platform.tcb_status == "OutOfDate"


# The manifest has the window of another set that was assembled under the same name; here is when this one begins.
BEGINS = {
    "intel_collateral/assembled/00806F050000_tdx_platform_20250527-20250626_eval17.json": "2025-05-27T19:31:44+00:00"
}


@pytest.mark.parametrize("name", SETS)
def test_a_set_parses_and_is_valid_in_its_window(name: str) -> None:
    collateral = parse_collateral(content(name))
    assert collateral.root_sha256 in ANCHORS
    if "window" not in manifest()[name]:
        return
    fmspc, label, pck_ca = name.rsplit("/", maxsplit=1)[-1].split("_")[:3]
    platforms = collateral.platforms
    assert (platforms.fmspc.hex(), platforms.tee, platforms.pck_ca) == (fmspc.lower(), label, pck_ca)
    begins, ends = manifest()[name]["window"]
    assert max(each.begins for each in collateral.validities) == datetime.fromisoformat(BEGINS.get(name, begins))
    assert collateral.expires == datetime.fromisoformat(ends)


REFUSED_COLLATERAL = {
    "sgx_tcb_info_signature": "Signature is invalid for tcb_info in quote_collateral",
    "sgx_tcb_info_content": "Signature is invalid for tcb_info in quote_collateral",
    "sgx_qe_identity_signature": "Signature is invalid for qe_identity in quote_collateral",
    "sgx_crls_swapped": "the root's CRL is another issuer's",
    "sgx_pck_crl_missing": "the PCK CA's CRL is another issuer's",
    "sgx_pck_crl_tampered": "InvalidCrlSignatureForPublicKey",
    "sgx_expired_collateral": "has expired: on 2025-07-19",
    "sgx_not_yet_valid_collateral": "is not yet valid: from 2025-06-19",
    "sgx_wrong_fmspc": "no collateral for sgx under the processor CA, FMSPC 00a067110000",
    "sgx_wrong_qe_identity": "the collateral has TCB info of 'SGX' with a QE identity of 'TD_QE'",
    "cos113_sgx_tcb_info": "the collateral has TCB info of 'SGX' with a QE identity of 'TD_QE'",
    "cos113_sgx_qe_identity": "the collateral has TCB info of 'TDX' with a QE identity of 'QE'",
    "cos113_wrong_fmspc": "no collateral for tdx under the platform CA, FMSPC 00806f050000",
}


@pytest.mark.parametrize("name", NEGATIVE)
def test_derived_collateral_is_refused_for_what_is_wrong(name: str) -> None:
    entry = manifest()[name]
    said = _refusal(entry["applies_to"], content(name), entry["verify_time"])
    assert REFUSED_COLLATERAL[name.rsplit("/", maxsplit=1)[-1].removesuffix(".json")] in said


@dataclass(frozen=True, slots=True)
class Document:
    """What a file holds: TCB info or QE identity as text, or a CRL, or certificates."""

    field: str
    value: Any


def _json_document(text: str) -> Document:
    fields = json.loads(text, strict=False)
    for raw, field in (("raw_tcb_info", "tcb_info"), ("raw_enclave_identity", "qe_identity")):
        if raw in fields:
            return Document(field, fields[raw])
    for wrapped in ("tcb_info_json", "enclave_identity_json"):
        if wrapped in fields:
            return _json_document(fields[wrapped])
    for crl in ("crl", "crl_data"):
        if crl in fields:
            return Document("crl", x509.load_pem_x509_crl(fields[crl].encode()))
    for member, field in (("tcbInfo", "tcb_info"), ("enclaveIdentity", "qe_identity")):
        if member in fields:
            start = text.index("{", text.index(f'"{member}"'))
            _, end = json.JSONDecoder(strict=False).raw_decode(text, start)
            return Document(field, text[start:end])
    return Document("tcb_info", fields["raw_tcb_evaluation_data_numbers"])


def _document(name: str) -> Document:
    data = content(name)
    if data.startswith(b"-----BEGIN"):
        return Document("certificates", x509.load_pem_x509_certificates(data))
    if data.startswith(b"{"):
        return _json_document(data.decode())
    try:
        return Document("crl", x509.load_der_x509_crl(data))
    except ValueError:
        return Document("certificates", [x509.load_der_x509_certificate(data)])


OPEN_ENCLAVE_SET = "intel_collateral/openenclave_tdx_endorsement.bin"
SINGLE = [name for name in ids("intel_collateral") if name not in {*SETS, *NEGATIVE, OPEN_ENCLAVE_SET}]

OLD_TCB_INFO = "the TCB info has no id of type str"
REFUSED_DOCUMENTS = {
    "automata-dcap-rs/tcbinfov2.json": OLD_TCB_INFO,
    "automata/0625_tcbinfo.json": OLD_TCB_INFO,
    "fortanix/00906ea10000.tcb": OLD_TCB_INFO,
    "fortanix/corrupted_00906ea10000.tcb": OLD_TCB_INFO,
    "fortanix/tcb_evaluation_data_numbers.numbers": "the TCB info has no tcbType of type int",
    "openenclave/qe_identity_missing_tcb_eval_data_num.json": "the QE identity has no tcbEvaluationDataNumber",
    "openenclave/tcbInfo.json": OLD_TCB_INFO,
    "openenclave/tcbInfoNegativeCompSvn.json": OLD_TCB_INFO,
    "openenclave/tcbInfoNegativeFloat.json": OLD_TCB_INFO,
    "openenclave/tcbInfoNegativeIntegerOverflow.json": OLD_TCB_INFO,
    "openenclave/tcbInfoNegativeIntegerWithSign.json": OLD_TCB_INFO,
    "openenclave/tcbInfoNegativeInvalidIssueDate.json": OLD_TCB_INFO,
    "openenclave/tcbInfoNegativeMissingNextUpdate.json": OLD_TCB_INFO,
    "openenclave/tcbInfoNegativeSignature.json": OLD_TCB_INFO,
    "openenclave/tcbInfoNegativeStringEscape.json": OLD_TCB_INFO,
    "teepot/sgx_tcb_info_v3.json": OLD_TCB_INFO,
}


@functools.cache
def _base(label: str) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(content(BASE[label]))
    return fields


def _set_with(field: str, value: str) -> Collateral:
    """A genuine set in which one document was replaced; who signed it is not asked here."""
    of_tdx = '"TDX"' in value or '"TD_QE"' in value
    return parse_collateral(json.dumps(_base("tdx" if of_tdx else "sgx") | {field: value}).encode())


@pytest.mark.parametrize("name", [name for name in SINGLE if _document(name).field in ("tcb_info", "qe_identity")])
def test_a_document_of_intel_parses_or_is_refused_for_its_age_or_fault(name: str) -> None:
    document = _document(name)
    refused = REFUSED_DOCUMENTS.get(name.removeprefix("intel_collateral/"))
    if refused:
        with pytest.raises(EvidenceError, match=refused):
            _set_with(document.field, document.value)
        return
    collateral = _set_with(document.field, document.value)
    fields = json.loads(document.value)
    dates = collateral.validities[0 if document.field == "tcb_info" else 1]
    assert dates.begins == parse_time(fields["issueDate"], "it")
    assert dates.ends == parse_time(fields["nextUpdate"], "it")
    if document.field == "tcb_info":
        assert collateral.platforms.fmspc.hex() == fields["fmspc"].lower()
        assert collateral.platforms.tee == fields["id"].lower()


def test_every_document_that_is_refused_is_there() -> None:
    assert {f"intel_collateral/{name}" for name in REFUSED_DOCUMENTS} <= set(SINGLE)


def test_a_document_from_the_year_3000_is_valid_at_no_time() -> None:
    collateral = _set_with("qe_identity", _document("intel_collateral/fortanix/corrupted_qe3_identity.id").value)
    for year in (2019, 2021, 2999, 3001):
        with pytest.raises(EvidenceError):
            collateral.check(datetime(year, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize("name", [name for name in SINGLE if _document(name).field == "crl"])
def test_a_crl_of_intel_parses_in_its_place(name: str) -> None:
    crl: x509.CertificateRevocationList = _document(name).value
    issuer = crl.issuer.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value
    field = "root_ca_crl" if issuer == "Intel SGX Root CA" else "pck_crl"
    label = "tdx" if issuer == "Intel SGX PCK Platform CA" else "sgx"
    der = crl.public_bytes(Encoding.DER).hex()
    collateral = parse_collateral(json.dumps(_base(label) | {field: der}).encode())
    dates = collateral.validities[2 if field == "root_ca_crl" else 3]
    assert (dates.begins, dates.ends) == (crl.last_update_utc, crl.next_update_utc)


def _root() -> x509.Certificate:
    return x509.load_der_x509_certificate(content("intel_collateral/intel_sgx_root_ca.der"))


@pytest.mark.parametrize("name", [name for name in SINGLE if _document(name).field == "certificates"])
def test_a_certificate_of_intel_is_under_the_pinned_root(name: str) -> None:
    known = {"Intel SGX Root CA", "Intel SGX TCB Signing", "Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA"}
    certificates = _document(name).value
    for certificate, issuer in zip(certificates, (*certificates[1:], _root()), strict=True):
        common_name = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value
        if common_name == "Intel SGX PCK Certificate":
            continue  # its CA is not in every file; see the chains below
        assert common_name in known
        check_issued_by(certificate, issuer, name)


# An older certificate of the same root key. Quotes that end in it are refused: a root is pinned by its certificate.
OLD_ROOT = "intel_collateral/fortanix/root_SGX_CA_der.cert"


def test_only_the_current_certificate_of_the_root_is_pinned() -> None:
    assert certificate_sha256(_root()) in ANCHORS
    (old,) = _document(OLD_ROOT).value
    assert certificate_sha256(old) not in ANCHORS
    assert spki(old) == spki(_root())


def test_pck_chains_in_pem_parse() -> None:
    chain = content("intel_collateral/automata-dcap-rs/pck_certchain.pem")
    assert parse_pck_chain(chain).pck_ca == "platform"
    parts = ("leaf_cert", "processor_ca", "root_ca")
    joined = b"".join(content(f"intel_collateral/mobilecoin/{part}.pem").strip() + b"\n" for part in parts)
    parsed = parse_pck_chain(joined)
    assert (parsed.pck_ca, parsed.fmspc.hex(), parsed.root_sha256 in ANCHORS) == ("processor", "00906ed50000", True)


def test_the_signers_chain_in_pem_parses() -> None:
    chain = content("intel_collateral/automata-dcap-rs/tcb_signing_cert.pem")
    signer, root = parse_chain(chain.strip() + b"\n", "the chain", 2)
    check_issued_by(signer, root, "the signer")


def test_the_endorsements_of_open_enclave_hold_the_set_made_of_them() -> None:
    endorsement = content(OPEN_ENCLAVE_SET)
    fields = json.loads(content("intel_collateral/assembled/90C06F000000_tdx_platform_20250226-20250322_eval18.json"))
    for name in ("tcb_info", "qe_identity"):
        assert fields[name].encode() in endorsement
    assert (
        base64.b16decode(fields["pck_crl"].upper()) in endorsement or fields["pck_crl"].encode() in endorsement.lower()
    )


def test_no_vector_is_left_out() -> None:
    kinds = {_document(name).field for name in SINGLE}
    assert kinds == {"tcb_info", "qe_identity", "crl", "certificates"}
    used = {*SETS, *NEGATIVE, *SINGLE, OPEN_ENCLAVE_SET}
    assert used == set(ids("intel_collateral"))
    assert {run.collateral for run in RUNS} == {name for name in SETS if "/assembled/" in name}
    assert {name.rsplit("/", maxsplit=1)[-1].removesuffix(".json") for name in NEGATIVE} == set(REFUSED_COLLATERAL)
