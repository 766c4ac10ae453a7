"""What SGX and TDX have in common: collateral, the PCK's chain, TCB statuses, and the library that it stands around."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from adyton.errors import EvidenceError
from adyton.tee._dcap_chain import PckChain, parse_pck_chain, refusals_of_library
from adyton.tee._dcap_collateral import TeeName, parse_collateral, parse_time
from adyton.tee._dcap_verify import DcapPlatform, check_agreement
from adyton.tee.evidence import Endorsement, EndorsementKind
from adyton.tee.registry import tee
from adyton.testing.dcap import DcapVendor, Edit, QuoteRecipe
from adyton.testing.dcap_collateral import CollateralRecipe, changed
from adyton.testing.dcap_forging import LATER, OTHER, OVER, VENDOR
from adyton.testing.dcap_pki import (
    DAYS,
    PCK_NAME,
    YEARS,
    PkiRecipe,
    PlatformRecipe,
    issue,
    pem,
    pki,
    sgx_extension,
)
from adyton.testing.forgery import NOW, Case

TEES: tuple[TeeName, ...] = ("sgx", "tdx")
both = pytest.mark.parametrize("label", TEES)


def _platform(label: TeeName, case: Case) -> DcapPlatform:
    platform: DcapPlatform = case.verify_with(tee(label).verifier()).platform_tcb  # type: ignore[attr-defined]
    return platform


def _refusal(label: TeeName, case: Case) -> str:
    with pytest.raises(EvidenceError) as caught:
        case.verify_with(tee(label).verifier())
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400
    return caught.value.message


@both
def test_the_platform_is_told_by_its_pck_certificate_and_collateral(label: TeeName) -> None:
    platform = PlatformRecipe(ppid=b"p" * 16, platform_instance_id=b"i" * 16, flags=(False, True, False), sgx_type=2)
    vendor = DcapVendor(recipe=PkiRecipe(platform=platform))
    assert _platform(label, vendor.case(label)) == DcapPlatform(
        tcb_status="UpToDate",
        advisories=frozenset(),
        tcb_evaluation_number=17,
        tcb_date=datetime(2026, 8, 12, tzinfo=UTC),
        qe_status="UpToDate",
        fmspc=bytes.fromhex("00a06f00c0de"),
        pck_ca="platform",
        ppid=b"p" * 16,
        platform_instance_id=b"i" * 16,
        dynamic_platform=False,
        cached_keys=True,
        smt=False,
        sgx_type=2,
        collateral_expires=DAYS[1],
    )


@both
@pytest.mark.parametrize(
    "status",
    [
        "UpToDate",
        "SWHardeningNeeded",
        "ConfigurationNeeded",
        "ConfigurationAndSWHardeningNeeded",
        "OutOfDate",
        "OutOfDateConfigurationNeeded",
    ],
)
def test_every_status_but_revoked_is_a_fact_for_policy(label: TeeName, status: str) -> None:
    verified = VENDOR.case(label, None, CollateralRecipe(status=status)).verify_with(tee(label).verifier())
    platform = _platform(label, VENDOR.case(label, None, CollateralRecipe(status=status)))
    assert verified.tcb == f"{status}, evaluation 17, 2026-08-12"
    assert (platform.tcb_status, platform.qe_status) == (status, "UpToDate")
    assert platform.advisories == (frozenset() if status == "UpToDate" else {"INTEL-SA-00001"})


@both
def test_a_quoting_enclave_out_of_date_is_named_and_counts(label: TeeName) -> None:
    platform = _platform(label, VENDOR.case(label, None, CollateralRecipe(qe_status="OutOfDate")))
    assert (platform.tcb_status, platform.qe_status) == ("OutOfDate", "OutOfDate")


@both
def test_the_evaluation_number_is_the_lower_of_the_two_documents(label: TeeName) -> None:
    for numbers in ((20, 18), (18, 20)):
        recipe = CollateralRecipe(
            edit_tcb_info=changed(tcbEvaluationDataNumber=numbers[0]),
            edit_qe_identity=changed(tcbEvaluationDataNumber=numbers[1]),
        )
        assert _platform(label, VENDOR.case(label, None, recipe)).tcb_evaluation_number == 18


@both
def test_of_collateral_that_fits_the_highest_evaluation_counts(label: TeeName) -> None:
    older, newer = CollateralRecipe(evaluation_number=17), CollateralRecipe(evaluation_number=18, status="OutOfDate")
    for recipes in ((older, newer), (newer, older)):
        platform = _platform(label, VENDOR.case(label, None, *recipes))
        assert (platform.tcb_evaluation_number, platform.tcb_status) == (18, "OutOfDate")


@both
@pytest.mark.parametrize("dates", [LATER, (NOW - timedelta(days=2), NOW - timedelta(days=1))])
def test_collateral_that_is_not_valid_now_is_passed_over(label: TeeName, dates: tuple[datetime, datetime]) -> None:
    wrong_time = CollateralRecipe(evaluation_number=18, tcb_info_dates=dates)
    platform = _platform(label, VENDOR.case(label, None, wrong_time, CollateralRecipe()))
    assert platform.tcb_evaluation_number == 17


@both
def test_if_all_that_fits_is_over_the_newest_is_named(label: TeeName) -> None:
    older = CollateralRecipe(evaluation_number=17, qe_identity_dates=OVER)
    newer = CollateralRecipe(evaluation_number=18, tcb_info_dates=OVER)
    case = replace(VENDOR.case(label, None, older, newer), now=NOW + timedelta(microseconds=1))
    assert _refusal(label, case) == f"the TCB info has expired: on {NOW}, now it is {case.now}"


@both
def test_collateral_of_other_platforms_does_no_harm(label: TeeName) -> None:
    another = DcapVendor(recipe=PkiRecipe(platform=PlatformRecipe(fmspc=bytes(6)))).collateral(label)
    of_other_tee = VENDOR.collateral("tdx" if label == "sgx" else "sgx")
    case = VENDOR.case(label)
    stapled = (another, of_other_tee, *case.evidence.endorsements)
    case = replace(case, evidence=replace(case.evidence, endorsements=stapled))
    assert _platform(label, case).fmspc == bytes.fromhex("00a06f00c0de")


@both
def test_an_fmspc_is_the_same_in_either_case(label: TeeName) -> None:
    recipe = CollateralRecipe(edit_tcb_info=changed(fmspc="00a06F00c0dE"))
    assert _platform(label, VENDOR.case(label, None, recipe)).tcb_status == "UpToDate"


@both
def test_it_is_valid_to_the_microsecond_and_expires_with_its_first_part(label: TeeName) -> None:
    ends = NOW + timedelta(days=3)
    case = VENDOR.case(label, None, CollateralRecipe(qe_identity_dates=(NOW, ends)))
    assert _platform(label, case).collateral_expires == ends
    for moment in (NOW, ends):
        assert _platform(label, replace(case, now=moment)).tcb_status == "UpToDate"
    for moment, said in (
        (NOW - timedelta(microseconds=1), "not yet valid"),
        (ends + timedelta(microseconds=1), "expired"),
    ):
        assert said in _refusal(label, replace(case, now=moment))


@both
def test_a_time_with_another_offset_is_the_same_time(label: TeeName) -> None:
    case = VENDOR.case(label)
    here = case.now.astimezone(timezone(timedelta(hours=-11)))
    assert _platform(label, replace(case, now=here)) == _platform(label, case)


@both
@pytest.mark.parametrize("year", [1, 1969, 9999])
def test_no_time_is_too_strange(label: TeeName, year: int) -> None:
    said = _refusal(label, replace(VENDOR.case(label), now=datetime(year, 1, 1, tzinfo=UTC)))
    assert said.startswith("the PCK certificate ")


def _with_chain(chain: str) -> CollateralRecipe:
    return CollateralRecipe(edit=changed(pck_certificate_chain=chain))


@both
@pytest.mark.parametrize("pck_data_type", [1, 2, 3])
def test_a_quote_that_only_names_its_pck_takes_it_from_collateral(label: TeeName, pck_data_type: int) -> None:
    quote = QuoteRecipe(pck_data_type=pck_data_type, edit_pck_data=lambda _: bytes(404))
    with_chain = _with_chain(pki(VENDOR.recipe).pck_chain)
    assert _platform(label, VENDOR.case(label, quote, with_chain)).ppid == bytes(range(16))
    assert _platform(label, VENDOR.case(label, quote, CollateralRecipe(), with_chain)).ppid == bytes(range(16))


@both
def test_the_pck_from_collateral_must_be_the_quotes(label: TeeName) -> None:
    quote = QuoteRecipe(pck_data_type=3, edit_pck_data=lambda _: bytes(404))
    case = VENDOR.case(label, quote, _with_chain(pki(OTHER.recipe).pck_chain))
    assert "does not end in a root that is trusted" in _refusal(label, case)
    made = pki(VENDOR.recipe)
    another = issue(PCK_NAME, issuer=made.ca, extensions=[sgx_extension(VENDOR.recipe.platform)]).certificate
    case = VENDOR.case(label, quote, _with_chain(pem(another, made.ca.certificate, made.root.certificate)))
    assert "Signature is invalid for qe_report in quote" in _refusal(label, case)


@both
def test_a_quotes_own_chain_is_the_one_that_counts(label: TeeName) -> None:
    case = VENDOR.case(label, None, _with_chain(pki(OTHER.recipe).pck_chain))
    assert _platform(label, case).ppid == bytes(range(16))


@both
def test_chains_may_have_line_ends_of_windows_and_zeros_after_them(label: TeeName) -> None:
    edits: tuple[Edit, ...] = (
        lambda chain: chain.replace(b"\n", b"\r\n"),
        lambda chain: chain.rstrip(b"\n\0"),
        lambda chain: chain + bytes(9),
    )
    for edit in edits:
        assert _platform(label, VENDOR.case(label, QuoteRecipe(edit_pck_data=edit))).pck_ca == "platform"


def test_fields_unknown_here_are_not_passed_on() -> None:
    recipe = CollateralRecipe(edit=changed(major_version=3, pck_certificate_chain=None))
    collateral = parse_collateral(VENDOR.collateral("sgx", recipe).data)
    assert collateral.pck_chain is None
    assert set(json.loads(collateral.for_library.to_json())) == set(json.loads(VENDOR.collateral("sgx").data))


def test_collateral_tells_what_it_is_for() -> None:
    collateral = parse_collateral(VENDOR.collateral("tdx").data)
    assert str(collateral.platforms) == "tdx under the platform CA, FMSPC 00a06f00c0de, PCE-ID 0000"
    assert (collateral.evaluation_number, collateral.expires) == (17, DAYS[1])
    assert collateral.root_sha256 == VENDOR.anchor


def test_what_is_over_is_named_with_its_time() -> None:
    collateral = parse_collateral(VENDOR.collateral("sgx").data)
    collateral.check(NOW)
    with pytest.raises(EvidenceError, match="the TCB info has expired: on 2026-12-13 12:00:00"):
        collateral.check(YEARS[1])


def test_what_a_stranger_writes_makes_no_long_refusal() -> None:
    recipe = CollateralRecipe(edit_tcb_info=changed(fmspc="ab" * 99_999, pceId="cd" * 99_999))
    assert _refusal("tdx", VENDOR.case("tdx", None, recipe)).endswith("FMSPC abababababababab, PCE-ID cdcdcdcd")
    for name in ("id", "issueDate"):
        recipe = CollateralRecipe(edit_tcb_info=changed(**{name: "\x1b" * 9_999}))
        assert "\\x1b\\x1b" in _refusal("tdx", VENDOR.case("tdx", None, recipe))


def test_without_collateral_the_refusal_says_what_to_do() -> None:
    case = VENDOR.case("tdx")
    with pytest.raises(EvidenceError, match="and none at all") as caught:
        replace(case, evidence=replace(case.evidence, endorsements=())).verify_with(tee("tdx").verifier())
    assert caught.value.mend == "staple Intel's for this platform"


def test_bytes_that_are_no_text_are_no_collateral() -> None:
    with pytest.raises(EvidenceError, match="the collateral is not well-formed JSON"):
        parse_collateral(b"\xff\xfe{}")


def test_the_time_is_read_as_intel_writes_it() -> None:
    assert parse_time("2026-11-23T12:00:00Z", "it") == NOW
    for text in ("", "2026-11-23", "2026-11-23T12:00:00", "2026-11-23T12:00:00.0Z", "٢026-11-23T12:00:00Z", "x" * 9999):
        with pytest.raises(EvidenceError, match=r"it has '.{0,100}' where a time should be"):
            parse_time(text, "it")


def _claims(**report: str) -> dict[str, Any]:
    return {"report": {"TD15": report}, "platform": {"pck": {"fmspc": [1] * 6, "pce_id": [0, 0]}}}


def _chain() -> PckChain:
    chain = parse_pck_chain(pki(VENDOR.recipe).pck_chain.encode())
    return replace(chain, fmspc=bytes([1] * 6), pce_id=bytes(2))


def test_what_the_library_read_must_be_what_was_read_here() -> None:
    signed = {"mr_td": b"\x01", "report_data": b"\x02"}
    nested: dict[str, Any] = {"base": {"base": {"mr_td": "01"}, "report_data": "02"}, "mr_service_td": "03"}
    check_agreement(_claims(mr_td="01", report_data="02"), signed, _chain())
    check_agreement(_claims(**nested), signed, _chain())
    for wrong in (_claims(mr_td="01", report_data="03"), _claims(mr_td="01")):
        with pytest.raises(EvidenceError, match="the quote's body is not what was parsed"):
            check_agreement(wrong, signed, _chain())
    for chain in (replace(_chain(), fmspc=bytes(6)), replace(_chain(), pce_id=b"\x01\0")):
        with pytest.raises(EvidenceError, match="the PCK certificate is not what was parsed"):
            check_agreement(_claims(mr_td="01", report_data="02"), signed, chain)


class PanicException(BaseException):
    """What a panic in Rust is in Python."""


PanicException.__module__ = "pyo3_runtime"


def _refused(raising: Callable[[], object]) -> str:
    with pytest.raises(EvidenceError) as caught, refusals_of_library("it is refused"):
        raising()
    return caught.value.message


def test_what_the_library_raises_is_evidence_error() -> None:
    def panic() -> None:
        raise PanicException("index out of bounds")

    def long() -> None:
        raise ValueError("first\n\n  \x1b[31msecond\u202e" + "x" * 9999)

    assert _refused(panic) == "it is refused: the library failed on it"
    assert _refused(long).startswith("it is refused: first \\x1b[31msecond\\u202exxx")
    assert len(_refused(long)) < 300
    with pytest.raises(KeyboardInterrupt), refusals_of_library("it is refused"):
        raise KeyboardInterrupt


@both
def test_endorsements_of_another_kind_are_not_read_for_collateral(label: TeeName) -> None:
    stray = Endorsement(kind=EndorsementKind.CERTIFICATE, data=b"nonsense")
    assert _platform(label, VENDOR.case(label, endorsements=[stray])).tcb_status == "UpToDate"
