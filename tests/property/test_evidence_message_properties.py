"""Whatever bytes come as a message of evidence: only EvidenceError escapes, and what is sent arrives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from adyton.errors import EvidenceError
from adyton.tee.evidence import Endorsement, EndorsementKind, Evidence
from adyton.tee.message import decode_evidence, encode_evidence

KINDS = [kind for kind in EndorsementKind if kind is not EndorsementKind.SYMMETRIC_KEY]
EVIDENCE = st.builds(
    Evidence,
    tee=st.text(st.characters(exclude_categories=["Cs"])),
    data=st.binary(),
    endorsements=st.lists(st.builds(Endorsement, kind=st.sampled_from(KINDS), data=st.binary()), max_size=8).map(tuple),
)


@given(EVIDENCE)
def test_evidence_arrives_as_it_was_sent(evidence: Evidence) -> None:
    assert decode_evidence(encode_evidence(evidence)) == evidence


@given(st.binary(max_size=500))
def test_random_bytes_are_evidence_or_an_error(data: bytes) -> None:
    _decoded_or_refused(data)


@given(EVIDENCE, st.data())
def test_a_damaged_message_is_evidence_or_an_error(evidence: Evidence, draw: st.DataObject) -> None:
    data = encode_evidence(evidence)
    start = draw.draw(st.integers(0, len(data)))
    end = draw.draw(st.integers(start, len(data)))
    _decoded_or_refused(data[:start] + draw.draw(st.binary(max_size=8)) + data[end:])


def _decoded_or_refused(data: bytes) -> None:
    try:
        evidence = decode_evidence(data)
    except EvidenceError:
        return
    assert decode_evidence(encode_evidence(evidence)) == evidence  # what was left out, an unknown kind, stays out
