"""Whatever bytes Arm's verifiers are given: only EvidenceError escapes, and only what was signed counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adyton.errors import EvidenceError
from adyton.tee.cca.format import parse_cca
from adyton.tee.cca.verify import verify_cca
from adyton.tee.evidence import Endorsement, EndorsementKind, VerifiedEvidence, Verifier
from adyton.tee.psa.format import parse_psa
from adyton.tee.psa.verify import software_measurement, verify_psa
from adyton.testing.cca import PLATFORM_CLAIMS, PLATFORM_KEY, REALM_CLAIMS, REALM_KEY, CcaVendor, cose_key, legacy_case
from adyton.testing.forgery import Case
from adyton.testing.psa import CLAIMS, CLAIMS_1, COMPONENT, SYMMETRIC_KEY, PsaVendor, changed, endorsed, sign1

GENUINE: Mapping[str, tuple[Case, Verifier, Callable[[bytes], Any]]] = MappingProxyType(
    {
        "psa": (PsaVendor().case(), verify_psa, parse_psa),
        "psa with a MAC": (PsaVendor(SYMMETRIC_KEY).case(claims=CLAIMS_1), verify_psa, parse_psa),
        "cca": (CcaVendor().case(), verify_cca, parse_cca),
        "legacy cca": (legacy_case(), verify_cca, parse_cca),
    }
)
KINDS = pytest.mark.parametrize("kind", GENUINE)

ITEMS = st.recursive(
    st.integers()
    | st.sampled_from([0, 1, 2, 3, 7, 10, 18, 263, 0x3000, -35, 1 << 31])
    | st.binary(max_size=66)
    | st.sampled_from([bytes(size) for size in (31, 32, 33, 48, 64, 97)])
    | st.text(max_size=8)
    | st.sampled_from(["sha-256", "http://arm.com/psa/2.0.0", "PSA_IOT_PROFILE_1", "x" * 257])
    | st.booleans()
    | st.none()
    | st.floats()
    | st.just(cbor2.undefined),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.integers(-3, 10) | st.text(max_size=2), inner),
    max_leaves=8,
)
"""What CBOR can hold, much of it almost right."""


def _verdict(kind: str, case: Case) -> VerifiedEvidence | None:
    """None if it is refused. Anything but EvidenceError escapes."""
    try:
        return case.verify_with(GENUINE[kind][1])
    except EvidenceError:
        return None


def _as_evidence(kind: str, data: bytes) -> Case:
    case = GENUINE[kind][0]
    return replace(case, evidence=replace(case.evidence, data=data))


@st.composite
def mutations(draw: st.DrawFn, original: bytes) -> bytes:
    """The original with one to three slices replaced, or with up to three bits flipped."""
    data = bytearray(original)
    if draw(st.booleans()):
        for bit in draw(st.sets(st.integers(0, len(data) * 8 - 1), min_size=1, max_size=3)):
            data[bit // 8] ^= 1 << bit % 8
        return bytes(data)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        removed = draw(st.integers(0, 4) | st.integers(0, len(data)))
        data[start : start + removed] = draw(st.binary(max_size=8))
    return bytes(data)


@KINDS
@settings(max_examples=50)
@given(data=st.binary(max_size=300) | ITEMS.map(cbor2.dumps))
def test_random_bytes_and_random_items_are_refused(kind: str, data: bytes) -> None:
    with pytest.raises(EvidenceError):
        GENUINE[kind][2](data)
    assert _verdict(kind, _as_evidence(kind, data)) is None


@KINDS
@settings(max_examples=200)
@given(data=st.data())
def test_a_mutation_is_refused_or_says_the_same(kind: str, data: st.DataObject) -> None:
    case = GENUINE[kind][0]
    mutated = data.draw(mutations(case.evidence.data))
    assert _verdict(kind, _as_evidence(kind, mutated)) in (None, _verdict(kind, case))


@settings(max_examples=200)
@given(
    st.dictionaries(st.sampled_from(sorted(CLAIMS)) | st.integers(), ITEMS, max_size=3),
    st.sampled_from([None, SYMMETRIC_KEY]),
)
def test_a_token_with_other_claims_says_them_or_is_refused(changes: dict[int, Any], key: bytes | None) -> None:
    # Signed again, so that only the checks of claims are in the way.
    verified = _verdict("psa", PsaVendor(key).case(changes))
    if verified is not None:
        claims = {**CLAIMS, **changes}
        assert (verified.report_data, verified.platform) == (claims[10], claims[256].hex())


@given(st.dictionaries(st.sampled_from(sorted(COMPONENT)) | st.integers(0, 9), ITEMS, max_size=3))
def test_a_component_with_other_attributes_raises_nothing_else(changes: dict[int, Any]) -> None:
    _verdict("psa", PsaVendor().case({2399: [changed(COMPONENT, changes)]}))
    _verdict("cca", CcaVendor().case(platform={2399: [changed(COMPONENT, changes)]}))


@given(ITEMS, st.sampled_from([5, 17, 18, 61, None]))
def test_a_token_of_any_parts_raises_nothing_else(item: Any, tag: int | None) -> None:
    wrapped = item if tag is None else cbor2.CBORTag(tag, item)
    for kind in ("psa", "psa with a MAC"):
        _verdict(kind, _as_evidence(kind, cbor2.dumps(wrapped)))


@given(st.dictionaries(st.just(1) | st.integers(), ITEMS, max_size=2))
def test_a_protected_header_of_any_content_raises_nothing_else(header: dict[int, Any]) -> None:
    assert _verdict("psa", PsaVendor().case(header=header)) is None or header.get(1) == -7


@given(
    st.dictionaries(st.sampled_from(sorted({10, *PLATFORM_CLAIMS})) | st.integers(), ITEMS, max_size=2),
    st.dictionaries(st.sampled_from(sorted({44237, *REALM_CLAIMS})) | st.integers(), ITEMS, max_size=2),
)
def test_tokens_with_other_claims_say_them_or_are_refused(platform: dict[int, Any], realm: dict[int, Any]) -> None:
    verified = _verdict("cca", CcaVendor().case(platform=platform, realm=realm))
    if verified is not None:
        claims = {**REALM_CLAIMS, **realm}
        assert (verified.report_data, verified.measurement) == (claims[10], claims[44238])


@given(st.dictionaries(st.sampled_from([1, 3, 4, -1, -2, -3]) | st.integers(), ITEMS, max_size=3))
def test_a_realm_key_of_any_parameters_raises_nothing_else(changes: dict[int, Any]) -> None:
    _verdict("cca", CcaVendor(encode_key=lambda key: cose_key(key, changes)).case())


COSE_KEY = cose_key(REALM_KEY.public_key())


@given(mutations(COSE_KEY))
def test_a_mutated_realm_key_is_refused_even_if_the_platform_vouches_for_it(encoded: bytes) -> None:
    verified = _verdict("cca", CcaVendor(encode_key=lambda _: encoded).case())
    assert verified is None or cbor2.loads(encoded).items() >= cbor2.loads(COSE_KEY).items()


@given(ITEMS, st.sampled_from([399, 907]), st.sampled_from([44234, 44241]))
def test_a_container_of_any_entries_raises_nothing_else(item: Any, tag: int, label: int) -> None:
    genuine = cbor2.loads(CcaVendor().case().evidence.data).value
    for entry in (item, [263, item]):
        container = cbor2.CBORTag(tag, {**genuine, label: entry})
        assert _verdict("cca", CcaVendor().case_of(container)) is None


@settings(max_examples=50)
@given(payload=st.binary(max_size=100))
def test_a_payload_of_any_bytes_raises_nothing_else(payload: bytes) -> None:
    token = sign1(PLATFORM_KEY, payload)
    assert _verdict("psa", PsaVendor().case_of(PsaVendor().token(payload))) is None
    assert _verdict("cca", CcaVendor().case_of(cbor2.CBORTag(399, {44234: token, 44241: token}))) is None


@KINDS
@settings(max_examples=50)
@given(der=st.binary(max_size=100), label=st.sampled_from(EndorsementKind))
def test_a_pinned_endorsement_of_any_content_raises_nothing_else(kind: str, der: bytes, label: EndorsementKind) -> None:
    assert _verdict(kind, endorsed(GENUINE[kind][0], Endorsement(kind=label, data=der))) is None


COMPONENTS = st.lists(
    st.builds(
        lambda *values: dict(zip((1, 2, 5), values, strict=True)),
        st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=5),
        st.sampled_from([bytes(32), b"\1" * 32, bytes(48)]),
        st.sampled_from([bytes(32), b"\1" * 32, bytes(48)]),
    ),
    min_size=1,
    max_size=3,
)


@given(COMPONENTS, COMPONENTS)
def test_other_components_have_another_measurement(one: list[dict[int, Any]], other: list[dict[int, Any]]) -> None:
    measurements = [
        software_measurement(parse_psa(PsaVendor().case({2399: items}).evidence.data).root_of_trust.components)
        for items in (one, other)
    ]
    assert (measurements[0] == measurements[1]) == (one == other)
