"""COSE_Sign1: its form, what is signed, and which key fits which algorithm."""

from __future__ import annotations

import functools

import cbor2
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from adyton.errors import EvidenceError
from adyton.tee._cose import Sign1, parse_sign1, sign1_of, verify_sign1

CURVES: dict[int, tuple[ec.EllipticCurve, hashes.HashAlgorithm, int]] = {
    -7: (ec.SECP256R1(), hashes.SHA256(), 32),
    -35: (ec.SECP384R1(), hashes.SHA384(), 48),
    -36: (ec.SECP521R1(), hashes.SHA512(), 66),
}
"""RFC 9053, table 1, with the curve that fits and the bytes of each half of a signature."""


@functools.cache
def key(algorithm: int) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(CURVES[algorithm][0])


def _signature(algorithm: int, message: bytes) -> bytes:
    _, digest, size = CURVES[algorithm]
    r, s = decode_dss_signature(key(algorithm).sign(message, ec.ECDSA(digest)))
    return r.to_bytes(size) + s.to_bytes(size)


def _signed(algorithm: int, *, says: int | None = None) -> Sign1:
    protected = cbor2.dumps({1: says or algorithm})
    to_be_signed = cbor2.dumps(["Signature1", protected, b"", b"payload"])
    parts = [protected, {}, b"payload", _signature(algorithm, to_be_signed)]
    return sign1_of(parts, "the token")


# --- form


def test_the_parts_are_where_the_rfc_has_them() -> None:
    protected = cbor2.dumps({1: -7, 4: b"kid"})
    data = cbor2.dumps([protected, {"a": 1}, b"payload", b"signature"])
    for tagged in (data, b"\xd2" + data):
        message = parse_sign1(tagged, "the token")
        assert (message.protected, dict(message.protected_header)) == (protected, {1: -7, 4: b"kid"})
        assert dict(message.unprotected_header) == {"a": 1}
        assert (message.payload, message.signature) == (b"payload", b"signature")


def test_what_is_signed_is_the_sig_structure_of_the_rfc() -> None:
    message = parse_sign1(bytes.fromhex("8443a10126a0416148") + bytes(8), "the token")
    assert message.to_be_signed == b"\x84\x6aSignature1\x43\xa1\x01\x26\x40\x41a"


def test_the_protected_header_is_signed_as_it_was_received() -> None:
    message = parse_sign1(bytes.fromhex("84 44 a1 01 38 06 a0 40 40"), "the token")
    assert dict(message.protected_header) == {1: -7}
    assert bytes.fromhex("a1013806") in message.to_be_signed


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("d0840140", "not well-formed CBOR"),
        ("d2d28443a10126a04040", "it is not an array of four"),
        ("8343a10126a040", "it is not an array of four"),
        ("8543a10126a0404000", "it is not an array of four"),
        ("a0", "it is not an array of four"),
        ("43a10126", "it is not an array of four"),
        ("84a10126a04040", "a part that should be a byte string is not"),
        ("8443a10126a0f640", "a part that should be a byte string is not"),
        ("8443a10126a0406161", "a part that should be a byte string is not"),
        ("8443a10126804040", "its unprotected header is not a map"),
        ("8443a10126f64040", "its unprotected header is not a map"),
        ("8440a04040", "the protected header of the token is not well-formed CBOR"),
        ("8443a10120a0404000", "the token goes on after its end, for 1 bytes"),
        ("8444a1012600a04040", "the protected header of the token goes on after its end"),
        ("844180a04040", "its protected header is not a map"),
        ("8446a20126028104a04040", "has critical header parameters, of which none is known"),
        ("8446a20126024100a04040", "has critical header parameters, of which none is known"),
        ("8443a10126a101264040", "the same parameter in its protected and its unprotected header"),
        ("8443a10126a2040001004040", "the same parameter in its protected and its unprotected header"),
    ],
)
def test_what_is_no_sign1_is_refused(data: str, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        parse_sign1(bytes.fromhex(data), "the token")


# --- signature


@pytest.mark.parametrize("algorithm", CURVES)
def test_a_signature_verifies_with_the_key_that_made_it(algorithm: int) -> None:
    verify_sign1(_signed(algorithm), key(algorithm).public_key(), "the token")
    with pytest.raises(EvidenceError, match="the signature of the token does not verify"):
        verify_sign1(_signed(algorithm), ec.generate_private_key(CURVES[algorithm][0]).public_key(), "the token")


@pytest.mark.parametrize("algorithm", CURVES)
@pytest.mark.parametrize("says", CURVES)
def test_a_token_can_not_talk_its_verifier_into_another_algorithm(algorithm: int, says: int) -> None:
    message = _signed(algorithm, says=says)
    if says == algorithm:
        verify_sign1(message, key(algorithm).public_key(), "the token")
        return
    with pytest.raises(EvidenceError, match=f"signed with COSE algorithm {says}, which is not the key's"):
        verify_sign1(message, key(algorithm).public_key(), "the token")


@pytest.mark.parametrize(
    "says", ["fbc01c000000000000", "f5", "05", "27", "3824", "382e", "00", "f6", "654553323536", "8126"]
)
def test_an_algorithm_that_is_not_known_is_refused(says: str) -> None:
    message = sign1_of([bytes.fromhex("a101" + says), {}, b"", bytes(64)], "the token")
    with pytest.raises(EvidenceError, match="no known algorithm in its protected header"):
        verify_sign1(message, key(-7).public_key(), "the token")


def test_an_algorithm_outside_of_the_protected_header_is_none() -> None:
    message = sign1_of([cbor2.dumps({}), {1: -7}, b"", bytes(64)], "the token")
    with pytest.raises(EvidenceError, match="no known algorithm in its protected header"):
        verify_sign1(message, key(-7).public_key(), "the token")


def test_a_key_of_another_kind_does_not_fit() -> None:
    others = (
        ec.generate_private_key(ec.SECP256K1()),
        ec.generate_private_key(ec.BrainpoolP256R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    )
    for other in others:
        with pytest.raises(EvidenceError, match="which is not the key's"):
            verify_sign1(_signed(-7), other.public_key(), "the token")
    with pytest.raises(EvidenceError, match="which is not the key's"):
        verify_sign1(_signed(-7), None, "the token")


@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(65), bytes(72)])
def test_a_signature_of_wrong_length_is_refused(signature: bytes) -> None:
    message = sign1_of([cbor2.dumps({1: -7}), {}, b"", signature], "the token")
    with pytest.raises(EvidenceError, match=f"the signature of the token has {len(signature)} bytes, not 64"):
        verify_sign1(message, key(-7).public_key(), "the token")


@pytest.mark.parametrize("signature", [bytes(64), b"\xff" * 64, bytes(32) + b"\1" * 32, b"\1" * 32 + bytes(32)])
def test_a_signature_of_impossible_numbers_is_refused(signature: bytes) -> None:
    message = sign1_of([cbor2.dumps({1: -7}), {}, b"", signature], "the token")
    with pytest.raises(EvidenceError, match="does not verify"):
        verify_sign1(message, key(-7).public_key(), "the token")
