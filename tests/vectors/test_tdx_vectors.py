"""Real TDX quotes and event logs: what is read of them, and which logs replay to the RTMRs of which quotes.

Real quotes with real collateral are in test_intel_collateral_vectors.py.
"""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from real_vectors import MANIFEST, content, ids, manifest, needs_vectors

from adyton.errors import EvidenceError
from adyton.tee._event_log import EventLog, confirmed, parse_event_log, replay
from adyton.tee.evidence import Endorsement, EndorsementKind, Evidence
from adyton.tee.tdx.format import DEBUG, TdReport, parse_tdx
from adyton.tee.tdx.verify import ANCHORS, VerifiedTdx, verify_tdx
from adyton.testing.tpm_quotes import agile_log

pytestmark = needs_vectors

QUOTES = [name for name in ids("tdx", "evidence") if "header" in manifest()[name].get("measured", {})]
TD_REPORT = "tdx/go-tdx-guest_tdreport.bin"
COS113 = "tdx/go-tdx-guest_cos113.bin"
COS113_LOG = "tdx/go-tdx-guest_cos113_ccel_data.bin"
COS113_TABLE = "tdx/go-tdx-guest_cos113_ccel_table.bin"
COS113_NONCE = "tdx/go-tdx-guest_cos113_nonce.bin"
WRONG_ROOT = "tdx/wrong_root_case"
LOGS = [name for name in ids("tdx", "eventlog") if "regs" in manifest()[name].get("measured", {})]
DSTACK = {
    "tdx/dstack_quote_report.json": ("tdx/dstack_quote_report.bin", {0, 1, 2, 3}),
    "tdx/dstack_tdx_lite_getquote.json": ("tdx/dstack_tdx_lite.bin", {0, 1, 2}),
}
"""Logs in JSON, with the quote that each came with and the RTMRs to which it replays: the second's events of RTMR3 have
no digests."""
PADDED_OTHERWISE = {"tdx/go-tdx-guest_prod_SPR_E4.bin": "the TDX quote is followed by bytes that are not zero"}


def _hex(number: int) -> str:
    return number.to_bytes(8, "little").hex()


def _claims(report: TdReport) -> dict[str, Any]:
    return {
        "tee_tcb_svn": report.tee_tcb_svn.hex(),
        "mrseam": report.mr_seam.hex(),
        "mrsignerseam": report.mr_signer_seam.hex(),
        "seam_attributes": _hex(report.seam_attributes),
        "td_attributes": _hex(report.td_attributes),
        "xfam": _hex(report.xfam),
        "mrtd": report.mrtd.hex(),
        "mrconfigid": report.mr_config_id.hex(),
        "mrowner": report.mr_owner.hex(),
        "mrownerconfig": report.mr_owner_config.hex(),
        **{f"rtmr{index}": value.hex() for index, value in enumerate(report.rtmrs)},
        "report_data": report.report_data.hex(),
        "debug": bool(report.td_attributes & DEBUG),
    }


@pytest.mark.parametrize("name", [name for name in QUOTES if name not in PADDED_OTHERWISE])
def test_a_real_quote_reads_as_was_measured(name: str) -> None:
    header, claims = manifest()[name]["measured"]["header"], manifest()[name]["claims"]
    parsed = parse_tdx(content(name))
    quote = parsed.quote
    assert (quote.header.version, quote.signature.pck_data_type) == (header["version"], header["cert_type"])
    assert quote.body_type == (header["body_type"] or 2)
    assert len(content(name)) - len(quote.canonical) == header["trailing_bytes"]
    expected = _claims(parsed.report)
    if quote.body_type == 3:
        expected["tee_tcb_svn2"] = parsed.report.tee_tcb_svn_2.hex()
        expected["mrservicetd"] = parsed.report.mr_service_td.hex()
    assert claims == expected


@pytest.mark.parametrize("name", PADDED_OTHERWISE)
def test_a_quote_in_a_buffer_that_was_not_cleared_is_refused(name: str) -> None:
    header = manifest()[name]["measured"]["header"]
    assert not header["trailing_zero"]
    with pytest.raises(EvidenceError, match=PADDED_OTHERWISE[name]):
        parse_tdx(content(name))
    parsed = parse_tdx(content(name)[: -header["trailing_bytes"]])
    assert _claims(parsed.report) == manifest()[name]["claims"]


def _verify(name: str, *logs: bytes, anchors: frozenset[bytes] = ANCHORS, collateral: bool = True) -> VerifiedTdx:
    """With the first collateral under which the manifest has it as genuine, at the time for that."""
    runs = manifest()[name]["measured"]["full_verification"]
    run = next((run for run in runs if not run["dcap_qvl"].startswith("REJECT")), runs[0])
    path = run["collateral"].removeprefix("vectors/")
    stapled = [Endorsement(kind=EndorsementKind.EVENT_LOG, data=log) for log in logs]
    if collateral:
        stapled.append(Endorsement(kind=EndorsementKind.DCAP_COLLATERAL, data=content(path)))
    evidence = Evidence(tee="tdx", data=content(name), endorsements=tuple(stapled))
    return verify_tdx(evidence, anchors=anchors, now=datetime.fromtimestamp(run["verify_time"], UTC))


