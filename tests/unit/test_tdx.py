"""TDX quotes: their parser, their verifier, and event logs. What they have in common with SGX is in test_dcap.py."""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace

import pytest

from adyton.errors import EvidenceError
from adyton.tee._event_log import parse_event_log, replay
from adyton.tee.evidence import Endorsement, EndorsementKind
from adyton.tee.tdx.format import TdReport, TdReportMigration, parse_tdx
from adyton.tee.tdx.verify import VerifiedTdx, verify_tdx
from adyton.testing.dcap import REPORT_DATA, SEPT_VE_DISABLE, DcapVendor, QuoteRecipe, overwrite
from adyton.testing.dcap_collateral import OLD_TDX_MODULE_SVN, TEE_TCB_SVN, CollateralRecipe
from adyton.testing.dcap_forgeries import TDX_FORGERIES
from adyton.testing.forgery import Case
from adyton.testing.tees import TeeConformance
from adyton.testing.tpm_quotes import agile_log

VENDOR = DcapVendor()
TD_1_5 = QuoteRecipe(version=5, body_type=3)
BODY_SIZES = {2: 584, 3: 648, 4: 885}


class TestTdx(TeeConformance):
    label = "tdx"
    forgeries = TDX_FORGERIES

    def genuine(self) -> Case:
        return DcapVendor().case("tdx")


class TestTdxOfVersion5(TeeConformance):
    label = "tdx"
    forgeries = TDX_FORGERIES

    def genuine(self) -> Case:
        return DcapVendor().case("tdx", QuoteRecipe(version=5, body_type=4))


def _verify(case: Case) -> VerifiedTdx:
    verified = case.verify_with(verify_tdx)
    assert isinstance(verified, VerifiedTdx)
    return verified


def _report(version: int, body_type: int) -> tuple[bytes, TdReport]:
    """A body of which no two fields are alike, and what is read of it."""
    body = b"".join(hashlib.sha256(bytes([index])).digest() for index in range(28))[: BODY_SIZES[body_type]]
    recipe = QuoteRecipe(version=version, body_type=body_type, edit_body=lambda _: body)
    return body, parse_tdx(VENDOR.quote("tdx", recipe)).report


@pytest.mark.parametrize(("version", "body_type"), [(4, 2), (5, 2), (5, 3), (5, 4)])
def test_every_field_of_the_body_is_read_where_the_specification_has_it(version: int, body_type: int) -> None:
    body, report = _report(version, body_type)
    at_1_5 = (body[584:600], body[600:648]) if body_type > 2 else (bytes(16), bytes(48))
    assert replace(report, migration=None) == TdReport(
        tee_tcb_svn=body[0:16],
        mr_seam=body[16:64],
        mr_signer_seam=body[64:112],
        seam_attributes=int.from_bytes(body[112:120], "little"),
        td_attributes=int.from_bytes(body[120:128], "little"),
        xfam=int.from_bytes(body[128:136], "little"),
        mrtd=body[136:184],
        mr_config_id=body[184:232],
        mr_owner=body[232:280],
        mr_owner_config=body[280:328],
        rtmrs=(body[328:376], body[376:424], body[424:472], body[472:520]),
        report_data=body[520:584],
        tee_tcb_svn_2=at_1_5[0],
        mr_service_td=at_1_5[1],
        migration=None,
    )
    assert (report.migration is None) == (body_type != 4)


def test_every_field_about_migration_is_read_where_the_specification_has_it() -> None:
    body, report = _report(5, 4)
    assert report.migration == TdReportMigration(
        vmid=body[648],
        td_id=body[649:681],
        device_info=body[681:729],
        initial_service_td_hash=body[729:777],
        initial_service_td_attributes=int.from_bytes(body[777:785], "little"),
        initial_cpu_svn=body[785:801],
        initial_tee_tcb_svn=body[801:817],
        initial_fmspc=body[817:829],
        service_td_hash=body[829:877],
        service_td_attributes=int.from_bytes(body[877:885], "little"),
    )


def test_version_5_has_a_descriptor_before_the_body() -> None:
    data = VENDOR.quote("tdx", TD_1_5)
    quote = parse_tdx(data).quote
    assert (quote.header.version, quote.body_type, quote.body) == (5, 3, data[54 : 54 + 648])
    assert (quote.signed_part, quote.canonical) == (data[: 54 + 648], data)


