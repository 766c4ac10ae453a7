"""Azure's evidence: the HCL report to the byte, the chain from the hardware to the vTPM's quote, and its claims."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, replace
from typing import Any

import cbor2
import pytest

from adyton.errors import EvidenceError
from adyton.tee.azure.format import HardwareTee, encode_azure, parse_azure, parse_hcl
from adyton.tee.azure.verify import ANCHORS, VerifiedAzure, verify_azure
from adyton.tee.evidence import EndorsementKind
from adyton.tee.registry import tee
from adyton.tee.snp.verify import VerifiedSnp
from adyton.tee.tdx.verify import VerifiedTdx
from adyton.testing.azure import FORGERIES, AzureRecipe, AzureVendor, hcl_report, runtime
from adyton.testing.forgery import Case
from adyton.testing.tees import TeeConformance
from adyton.testing.tpm import spki_sha256
from adyton.testing.tpm_quotes import MEASUREMENTS, NONCE, PCRS, TpmQuoteRecipe, agile_log, key

VENDOR = AzureVendor()
CLAIMS = json.dumps(runtime(key("rsa"))).encode()


class TestAzureOnSnp(TeeConformance):
    label = "azure"
    forgeries = FORGERIES

    def genuine(self) -> Case:
        return VENDOR.case()


class TestAzureOnTdx(TeeConformance):
    label = "azure"
    forgeries = FORGERIES

    def genuine(self) -> Case:
        return VENDOR.case(AzureRecipe(hardware="tdx"))


def _verified(recipe: AzureRecipe | None = None) -> VerifiedAzure:
    case = VENDOR.case(recipe)
    return verify_azure(case.evidence, anchors=case.anchors, now=case.now)


# --- format


def test_an_hcl_report_has_the_documented_layout() -> None:
    report = bytes(range(256)) * 4 + bytes(160)
    size = len(CLAIMS).to_bytes(4, "little")
    request = (20 + len(CLAIMS)).to_bytes(4, "little") + b"\x01\0\0\0" + b"\x02\0\0\0" + b"\x03\0\0\0" + size
    all_ = (1236 + len(CLAIMS)).to_bytes(4, "little")
    data = b"HCLA" + b"\x01\0\0\0" + all_ + b"\x02\0\0\0" + bytes(16) + report + request + CLAIMS + bytes(7)
    hcl = parse_hcl(data)
    assert (hcl.hardware_tee, hcl.hardware_report) == ("snp", report)
    assert (hcl.claims, hcl.claims_hash) == (CLAIMS, "sha512")
    assert hcl.ak == key("rsa").public_key()


def test_zeros_after_the_claims_are_padding() -> None:
    data = hcl_report("tdx", bytes(1024), CLAIMS)
    assert parse_hcl(data + bytes(9)) == parse_hcl(data.rstrip(b"\0"))


@pytest.mark.parametrize("size", [0, 1, 1235])
def test_an_hcl_report_ends_after_its_claims(size: int) -> None:
    with pytest.raises(EvidenceError, match=f"the HCL report ends after {size} bytes, before its claims"):
        parse_hcl(bytes(size))


def test_claims_can_not_be_changed() -> None:
    claims = parse_hcl(hcl_report("snp", bytes(1184), CLAIMS[:-1] + b', "list": [[{"a": 1}], []]}')).runtime
    assert claims["list"] == (({"a": 1},), ())
    assert isinstance(claims["list"][0][0], Mapping)
    maps: tuple[Any, ...] = (claims, claims["vm-configuration"], claims["list"][0][0])
    for items in maps:
        with pytest.raises(TypeError):
            items["a"] = 2


def test_evidence_is_deterministic_cbor() -> None:
    pcrs = {"sha256": {1: b"1", 0: b"0"}}
    data = encode_azure(hcl_report=b"h", quoted=b"q", signature=b"s", pcrs=pcrs, td_quote=b"t")
    quote = {"pcrs": {"sha256": {0: b"0", 1: b"1"}}, "quoted": b"q", "signature": b"s"}
    assert data == cbor2.dumps({"quote": quote, "version": 1, "td_quote": b"t", "hcl_report": b"h"})
    without = cbor2.loads(encode_azure(hcl_report=b"h", quoted=b"q", signature=b"s", pcrs=pcrs))
    assert "td_quote" not in without


@pytest.mark.parametrize("hardware", ["snp", "tdx"])
def test_what_was_encoded_is_parsed_again(hardware: HardwareTee) -> None:
    data = VENDOR.case(AzureRecipe(hardware=hardware)).evidence.data
    items = cbor2.loads(data)
    fields = {name: items["quote"][name] for name in ("quoted", "signature", "pcrs")}
    assert encode_azure(hcl_report=items["hcl_report"], td_quote=items.get("td_quote"), **fields) == data
    evidence = parse_azure(data)
    assert evidence.hardware_evidence == items.get("td_quote", items["hcl_report"][32:1216])
    assert (evidence.hcl.hardware_tee, evidence.quote.pcrs) == (hardware, PCRS)


# --- verify


@pytest.mark.parametrize(("hardware", "kind"), [("snp", VerifiedSnp), ("tdx", VerifiedTdx)])
def test_every_field_of_the_result_is_what_was_signed(hardware: HardwareTee, kind: type) -> None:
    case = VENDOR.case(AzureRecipe(hardware=hardware))
    verified = verify_azure(case.evidence, anchors=case.anchors, now=case.now)
    assert (verified.hardware_tee, type(verified.hardware)) == (hardware, kind)
    assert verified.hardware.report_data == hashlib.sha256(CLAIMS).digest().ljust(64, b"\0")
    assert (verified.measurement, verified.tcb) == (verified.hardware.measurement, verified.hardware.tcb)
    assert (verified.platform, verified.anchor_sha256) == (verified.hardware.platform, verified.hardware.anchor_sha256)
    assert (verified.report_data, verified.quote.pcrs) == (NONCE, PCRS)
    claims = runtime(key("rsa"))
    assert verified.runtime == claims | {"keys": tuple(_frozen(each) for each in claims["keys"])}
    assert verified.secure_boot is True
    quoted = hashlib.sha256(cbor2.loads(case.evidence.data)["quote"]["quoted"]).digest()
    assert verified.evidence_sha256 == hashlib.sha256(verified.hardware.evidence_sha256 + quoted).digest()
    with pytest.raises(FrozenInstanceError):
        verified.secure_boot = False  # type: ignore[misc]


def _frozen(key_: dict[str, Any]) -> dict[str, Any]:
    return key_ | {"key_ops": tuple(key_["key_ops"])}


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("hardware", ["snp", "tdx"])
def test_claims_are_bound_by_any_of_three_hashes(number: int, hardware: HardwareTee) -> None:
    assert _verified(AzureRecipe(hardware=hardware, claims_hash=number)).hardware_tee == hardware


@pytest.mark.parametrize(("scheme", "hash_"), [("rsassa", "sha384"), ("rsapss", "sha256"), ("rsapss", "sha512")])
def test_the_vtpm_may_sign_in_any_way_of_rsa(scheme: str, hash_: str) -> None:
    assert _verified(AzureRecipe(quote=TpmQuoteRecipe(scheme=scheme, hash=hash_))).report_data == NONCE


@pytest.mark.parametrize(
    ("configuration", "told"),
    [
        ({"vm-configuration": {"secure-boot": False}}, False),
        ({"vm-configuration": {"secure-boot": "yes"}}, None),
        ({"vm-configuration": {}}, None),
        ({"vm-configuration": [True]}, None),
        ({}, None),
    ],
)
def test_secure_boot_is_what_the_claims_tell(configuration: dict[str, object], told: bool | None) -> None:
    def edit(claims: dict[str, Any]) -> dict[str, Any]:
        return {"keys": claims["keys"]} | configuration

    assert _verified(AzureRecipe(edit_runtime=edit)).secure_boot is told


@pytest.mark.parametrize("hardware", ["snp", "tdx"])
def test_the_event_log_is_the_vtpms(hardware: HardwareTee) -> None:
    quote = TpmQuoteRecipe(logs=(agile_log(MEASUREMENTS),))
    verified = _verified(AzureRecipe(hardware=hardware, quote=quote))
    assert set(verified.quote.events) == {0, 4, 7}
    assert getattr(verified.hardware, "events", {}) == {}


def test_anchors_are_the_hardwares() -> None:
    assert tee("snp").anchors() | tee("tdx").anchors() == ANCHORS


@pytest.mark.parametrize("hardware", ["snp", "tdx"])
def test_what_vouches_for_the_hardware_is_needed(hardware: HardwareTee) -> None:
    case = VENDOR.case(AzureRecipe(hardware=hardware))
    assert all(item.kind is not EndorsementKind.EVENT_LOG for item in case.evidence.endorsements)
    for index in range(len(case.evidence.endorsements)):
        fewer = tuple(item for at, item in enumerate(case.evidence.endorsements) if at != index)
        with pytest.raises(EvidenceError):
            verify_azure(replace(case.evidence, endorsements=fewer), anchors=case.anchors, now=case.now)


def test_a_pin_of_the_vtpms_key_is_no_anchor() -> None:
    case = VENDOR.case()
    with pytest.raises(EvidenceError):
        verify_azure(case.evidence, anchors=frozenset({spki_sha256(key("rsa"))}), now=case.now)