@pytest.mark.parametrize("name", [name for name in QUOTES if name not in PADDED_OTHERWISE])
def test_no_real_quote_is_believed_without_collateral(name: str) -> None:
    said = "no collateral for tdx under the platform CA, FMSPC |the PCK certificate is not yet valid"
    with pytest.raises(EvidenceError, match=said):
        _verify(name, collateral=False)


def test_under_another_root_nothing_is_genuine() -> None:
    # The case names a quote that is not in the tree; any that is genuine under Intel's root will do.
    assert manifest()[WRONG_ROOT]["expected"] == {"accept": False, "reason": "pinned root differs"}
    with pytest.raises(EvidenceError, match="does not end in a root that is trusted"):
        _verify(COS113, anchors=frozenset({bytes(32)}))


def test_the_report_data_of_a_real_td_is_its_nonce() -> None:
    assert _verify(COS113).report_data == content(COS113_NONCE)


def test_a_report_of_the_machine_itself_is_no_quote() -> None:
    with pytest.raises(EvidenceError, match="the version of the TDX quote is "):
        parse_tdx(content(TD_REPORT))


def _prefixes(log: EventLog) -> dict[str, str]:
    return {str(register): value.hex()[:16] for register, value in replay(log, "sha384").items()}


@pytest.mark.parametrize("name", LOGS)
def test_a_real_event_log_replays_as_was_measured(name: str) -> None:
    measured = manifest()[name]["measured"]
    log = parse_event_log(content(name))
    assert (log.banks, len(log.events)) == (("sha384",), measured["events"])
    assert _prefixes(log) == measured["regs"]["12"]


@pytest.mark.parametrize("name", [name for name in ids("tdx", "reference") if name.endswith("_out.json")])
def test_a_real_event_log_reads_as_another_parser_read_it(name: str) -> None:
    expected = json.loads(content(name))["uefi_event_logs"]
    events = parse_event_log(content(name.removesuffix("_out.json"))).events
    assert [(event.register, event.digests["sha384"].hex(), event.data) for event in events] == [
        (each["index"], each["digests"][0]["digest"], base64.b64decode(each["event"])) for each in expected
    ]


REPLAYED = {
    COS113_LOG: [0, 1, 2],
    "tdx/eventlog/go-eventlog_cos-113-intel-tdx.bin": [0, 1, 2],
    "tdx/eventlog/go-eventlog_cos-113-intel-tdx-dupe-separator.bin": [2],
}


@pytest.mark.parametrize("name", LOGS)
def test_the_events_of_a_real_td_are_those_that_replay_to_its_rtmrs(name: str) -> None:
    assert list(_verify(COS113, content(name)).events) == REPLAYED.get(name, [])


def test_the_table_of_the_firmware_is_no_log() -> None:
    table = content(COS113_TABLE)
    assert (table[:4], int.from_bytes(table[4:8], "little")) == (b"CCEL", len(table))
    with pytest.raises(EvidenceError):
        _verify(COS113, table)


def _from_json(name: str) -> EventLog:
    """The log that dstack gives as JSON: events with an RTMR and a digest. Data without a digest is left out."""
    listed = json.loads(content(name))["event_log"]
    events = [event for event in (json.loads(listed) if isinstance(listed, str) else listed) if event["digest"]]
    log = parse_event_log(agile_log([(event["imr"] + 1, 5, b"") for event in events], ("sha384",)))
    return replace(
        log,
        events=tuple(
            replace(event, digests={"sha384": bytes.fromhex(each["digest"])})
            for event, each in zip(log.events, events, strict=True)
        ),
    )


@pytest.mark.parametrize("name", DSTACK)
def test_the_events_of_dstack_replay_to_the_rtmrs_of_their_quote(name: str) -> None:
    quote, replayed = DSTACK[name]
    assert bytes.fromhex(json.loads(content(name))["quote"]) == content(quote)
    rtmrs = parse_tdx(content(quote)).report.rtmrs
    found = confirmed(_from_json(name), {"sha384": dict(enumerate(rtmrs, 1))})
    assert {register - 1 for register in found} == replayed


def test_no_vector_is_left_out() -> None:
    references = {COS113_NONCE, *(name for name in ids("tdx", "reference") if name.endswith("_out.json"))}
    used = {*QUOTES, *LOGS, *DSTACK, *references, TD_REPORT, COS113_TABLE, WRONG_ROOT}
    assert used == set(ids("tdx"))
    assert set(REPLAYED) <= set(LOGS)
    pairs = {tuple(pair.split(" <- ")): replayed for pair, replayed in _replayed_in_manifest().items()}
    for (quote, log), replayed in pairs.items():
        if quote == COS113:
            assert [int(rtmr[-1]) for rtmr, same in replayed.items() if same] == REPLAYED[log]


def _replayed_in_manifest() -> dict[str, dict[str, bool]]:
    replayed: dict[str, dict[str, bool]] = json.loads(MANIFEST.read_text())["rtmr_replay"]
    return replayed
