"""Real PSA tokens: of RFC 9783, of Trusted Firmware-M, and of Veraison."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Final

import cbor2
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from real_vectors import content, ids, manifest, needs_vectors

from adyton.errors import EvidenceError
from adyton.tee.evidence import Endorsement, EndorsementKind
from adyton.tee.psa.format import Mac0, PsaToken, parse_psa
from adyton.tee.psa.verify import VerifiedPsa, verify_psa
from adyton.testing.psa import PsaVendor, endorsed, spki

pytestmark = needs_vectors

KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "rfc9783_es": ("psa/rfc9783_tfm-es-iak.json", "psa/rfc9783_tfm-es-iak.pem"),
    "rfc9783_hs": ("psa/rfc9783_tfm-hs-iak.bin", "psa/rfc9783_tfm-hs-iak.json"),
    "veraison_public": ("psa/veraison_public.pem",),
    "services_p256": ("psa/veraison_services_ec.p256.jwk",),
    "tfm_key": ("psa/tfm_key.pem",),
    "tfm_key_alt": ("psa/tfm_key-alt.pem",),
    "tfm_hmac_key": ("psa/tfm_hmac.key",),
}
"""The manifest's names of keys, and the vectors that hold each: one key in two forms where there are two."""

REFUSED: Final[Mapping[str, str]] = {
    # Not genuine, and said to be so in the manifest.
    "psa/negative/derived_signature.cbor": "the signature of the PSA token does not verify",
    "psa/negative/derived_nonce.cbor": "the signature of the PSA token does not verify",
    "psa/negative/derived_lifecycle_debug.cbor": "the signature of the PSA token does not verify",
    "psa/negative/derived_mac0_confusion.cbor": "no endorsement of type application/vnd.adyton.symmetric-key",
    "psa/negative/derived_alg_es384.cbor": "COSE algorithm -35, which is not the key's",
    "psa/negative/derived_no_alg.cbor": "protected header",
    "psa/negative/derived_wrong_tag.cbor": "the PSA token",
    "psa/negative/derived_trailing.cbor": "goes on after its end, for 1 bytes",
    "psa/tfm_psa-2_0_0_sign1-token.cbor": "protected header",
    # Without an algorithm too: their protected headers are empty. Their claims are wrong besides.
    "psa/negative/tfm_invalid-profile-id.cbor": "protected header",
    "psa/negative/tfm_malformed.cbor": "goes on after its end, for 1 bytes",
    "psa/negative/tfm_missing-claim.cbor": "protected header",
    "psa/negative/tfm_missing-sw-comps.cbor": "protected header",
    "psa/negative/tfm_no-sw-measurements.cbor": "protected header",
    "psa/negative/tfm_submod-missing-claim.cbor": "protected header",
    # The manifest measured their signatures only. Their profile is a placeholder, which gives their claims no meaning.
    "psa/tfm_iat.cbor": "profile 'http://example.com' under -75000, which is not known",
    "psa/tfm_iat-hmac.cbor": "profile 'http://example.com' under -75000, which is not known",
}

_CWT_KEYS: Final = {
    "psa-nonce": 10,
    "psa-instance-id": 256,
    "eat-profile": 265,
    "psa-client-id": 2394,
    "psa-security-lifecycle": 2395,
    "psa-implementation-id": 2396,
    "psa-boot-seed": 2397,
    "psa-certification-reference": 2398,
    "psa-software-components": 2399,
    "psa-verification-service-indicator": 2400,
}
_OLD_KEYS: Final = {
    "psa-profile": -75000,
    "psa-client-id": -75001,
    "psa-security-lifecycle": -75002,
    "psa-implementation-id": -75003,
    "psa-boot-seed": -75004,
    "psa-hwver": -75005,
    "psa-software-components": -75006,
    "psa-nonce": -75008,
    "psa-instance-id": -75009,
    "psa-verification-service-indicator": -75010,
}
_COMPONENT_KEYS: Final = {"measurement-type": 1, "measurement-value": 2, "version": 4, "signer-id": 5}
_BYTES: Final = {10, 256, 2396, 2397, -75003, -75004, -75008, -75009}

CLAIM_SETS: Final[Mapping[str, str | None]] = {
    "psa/claims/test-token-valid-full.json": None,
    "psa/claims/test-token-valid-minimalist-p2.json": None,
    "psa/claims/test-nonce-invalid-short.json": "has 4 bytes under",
    "psa/claims/test-implementation-id-invalid-short.json": "has 4 bytes under",
    "psa/claims/test-instance-id-invalid-euid-type.json": "UEID type 104, not 1",
    "psa/claims/test-security-lifecycle-invalid-state.json": "lifecycle state 0xffff, which there is not",
    "psa/claims/test-sw-components-empty.json": "has no software components",
    "psa/claims/test-profile-invalid-unknown.json": "profile 'http://UNKNOWN' under",
}
"""Why a set of claims is refused, or None if it is valid."""

