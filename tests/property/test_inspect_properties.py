"""Whatever evidence says can be shown, or it is refused; and what is shown is lines of printable text, or JSON."""

from __future__ import annotations

import functools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.cli.inspect import describe
from adyton.cli.tree import as_json, lines, one_line
from adyton.errors import EvidenceError
from adyton.tee.evidence import Endorsement, EndorsementKind, Evidence
from adyton.tee.registry import TEES, tee
from adyton.testing.samples import genuine

LABELS = sorted(TEES)


@functools.cache
def evidence_of(label: str) -> Evidence:
    return genuine(label).evidence


def changed(data: bytes, edits: list[tuple[int, bytes]]) -> bytes:
    """The bytes with some of them overwritten, at places that wrap around."""
    edited = bytearray(data)
    for position, new in edits:
        start = position % (len(data) + 1)
        edited[start : start + len(new)] = new
    return bytes(edited)


EDITS = st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=8)), min_size=1, max_size=3)


def show(value: object) -> None:
    assert all(one_line(line).isprintable() for line in lines("it", value))
    json.loads(json.dumps(as_json(value), allow_nan=False))


@pytest.mark.parametrize("label", LABELS)
@given(edits=EDITS)
def test_changed_evidence_is_shown_or_refused(label: str, edits: list[tuple[int, bytes]]) -> None:
    try:
        parsed = tee(label).parser()(changed(evidence_of(label).data, edits))
    except EvidenceError:
        return
    show(parsed)


@pytest.mark.parametrize("label", LABELS)
@given(edits=EDITS, index=st.integers(0, 31), kind=st.sampled_from(list(EndorsementKind)))
def test_changed_endorsements_are_shown(
    label: str, edits: list[tuple[int, bytes]], index: int, kind: EndorsementKind
) -> None:
    endorsements = evidence_of(label).endorsements
    for endorsement in endorsements[index % max(1, len(endorsements)) :][:1]:
        data = changed(endorsement.data, edits)
        show([describe(Endorsement(kind=each, data=data)) for each in (endorsement.kind, kind)])
