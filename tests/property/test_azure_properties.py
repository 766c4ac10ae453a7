"""Whatever Azure's verifier is given: only EvidenceError escapes, and only what was bound and signed is believed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutating import bit_flips, mutations

from adyton.errors import EvidenceError
from adyton.tee.azure.format import HardwareTee, parse_hcl
from adyton.tee.azure.verify import VerifiedAzure, verify_azure
from adyton.testing.azure import AzureRecipe, AzureVendor, hcl_report, runtime
from adyton.testing.forgery import Case
from adyton.testing.tpm_quotes import PCRS, TpmQuoteRecipe, key

VENDOR = AzureVendor()
GENUINE: dict[HardwareTee, Case] = {
    "snp": VENDOR.case(),
    "tdx": VENDOR.case(AzureRecipe(hardware="tdx")),
}
HARDWARE = st.sampled_from(list(GENUINE))
ITEMS: dict[HardwareTee, dict[str, Any]] = {name: cbor2.loads(case.evidence.data) for name, case in GENUINE.items()}
RUNTIME = runtime(key("rsa"))
CLAIMS = json.dumps(RUNTIME).encode()
HCL: bytes = ITEMS["snp"]["hcl_report"]


def changed(original: bytes) -> st.SearchStrategy[bytes]:
    return mutations(original) | bit_flips(original)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("HCLAkPub"),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(["keys", "kid", "kty", "n", "e", "vm-configuration"]) | st.text(), inner)
    ),
    max_leaves=10,
)


def _believed(case: Case) -> VerifiedAzure | None:
    """What the verifier makes of it, or None if it refuses; anything but EvidenceError escapes."""
    try:
        return verify_azure(case.evidence, anchors=case.anchors, now=case.now)
    except EvidenceError:
        return None


def _with(hardware: HardwareTee, data: bytes) -> Case:
    case = GENUINE[hardware]
    return replace(case, evidence=replace(case.evidence, data=data))


@pytest.mark.parametrize("hardware", GENUINE)
def test_the_originals_are_believed(hardware: HardwareTee) -> None:
    assert _believed(GENUINE[hardware])


@given(st.binary(max_size=4096), HARDWARE)
def test_random_bytes_are_refused(data: bytes, hardware: HardwareTee) -> None:
    assert _believed(_with(hardware, data)) is None


@settings(max_examples=150)
@given(st.data(), HARDWARE)
def test_no_mutation_changes_what_the_evidence_says(data: st.DataObject, hardware: HardwareTee) -> None:
    mutated = data.draw(changed(GENUINE[hardware].evidence.data))
    assert _believed(_with(hardware, mutated)) in (None, _believed(GENUINE[hardware]))


@settings(max_examples=100)
@given(st.data(), HARDWARE)
def test_no_change_of_a_part_changes_what_the_evidence_says(data: st.DataObject, hardware: HardwareTee) -> None:
    items = ITEMS[hardware]
    name = data.draw(st.sampled_from(sorted(set(items) - {"version", "quote"})))
    case = _with(hardware, cbor2.dumps(items | {name: data.draw(changed(items[name]))}))
    assert _believed(case) in (None, _believed(GENUINE[hardware]))


@given(HARDWARE, st.sampled_from(["version", "hcl_report", "quote", "td_quote", "more"]), json_values)
def test_fields_of_another_kind_are_refused(hardware: HardwareTee, name: str, value: Any) -> None:
    items = ITEMS[hardware]
    try:
        data = cbor2.dumps(items | {name: value})
    except (ValueError, OverflowError):
        return
    assert _believed(_with(hardware, data)) is None or items.get(name) == value


@given(HARDWARE, st.sampled_from(["quoted", "signature", "pcrs", "more"]), json_values)
def test_fields_of_the_quote_of_another_kind_are_refused(hardware: HardwareTee, name: str, value: Any) -> None:
    items = ITEMS[hardware]
    try:
        data = cbor2.dumps(items | {"quote": items["quote"] | {name: value}})
    except (ValueError, OverflowError):
        return
    assert _believed(_with(hardware, data)) is None


# --- the HCL report


@settings(max_examples=150)
@given(st.binary(max_size=1500) | changed(HCL) | st.binary(max_size=100).map(lambda tail: HCL[:1216] + tail))
def test_hcl_reports_are_parsed_or_refused(data: bytes) -> None:
    try:
        hcl = parse_hcl(data)
    except EvidenceError:
        return
    assert hcl.claims in data
    assert hcl.hardware_report == data[32:1216]


@settings(max_examples=150)
@given(changed(CLAIMS) | json_values.map(lambda value: json.dumps(value).encode()), HARDWARE)
def test_claims_that_the_hardware_binds_are_what_is_told_or_refused(claims: bytes, hardware: HardwareTee) -> None:
    verified = _believed(VENDOR.case(AzureRecipe(hardware=hardware, edit_claims=lambda _: claims)))
    if verified is not None:
        told = json.loads(claims)
        assert set(verified.runtime) == set(told)
        assert verified.secure_boot in (None, True, False)


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from(["kid", "kty", "n", "e"]), json_values))
def test_keys_in_the_claims_are_keys_or_refused(key_fields: dict[str, Any]) -> None:
    keys = [RUNTIME["keys"][0] | key_fields, RUNTIME["keys"][1]]
    claims = json.dumps(RUNTIME | {"keys": keys}).encode()
    try:
        assert parse_hcl(hcl_report("snp", bytes(1184), claims)).ak.key_size >= 2048
    except EvidenceError:
        return


@settings(max_examples=100)
@given(st.data())
def test_only_the_hash_of_the_claims_binds_them(data: st.DataObject) -> None:
    recipe = AzureRecipe(edit_report_data=lambda bound: data.draw(bit_flips(bound)))
    assert _believed(VENDOR.case(recipe)) is None


@settings(max_examples=100)
@given(st.data())
def test_a_vtpm_that_signs_anything_proves_no_other_pcrs(data: st.DataObject) -> None:
    recipe = AzureRecipe(quote=TpmQuoteRecipe(edit_quoted=lambda quoted: data.draw(changed(quoted))))
    verified = _believed(VENDOR.case(recipe))
    if verified is not None:
        assert verified.quote.pcrs == PCRS