CLAIMS_BEHIND: Final = "psa/veraison_services_psa-evidence.json"


def _json(name: str) -> dict[str, Any]:
    """RFC 9783 prints its files with long lines folded (RFC 8792), under a head that says so."""
    text = content(name).decode()
    parsed: dict[str, Any] = json.loads(re.sub(r"\\\n\s*\\?", "", text[text.index("{") :]))
    return parsed


def _unpadded(encoded: str) -> bytes:
    return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))


def _public_key(name: str) -> ec.EllipticCurvePublicKey:
    if not name.endswith(".pem"):
        jwk = _json(name)
        x, y = (int.from_bytes(_unpadded(jwk[axis]), "big") for axis in "xy")
        return ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    if b"PRIVATE" in content(name):
        return _private_key(name).public_key()
    key = serialization.load_pem_public_key(content(name))
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


def _private_key(name: str) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(content(name), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _endorsement(name: str) -> Endorsement:
    if name.endswith((".bin", ".key")):
        return Endorsement(kind=EndorsementKind.SYMMETRIC_KEY, data=content(name))
    if name.endswith("hs-iak.json"):
        return Endorsement(kind=EndorsementKind.SYMMETRIC_KEY, data=_unpadded(_json(name)["k"]))
    return Endorsement(kind=EndorsementKind.PUBLIC_KEY, data=spki(_public_key(name)))


def _verify(data: bytes, *keys: str) -> VerifiedPsa:
    """Verify with these keys beside the token and pinned."""
    case = endorsed(PsaVendor().case_of(data), *(_endorsement(KEYS[key][0]) for key in keys))
    return verify_psa(case.evidence, anchors=case.anchors, now=case.now)


def _believes(data: bytes, key: str) -> bool:
    try:
        _verify(data, key)
    except EvidenceError as error:
        if re.search("does not verify|no endorsement of type", error.message):
            return False
        raise
    return True


def _short(value: object) -> object:
    """As the manifest abbreviates: the first twelve bytes in hex, and how many there are."""
    if isinstance(value, bytes):
        return f"{value[:12].hex()}..{len(value)}"
    if isinstance(value, Mapping):
        return {str(key): _short(item) for key, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, tuple) else value


def _assert_says(token: PsaToken, claims: Mapping[str, Any]) -> None:
    """What was parsed is what the manifest's claims are, under the keys of their profile."""
    old = "-75000" in claims
    keys = {
        "profile": "-75000" if old else "265",
        "client_id": "-75001" if old else "2394",
        "boot_seed": "-75004" if old else "268" if "268" in claims else "2397",
        "certification_reference": "-75005" if old else "2398",
    }
    root_keys = {
        "lifecycle": "-75002" if old else "2395",
        "implementation_id": "-75003" if old else "2396",
        "nonce": "-75008" if old else "10",
        "instance_id": "-75009" if old else "256",
        "verification_service": "-75010" if old else "2400",
    }
    assert {key: _short(getattr(token, name)) for name, key in keys.items()} == {
        key: claims.get(key) for key in keys.values()
    }
    root = token.root_of_trust
    assert {key: _short(getattr(root, name)) for name, key in root_keys.items()} == {
        key: claims.get(key) for key in root_keys.values()
    }
    names = {"measurement_type": "1", "measurement": "2", "version": "4", "signer_id": "5", "algorithm": "6"}
    parsed = [{key: _short(getattr(item, name)) for name, key in names.items()} for item in root.components]
    assert parsed == [{key: item.get(key) for key in names.values()} for item in claims["-75006" if old else "2399"]]


@pytest.mark.parametrize("name", [name for name in ids("psa", "evidence") if name not in REFUSED])
def test_a_token_is_genuine_under_the_keys_that_the_manifest_names(name: str) -> None:
    entry = manifest()[name]
    token = parse_psa(content(name))
    _assert_says(token, entry["measured"]["claims"])
    believing = {key for key in KEYS if _believes(content(name), key)}
    # Two keys are one: TF-M's test key is that of the RFC.
    assert believing == set(entry["expected"]["authentic_with"])
    if not believing:
        assert isinstance(token.message, Mac0), "only the secrets of two tokens are not public"
        return
    verified = _verify(content(name), *KEYS)
    assert (verified.profile, verified.secured, verified.debug) == (entry["expected"]["profile"], True, False)
    assert verified.report_data == token.root_of_trust.nonce


@pytest.mark.parametrize("name", REFUSED)
def test_a_token_is_refused_for_what_is_wrong_with_it(name: str) -> None:
    entry = manifest()[name]
    key = next((key for key, names in KEYS.items() if entry.get("endorsement") in names), "tfm_key")
    with pytest.raises(EvidenceError, match=REFUSED[name]):
        _verify(content(name), key)
    expected = entry["expected"]
    assert expected.get("accept") is False or expected["reject_reason"] or expected["profile"] == "http://example.com"


@pytest.mark.parametrize(
    ("name", "key"),
    [("psa/tfm_iat.cbor", "psa/tfm_key.pem"), ("psa/tfm_iat-hmac.cbor", "psa/tfm_hmac.key")],
)
def test_of_the_tokens_with_a_placeholder_only_the_profile_is_wrong(name: str, key: str) -> None:
    # Their test keys are public, so they can be signed again under the profile whose keys they use.
    claims = cbor2.loads(cbor2.loads(content(name)).value[2])
    vendor = PsaVendor(_private_key(key) if key.endswith(".pem") else content(key))
    case = vendor.case({-75000: "PSA_IOT_PROFILE_1"}, claims=claims)
    verify_psa(case.evidence, anchors=case.anchors, now=case.now)
    _assert_says(
        parse_psa(case.evidence.data), manifest()[name]["measured"]["claims"] | {"-75000": "PSA_IOT_PROFILE_1"}
    )


def test_a_derived_token_is_genuine_before_its_one_mutation() -> None:
    for name in REFUSED:
        source = manifest()[name]["source"]
        if "derived_from" in source:
            assert _believes(content(source["derived_from"]), "veraison_public")


def test_a_device_names_itself_by_the_hash_of_its_key() -> None:
    verified = _verify(content("psa/veraison_psa-2_0_0_sign1.bin"), "veraison_public")
    point = _public_key("psa/veraison_public.pem").public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    assert verified.instance_id == b"\x01" + hashlib.sha256(point).digest()


@pytest.mark.parametrize("name", [name for names in KEYS.values() for name in names])
def test_a_key_is_the_same_in_all_its_forms(name: str) -> None:
    (forms,) = (names for names in KEYS.values() if name in names)
    assert manifest()[name]["kind"] == "endorsement"
    assert _endorsement(name) == _endorsement(forms[0])


def _claims(values: Mapping[str, Any], keys: Mapping[str, int]) -> dict[int, Any]:
    """The claims of the JSON that the profile has, as they are in CBOR."""
    claims = {key: values[name] for name, key in keys.items() if name in values}
    for key in _BYTES & claims.keys():
        claims[key] = base64.b64decode(claims[key])
    for key in {2399, -75006} & claims.keys():
        claims[key] = [_component(item) for item in claims[key]]
    return claims


def _component(item: Mapping[str, str]) -> dict[int, Any]:
    return {
        key: base64.b64decode(item[name]) if key in (2, 5) else item[name]
        for name, key in _COMPONENT_KEYS.items()
        if name in item
    }


@pytest.mark.parametrize("keys", [_CWT_KEYS, _OLD_KEYS], ids=["2.0.0", "PSA_IOT_PROFILE_1"])
@pytest.mark.parametrize("name", CLAIM_SETS)
def test_a_set_of_claims_is_valid_or_not_in_either_profile(name: str, keys: Mapping[str, int]) -> None:
    values = _json(name)
    profile = "eat-profile" if keys is _CWT_KEYS else "psa-profile"
    refusal = CLAIM_SETS[name]
    if profile not in values:
        refusal = "has nothing where its 265 should be"  # a set for the other profile only
    case = PsaVendor().case(claims=_claims(values, keys))
    if refusal is None:
        verified = verify_psa(case.evidence, anchors=case.anchors, now=case.now)
        assert (verified.profile, len(verified.components)) == (values[profile], 2)
        return
    with pytest.raises(EvidenceError, match=refusal):
        verify_psa(case.evidence, anchors=case.anchors, now=case.now)


@pytest.mark.parametrize(
    "name", ["psa/veraison_services_psa-evidence.cbor", "psa/veraison_services_perf_psa.good.cbor"]
)
def test_a_token_says_what_it_was_made_from(name: str) -> None:
    signed = cbor2.loads(parse_psa(content(name)).message.payload)
    made_from = _claims(_json(CLAIMS_BEHIND), _CWT_KEYS)
    assert {**signed, 2399: tuple(signed[2399])} == {**made_from, 2399: tuple(made_from[2399])}


def test_no_vector_is_left_unused() -> None:
    endorsements = {name for names in KEYS.values() for name in names}
    assert set(ids("psa", "endorsement")) == endorsements
    assert set(ids("psa", "reference")) == {*CLAIM_SETS, CLAIMS_BEHIND}
    assert set(ids("psa", "evidence")) >= set(REFUSED)
    assert set(ids("psa")) == {*ids("psa", "evidence"), *endorsements, *CLAIM_SETS, CLAIMS_BEHIND}
