"""Whatever a TPM's verifier is given: only EvidenceError escapes, and only what the TPM signed is believed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from mutating import bit_flips, mutations

from adyton.errors import EvidenceError
from adyton.tee._event_log import EventLog, authenticated, confirmed, parse_event_log, replay
from adyton.tee._tpm_structures import parse_attest, parse_public, parse_signature
from adyton.tee.evidence import Endorsement, EndorsementKind, Evidence
from adyton.tee.tpm.format import encode_tpm, parse_tpm
from adyton.tee.tpm.verify import VerifiedTpm, verify_tpm
from adyton.testing.forgery import Case
from adyton.testing.tpm import TpmRecipe, TpmVendor, public_area
from adyton.testing.tpm_quotes import (
    ALGORITHMS,
    MEASUREMENTS,
    PCRS,
    KeyName,
    Measurement,
    TpmQuoteRecipe,
    agile_log,
    digest_of,
    key,
    pcrs_after,
    sha1_log,
)

VENDOR = TpmVendor()
GENUINE = VENDOR.case()
PINNED = VENDOR.case(TpmRecipe(pinned=True))
ITEMS: dict[str, Any] = cbor2.loads(GENUINE.evidence.data)
LOGS = (agile_log(MEASUREMENTS), sha1_log(MEASUREMENTS), agile_log(MEASUREMENTS, ["sha384", "sm3_256"], bytes(64)))
REGISTERS = pcrs_after(MEASUREMENTS, "sha1", "sha256", "sha384")


def changed(original: bytes) -> st.SearchStrategy[bytes]:
    return mutations(original) | bit_flips(original)


def values() -> st.SearchStrategy[Any]:
    """Anything that CBOR can hold."""
    leaves = st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.floats() | st.text() | st.binary()
    return st.recursive(
        leaves, lambda inner: st.lists(inner) | st.dictionaries(st.integers(-5, 30) | st.text(), inner), max_leaves=8
    )


def _believed(case: Case) -> VerifiedTpm | None:
    """What the verifier makes of it, or None if it refuses; anything but EvidenceError escapes."""
    try:
        return verify_tpm(case.evidence, anchors=case.anchors, now=case.now)
    except EvidenceError:
        return None


def _with(case: Case, data: bytes) -> Case:
    return replace(case, evidence=replace(case.evidence, data=data))


# --- parsers


@given(st.data())
def test_random_bytes_are_parsed_or_refused(data: st.DataObject) -> None:
    parsers: list[Callable[[bytes], object]] = [parse_tpm, parse_attest, parse_signature, parse_public, parse_event_log]
    parse = data.draw(st.sampled_from(parsers))
    try:
        parse(data.draw(st.binary(max_size=600)))
    except EvidenceError:
        return
    assert parse in (parse_signature, parse_event_log)


@settings(max_examples=200)
@given(changed(ITEMS["quoted"]), changed(ITEMS["signature"]), changed(ITEMS["ak_public"]))
def test_changed_structures_are_parsed_or_refused(quoted: bytes, signature: bytes, public: bytes) -> None:
    for parse, data in ((parse_attest, quoted), (parse_signature, signature), (parse_public, public)):
        try:
            parse(data)
        except EvidenceError:
            continue


@given(st.sampled_from(["p256", "p384"]).flatmap(lambda name: changed(public_area(key(name), None, "sha256"))))
def test_changed_points_are_on_their_curve_or_refused(public: bytes) -> None:
    try:
        assert isinstance(parse_public(public).key, ec.EllipticCurvePublicKey)
    except EvidenceError:
        return


@given(
    st.dictionaries(
        st.sampled_from(list(ALGORITHMS)), st.dictionaries(st.integers(0, 23), st.just(b""), max_size=24), max_size=5
    )
)
def test_what_was_encoded_is_parsed_again(banks: dict[str, dict[int, bytes]]) -> None:
    pcrs = {bank: dict.fromkeys(indices, digest_of(bank, b"")) for bank, indices in banks.items()}
    parts = {name: ITEMS[name] for name in ("quoted", "signature", "ak_public")}
    evidence = parse_tpm(encode_tpm(pcrs=pcrs, **parts))
    assert evidence.quote.pcrs == pcrs
    assert evidence.quote.attest.encoded == ITEMS["quoted"]


# --- the verifier


def test_the_originals_are_believed() -> None:
    assert _believed(GENUINE)
    assert _believed(PINNED)


@given(st.binary(max_size=4096))
def test_random_bytes_are_refused(data: bytes) -> None:
    assert _believed(_with(GENUINE, data)) is None


@settings(max_examples=400)
@given(changed(PINNED.evidence.data))
def test_no_mutation_changes_what_the_evidence_says(data: bytes) -> None:
    assert _believed(_with(PINNED, data)) in (None, _believed(PINNED))


@settings(max_examples=300)
@given(st.sampled_from([*ITEMS, "more"]), values())
def test_fields_of_another_kind_are_refused(name: str, value: Any) -> None:
    data = cbor2.dumps(ITEMS | {name: value})
    assert _believed(_with(GENUINE, data)) is None or ITEMS.get(name) == value


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(["sha1", "sha256", "md5"]), values(), max_size=2))
def test_pcr_values_of_another_kind_are_refused(pcrs: dict[str, Any]) -> None:
    assert _believed(_with(GENUINE, cbor2.dumps(ITEMS | {"pcrs": pcrs}))) is None


@settings(max_examples=300)
@given(st.data(), st.sampled_from(["rsa", "p256"]))
def test_a_tpm_that_signs_anything_proves_no_other_pcrs(data: st.DataObject, name: KeyName) -> None:
    # The signature is in order, so this is what reaches the checks behind it.
    quote = TpmQuoteRecipe(edit_quoted=lambda quoted: data.draw(changed(quoted)))
    verified = _believed(VENDOR.case(TpmRecipe(key=name, pinned=True, quote=quote)))
    if verified is not None:
        assert verified.quote.pcrs == PCRS
        assert verified.measurement == _believed(PINNED).measurement  # type: ignore[union-attr]


@settings(max_examples=200)
@given(st.data())
def test_a_changed_key_is_refused_or_the_same(data: st.DataObject) -> None:
    public = data.draw(changed(ITEMS["ak_public"]))
    assert _believed(_with(PINNED, cbor2.dumps(ITEMS | {"ak_public": public}))) in (None, _believed(PINNED))


@settings(max_examples=200)
@given(st.data())
def test_changed_certificates_are_refused_or_mean_the_same(data: st.DataObject) -> None:
    stapled = list(GENUINE.evidence.endorsements)
    index = data.draw(st.integers(0, len(stapled) - 1))
    stapled[index] = replace(stapled[index], data=data.draw(changed(stapled[index].data)))
    case = replace(GENUINE, evidence=replace(GENUINE.evidence, endorsements=tuple(stapled)))
    assert _believed(case) in (None, _believed(GENUINE))


# --- event logs


def _parsed(data: bytes) -> EventLog | None:
    try:
        return parse_event_log(data)
    except EvidenceError:
        return None


@settings(max_examples=400)
@given(st.sampled_from(LOGS).flatmap(changed) | st.binary(max_size=200).map(lambda tail: LOGS[0][:73] + tail))
def test_no_log_confirms_a_digest_that_was_not_measured(data: bytes) -> None:
    log = _parsed(data)
    if log is None:
        return
    for found in confirmed(log, REGISTERS).values():
        for event in found:
            authenticated(event)
            assert set(event.digests) <= set(REGISTERS)
            for bank, digest in event.digests.items():
                assert digest in {digest_of(bank, measured) for _, _, measured in MEASUREMENTS}


measurements = st.lists(st.tuples(st.integers(0, 23), st.integers(0, 9), st.binary(max_size=40)), max_size=12)


@given(measurements, st.lists(st.sampled_from(list(ALGORITHMS)), min_size=1, max_size=5, unique=True))
def test_what_was_logged_is_parsed_again(logged: list[Measurement], banks: list[str]) -> None:
    log = parse_event_log(agile_log(logged, banks))
    assert log.banks == tuple(banks)
    assert [(event.register, event.event_type, event.data) for event in log.events] == logged
    assert all(event.digests == {bank: digest_of(bank, event.data) for bank in banks} for event in log.events)


@given(measurements.filter(lambda logged: all(register != 0 and register < 17 for register, _, _ in logged)))
def test_every_honest_log_is_confirmed(logged: list[Measurement]) -> None:
    log = parse_event_log(agile_log(logged, ["sha384"]))
    extended = [(register, data) for register, event_type, data in logged if event_type != 3]
    events = confirmed(log, pcrs_after(logged, "sha384"))
    assert set(events) == set(replay(log, "sha384")) == {register for register, _ in extended}
    for register, found in events.items():
        assert [event.data for event in found] == [data for at, data in extended if at == register]


@pytest.mark.parametrize("log", LOGS)
def test_no_beginning_of_a_log_is_more_than_refused(log: bytes) -> None:
    stapled = [Endorsement(kind=EndorsementKind.EVENT_LOG, data=log[:length]) for length in range(len(log))]
    for endorsement in stapled:
        evidence = Evidence(tee="tpm", data=PINNED.evidence.data, endorsements=(endorsement,))
        _believed(replace(PINNED, evidence=evidence))