@pytest.mark.parametrize("recipe", [QuoteRecipe(), *(QuoteRecipe(version=5, body_type=each) for each in BODY_SIZES)])
def test_quotes_of_every_version_and_body_are_believed(recipe: QuoteRecipe) -> None:
    case = VENDOR.case("tdx", recipe)
    verified = _verify(case)
    parsed = parse_tdx(case.evidence.data)
    assert verified.measurement == parsed.report.mrtd == b"\x32" * 48
    same = {field.name for field in fields(TdReport)} - {"mrtd", "tee_tcb_svn_2", "migration"}
    assert {name: getattr(verified, name) for name in same} == {name: getattr(parsed.report, name) for name in same}
    assert verified.rtmrs == (b"\x36" * 48, b"\x37" * 48, b"\x38" * 48, b"\x39" * 48)
    assert (verified.td_attributes, verified.xfam, verified.debug) == (SEPT_VE_DISABLE, 0x618E7, False)
    assert (verified.report_data, verified.tee_tcb_svn) == (REPORT_DATA, TEE_TCB_SVN)
    assert (verified.mr_service_td, verified.events) == (bytes(48), {})
    assert verified.evidence_sha256 == hashlib.sha256(parsed.quote.signed_part).digest()


def test_what_does_not_make_a_td_less_secure_by_itself_is_for_policy() -> None:
    attributes = SEPT_VE_DISABLE | 1 << 30 | 1 << 31 | 1 << 63
    recipe = QuoteRecipe(edit_body=overwrite(120, attributes.to_bytes(8, "little")))
    assert _verify(VENDOR.case("tdx", recipe)).td_attributes == attributes


def test_an_sgx_quote_is_no_tdx_quote() -> None:
    with pytest.raises(EvidenceError, match="the version of the TDX quote is 3; known are: 4, 5"):
        parse_tdx(VENDOR.quote("sgx"))
    for version in (4, 5):
        with pytest.raises(EvidenceError, match="the TEE type of the TDX quote is 0; known are: 129"):
            parse_tdx(VENDOR.quote("sgx", QuoteRecipe(version=version)))


@pytest.mark.parametrize(
    ("platform", "together"),
    [
        ("UpToDate", "TDRelaunchAdvised"),
        ("SWHardeningNeeded", "TDRelaunchAdvised"),
        ("ConfigurationNeeded", "TDRelaunchAdvisedConfigurationNeeded"),
        ("ConfigurationAndSWHardeningNeeded", "TDRelaunchAdvisedConfigurationNeeded"),
        ("OutOfDate", "OutOfDate"),
        ("OutOfDateConfigurationNeeded", "OutOfDateConfigurationNeeded"),
    ],
)
def test_a_td_launched_under_an_older_module_should_be_launched_again(platform: str, together: str) -> None:
    launched_before = replace(TD_1_5, edit_body=overwrite(0, bytes([OLD_TDX_MODULE_SVN])))
    verified = _verify(VENDOR.case("tdx", launched_before, CollateralRecipe(status=platform)))
    assert verified.platform_tcb.tcb_status == together
    assert verified.tcb == f"{together}, evaluation 17, 2024-03-13"


def test_a_module_out_of_date_is_a_platform_out_of_date() -> None:
    case = VENDOR.case("tdx", QuoteRecipe(edit_body=overwrite(0, bytes([OLD_TDX_MODULE_SVN]))))
    assert _verify(case).tcb.startswith("OutOfDate, ")


LOG = agile_log([(1, 5, b"kernel"), (2, 5, b"initrd"), (1, 5, b"command line"), (3, 3, b"never extended")], ("sha384",))
VALUES = replay(parse_event_log(LOG), "sha384")


def _measured(*logs: bytes, rtmrs: tuple[int, ...] = (0, 1)) -> Case:
    """A TD whose RTMRs with these numbers have the values of `LOG`, and these logs."""

    def edit(body: bytes) -> bytes:
        for index in rtmrs:
            body = overwrite(328 + 48 * index, VALUES[index + 1])(body)
        return body

    endorsements = [Endorsement(kind=EndorsementKind.EVENT_LOG, data=log) for log in logs]
    return VENDOR.case("tdx", QuoteRecipe(edit_body=edit), endorsements=endorsements)


def test_events_count_for_the_rtmrs_to_which_they_replay() -> None:
    events = _verify(_measured(LOG)).events
    assert {index: [event.data for event in found] for index, found in events.items()} == {
        0: [b"kernel", b"command line"],
        1: [b"initrd"],
    }
    assert list(_verify(_measured(LOG, rtmrs=(1,))).events) == [1]


def test_a_log_of_another_boot_proves_nothing_and_breaks_nothing() -> None:
    other = agile_log([(1, 5, b"another kernel")], ("sha384",))
    without_bank = agile_log([(1, 5, b"kernel")], ("sha256",))
    assert _verify(_measured(other, without_bank)).events == {}
    assert list(_verify(_measured(other, LOG)).events) == [0, 1]


def test_of_two_logs_with_the_same_digests_the_first_counts() -> None:
    retold = LOG.replace(b"kernel", b"KERNEL")
    for logs, told in (((LOG, retold), b"kernel"), ((retold, LOG), b"KERNEL")):
        assert _verify(_measured(*logs)).events[0][0].data == told


def test_events_can_not_be_changed() -> None:
    events = _verify(_measured(LOG)).events
    with pytest.raises(TypeError):
        events[0] = ()  # type: ignore[index]
