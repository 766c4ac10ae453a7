"""Whatever bytes the verifiers of SGX and TDX are given: only EvidenceError escapes; only what was signed counts."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from adyton.errors import EvidenceError
from adyton.tee._dcap_chain import parse_chain, parse_pck_chain
from adyton.tee._dcap_collateral import TeeName, parse_collateral
from adyton.tee.evidence import Endorsement, EndorsementKind, VerifiedEvidence
from adyton.tee.registry import tee
from adyton.testing.dcap import QuoteRecipe, sgx_body, td_body
from adyton.testing.dcap_collateral import CollateralRecipe
from adyton.testing.dcap_forging import VENDOR
from adyton.testing.dcap_pki import pki
from adyton.testing.forgery import Case, fields_of
from adyton.testing.tpm_quotes import agile_log

TDX_5 = QuoteRecipe(version=5, body_type=4)
CASES: tuple[tuple[TeeName, Case], ...] = (
    ("sgx", VENDOR.case("sgx")),
    ("tdx", VENDOR.case("tdx")),
    ("tdx", VENDOR.case("tdx", TDX_5)),
)
COLLATERAL = VENDOR.collateral("tdx").data
CHAIN = pki(VENDOR.recipe).pck_chain.encode()
PCK = pki(VENDOR.recipe).pck.certificate.public_bytes(Encoding.DER)
LOG = agile_log([(1, 5, b"kernel")], ("sha384",))

cases = st.sampled_from(CASES)


@st.composite
def mutations(draw: st.DrawFn, original: bytes) -> bytes:
    """The original with one to three slices replaced, or a few bits flipped."""
    data = bytearray(original)
    if draw(st.booleans()):
        for bit in draw(st.sets(st.integers(0, len(data) * 8 - 1), min_size=1, max_size=3)):
            data[bit // 8] ^= 1 << bit % 8
        return bytes(data)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        removed = draw(st.integers(0, 4) | st.integers(0, len(data)))
        data[start : start + removed] = draw(st.binary(max_size=8) | st.binary(max_size=100))
    return bytes(data)


def _believed(label: TeeName, case: Case) -> VerifiedEvidence | None:
    try:
        return case.verify_with(tee(label).verifier())
    except EvidenceError as error:
        message = error.message
    assert message.isprintable()
    assert len(message) < 500
    return None


def _same_or_refused(label: TeeName, case: Case, genuine: Case) -> None:
    verified = _believed(label, case)
    assert verified is None or fields_of(verified) == fields_of(genuine.verify_with(tee(label).verifier()))


def _with(case: Case, kind: EndorsementKind, data: bytes) -> Case:
    """With this endorsement, in place of those of its kind."""
    others = tuple(each for each in case.evidence.endorsements if each.kind is not kind)
    stapled = (*others, Endorsement(kind=kind, data=data))
    return replace(case, evidence=replace(case.evidence, endorsements=stapled))


@given(cases, st.binary(max_size=2000) | st.binary(max_size=2000).map(CASES[0][1].evidence.data[:8].__add__))
def test_random_bytes_are_refused(chosen: tuple[TeeName, Case], data: bytes) -> None:
    label, case = chosen
    assert _believed(label, replace(case, evidence=replace(case.evidence, data=data))) is None


@settings(max_examples=400)
@given(st.data(), cases)
def test_a_mutated_quote_says_the_same_or_nothing(data: st.DataObject, chosen: tuple[TeeName, Case]) -> None:
    label, case = chosen
    mutated = data.draw(mutations(case.evidence.data))
    _same_or_refused(label, replace(case, evidence=replace(case.evidence, data=mutated)), case)


@settings(max_examples=400)
@given(st.data(), cases)
def test_a_mutated_collateral_says_the_same_or_nothing(data: st.DataObject, chosen: tuple[TeeName, Case]) -> None:
    label, case = chosen
    (collateral,) = case.evidence.endorsements
    mutated = data.draw(mutations(collateral.data))
    _same_or_refused(label, _with(case, EndorsementKind.DCAP_COLLATERAL, mutated), case)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
field_values = st.text(max_size=40) | st.binary(max_size=40).map(bytes.hex) | json_values


@settings(max_examples=200)
@given(cases, st.sampled_from(sorted(json.loads(COLLATERAL))), field_values)
def test_a_field_of_collateral_may_have_any_value(chosen: tuple[TeeName, Case], name: str, value: Any) -> None:
    label, case = chosen
    (collateral,) = case.evidence.endorsements
    changed = json.dumps(json.loads(collateral.data) | {name: value}).encode()
    _same_or_refused(label, _with(case, EndorsementKind.DCAP_COLLATERAL, changed), case)


@settings(max_examples=200)
@given(st.data(), st.sampled_from(("edit_tcb_info", "edit_qe_identity")), st.sampled_from(("sgx", "tdx")))
def test_what_the_signer_signs_may_have_any_value(data: st.DataObject, document: str, label: TeeName) -> None:
    # Even a document that is malformed under a good signature: a vendor's mistake is no crash.
    def edit(fields: dict[str, Any]) -> dict[str, Any]:
        fields = json.loads(json.dumps(fields))
        inside = data.draw(st.sampled_from((fields, *fields["tcbLevels"], fields["tcbLevels"][0]["tcb"])))
        inside[data.draw(st.sampled_from(sorted(inside)))] = data.draw(field_values)
        return fields

    recipe: dict[str, Any] = {document: edit}
    _believed(label, VENDOR.case(label, None, CollateralRecipe(**recipe)))


@settings(max_examples=200)
@given(st.data(), st.sampled_from((2, 3, 4)))
def test_a_td_with_any_body_is_told_as_it_was_signed(data: st.DataObject, body_type: int) -> None:
    body = data.draw(mutations(td_body(body_type))).ljust(len(td_body(body_type)), b"\0")[: len(td_body(body_type))]
    recipe = QuoteRecipe(version=5, body_type=body_type, edit_body=lambda _: body)
    verified = _believed("tdx", VENDOR.case("tdx", recipe))
    assert verified is None or (verified.measurement, verified.report_data) == (body[136:184], body[520:584])


@settings(max_examples=200)
@given(mutations(sgx_body()).map(lambda body: body.ljust(384, b"\0")[:384]))
def test_an_enclave_with_any_body_is_told_as_it_was_signed(body: bytes) -> None:
    verified = _believed("sgx", VENDOR.case("sgx", QuoteRecipe(edit_body=lambda _: body)))
    if verified is None:
        assert body[48] & 2, "only debug enclaves are refused"
        return
    assert (verified.measurement, verified.report_data) == (body[64:96], body[320:384])


@settings(max_examples=200)
@given(st.data(), st.sampled_from(("edit_signature_data", "edit_certification", "edit_qe_report", "edit_signed_part")))
def test_parts_of_a_quote_that_were_edited_before_signing_raise_nothing_else(data: st.DataObject, part: str) -> None:
    label, _ = data.draw(cases)
    recipe: dict[str, Any] = {part: lambda original: data.draw(mutations(original))}
    _believed(label, VENDOR.case(label, QuoteRecipe(**recipe)))


@settings(max_examples=200)
@given(mutations(CHAIN) | st.binary(max_size=300))
def test_a_mutated_chain_of_the_pck_raises_nothing_else(chain: bytes) -> None:
    for parse in (parse_pck_chain, lambda pem: parse_chain(pem, "the chain", 3)):
        try:
            parse(chain)
        except EvidenceError:
            continue
    _believed("sgx", VENDOR.case("sgx", QuoteRecipe(edit_pck_data=lambda _: chain)))


@settings(max_examples=200)
@given(mutations(PCK))
def test_a_mutated_certificate_in_the_chain_raises_nothing_else(der: bytes) -> None:
    # Its signature can't be in order, but the library parses it before it verifies it.
    encoded = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"
    chain = encoded + CHAIN[CHAIN.index(b"-----BEGIN", 1) :]
    verified = _believed("sgx", VENDOR.case("sgx", QuoteRecipe(edit_pck_data=lambda _: chain)))
    assert (verified is not None) == (der == PCK)


@given(st.binary(max_size=300) | json_values.map(lambda value: json.dumps(value).encode()) | mutations(COLLATERAL))
def test_any_bytes_are_collateral_or_evidence_error(data: bytes) -> None:
    try:
        collateral = parse_collateral(data)
    except EvidenceError:
        return
    assert collateral.root_sha256 == VENDOR.anchor


@settings(max_examples=200)
@given(mutations(LOG) | st.binary(max_size=300))
def test_any_event_log_proves_nothing_or_is_evidence_error(log: bytes) -> None:
    verified = _believed("tdx", _with(CASES[1][1], EndorsementKind.EVENT_LOG, log))
    assert verified is None or fields_of(verified)["events"] == {}


@given(cases, st.datetimes(timezones=st.just(UTC)))
def test_at_any_time_the_answer_is_yes_or_evidence_error(chosen: tuple[TeeName, Case], now: datetime) -> None:
    label, case = chosen
    _believed(label, replace(case, now=now))


@given(cases, st.integers(0, 60_000))
def test_zeros_after_the_end_change_nothing(chosen: tuple[TeeName, Case], count: int) -> None:
    label, case = chosen
    padded = replace(case, evidence=replace(case.evidence, data=case.evidence.data + bytes(count)))
    assert fields_of(padded.verify_with(tee(label).verifier())) == fields_of(case.verify_with(tee(label).verifier()))
