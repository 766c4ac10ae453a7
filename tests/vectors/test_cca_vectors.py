"""Real CCA tokens: of TF-RMM, of Trusted Firmware-M, of Trustee, and of Veraison."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, Final

import cbor2
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from real_vectors import content, ids, manifest, needs_vectors

from adyton.errors import EvidenceError
from adyton.tee._psa_claims import SoftwareComponent
from adyton.tee.cca.format import parse_cca
from adyton.tee.cca.verify import VerifiedCca, verify_cca
from adyton.tee.evidence import Endorsement, EndorsementKind
from adyton.testing.cca import CcaVendor, legacy_container, raw_point
from adyton.testing.psa import endorsed, spki

pytestmark = needs_vectors

CPAK: Final = (
    "cca/ccatoken_tf-rmm_cca_platform.pub",
    "cca/tfm_cca_platform.pem",
    "cca/trustee_cpak-pub.json",
    "cca/trustee_tastore.json",
)
"""One platform key in four forms. It signed all tokens but Veraison's, whose key is among the PSA vectors."""
VERAISON: Final = "cca/veraison_services_cca-evidence.cbor"
VERAISON_CPAK: Final = "psa/veraison_services_ec.p256.jwk"
REALM_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "cca/tfm_cca_realm.pem": (
        "cca/ccatoken_tf-rmm_cca_token.cbor",
        "cca/trustee_cca-example-token.cbor",
        "cca/tfm_cca_token.cbor",
        "cca/tfm_cca_example_token.cbor",
        "cca/tfm_cca_example_token_legacy.cbor",
    ),
    "cca/veraison_services_ec.p384.jwk": (VERAISON,),
    "cca/tfm_cca_realm2.pem": (),
}
"""The keys of realms, and whose they are."""

PLATFORM_ALONE: Final[Mapping[str, str | None]] = {
    "cca/tfm_cca_example_platform_token.cbor": "cca/tfm_cca_example_token.cbor",
    "cca/tfm_cca_example_platform_token_legacy.cbor": "cca/tfm_cca_example_token_legacy.cbor",
    "cca/tfm_cca_platform_token.cbor": None,
}
"""Platform tokens on their own, and the pair whose realm they are bound to; the last has a constant for its nonce."""

REFUSED: Final[Mapping[str, str]] = {
    "cca/negative/derived_platform_sig.cbor": "the signature of the CCA platform token does not verify",
    "cca/negative/derived_realm_sig.cbor": "the signature of the CCA realm token does not verify",
    "cca/negative/derived_mixed_realm.cbor": "not bound to the realm: its nonce is not the sha-512 of its key",
    "cca/negative/derived_realm_challenge.cbor": "the signature of the CCA realm token does not verify",
    "cca/negative/derived_realm_only.cbor": "is not a map of a platform token and a realm token",
    "cca/negative/derived_swapped.cbor": "the CCA platform token has nothing where its 265 should be",
}
GENUINE: Final = [name for name in ids("cca", "evidence") if name not in REFUSED and name not in PLATFORM_ALONE]
REFERENCES: Final = ("cca/trustee_rvstore.json", "cca/veraison_services_cca-evidence.json")


def _unpadded(encoded: str) -> bytes:
    return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))


