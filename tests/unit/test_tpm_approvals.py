"""A signer's approvals of PCRs: what is made is parsed, and what is changed is refused."""

from __future__ import annotations

import struct

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from adyton.errors import ConfigurationError
from adyton.tee.sealing import Binding, SealPolicy
from adyton.tee.tpm.approvals import (
    MAX_APPROVED_VERSION,
    MAX_BYTES,
    MAX_PRODUCT_BYTES,
    encode_approvals,
    make_approvals,
    parse_approvals,
    signer_of,
)

KEY = ec.generate_private_key(ec.SECP256R1())
PCRS = {index: bytes([index + 1]) * 32 for index in (0, 4, 9, 15)}
MADE = make_approvals(KEY, product=b"translator", version=3, pcrs=PCRS)
DOCUMENT = encode_approvals(MADE)
HEAD = 5 + 64 + 1 + len(b"translator")
"""Where the version is."""


def _signed(body: bytes) -> bytes:
    """What a signer signs who knows the format and does not keep to it."""
    halves = decode_dss_signature(KEY.sign(body, ec.ECDSA(hashes.SHA256())))
    return body + b"".join(half.to_bytes(32, "big") for half in halves)


def test_what_is_made_is_parsed() -> None:
    assert parse_approvals(DOCUMENT) == MADE
    assert (MADE.pcrs, MADE.version, len(MADE.signatures)) == ((0, 4, 9, 15), 3, 3)
    expected = Binding(policy=SealPolicy.SIGNER, subject=signer_of(KEY.public_key()), product=b"translator", version=3)
    assert MADE.binding == expected


def test_policies_differ_by_signer_product_and_version_and_not_by_pcrs() -> None:
    other_key = make_approvals(ec.generate_private_key(ec.SECP256R1()), product=b"translator", version=3, pcrs=PCRS)
    other_product = make_approvals(KEY, product=b"translators", version=3, pcrs=PCRS)
    digests = {each.policy(version).digest for each in (MADE, other_key, other_product) for version in (1, 2, 3)}
    assert len(digests) == 9
    updated = make_approvals(KEY, product=b"translator", version=5, pcrs={0: b"updated".ljust(32)})
    assert updated.policy(2).digest == MADE.policy(2).digest
    labelled = [MADE.policy(1, label=label).digest for label in (b"a", b"b")]
    assert len({*labelled, MADE.policy(1).digest}) == 3


@pytest.mark.parametrize(
    ("product", "version"), [(b"", 1), (bytes(MAX_PRODUCT_BYTES), 2), (b"p", MAX_APPROVED_VERSION)]
)
def test_the_largest_and_the_least_fit(product: bytes, version: int) -> None:
    made = make_approvals(KEY, product=product, version=version, pcrs=dict.fromkeys(range(16), b"a" * 32))
    assert len(encode_approvals(made)) <= MAX_BYTES
    assert parse_approvals(encode_approvals(made)) == made


@pytest.mark.parametrize(
    ("product", "version", "pcrs", "message"),
    [
        (bytes(MAX_PRODUCT_BYTES + 1), 1, PCRS, "a product has up to 64 bytes"),
        (b"", 0, PCRS, "a version is 1 to 1024"),
        (b"", MAX_APPROVED_VERSION + 1, PCRS, "a version is 1 to 1024"),
        (b"", 1, {}, "PCRs are one or more"),
        (b"", 1, {1: bytes(32)}, "what is sealed to is PCR 0"),
        (b"", 1, {0: bytes(32), 4: b"a" * 32}, "PCR 0 is zero: nothing was measured"),
        (b"", 1, {0: bytes(32), 16: bytes(32)}, "what is sealed to is PCR 0"),
        (b"", 1, {0: bytes(20)}, "a PCR of the SHA-256 bank has 32 bytes"),
    ],
)
def test_what_can_not_be_approved_is_the_callers_mistake(
    product: bytes, version: int, pcrs: dict[int, bytes], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_approvals(KEY, product=product, version=version, pcrs=pcrs)


def test_a_signer_has_a_key_that_every_tpm_verifies() -> None:
    with pytest.raises(ValueError, match="a key of P-256, not of secp384r1"):
        make_approvals(ec.generate_private_key(ec.SECP384R1()), product=b"", version=1, pcrs=PCRS)


def test_approvals_that_are_left_out_are_missed() -> None:
    # Else whoever brings them could have a release seal for an earlier version than its own.
    fewer = DOCUMENT[:HEAD] + struct.pack(">H", 2) + DOCUMENT[HEAD + 2 : -128] + DOCUMENT[-64:]
    with pytest.raises(ConfigurationError, match="the approvals are not signed by their signer"):
        parse_approvals(fewer)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"", "ends inside its magic"),
        (b"ADTA\x02" + DOCUMENT[5:], "does not begin with 4144544101"),
        (DOCUMENT[:-1], "ends inside its last signature"),
        (DOCUMENT + b"\0", "goes on after its end"),
        (bytes(MAX_BYTES + 1), f"have {MAX_BYTES + 1} bytes; {MAX_BYTES} are allowed"),
        (_signed(DOCUMENT[:69] + b"\x41" + bytes(65)), "product of 65 bytes; 64 are allowed"),
        (_signed(DOCUMENT[:HEAD] + bytes(2) + DOCUMENT[HEAD + 2 : HEAD + 37]), "versions of 1 to 1024, not 0"),
        (_signed(DOCUMENT[:HEAD] + b"\x04\x01" + DOCUMENT[HEAD + 2 : -64]), "versions of 1 to 1024, not 1025"),
        (_signed(DOCUMENT[: HEAD + 2] + b"\x02\0\0" + DOCUMENT[HEAD + 5 : -64]), "what is sealed to is PCR 0"),
        (_signed(DOCUMENT[: HEAD + 2] + b"\x01\0\x80" + DOCUMENT[HEAD + 5 : -64]), "what is sealed to is PCR 0"),
        (_signed(DOCUMENT[:5] + bytes(64) + DOCUMENT[69:-64]), "these are no approvals"),
    ],
)
def test_what_is_no_document_is_refused(document: bytes, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_approvals(document)


@given(st.integers(0, len(DOCUMENT) - 1), st.integers(1, 255))
def test_a_byte_that_is_changed_is_noticed(place: int, by: int) -> None:
    changed = bytearray(DOCUMENT)
    changed[place] ^= by
    with pytest.raises(ConfigurationError):
        parse_approvals(bytes(changed))


@given(st.binary(max_size=400) | st.binary(max_size=400).map(lambda tail: DOCUMENT[:HEAD] + tail))
def test_no_bytes_give_another_error(data: bytes) -> None:
    with pytest.raises(ConfigurationError):
        parse_approvals(data)
