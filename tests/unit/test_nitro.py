"""AWS Nitro: the attestation document to the byte, every field at its bounds, and every verdict of the verifier."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from adyton.errors import EvidenceError
from adyton.tee.evidence import Endorsement, EndorsementKind, Verifier
from adyton.tee.nitro.format import MAX_PAYLOAD_BYTES, parse_nitro
from adyton.tee.nitro.verify import ANCHORS, VerifiedNitro, verify_nitro
from adyton.tee.steps import Trace
from adyton.testing.forgery import NOW, Case
from adyton.testing.nitro import (
    FORGERIES,
    LEAF,
    MODULE_ID,
    PCRS,
    DocumentRecipe,
    NitroVendor,
    given,
    milliseconds,
    sign_es384,
    stapled,
)
from adyton.testing.simulated import SIGNS, certificate, key_usage
from adyton.testing.tees import TeeConformance

VERIFIER: Verifier = verify_nitro


@functools.cache
def vendor() -> NitroVendor:
    return NitroVendor()


@functools.cache
def genuine() -> Case:
    return vendor().case()


class TestNitro(TeeConformance):
    label = "nitro"
    forgeries = FORGERIES

    def genuine(self) -> Case:
        return genuine()


def _verified(case: Case) -> VerifiedNitro:
    return verify_nitro(case.evidence, anchors=case.anchors, now=case.now)


def _made(**recipe: Any) -> VerifiedNitro:
    return _verified(vendor().case(DocumentRecipe(**recipe)))


def _given(**claims: Any) -> VerifiedNitro:
    return _made(edit_claims=given(**claims))


# --- format

CLAIMS = {
    "module_id": "i-1-enc2",
    "digest": "SHA384",
    "timestamp": 1_700_000_000_123,
    "pcrs": {0: b"0" * 48, 1: b"1" * 48, 2: b"2" * 48, 31: b"31" * 16},
    "certificate": b"leaf",
    "cabundle": [b"root", b"zone"],
    "public_key": b"key",
    "user_data": b"data",
    "nonce": b"nonce",
}
PROTECTED = bytes.fromhex("a1013822")


def _encoded(claims: dict[str, Any]) -> bytes:
    return cbor2.dumps([PROTECTED, {}, cbor2.dumps(claims), bytes(96)])


def _parsed(**changed: Any) -> Any:
    return parse_nitro(_encoded({key: value for key, value in (CLAIMS | changed).items() if value is not ...}))


def test_a_document_has_the_documented_layout() -> None:
    payload = cbor2.dumps(CLAIMS)
    data = b"\x84\x44" + PROTECTED + b"\xa0\x59" + len(payload).to_bytes(2) + payload + b"\x58\x60" + bytes(96)
    document = parse_nitro(data)
    assert (document.module_id, document.pcrs) == ("i-1-enc2", CLAIMS["pcrs"])
    assert document.timestamp == datetime(2023, 11, 14, 22, 13, 20, 123000, UTC)
    assert (document.certificate, document.cabundle) == (b"leaf", (b"root", b"zone"))
    assert (document.public_key, document.user_data, document.nonce) == (b"key", b"data", b"nonce")
    assert (document.message.protected, document.message.payload) == (PROTECTED, payload)
    assert document.message.signature == bytes(96)
    signed = b"\x84\x6aSignature1\x44" + PROTECTED + b"\x40\x59" + len(payload).to_bytes(2) + payload
    assert document.message.to_be_signed == signed


def test_the_tag_may_be_there_or_not() -> None:
    assert parse_nitro(b"\xd2" + _encoded(CLAIMS)) == parse_nitro(_encoded(CLAIMS))
    for twice in (b"\xd2\xd2", b"\xd1"):
        with pytest.raises(EvidenceError):
            parse_nitro(twice + _encoded(CLAIMS))


def test_the_payload_may_be_of_indefinite_length_as_newer_hardware_writes_it() -> None:
    payload = b"\xbf" + cbor2.dumps(CLAIMS)[1:] + b"\xff"
    assert parse_nitro(cbor2.dumps([PROTECTED, {}, payload, bytes(96)])).module_id == "i-1-enc2"


@pytest.mark.parametrize("key", ["public_key", "user_data", "nonce"])
def test_what_the_enclave_did_not_give_is_null_or_missing(key: str) -> None:
    assert getattr(_parsed(**{key: None}), key) is None
    assert getattr(_parsed(**{key: ...}), key) is None


@pytest.mark.parametrize(
    ("key", "sizes"),
    [("certificate", (1, 1024)), ("public_key", (1, 1024)), ("user_data", (0, 1024)), ("nonce", (0, 1024))],
)
def test_byte_strings_may_be_as_short_and_as_long_as_the_limits_say(key: str, sizes: tuple[int, ...]) -> None:
    for size in sizes:
        assert getattr(_parsed(**{key: bytes(size)}), key) == bytes(size)


def test_other_fields_at_their_bounds() -> None:
    assert _parsed(module_id="i").module_id == "i"
    assert _parsed(module_id="i" * 128).module_id == "i" * 128
    assert _parsed(timestamp=1).timestamp == datetime(1970, 1, 1, 0, 0, 0, 1000, UTC)
    assert _parsed(timestamp=253402300799999).timestamp == datetime(9999, 12, 31, 23, 59, 59, 999000, UTC)
    assert _parsed(cabundle=[b"r", bytes(1024)]).cabundle == (b"r", bytes(1024))
    every = {index: bytes((32, 48, 64)[index % 3]) for index in range(32)}
    assert _parsed(pcrs=every).pcrs == every


@pytest.mark.parametrize("size", [MAX_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES + 1])
def test_a_payload_may_be_as_long_as_the_limit_says(size: int) -> None:
    many = [bytes(1000)] * 15
    more = size - len(cbor2.dumps(CLAIMS | {"cabundle": [*many, bytes(256)]}))
    data = _encoded(CLAIMS | {"cabundle": [*many, bytes(256 + more)]})
    if size <= MAX_PAYLOAD_BYTES:
        assert len(parse_nitro(data).message.payload) == size
        return
    with pytest.raises(EvidenceError, match="a payload of 16385 bytes; 16384 are allowed"):
        parse_nitro(data)


@pytest.mark.parametrize(
    "changed",
    [{"timestamp": -1}, {"timestamp": 1 << 64}, {"pcrs": CLAIMS["pcrs"] | {-1: bytes(48)}}, {"\x1b[2J" + "k" * 99: 0}],  # type: ignore[operator]
    ids=["before 1970", "no 64 bits", "PCR -1", "long key"],
)
def test_what_is_refused_is_said_shortly_and_printably(changed: dict[str, Any]) -> None:
    with pytest.raises(EvidenceError) as caught:
        _parsed(**changed)
    assert len(str(caught.value)) < 130
    assert str(caught.value).isprintable()


# --- verify


def test_a_genuine_document_says_what_was_given() -> None:
    case = vendor().case(DocumentRecipe(edit_claims=given(public_key=b"key", nonce=b"nonce")))
    verified = _verified(case)
    assert (verified.tee, verified.tcb, verified.platform, verified.module_id) == ("nitro", "Nitro", *[MODULE_ID] * 2)
    assert (verified.measurement, verified.pcrs, verified.timestamp) == (PCRS[0], PCRS, NOW)
    assert (verified.public_key, verified.nonce) == (b"key", b"nonce")
    assert verified.report_data == verified.user_data == b"user data"
    assert verified.anchor_sha256 == hashlib.sha256(vendor().cabundle[0]).digest()
    signed = parse_nitro(case.evidence.data).message.to_be_signed
    assert verified.evidence_sha256 == hashlib.sha256(signed).digest()


def test_pcrs_can_not_be_changed() -> None:
    with pytest.raises(TypeError):
        _given().pcrs[0] = bytes(48)  # type: ignore[index]


def test_report_data_is_empty_if_the_enclave_gave_no_user_data() -> None:
    verified = _given(user_data=None)
    assert (verified.user_data, verified.report_data) == (None, b"")


@pytest.mark.parametrize("index", [None, 0, 1, 2])
def test_debug_mode_is_when_the_first_three_pcrs_are_all_zero(index: int | None) -> None:
    pcrs = dict(PCRS) | {boot: bytes(47) + bytes([boot == index]) for boot in (0, 1, 2)}
    assert _given(pcrs=pcrs).debug is (index is None)


def test_no_second_encoding_of_a_document_has_another_digest() -> None:
    case = genuine()
    protected, _, payload, signature = cbor2.loads(case.evidence.data)
    twin = signature[:48] + (ec.SECP384R1().group_order - int.from_bytes(signature[48:])).to_bytes(48)
    for data in (
        b"\xd2" + case.evidence.data,
        b"\x9f" + case.evidence.data[1:] + b"\xff",
        cbor2.dumps([protected, {"unsigned": 1}, payload, signature]),
        cbor2.dumps([protected, {}, payload, twin]),
    ):
        assert _verified(replace(case, evidence=replace(case.evidence, data=data))) == _verified(case)


@pytest.mark.parametrize(
    "recipe",
    [
        {"edit_claims": given(timestamp=milliseconds(NOW + timedelta(minutes=5)))},
        {"edit_claims": given(timestamp=milliseconds(NOW + LEAF.begins_after))},
        {"leaf": replace(LEAF, begins_after=timedelta(0))},
        {"leaf": replace(LEAF, ends_after=timedelta(0))},
        {"leaf": replace(LEAF, extensions=(LEAF.extensions[0], (SIGNS[0], False)))},
    ],
    ids=["not yet from the future", "as old as its leaf", "leaf's first", "leaf's last", "usage not critical"],
)
def test_what_is_just_inside_the_bounds_is_believed(recipe: dict[str, Any]) -> None:
    case = vendor().case(DocumentRecipe(**recipe))
    _verified(replace(case, now=case.now.astimezone(timezone(timedelta(hours=-8)))))


def test_how_old_a_document_is_is_no_matter_while_its_certificate_is_valid() -> None:
    case = vendor().case(DocumentRecipe(leaf=replace(LEAF, begins_after=timedelta(days=-1)), edit_claims=_yesterday()))
    assert _verified(case).timestamp == NOW - timedelta(days=1)


def _yesterday() -> Callable[[dict[str, Any]], dict[str, Any]]:
    return given(timestamp=milliseconds(NOW - timedelta(days=1)))


def test_the_root_may_come_stapled() -> None:
    assert _verified(stapled(vendor())).anchor_sha256 in genuine().anchors


def test_a_stapled_root_counts_only_as_a_certificate() -> None:
    case = stapled(vendor())
    as_crl = Endorsement(kind=EndorsementKind.CRL, data=vendor().cabundle[0])
    with pytest.raises(EvidenceError, match="does not end in a root that is trusted"):
        _verified(replace(case, evidence=replace(case.evidence, endorsements=(as_crl,))))


def test_what_is_stapled_and_not_pinned_is_not_even_parsed() -> None:
    case = genuine()
    junk = (certificate(b"junk"), certificate(NitroVendor().cabundle[0]))
    assert _verified(replace(case, evidence=replace(case.evidence, endorsements=junk))) == _verified(case)


def test_an_intermediate_can_be_the_anchor() -> None:
    zone = vendor().cabundle[1]
    case = replace(stapled(vendor()), anchors=frozenset({hashlib.sha256(zone).digest()}))
    evidence = replace(case.evidence, endorsements=(certificate(zone),))
    assert _verified(replace(case, evidence=evidence)).anchor_sha256 == hashlib.sha256(zone).digest()


def test_several_anchors_may_be_trusted() -> None:
    case = genuine()
    assert _verified(replace(case, anchors=case.anchors | ANCHORS)) == _verified(case)


def test_the_pinned_root_is_not_the_checksum_of_its_zip_file() -> None:
    assert {digest.hex()[:8] for digest in ANCHORS} == {"641a0321"}


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_serial_number_zero_is_refused_where_the_library_only_warns() -> None:
    with pytest.raises(EvidenceError, match="does not parse") as caught:
        _verified(FORGERIES["root with serial number 0"].make())
    assert str(caught.value.__cause__) == "serial number is not positive"


@pytest.mark.parametrize(
    ("name", "begun"),
    [("cut", 1), ("root of a stranger", 2), ("leaf expired", 3), ("leaf is a CA", 4), ("user_data changed", 5)],
)
def test_the_trace_ends_with_the_step_that_failed(name: str, begun: int) -> None:
    trace = Trace()
    with pytest.raises(EvidenceError):
        FORGERIES[name].make().verify_with(verify_nitro, trace)
    assert len(trace.begun) == begun


def test_a_key_usage_of_more_than_signing_is_no_matter() -> None:
    extensions = (LEAF.extensions[0], (key_usage("digital_signature", "key_agreement"), True))
    assert _made(leaf=replace(LEAF, extensions=extensions)).measurement == PCRS[0]


def test_a_signature_by_the_wrong_hash_is_refused() -> None:
    wrong = DocumentRecipe(sign=lambda key, data: sign_es384(key, data[1:]))
    with pytest.raises(EvidenceError, match="does not verify"):
        _verified(vendor().case(wrong))
