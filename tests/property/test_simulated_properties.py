"""Whatever bytes a simulated verifier is given: only EvidenceError escapes, and only what was signed is believed."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from adyton.errors import EvidenceError
from adyton.tee.evidence import Evidence
from adyton.tee.simulated.format import (
    HEAD_BYTES,
    encode_signed_part,
    encode_simulated,
    parse_simulated,
)
from adyton.tee.simulated.verify import verify_simulated
from adyton.testing.forgery import NOW
from adyton.testing.simulated import EvidenceRecipe, SimulatedVendor, certificate, leaf_der, sign_canonically

VENDOR = SimulatedVendor()
LEAF_KEY = ec.generate_private_key(ec.SECP256R1())
CASE = VENDOR.case(EvidenceRecipe(report_data=bytes(range(64)), new_leaf_key=lambda: LEAF_KEY))
GENUINE = CASE.evidence.data
ROOT = CASE.evidence.endorsements[0].data
LEAF = leaf_der(GENUINE)


def _mutate(data: bytes, draw: st.DrawFn) -> bytes:
    start = draw(st.integers(0, len(data)))
    removed = draw(st.integers(0, 4) | st.integers(0, len(data)))
    inserted = draw(st.binary(max_size=8) | st.binary(max_size=100))
    return data[:start] + inserted + data[start + removed :]


@st.composite
def mutations(draw: st.DrawFn, original: bytes) -> bytes:
    """The original with one to four slices replaced."""
    data = original
    for _ in range(draw(st.integers(1, 4))):
        data = _mutate(data, draw)
    return data


@st.composite
def bit_flips(draw: st.DrawFn, original: bytes) -> bytes:
    data = bytearray(original)
    for bit in draw(st.sets(st.integers(0, len(data) * 8 - 1), min_size=1, max_size=3)):
        data[bit // 8] ^= 1 << bit % 8
    return bytes(data)


def _verdict(evidence: Evidence) -> bool:
    try:
        verify_simulated(evidence, anchors=CASE.anchors, now=NOW)
    except EvidenceError:
        return False
    return True


def _refuses(data: bytes) -> bool:
    return not _verdict(replace(CASE.evidence, data=data))


def test_the_original_is_believed() -> None:
    assert not _refuses(GENUINE)


@given(st.binary(max_size=4096) | st.binary(max_size=4096).map(lambda tail: GENUINE[:HEAD_BYTES] + tail))
def test_random_bytes_are_refused(data: bytes) -> None:
    assert _refuses(data)


@settings(max_examples=500)
@given(mutations(GENUINE) | bit_flips(GENUINE))
def test_no_mutation_is_believed(data: bytes) -> None:
    assert _refuses(data) == (data != GENUINE)


def test_no_single_bit_flip_outside_the_leaf_is_believed() -> None:
    outside = [*range(HEAD_BYTES + 2), *range(HEAD_BYTES + 2 + len(LEAF), len(GENUINE))]
    for index in outside:
        for bit in range(8):
            data = bytearray(GENUINE)
            data[index] ^= 1 << bit
            assert _refuses(bytes(data)), (index, bit)


def test_no_beginning_is_believed() -> None:
    for length in range(len(GENUINE)):
        assert _refuses(GENUINE[:length]), length


@settings(max_examples=1000)
@given(mutations(LEAF) | bit_flips(LEAF))
def test_a_mutated_leaf_is_refused_even_if_its_own_key_signs_the_rest(leaf: bytes) -> None:
    # The signature over the evidence is in order, so this is what reaches the certificate's parser and the chain.
    if not 0 < len(leaf) <= 2048:
        return
    part = encode_signed_part(report_data=bytes(64), measurement=bytes(48), issued_at=NOW, leaf_certificate_der=leaf)
    data = encode_simulated(part, sign_canonically(LEAF_KEY, part))
    assert _refuses(data) == (leaf != LEAF)


@settings(max_examples=300)
@given(st.data())
def test_what_the_root_signs_can_be_refused_and_raises_nothing_else(data: st.DataObject) -> None:
    # Even a leaf that is malformed under a good signature of the root: a vendor's mistake is no crash.
    edit = EvidenceRecipe(new_leaf_key=lambda: LEAF_KEY, edit_leaf_before_issue=lambda der: data.draw(bit_flips(der)))
    _verdict(VENDOR.case(edit).evidence)


@settings(max_examples=300)
@given(
    st.binary(max_size=40),
    st.sampled_from(
        [
            x509.SubjectAlternativeName,
            x509.NameConstraints,
            x509.CertificatePolicies,
            x509.ExtendedKeyUsage,
            x509.AuthorityKeyIdentifier,
            x509.CRLDistributionPoints,
        ]
    ),
    st.booleans(),
)
def test_extensions_of_any_content_raise_nothing_else(
    value: bytes, kind: type[x509.ExtensionType], critical: bool
) -> None:
    extension = x509.UnrecognizedExtension(kind.oid, value)
    recipe = EvidenceRecipe()
    changed = EvidenceRecipe(leaf_extensions=(*recipe.leaf_extensions, (extension, critical)))
    _verdict(VENDOR.case(changed).evidence)


@given(
    st.binary(min_size=64, max_size=64),
    st.binary(min_size=48, max_size=48),
    st.datetimes(min_value=datetime(1970, 1, 1), timezones=st.just(UTC)),
    st.binary(min_size=1, max_size=2048),
    st.binary(min_size=8, max_size=72),
)
def test_what_is_encoded_is_parsed_again(
    report_data: bytes, measurement: bytes, issued_at: datetime, leaf: bytes, signature: bytes
) -> None:
    part = encode_signed_part(
        report_data=report_data, measurement=measurement, issued_at=issued_at, leaf_certificate_der=leaf
    )
    evidence = parse_simulated(encode_simulated(part, signature))
    assert (evidence.report_data, evidence.measurement) == (report_data, measurement)
    assert evidence.issued_at == issued_at.replace(microsecond=0)
    assert (evidence.leaf_certificate_der, evidence.signature, evidence.signed_part) == (leaf, signature, part)


@given(st.binary(max_size=300).map(lambda tail: GENUINE[:HEAD_BYTES] + tail) | mutations(GENUINE))
def test_what_parses_is_encoded_to_the_same_bytes(data: bytes) -> None:
    try:
        evidence = parse_simulated(data)
    except EvidenceError:
        return
    part = encode_signed_part(
        report_data=evidence.report_data,
        measurement=evidence.measurement,
        issued_at=evidence.issued_at,
        leaf_certificate_der=evidence.leaf_certificate_der,
    )
    assert part == evidence.signed_part
    assert encode_simulated(part, evidence.signature) == data


@given(st.datetimes(timezones=st.just(UTC)))
def test_at_any_time_the_verdict_is_yes_or_evidence_error(now: datetime) -> None:
    inside = NOW - timedelta(minutes=5) <= now <= NOW + timedelta(hours=24)
    if inside:
        verify_simulated(CASE.evidence, anchors=CASE.anchors, now=now)
        return
    with pytest.raises(EvidenceError):
        verify_simulated(CASE.evidence, anchors=CASE.anchors, now=now)


@given(mutations(ROOT) | bit_flips(ROOT))
def test_a_mutated_root_is_no_root(root: bytes) -> None:
    assert _verdict(replace(CASE.evidence, endorsements=(certificate(root),))) == (root == ROOT)


@settings(max_examples=300)
@given(mutations(ROOT) | bit_flips(ROOT))
def test_a_mutated_root_raises_nothing_else_even_if_it_is_pinned(root: bytes) -> None:
    # Whoever pins what is no root made a mistake, and a mistake is no crash.
    evidence = replace(CASE.evidence, endorsements=(certificate(root),))
    with suppress(EvidenceError):
        verify_simulated(evidence, anchors={hashlib.sha256(root).digest()}, now=NOW)
