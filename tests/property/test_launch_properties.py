"""Any bytes and any parts of a launch document."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from adyton.errors import EvidenceError
from adyton.host.image.reference.hcrtm import event_log
from adyton.tee._event_log import authenticated, confirmed, parse_event_log
from adyton.tee.tpm.launch import encode_launch, parse_launch, pcr0

NAMES = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=32)
PARTS = st.dictionaries(NAMES, st.binary(min_size=32, max_size=32), min_size=1, max_size=32)
TEXT = st.text("adyton-launch/1 kernl0f\n", max_size=200).map(str.encode)


@given(PARTS)
def test_parsing_undoes_encoding(parts: dict[str, bytes]) -> None:
    assert dict(parse_launch(encode_launch(parts))) == parts


@given(st.one_of(st.binary(max_size=5000), TEXT, TEXT.map(b"adyton-launch/1\n".__add__)))
def test_any_bytes_are_refused_or_the_one_encoding_of_their_parts(data: bytes) -> None:
    with suppress(EvidenceError):
        assert encode_launch(parse_launch(data)) == data


@given(PARTS, st.integers(0), st.integers(1, 255))
def test_a_changed_document_is_refused_or_has_other_parts(parts: dict[str, bytes], at: int, change: int) -> None:
    changed = bytearray(encode_launch(parts))
    changed[at % len(changed)] ^= change
    with suppress(EvidenceError):
        assert dict(parse_launch(bytes(changed))) != parts


@given(PARTS)
def test_the_event_log_gives_pcr_0_and_the_parts(parts: dict[str, bytes]) -> None:
    document = encode_launch(parts)
    (event,) = confirmed(parse_event_log(event_log(document)), {"sha256": {0: pcr0(document)}})[0]
    assert authenticated(event)
    assert dict(parse_launch(event.data)) == parts
