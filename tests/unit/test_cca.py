"""CCA tokens: their parser and their verifier."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from adyton.tee._psa_claims import SoftwareComponent
from adyton.tee.cca.format import parse_cca
from adyton.tee.cca.verify import ANCHORS, VerifiedCca, verify_cca
from adyton.testing.cca import (
    FORGERIES,
    LEGACY_REALM,
    PLATFORM_CLAIMS,
    REALM_CLAIMS,
    REALM_KEY,
    CcaVendor,
    Container,
    collection,
    cose_key,
    legacy_case,
    legacy_container,
    raw_point,
)
from adyton.testing.forgery import Case
from adyton.testing.psa import Changes, endorsed, key_named
from adyton.testing.tees import TeeConformance


class TestCca(TeeConformance):
    label = "cca"
    forgeries = FORGERIES

    def genuine(self) -> Case:
        return CcaVendor().case()


class TestLegacyCca(TeeConformance):
    label = "cca"
    forgeries = FORGERIES

    def genuine(self) -> Case:
        return legacy_case()


def _verify(case: Case) -> VerifiedCca:
    return verify_cca(case.evidence, anchors=case.anchors, now=case.now)


# --- format


@pytest.mark.parametrize(
    ("container", "head", "before_realm"),
    [
        (legacy_container, "d9 018f a2 19 acca 59", "19 acd1 59"),
        (collection, "d9 038b a2 19 acca 82 19 0107 59", "19 acd1 82 19 0107 59"),
    ],
)
def test_both_containers_have_the_documented_layout(container: Container, head: str, before_realm: str) -> None:
    platform, realm = CcaVendor().platform_token(), CcaVendor().realm_token()
    data = cbor2.dumps(container(platform, realm))
    size = (len(platform).to_bytes(2, "big"), len(realm).to_bytes(2, "big"))
    assert data == bytes.fromhex(head) + size[0] + platform + bytes.fromhex(before_realm) + size[1] + realm
    token = parse_cca(data)
    assert cbor2.loads(platform).value[2] == token.platform.message.payload
    assert cbor2.loads(realm).value[2] == token.realm.message.payload


def test_every_field_is_read() -> None:
    case = CcaVendor().case()
    token = parse_cca(case.evidence.data)
    signed = token.platform.message.to_be_signed + token.realm.message.to_be_signed
    assert _verify(case) == VerifiedCca(
        measurement=b"\x88" * 48,
        rems=(b"\0" * 48, b"\1" * 48, b"\2" * 48, b"\3" * 48),
        personalization_value=b"\x77" * 64,
        report_data=bytes(range(64)),
        realm_profile="tag:arm.com,2024:realm#2.0.0",
        hash_algorithm="sha-384",
        realm_public_key=cose_key(REALM_KEY.public_key()),
        mec_policy="private",
        platform_profile="tag:arm.com,2023:cca_platform#1.0.0",
        implementation_id=b"\x11" * 32,
        instance_id=b"\x01" + b"\x1d" * 32,
        platform_config=b"\xcf" * 4,
        lifecycle=0x3003,
        secured=True,
        debug=False,
        components=(
            SoftwareComponent(
                measurement_type="PRoT",
                measurement=b"\x22" * 32,
                version="1.3.5",
                signer_id=b"\x55" * 32,
                algorithm="sha-256",
            ),
            SoftwareComponent(
                measurement_type="RMM", measurement=b"\x2a" * 48, version=None, signer_id=b"\x5a" * 64, algorithm=None
            ),
        ),
        tcb="secured (0x3003): PRoT 1.3.5, RMM ?",
        platform="01" + "1d" * 32,
        evidence_sha256=hashlib.sha256(signed).digest(),
        anchor_sha256=hashlib.sha256(CcaVendor().endorsement.data).digest(),
    )
    assert token.platform.hash_algorithm == "sha-256"
    assert token.platform.root_of_trust.verification_service == "https://cca-verifier.example"


def test_a_legacy_token_says_less_and_has_its_key_as_a_point() -> None:
    verified = _verify(legacy_case())
    assert (verified.realm_profile, verified.mec_policy) == (None, None)
    assert verified.platform_profile == "http://arm.com/CCA-SSD/1.0.0"
    assert verified.realm_public_key == raw_point(REALM_KEY.public_key())


@pytest.mark.parametrize(
    ("changes", "policy"),
    [
        ({44243: 0}, "shared"),
        ({44243: 1}, "private"),
        ({265: "tag:arm.com,2023:realm#1.0.0", 44243: 1}, "private"),
        ({265: "tag:arm.com,2023:realm#1.0.0", 44243: ...}, None),
    ],
)
def test_a_mec_policy_is_read(changes: Changes, policy: str | None) -> None:
    assert _verify(CcaVendor().case(realm=changes)).mec_policy == policy


@pytest.mark.parametrize("size", [32, 48, 64])
def test_a_realm_may_be_measured_by_every_hash(size: int) -> None:
    verified = _verify(CcaVendor().case(realm={44238: bytes(size), 44239: [bytes(size)] * 4, 44236: "x"}))
    assert (verified.measurement, verified.rems, verified.hash_algorithm) == (bytes(size), (bytes(size),) * 4, "x")


@pytest.mark.parametrize(("lifecycle", "secured", "debug"), [(0x30FF, True, False), (0x5000, False, True)])
def test_a_lifecycle_is_read_and_left_to_policy(lifecycle: int, secured: bool, debug: bool) -> None:
    verified = _verify(CcaVendor().case(platform={2395: lifecycle}))
    assert (verified.lifecycle, verified.secured, verified.debug) == (lifecycle, secured, debug)


def test_claims_that_are_not_known_are_passed_over() -> None:
    case = CcaVendor().case(platform={2394: 1, 2403: b""}, realm={256: b"", 44244: 1, "text": []})
    assert _verify(case).measurement == REALM_CLAIMS[44238]


def test_a_config_may_be_empty() -> None:
    assert _verify(CcaVendor().case(platform={2401: b""})).platform_config == b""


# --- keys and binding


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1, ec.SECP521R1])
def test_every_curve_is_taken_for_both_keys(curve: type[ec.EllipticCurve]) -> None:
    _verify(CcaVendor(platform_key=key_named("platform", curve), realm_key=key_named("realm", curve)).case())


@pytest.mark.parametrize("changes", [{}, {3: -35}, {4: [2]}, {4: ["sign", 1, 2]}, {2: b"kid", "text": 1}])
def test_a_cose_key_may_say_what_it_is_for(changes: Changes) -> None:
    _verify(CcaVendor(encode_key=lambda key: cose_key(key, changes)).case())


@pytest.mark.parametrize("name", ["sha-256", "sha-384", "sha-512"])
def test_the_realm_says_by_which_hash_its_key_is_bound(name: str) -> None:
    digest = hashlib.new(name.replace("-", ""), cose_key(REALM_KEY.public_key())).digest()
    _verify(CcaVendor().case(platform={10: digest}, realm={44240: name}))


def test_the_key_is_bound_as_received() -> None:
    # The same key in another encoding of the same COSE_Key: map keys in another order.
    def encode(key: ec.EllipticCurvePublicKey) -> bytes:
        return cbor2.dumps(dict(reversed(cbor2.loads(cose_key(key)).items())))

    case = CcaVendor(encode_key=encode).case()
    assert _verify(case).realm_public_key != _verify(CcaVendor().case()).realm_public_key


def test_no_root_is_pinned_for_everybody() -> None:
    assert frozenset() == ANCHORS


def test_of_several_pinned_keys_the_one_that_fits_is_the_anchor() -> None:
    others = [CcaVendor(platform_key=key_named(name, ec.SECP384R1)).endorsement for name in ("a", "b")]
    case = endorsed(CcaVendor().case(), others[0], CcaVendor().endorsement, others[1])
    assert _verify(case).anchor_sha256 == hashlib.sha256(CcaVendor().endorsement.data).digest()


def test_one_platform_token_vouches_for_a_realm_key_and_so_for_each_of_its_tokens() -> None:
    vendor = CcaVendor()
    first, second = (vendor.case(realm={10: bytes([challenge]) * 64}) for challenge in (1, 2))
    assert _verify(first).report_data != _verify(second).report_data
    assert _verify(first).evidence_sha256 != _verify(second).evidence_sha256


def test_the_container_changes_nothing() -> None:
    collected, legacy = (CcaVendor().case(container=container) for container in (collection, legacy_container))
    assert _verify(collected) == _verify(legacy)


def test_a_realm_without_profile_may_be_on_a_platform_with_a_new_one() -> None:
    verified = _verify(CcaVendor(encode_key=raw_point).case(realm=LEGACY_REALM))
    assert (verified.platform_profile, verified.realm_profile) == (PLATFORM_CLAIMS[265], None)


def test_what_is_not_pinned_is_not_looked_into() -> None:
    case = CcaVendor().case()
    junk = replace(CcaVendor().endorsement, data=b"junk")
    evidence = replace(case.evidence, endorsements=(junk, *case.evidence.endorsements))
    assert _verify(replace(case, evidence=evidence)) == _verify(case)
