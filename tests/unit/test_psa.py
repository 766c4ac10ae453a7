"""PSA tokens: their parser and their verifier."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from adyton.errors import EvidenceError
from adyton.tee._cose import Sign1
from adyton.tee._psa_claims import SoftwareComponent
from adyton.tee.evidence import Endorsement, EndorsementKind
from adyton.tee.psa.format import Mac0, parse_psa
from adyton.tee.psa.verify import ANCHORS, VerifiedPsa, software_measurement, verify_psa
from adyton.testing.forgery import Case
from adyton.testing.psa import (
    CLAIMS,
    CLAIMS_1,
    CLAIMS_2,
    COMPONENT,
    DEVICE_KEY,
    FORGERIES,
    SYMMETRIC_KEY,
    PsaVendor,
    changed,
    endorsed,
    key_named,
    mac0,
)
from adyton.testing.tees import TeeConformance


class TestPsa(TeeConformance):
    label = "psa"
    forgeries = FORGERIES

    def genuine(self) -> Case:
        return PsaVendor().case()


class TestPsaWithASymmetricKey(TeeConformance):
    label = "psa"
    forgeries = FORGERIES

    def genuine(self) -> Case:
        return PsaVendor(SYMMETRIC_KEY).case()


def _verify(case: Case) -> VerifiedPsa:
    return verify_psa(case.evidence, anchors=case.anchors, now=case.now)


# --- format


def test_a_signed_token_has_the_documented_layout() -> None:
    payload = cbor2.dumps(dict(CLAIMS))
    data = PsaVendor().token(payload)
    assert data[:9] == bytes.fromhex("d2 84 43 a10126 a0 59") + (len(payload) >> 8).to_bytes()
    assert data[9:-66] == (len(payload) & 0xFF).to_bytes() + payload
    assert data[-66:-64] == bytes.fromhex("58 40")
    message = parse_psa(data).message
    assert isinstance(message, Sign1)
    assert (message.protected, message.payload, message.signature) == (b"\xa1\x01\x26", payload, data[-64:])


def test_a_token_with_a_mac_has_the_documented_layout() -> None:
    payload = cbor2.dumps(dict(CLAIMS))
    data = PsaVendor(SYMMETRIC_KEY).token(payload)
    assert data[:7] == bytes.fromhex("d1 84 43 a10105 a0")
    message = parse_psa(data).message
    assert message == Mac0(protected=b"\xa1\x01\x05", protected_header={1: 5}, payload=payload, tag=data[-32:])
    assert message.to_be_signed == bytes.fromhex("84 64") + b"MAC0" + bytes.fromhex("43 a10105 40") + cbor2.dumps(
        payload
    )


COMPONENTS = (
    SoftwareComponent(
        measurement_type="PRoT", measurement=b"\x22" * 32, version="1.3.5", signer_id=b"\x55" * 32, algorithm="sha-256"
    ),
    SoftwareComponent(
        measurement_type=None, measurement=b"\x2a" * 48, version=None, signer_id=b"\x5a" * 64, algorithm=None
    ),
)


@pytest.mark.parametrize(
    ("claims", "profile", "boot_seed", "reference"),
    [
        (CLAIMS, "tag:psacertified.org,2023:psa#tfm", b"\xb5" * 8, "1234567890123-12345"),
        (CLAIMS_2, "http://arm.com/psa/2.0.0", b"\xb5" * 32, "1234567890123-12345"),
        (CLAIMS_1, "PSA_IOT_PROFILE_1", b"\xb5" * 32, "1234567890123"),
    ],
    ids=["RFC 9783", "2.0.0", "PSA_IOT_PROFILE_1"],
)
def test_every_field_of_every_profile_is_read(
    claims: dict[int, Any], profile: str, boot_seed: bytes, reference: str
) -> None:
    case = PsaVendor().case(claims=claims)
    assert _verify(case) == VerifiedPsa(
        measurement=software_measurement(COMPONENTS),
        report_data=bytes(range(64)),
        profile=profile,
        client_id=-1,
        lifecycle=0x3000,
        secured=True,
        debug=False,
        implementation_id=b"\x11" * 32,
        instance_id=b"\x01" + b"\x1d" * 32,
        boot_seed=boot_seed,
        certification_reference=reference,
        verification_service="https://psa-verifier.example",
        components=COMPONENTS,
        tcb="secured (0x3000): PRoT 1.3.5, ? ?",
        platform="01" + "1d" * 32,
        evidence_sha256=hashlib.sha256(parse_psa(case.evidence.data).message.to_be_signed).digest(),
        anchor_sha256=hashlib.sha256(PsaVendor().endorsement.data).digest(),
    )


def test_what_may_be_left_out_is_none() -> None:
    verified = _verify(PsaVendor().case({268: ..., 2398: ..., 2400: ...}))
    assert (verified.boot_seed, verified.certification_reference, verified.verification_service) == (None, None, None)


def test_profile_1_may_say_its_reference_in_the_new_form() -> None:
    verified = _verify(PsaVendor().case({-75005: "1234567890123-12345"}, claims=CLAIMS_1))
    assert verified.certification_reference == "1234567890123-12345"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (10, bytes(32)),
        (10, bytes(48)),
        (268, bytes(32)),
        (2394, 1),
        (2394, (1 << 31) - 1),
        (2394, -(1 << 31)),
        (2400, "x" * 256),
        (2399, [{2: bytes(32), 5: bytes(48)}]),
    ],
)
def test_what_is_just_inside_the_bounds_is_taken(key: int, value: object) -> None:
    _verify(PsaVendor().case({key: value}))


@pytest.mark.parametrize(
    ("lifecycle", "secured", "debug", "said"),
    [
        (0x0000, False, False, "unknown (0x0000)"),
        (0x10FF, False, False, "assembly and test (0x10ff)"),
        (0x2000, False, False, "root of trust provisioning (0x2000)"),
        (0x3000, True, False, "secured (0x3000)"),
        (0x30FF, True, False, "secured (0x30ff)"),
        (0x4000, False, True, "debug outside the root of trust (0x4000)"),
        (0x40FF, False, True, "debug outside the root of trust (0x40ff)"),
        (0x5000, False, True, "recoverable debug of the root of trust (0x5000)"),
        (0x60FF, False, False, "decommissioned (0x60ff)"),
    ],
)
def test_a_lifecycle_is_read_and_left_to_policy(lifecycle: int, secured: bool, debug: bool, said: str) -> None:
    verified = _verify(PsaVendor().case({2395: lifecycle}))
    assert (verified.lifecycle, verified.secured, verified.debug) == (lifecycle, secured, debug)
    assert verified.tcb == f"{said}: PRoT 1.3.5, ? ?"


@pytest.mark.parametrize("lifecycle", [0x0100, 0x30FF + 1, 0x6100, 0x13000, 1 << 63])
def test_there_is_no_other_lifecycle(lifecycle: int) -> None:
    with pytest.raises(EvidenceError, match="which there is not"):
        _verify(PsaVendor().case({2395: lifecycle}))


def test_claims_that_are_not_known_are_passed_over() -> None:
    component = changed(COMPONENT, {3: 1, 7: True, "new": [1]})
    verified = _verify(PsaVendor().case({2399: [component], -75007: 1, 4711: {"a": [None, 1.5]}, "text": b""}))
    assert verified.components == COMPONENTS[:1]


def test_the_registered_profile_claim_goes_before_the_old_one() -> None:
    assert _verify(PsaVendor().case({-75000: "PSA_IOT_PROFILE_1"})).profile == CLAIMS[265]
    with pytest.raises(EvidenceError, match="under 265, which is not known"):
        _verify(PsaVendor().case({265: "http://example.com"}, claims=CLAIMS_1))


# --- measurement


def test_the_measurement_is_over_type_value_and_signer_of_each_component() -> None:
    parts = (b"PRoT", b"\x22" * 32, b"\x55" * 32, b"", b"\x2a" * 48, b"\x5a" * 64)
    whole = b"".join(len(part).to_bytes(2, "big") + part for part in parts)
    assert software_measurement(COMPONENTS) == hashlib.sha256(whole).digest()


def test_the_measurement_changes_with_all_that_names_the_code() -> None:
    one, other = COMPONENTS
    variants = [
        (one, other),
        (other, one),
        (one,),
        (one, other, other),
        (replace(one, measurement_type="pRoT"), other),
        (replace(one, measurement_type="PRoTé"), other),
        (replace(one, measurement=bytes(32)), other),
        (replace(one, signer_id=bytes(32)), other),
        (replace(one, measurement=b"\x22" * 64, signer_id=b"\x55" * 64), other),
    ]
    assert len({software_measurement(variant) for variant in variants}) == len(variants)
    described = (replace(one, version="2", algorithm=None), other)
    assert software_measurement(described) == software_measurement(COMPONENTS)


# --- keys


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1, ec.SECP521R1])
def test_every_curve_is_taken(curve: type[ec.EllipticCurve]) -> None:
    assert _verify(PsaVendor(key_named("device", curve)).case()).client_id == -1


@pytest.mark.parametrize("algorithm", [5, 6, 7])
@pytest.mark.parametrize("size", [32, 64])
def test_every_mac_is_taken(algorithm: int, size: int) -> None:
    vendor = PsaVendor(b"\x30" * size)
    verified = _verify(vendor.case(header={1: algorithm}))
    assert verified.anchor_sha256 == hashlib.sha256(b"\x30" * size).digest()


def test_no_root_is_pinned_for_everybody() -> None:
    assert frozenset() == ANCHORS


def test_of_several_pinned_keys_the_one_that_fits_is_the_anchor() -> None:
    vendors = [PsaVendor(key_named(name)) for name in ("a", "device", "b")]
    case = endorsed(PsaVendor().case(), *(vendor.endorsement for vendor in vendors))
    assert _verify(case).anchor_sha256 == hashlib.sha256(PsaVendor(DEVICE_KEY).endorsement.data).digest()


def test_a_pinned_key_that_does_not_parse_does_not_hide_the_one_that_fits() -> None:
    junk = Endorsement(kind=EndorsementKind.PUBLIC_KEY, data=b"junk")
    _verify(endorsed(PsaVendor().case(), junk, PsaVendor().endorsement))


def test_what_is_not_pinned_is_not_looked_into() -> None:
    case = PsaVendor().case()
    junk = (Endorsement(kind=EndorsementKind.PUBLIC_KEY, data=b"junk"), PsaVendor(bytes(32)).endorsement)
    evidence = replace(case.evidence, endorsements=(*junk, *case.evidence.endorsements, *case.evidence.endorsements))
    assert _verify(replace(case, evidence=evidence)) == _verify(case)


def test_a_public_key_is_no_secret_under_any_label() -> None:
    # All is in order with this MAC, but that its key is the public key that the caller pinned.
    public = PsaVendor().endorsement
    case = PsaVendor(SYMMETRIC_KEY).case_of(mac0(public.data, cbor2.dumps(dict(CLAIMS))))
    with pytest.raises(EvidenceError, match="symmetric key has 91 bytes; 32 to 64 are wanted"):
        _verify(endorsed(case, public, replace(public, kind=EndorsementKind.SYMMETRIC_KEY)))


# --- one evidence, one digest


def test_no_second_encoding_of_a_token_has_another_digest() -> None:
    case = PsaVendor().case()
    protected, _, payload, signature = cbor2.loads(case.evidence.data).value
    order = ec.SECP256R1().group_order
    twin = signature[:32] + (order - int.from_bytes(signature[32:], "big")).to_bytes(32, "big")
    for variant in (
        b"\xd2\x9f" + b"".join(map(cbor2.dumps, (protected, {}, payload, signature))) + b"\xff",
        cbor2.dumps(cbor2.CBORTag(18, [protected, {4: b"kid"}, payload, signature])),
        cbor2.dumps(cbor2.CBORTag(18, [protected, {}, payload, twin])),
    ):
        assert variant != case.evidence.data
        assert _verify(PsaVendor().case_of(variant)) == _verify(case)
