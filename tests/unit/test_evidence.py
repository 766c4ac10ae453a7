"""Evidence, what comes stapled to it, and what every verifier asks first."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from adyton.errors import EvidenceError
from adyton.tee.evidence import (
    MAX_ENDORSEMENT_BYTES,
    MAX_ENDORSEMENTS,
    MAX_EVIDENCE_BYTES,
    Endorsement,
    EndorsementKind,
    Evidence,
    check_verifiable,
)
from adyton.tee.steps import Step, Trace
from adyton.testing.forgery import NOW

ANCHORS = frozenset({bytes(32)})
LARGEST = Endorsement(kind=EndorsementKind.CRL, data=bytes(MAX_ENDORSEMENT_BYTES))
EVIDENCE = Evidence(tee="tdx", data=bytes(MAX_EVIDENCE_BYTES), endorsements=(LARGEST,) * MAX_ENDORSEMENTS)


def test_endorsements_of_one_kind_come_in_their_order() -> None:
    kinds = (EndorsementKind.CRL, EndorsementKind.CERTIFICATE, EndorsementKind.CRL)
    endorsements = tuple(Endorsement(kind=kind, data=bytes([index])) for index, kind in enumerate(kinds))
    evidence = Evidence(tee="snp", data=b"", endorsements=endorsements)
    assert list(evidence.endorsed(EndorsementKind.CRL)) == [b"\0", b"\2"]
    assert list(evidence.endorsed(EndorsementKind.CERTIFICATE)) == [b"\1"]
    assert list(evidence.endorsed(EndorsementKind.EVENT_LOG)) == []


def test_the_bytes_of_an_endorsement_are_not_in_its_repr() -> None:
    key = Endorsement(kind=EndorsementKind.SYMMETRIC_KEY, data=b"hunter2")
    assert "hunter2" not in repr(Evidence(tee="psa", data=b"", endorsements=(key,)))


def test_kinds_are_media_types() -> None:
    assert all(kind.value.startswith("application/") for kind in EndorsementKind)
    assert EndorsementKind("application/pkix-cert") is EndorsementKind.CERTIFICATE


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=-8))])
def test_the_largest_evidence_of_the_right_label_can_be_verified(zone: timezone) -> None:
    check_verifiable(EVIDENCE, "tdx", ANCHORS, NOW.astimezone(zone))


@pytest.mark.parametrize(
    ("evidence", "message"),
    [
        (replace(EVIDENCE, tee="snp"), "evidence labelled 'snp' was given to the verifier of 'tdx'"),
        (replace(EVIDENCE, data=bytes(MAX_EVIDENCE_BYTES + 1)), "evidence of 65537 bytes; 65536 are allowed"),
        (replace(EVIDENCE, endorsements=(LARGEST,) * 33), "33 endorsements; 32 are allowed"),
        (
            replace(EVIDENCE, endorsements=(LARGEST, replace(LARGEST, data=LARGEST.data + b"\0"))),
            "an endorsement of more than 524288 bytes",
        ),
    ],
    ids=["label", "data", "count", "size"],
)
def test_what_is_out_of_bounds_is_refused(evidence: Evidence, message: str) -> None:
    with pytest.raises(EvidenceError) as caught:
        check_verifiable(evidence, "tdx", ANCHORS, NOW)
    assert str(caught.value) == message


def test_a_label_from_the_wire_is_cut_and_made_printable() -> None:
    with pytest.raises(EvidenceError) as caught:
        check_verifiable(replace(EVIDENCE, tee="\x1b[2J" + "x" * 100_000), "tdx", ANCHORS, NOW)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 150


def test_without_anchors_nothing_is_genuine() -> None:
    with pytest.raises(EvidenceError, match=r"^no anchors are trusted, so no evidence of 'tdx' is genuine$"):
        check_verifiable(EVIDENCE, "tdx", frozenset(), NOW)


def test_a_time_without_zone_is_the_callers_mistake_before_anything_else() -> None:
    with pytest.raises(ValueError, match="now must have a time zone"):
        check_verifiable(replace(EVIDENCE, tee="snp"), "tdx", frozenset(), datetime(2026, 1, 1))


def test_a_trace_holds_the_steps_in_the_order_in_which_they_began() -> None:
    first, second = (Step(title=title, reference="1") for title in ("one", "two"))
    trace = Trace()
    assert trace.begun == []
    trace.begin(second)
    trace.begin(first)
    assert trace.begun == [second, first]
