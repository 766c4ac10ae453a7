"""Signed reference values: whose, how many signatures, until when, and never an older version."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from adyton.errors import ConfigurationError, PolicyError
from adyton.policy.constraints import NoComponentBelow, NoneBut, OneOf, Unresolved
from adyton.policy.document import Policy
from adyton.policy.signed import MAX_DOCUMENT_BYTES, PAYLOAD_TYPE, pre_authentication_encoding

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in range(4)]
VALUE = "ab" * 48
BODY: dict[str, Any] = {
    "name": "them",
    "version": 7,
    "expires": "2026-12-01T00:00:00Z",
    "values": {"simulated": {"measurement": [VALUE]}},
}


def public(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


def policy_text(**changed: Any) -> bytes:
    source = {"name": "them", "keys": [public(key) for key in KEYS[:3]], "threshold": 2, "min_version": 5} | changed
    table = "\n".join(f"{key} = {json.dumps(value)}" for key, value in source.items() if value is not None)
    rule = '[[simulated]]\nname = "r"\nmeasurement = { signed = "them" }\nmax_age_seconds = "any"\n'
    return f"version = 1\n[[reference_values]]\n{table}\n{rule}".encode()


def envelope(content: bytes, signers: list[Ed25519PrivateKey], **changed: Any) -> bytes:
    message = pre_authentication_encoding(content)
    signatures = [{"keyid": "", "sig": base64.b64encode(key.sign(message)).decode()} for key in signers]
    whole = {"payloadType": PAYLOAD_TYPE, "payload": base64.b64encode(content).decode(), "signatures": signatures}
    return json.dumps(whole | changed).encode()


def document(signers: list[Ed25519PrivateKey] | None = None, **changed: Any) -> bytes:
    body = {key: value for key, value in (BODY | changed).items() if value is not None}
    return envelope(json.dumps(body).encode(), KEYS[:2] if signers is None else signers)


def measurement(policy: Policy) -> object:
    (rule,) = policy.rules
    return rule.constraints["measurement"]


def test_what_is_signed_is_the_encoding_of_the_dsse_specification() -> None:
    # Of its protocol.md, with our payload type.
    expected = b"DSSEv1 44 application/vnd.adyton.reference-values+json 11 hello world"
    assert pre_authentication_encoding(b"hello world") == expected


def test_signed_values_take_their_place_in_the_rule() -> None:
    policy = Policy.parse(policy_text(), reference_values=[document()], now=NOW)
    assert measurement(policy) == OneOf(frozenset({bytes.fromhex(VALUE)}))
    assert policy.reference_versions == {"them": 7}


def test_the_digest_names_the_values_too() -> None:
    alone = Policy.parse(policy_text())
    older = Policy.parse(policy_text(), reference_values=[document()], now=NOW)
    newer = Policy.parse(policy_text(), reference_values=[document(version=8)], now=NOW)
    again = Policy.parse(policy_text(), reference_values=[document(signers=KEYS[1:3])], now=NOW)
    assert len({alone.sha256, older.sha256, newer.sha256}) == 3
    assert older.sha256 == again.sha256


def test_without_the_document_the_rule_accepts_nothing() -> None:
    policy = Policy.parse(policy_text())
    assert measurement(policy) == Unresolved("them")
    assert policy.reference_versions == {}


@pytest.mark.parametrize("values", [{}, {"simulated": {}}, {"simulated": 3}, {"snp": {"measurement": [VALUE]}}])
def test_a_value_that_the_document_lacks_accepts_nothing(values: dict[str, Any]) -> None:
    policy = Policy.parse(policy_text(), reference_values=[document(values=values)], now=NOW)
    assert measurement(policy) == Unresolved("them")


def test_a_signed_value_is_held_to_the_rules_of_the_file() -> None:
    with pytest.raises(ConfigurationError, match="must be a string of 48 bytes"):
        Policy.parse(policy_text(), reference_values=[document(values={"simulated": {"measurement": ["ab"]}})], now=NOW)


def test_registers_can_be_signed_one_by_one() -> None:
    rule = '[[nitro]]\nname = "n"\npcrs = { "0" = { signed = "them" }, "1" = "any", "2" = { signed = 7 } }\n'
    text = policy_text() + f'{rule}platforms = "any"\nmax_age_seconds = "any"\n'.encode()
    values = {"nitro": {"pcrs": {"0": [VALUE]}}}
    policy = Policy.parse(text, reference_values=[document(values=values)], now=NOW)
    (nitro,) = policy.rules_for("nitro")
    assert nitro.constraints["pcrs"].wanted().startswith(f"0={VALUE}; 1=anything; 2=in the signed reference values '7'")


def test_lists_of_what_may_occur_can_be_signed_too() -> None:
    rule = '[[psa]]\nname = "p"\nclient_ids = "any"\nimplementation_ids = "any"\nplatforms = "any"\n'
    text = policy_text() + f'{rule}components = {{ signed = "them" }}\n'.encode()
    values = {"psa": {"components": ["ab" * 32]}}
    (psa,) = Policy.parse(text, reference_values=[document(values=values)], now=NOW).rules_for("psa")
    assert psa.constraints["components"] == NoneBut(frozenset({b"\xab" * 32}))
    (psa,) = Policy.parse(text).rules_for("psa")
    assert psa.constraints["components"] == Unresolved("them")


def test_events_of_a_register_can_be_signed() -> None:
    rule = (
        '[[tpm]]\nname = "t"\npcrs = { "4" = "any" }\nplatforms = "any"\npcr_events = { "4" = { signed = "them" } }\n'
    )
    text = policy_text() + rule.encode()
    (tpm,) = Policy.parse(text).rules_for("tpm")
    assert "'them', which were not given" in tpm.constraints["pcr_events"].wanted()
    values = {"tpm": {"pcr_events": {"4": ["ab" * 32]}}}
    (tpm,) = Policy.parse(text, reference_values=[document(values=values)], now=NOW).rules_for("tpm")
    assert tpm.constraints["pcr_events"].wanted() == f"4=none but {'ab' * 32}; others=any"


def test_any_key_can_be_signed_and_accepts_nothing_without_its_document() -> None:
    rule = '[[snp]]\nname = "s"\nmeasurement = "any"\nproducts = ["Genoa"]\nplatforms = "any"\n'
    text = policy_text() + f'{rule}min_tcb = {{ signed = "them" }}\nvmpl = {{ signed = "them" }}\n'.encode()
    values = {"snp": {"min_tcb": {"snp": 23}, "vmpl": [1]}}
    (snp,) = Policy.parse(text, reference_values=[document(values=values)], now=NOW).rules_for("snp")
    assert snp.constraints["min_tcb"] == NoComponentBelow({"snp": 23})
    assert snp.constraints["vmpl"] == OneOf(frozenset({1}))
    (snp,) = Policy.parse(text).rules_for("snp")
    assert snp.constraints["min_tcb"] == snp.constraints["vmpl"] == Unresolved("them")


@pytest.mark.parametrize(
    ("signed", "said"),
    [
        (document(signers=KEYS[:1]), "1 of the keys of 'them' signed it; 2 must"),
        (document(signers=[KEYS[0], KEYS[0]]), "1 of the keys of 'them' signed it"),
        (document(signers=[KEYS[0], KEYS[3]]), "1 of the keys of 'them' signed it"),
        (document(signers=[]), "0 of the keys"),
        (document(name="others"), "no place for a document named 'others'"),
        (document(version=4), "version 4 of 'them' is older than 5"),
        (document(version=5, expires="2026-11-23T11:59:59Z"), "'them' expired on"),
        (document(expires="2026-12-01T00:00:00"), "the payload is not"),
        (document(expires="never"), "the payload is not"),
        (document(expires=3), "the payload is not"),
        (document(version="7"), "the payload is not"),
        (document(version=True), "the payload is not"),
        (document(version=-1), "the payload is not"),
        (document(name=7), "the payload is not"),
        (document(values=[]), "the payload is not"),
        (document(values=None), "the payload is not"),
        (document(more=1), "the payload is not"),
        (document(values={"simulated": {"measurement": "any"}}), "the payload is not"),
        (document(values={"nitro": {"pcrs": {"others": "any"}}}), "the payload is not"),
        (document(values={"snp": {"debug": True}}), "the payload is not"),
        (document(values={"snp": {"x": [["any"]]}}), "the payload is not"),
        (document(values={"tpm": {"launch": {}}}), "the payload is not"),
        (document(values={"tpm": {"pcr_events": {}}}), "the payload is not"),
        (document(values={"tdx": {"rtmr_events": {}}}), "the payload is not"),
        (envelope(b"[]", KEYS[:2]), "the payload is not"),
        (envelope(b"\xff", KEYS[:2]), "the payload is not"),
        (envelope(json.dumps(BODY).encode()[:-1] + b', "version": 9}', KEYS[:2]), "the payload is not"),
        (envelope(b"[" * 100_000, KEYS[:2]), "the payload is not"),
        (b"", "the envelope is not"),
        (b"[]", "the envelope is not"),
        (b"[" * 100_000, "the envelope is not"),
        (envelope(b"{}", KEYS, payloadType="text/plain"), "the envelope is not"),
        (envelope(b"{}", KEYS, payload="?"), "the envelope is not"),
        (envelope(b"{}", KEYS, payload=None), "the envelope is not"),
        (envelope(b"{}", KEYS, signatures=None), "the envelope is not"),
        (envelope(b"{}", KEYS, signatures=["x"]), "the envelope is not"),
        (envelope(b"{}", KEYS, signatures=[{}]), "the envelope is not"),
        (envelope(b"{}", KEYS * 17), "the envelope is not"),
        (b" " * (MAX_DOCUMENT_BYTES + 1), "1048576 are allowed"),
    ],
)
def test_a_document_that_can_not_be_believed_is_refused(signed: bytes, said: str) -> None:
    with pytest.raises(PolicyError) as caught:
        Policy.parse(policy_text(), reference_values=[signed], now=NOW)
    assert said in caught.value.message


def test_a_signature_of_the_wrong_length_does_not_count() -> None:
    changed = json.loads(document())
    changed["signatures"][0]["sig"] = base64.b64encode(b"short").decode()
    with pytest.raises(PolicyError, match="1 of the keys"):
        Policy.parse(policy_text(), reference_values=[json.dumps(changed).encode()], now=NOW)


def test_a_changed_payload_is_not_what_was_signed() -> None:
    changed = json.loads(document())
    changed["payload"] = json.loads(document(version=9))["payload"]
    with pytest.raises(PolicyError, match="0 of the keys"):
        Policy.parse(policy_text(), reference_values=[json.dumps(changed).encode()], now=NOW)


def test_a_version_never_goes_back() -> None:
    seen = Policy.parse(policy_text(), reference_values=[document()], now=NOW).reference_versions
    Policy.parse(policy_text(), reference_values=[document()], seen_versions=seen, now=NOW)
    with pytest.raises(PolicyError, match="version 6 of 'them' is older than 7"):
        Policy.parse(policy_text(), reference_values=[document(version=6)], seen_versions=seen, now=NOW)


def test_what_was_seen_is_not_forgotten_without_the_document() -> None:
    assert Policy.parse(policy_text(), seen_versions={"them": 7, "others": 2}).reference_versions == {
        "them": 7,
        "others": 2,
    }


@pytest.mark.parametrize("rule", ['[[snp]]\nsigned = "them"', "[[azure]]\nname='a'\npcrs={}\nsnp={signed='them'}"])
@pytest.mark.parametrize("values", [{}, {"snp": {"name": "mine"}, "azure": {"snp": 3}}, {"snp": [], "azure": 3}])
def test_no_signer_writes_a_whole_rule(rule: str, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Policy.parse(policy_text() + rule.encode(), reference_values=[document(values=values)], now=NOW)


def test_two_documents_of_one_name_are_one_too_many() -> None:
    with pytest.raises(PolicyError, match="or had one already"):
        Policy.parse(policy_text(), reference_values=[document(), document(version=8)], now=NOW)


def test_the_last_instant_counts_in_any_time_zone() -> None:
    last = datetime(2026, 12, 1, tzinfo=UTC).astimezone(timezone(timedelta(hours=-8)))
    assert Policy.parse(policy_text(), reference_values=[document()], now=last).reference_versions
    with pytest.raises(PolicyError, match="expired"):
        Policy.parse(policy_text(), reference_values=[document()], now=last + timedelta(microseconds=1))


@pytest.mark.parametrize("now", [None, NOW.replace(tzinfo=None)])
def test_signed_values_need_a_time_with_a_zone(now: datetime | None) -> None:
    with pytest.raises(ValueError, match="need a now with a time zone"):
        Policy.parse(policy_text(), reference_values=[document()], now=now)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": None}, "must have name, keys, threshold, and min_version"),
        ({"min_version": None}, "must have name, keys, threshold, and min_version"),
        ({"more": 1}, "must have name, keys, threshold, and min_version"),
        ({"name": 7}, "must have name"),
        ({"name": ""}, "must have name"),
        ({"name": "\n"}, "must have name"),
        ({"name": "n" * 101}, "must have name"),
        ({"keys": "x"}, "keys must be a list of up to 32"),
        ({"keys": ["00" * 32] * 33}, "keys must be a list of up to 32"),
        ({"keys": ["00" * 32] * 2}, "lists a key twice"),
        ({"keys": ["00" * 31]}, "keys[0] must be a string of 32 bytes"),
        ({"threshold": 0}, "threshold must be a whole number from 1 to 3"),
        ({"threshold": 4}, "threshold must be a whole number from 1 to 3"),
        ({"threshold": True}, "threshold must be a whole number"),
        ({"min_version": -1}, "min_version must be a whole number"),
    ],
)
def test_a_source_is_checked(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Policy.parse(policy_text(**changed))
    assert said in caught.value.message


def test_two_sources_of_one_name_are_refused() -> None:
    twice = policy_text().replace(
        b"[[simulated]]", policy_text().split(b"\n", 1)[1].split(b"[[simulated]]")[0] + b"[[simulated]]"
    )
    with pytest.raises(ConfigurationError, match="two tables of reference_values have the name 'them'"):
        Policy.parse(twice)


def test_a_source_without_keys_believes_nothing() -> None:
    text = policy_text(keys=[], threshold=1)
    with pytest.raises(PolicyError, match="0 of the keys of 'them' signed it; 1 must"):
        Policy.parse(text, reference_values=[document()], now=NOW)
