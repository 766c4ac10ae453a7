"""Owners' orders: for whom a signature is good, and that nothing else is carried out."""

from __future__ import annotations

import contextlib
import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from adyton.atls.certificates import spki, spki_sha256
from adyton.atls.owner import MAX_SIGNED_ORDER_BYTES, sign_order, verify_order
from adyton.errors import ApplicationError, StatusCode
from adyton.proto.secrets_pb2 import Order, PutOrder, SignedOrder
from adyton.sealing.records import MAX_NAME_BYTES
from adyton.sealing.secrets import MAX_SECRET_BYTES

OWNER, OTHER = (ec.derive_private_key(number, ec.SECP256R1()) for number in (7, 8))
OWNERS = frozenset({spki_sha256(OWNER.public_key()).hex()})
LEAF, CLIENT = b"\x1e" * 32, b"\xc1" * 32
ORDER = Order(put=PutOrder(name="db-password", value=b"swordfish"))


def signed_order(**fields: Any) -> bytes:
    """The owner's order, with other fields."""
    signed = SignedOrder.FromString(sign_order(OWNER, ORDER, leaf_sha256=LEAF, client_sha256=CLIENT))
    for name, value in fields.items():
        setattr(signed, name, value)
    return signed.SerializeToString()


REQUEST = signed_order()


def verified(request: bytes, *, leaves: frozenset[bytes] = frozenset({LEAF}), **changes: Any) -> Order:
    arguments: dict[str, Any] = {
        "owners": OWNERS,
        "is_own_leaf": leaves.__contains__,
        "client_sha256": CLIENT,
    } | changes
    return verify_order(request, **arguments)


def refused(request: bytes, **changes: Any) -> tuple[StatusCode, str]:
    with pytest.raises(ApplicationError) as caught:
        verified(request, **changes)
    assert "swordfish" not in str(caught.value)
    return caught.value.status, caught.value.message


def test_an_owners_order_is_what_the_owner_signed() -> None:
    assert verified(signed_order()) == ORDER
    assert verified(signed_order(), leaves=frozenset({b"\x00" * 32, LEAF})) == ORDER


def test_the_signature_is_over_what_the_proto_says() -> None:
    signed = SignedOrder.FromString(signed_order())
    message = b"adyton owner order v1\0" + LEAF + CLIENT + hashlib.sha256(signed.order).digest()
    OWNER.public_key().verify(signed.signature, message, ec.ECDSA(hashes.SHA256()))


def test_the_longest_secret_fits() -> None:
    order = Order(put=PutOrder(name="n" * MAX_NAME_BYTES, value=bytes(MAX_SECRET_BYTES)))
    assert verified(sign_order(OWNER, order, leaf_sha256=LEAF, client_sha256=CLIENT)) == order


def test_who_is_no_owner_is_told_so() -> None:
    expected = (StatusCode.PERMISSION_DENIED, "this key is not one of the enclave's owners")
    assert refused(sign_order(OTHER, ORDER, leaf_sha256=LEAF, client_sha256=CLIENT)) == expected
    assert refused(signed_order(), owners=frozenset()) == expected
    assert refused(b"") == expected


def test_an_order_for_another_enclave_is_refused() -> None:
    status, message = refused(signed_order(), leaves=frozenset({b"\x00" * 32}))
    assert (status, "none of this enclave" in message) == (StatusCode.FAILED_PRECONDITION, True)


@pytest.mark.parametrize(
    ("fields", "changes"),
    [
        ({}, {"client_sha256": b"\xc2" * 32}),
        ({"leaf_sha256": b"\x1f" * 32}, {"leaves": frozenset({b"\x1f" * 32})}),
        ({"order": Order(put=PutOrder(name="db-password", value=b"mine")).SerializeToString()}, {}),
        ({"key": spki(OTHER.public_key())}, {"owners": OWNERS | {spki_sha256(OTHER.public_key()).hex()}}),
        ({"signature": b""}, {}),
        ({"signature": b"\x30\x06\x02\x01\x00\x02\x01\x00"}, {}),
    ],
    ids=["another connection", "another enclave", "another order", "another owner", "no signature", "zeros"],
)
def test_a_signature_is_good_for_nothing_else(fields: dict[str, Any], changes: dict[str, Any]) -> None:
    status, message = refused(signed_order(**fields), **changes)
    assert status is StatusCode.PERMISSION_DENIED
    assert message == "the owner has not signed this order for this connection"


@pytest.mark.parametrize(
    "request_",
    [
        b"\xff",
        signed_order(leaf_sha256=b""),
        signed_order(leaf_sha256=LEAF + b"\x00"),
        signed_order() + bytes(MAX_SIGNED_ORDER_BYTES),
    ],
    ids=["not a message", "no certificate", "a longer digest", "too long"],
)
def test_what_is_no_order_is_an_invalid_argument(request_: bytes) -> None:
    assert refused(request_)[0] is StatusCode.INVALID_ARGUMENT


def test_what_an_owner_signed_must_be_an_order() -> None:
    encoded = b"\x0a\x03\x0a\x01\xff"  # a name that is not UTF-8
    digest = hashlib.sha256(encoded).digest()
    signature = OWNER.sign(b"adyton owner order v1\0" + LEAF + CLIENT + digest, ec.ECDSA(hashes.SHA256()))
    request = signed_order(order=encoded, signature=signature)
    assert refused(request) == (StatusCode.INVALID_ARGUMENT, "that is no Order")


def test_without_a_key_of_the_client_there_is_nothing_to_bind_to() -> None:
    request = sign_order(OWNER, ORDER, leaf_sha256=LEAF, client_sha256=b"")
    assert refused(request, client_sha256=b"")[0] is StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("kind", ["P-384", "RSA", "no key"])
def test_an_owners_key_is_on_p_256(kind: str) -> None:
    keys: dict[str, bytes] = {
        "P-384": ec.derive_private_key(7, ec.SECP384R1())
        .public_key()
        .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        "RSA": rsa.generate_private_key(65537, 2048)
        .public_key()
        .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        "no key": b"\x30\x00",
    }
    owners = frozenset({hashlib.sha256(keys[kind]).hexdigest()})
    assert refused(signed_order(key=keys[kind]), owners=owners) == (
        StatusCode.INVALID_ARGUMENT,
        "an owner's key is on P-256",
    )


@given(position=st.integers(min_value=0), bit=st.integers(min_value=0, max_value=7))
def test_no_bit_of_a_request_can_be_changed(position: int, bit: int) -> None:
    request = bytearray(REQUEST)
    request[position % len(request)] ^= 1 << bit
    with contextlib.suppress(ApplicationError):
        assert verified(bytes(request)) == ORDER  # a bit that says nothing, such as of an unknown field


@given(st.binary(max_size=300))
def test_a_stranger_gets_only_the_documented_error(request_: bytes) -> None:
    assert refused(request_)[0] in (StatusCode.INVALID_ARGUMENT, StatusCode.PERMISSION_DENIED)