def _key(name: str) -> ec.EllipticCurvePublicKey:
    data = content(name)
    if name.endswith((".json", ".jwk")):
        parsed = json.loads(data)
        jwk = parsed[0]["pkey"] if isinstance(parsed, list) else parsed
        x, y = (int.from_bytes(_unpadded(jwk[axis]), "big") for axis in "xy")
        curve = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1()}[jwk["crv"]]
        return ec.EllipticCurvePublicNumbers(x, y, curve).public_key()
    if b"PRIVATE" in data:
        private = serialization.load_pem_private_key(data, None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        return private.public_key()
    key = serialization.load_pem_public_key(data)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


def _verify(data: bytes, *keys: str) -> VerifiedCca:
    """Verify with these keys beside the tokens and pinned."""
    endorsements = (Endorsement(kind=EndorsementKind.PUBLIC_KEY, data=spki(_key(key))) for key in keys)
    case = endorsed(CcaVendor().case_of(cbor2.loads(data)), *endorsements)
    assert case.evidence.data == data
    return verify_cca(case.evidence, anchors=case.anchors, now=case.now)


def _short(value: object) -> object:
    """As the manifest abbreviates: the first twelve bytes in hex, and how many there are."""
    if isinstance(value, bytes):
        return f"{value[:12].hex()}..{len(value)}"
    return [_short(item) for item in value] if isinstance(value, tuple) else value


def _component(item: SoftwareComponent) -> dict[str, Any]:
    values = {"1": item.measurement_type, "2": item.measurement, "4": item.version, "5": item.signer_id}
    return {key: _short(value) for key, value in {**values, "6": item.algorithm}.items() if value is not None}


@pytest.mark.parametrize("name", GENUINE)
def test_a_genuine_pair_says_what_the_manifest_measured(name: str) -> None:
    measured, expected = manifest()[name]["measured"], manifest()[name]["expected"]
    verified = _verify(content(name), VERAISON_CPAK if name == VERAISON else CPAK[0])
    assert (expected["authentic"], expected["binder_ok"]) == (True, True)
    assert [verified.platform_profile, verified.realm_profile] == expected["profile"]
    assert (hex(verified.lifecycle), verified.secured, verified.debug) == (measured["lifecycle"], True, False)
    form = "raw point" if verified.realm_public_key[0] == 4 else "COSE_Key"
    assert form == measured["realm_key_form"]


@pytest.mark.parametrize("name", GENUINE)
def test_every_claim_of_a_genuine_pair_is_what_the_manifest_measured(name: str) -> None:
    token, measured = parse_cca(content(name)), manifest()[name]["measured"]
    platform, root, realm = token.platform, token.platform.root_of_trust, token.realm
    assert {
        "10": _short(root.nonce),
        "256": _short(root.instance_id),
        "265": platform.profile,
        "2395": root.lifecycle,
        "2396": _short(root.implementation_id),
        "2399": [_component(item) for item in root.components],
        "2400": root.verification_service,
        "2401": _short(platform.config),
        "2402": platform.hash_algorithm,
    } == measured["platform"]
    claims = {
        "10": _short(realm.challenge),
        "265": realm.profile,
        "44235": _short(realm.personalization_value),
        "44236": realm.hash_algorithm,
        "44237": _short(realm.public_key),
        "44238": _short(realm.initial_measurement),
        "44239": _short(realm.extensible_measurements),
        "44240": realm.key_hash,
        "44243": None if realm.mec_policy is None else ("shared", "private").index(realm.mec_policy),
    }
    said = {key: value for key, value in measured["realm"].items() if key != "256"}  # the realm's id, not read
    assert {key: value for key, value in claims.items() if value is not None} == said


@pytest.mark.parametrize("name", REFUSED)
def test_a_derived_pair_is_refused_for_its_one_mutation(name: str) -> None:
    assert manifest()[name]["expected"]["accept"] is False
    with pytest.raises(EvidenceError, match=REFUSED[name]):
        _verify(content(name), CPAK[0])


@pytest.mark.parametrize("name", PLATFORM_ALONE)
def test_a_platform_token_alone_says_nothing_of_any_realm(name: str) -> None:
    with pytest.raises(EvidenceError, match="the CCA token"):
        _verify(content(name), CPAK[0])


@pytest.mark.parametrize("name", PLATFORM_ALONE)
def test_a_platform_token_is_believed_beside_the_realm_that_it_is_bound_to_and_no_other(name: str) -> None:
    for pair in GENUINE:
        _, realm = _tokens(pair)
        data = cbor2.dumps(legacy_container(content(name), realm))
        if PLATFORM_ALONE[name] is not None and _same_realm_key(pair, PLATFORM_ALONE[name]):
            assert _verify(data, CPAK[0]).platform_profile == manifest()[name]["expected"]["profile"]
            continue
        with pytest.raises(EvidenceError, match="is not bound to the realm"):
            _verify(data, CPAK[0])


def _tokens(pair: str) -> tuple[bytes, bytes]:
    """The platform token and the realm token in a container."""
    entries = cbor2.loads(content(pair)).value
    platform, realm = (
        entries[label][1] if isinstance(entries[label], list | tuple) else entries[label] for label in (44234, 44241)
    )
    return platform, realm


def _same_realm_key(pair: str, other: str | None) -> bool:
    assert other is not None
    return parse_cca(content(pair)).realm.public_key == parse_cca(content(other)).realm.public_key


@pytest.mark.parametrize("name", GENUINE)
def test_a_genuine_pair_is_refused_under_any_other_key(name: str) -> None:
    for key in (CPAK[0], VERAISON_CPAK, *REALM_KEYS):
        if (key == VERAISON_CPAK) != (name == VERAISON) or key in REALM_KEYS:
            with pytest.raises(EvidenceError, match=r"does not verify|is not the key's"):
                _verify(content(name), key)


def test_one_platform_key_comes_in_four_forms() -> None:
    assert len({spki(_key(name)) for name in CPAK}) == 1
    (store,) = json.loads(content("cca/trustee_tastore.json"))
    verified = _verify(content("cca/ccatoken_tf-rmm_cca_token.cbor"), "cca/trustee_tastore.json")
    assert (verified.implementation_id.hex(), verified.instance_id.hex()) == (
        store["implementation-id"],
        store["instance-id"],
    )


@pytest.mark.parametrize("key", REALM_KEYS)
def test_the_key_of_a_realm_is_in_its_token(key: str) -> None:
    point = raw_point(_key(key))
    assert tuple(name for name in GENUINE if parse_cca(content(name)).realm.key.point == point) == REALM_KEYS[key]


def test_a_realm_and_its_platform_match_their_reference_values() -> None:
    verified = _verify(content("cca/trustee_cca-example-token.cbor"), CPAK[0])
    values = json.loads(content("cca/trustee_rvstore.json"))
    (platform,), (realm,) = values["platform"], values["realm"]
    assert verified.measurement.hex() == realm["initial-measurement"]
    assert [register.hex() for register in verified.rems] == realm["extensible-measurements"]
    assert verified.personalization_value.hex() == realm["personalization-value"]
    assert verified.platform_config.hex() == platform["platform-configuration"]
    assert verified.implementation_id.hex() == platform["implementation-id"]
    assert [
        {
            "measurement-value": item.measurement.hex(),
            "signer-id": item.signer_id.hex(),
            "component-type": item.measurement_type,
        }
        for item in verified.components
    ] == platform["sw-components"]


def test_a_pair_says_what_it_was_made_from() -> None:
    token = parse_cca(content(VERAISON))
    made_from = json.loads(content("cca/veraison_services_cca-evidence.json"))
    platform, realm = made_from["cca-platform-token"], made_from["cca-realm-delegated-token"]
    root = token.platform.root_of_trust
    assert token.platform.profile == platform["cca-platform-profile"]
    assert token.platform.config == base64.b64decode(platform["cca-platform-config"])
    assert root.lifecycle == platform["cca-platform-lifecycle"]
    assert root.instance_id == base64.b64decode(platform["cca-platform-instance-id"])
    assert [item.version for item in root.components] == [
        item["version"] for item in platform["cca-platform-sw-components"]
    ]
    assert token.realm.public_key == base64.b64decode(realm["cca-realm-public-key"])
    assert token.realm.challenge == base64.b64decode(realm["cca-realm-challenge"])
    assert token.realm.initial_measurement == base64.b64decode(realm["cca-realm-initial-measurement"])
    assert token.realm.key_hash == realm["cca-realm-public-key-hash-algo-id"]


def test_no_vector_is_left_unused() -> None:
    assert set(ids("cca", "evidence")) == {*GENUINE, *REFUSED, *PLATFORM_ALONE}
    assert {name for names in REALM_KEYS.values() for name in names} == set(GENUINE)
    assert set(ids("cca", "endorsement")) == {*CPAK, *REALM_KEYS}
    assert set(ids("cca", "reference")) == set(REFERENCES)
    assert set(ids("cca")) == {*GENUINE, *REFUSED, *PLATFORM_ALONE, *CPAK, *REALM_KEYS, *REFERENCES}
