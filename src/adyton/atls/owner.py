"""What an enclave's owner asks of it: signed for this enclave and this connection, and for no other.

The owner has attested the enclave, and signs three digests: of the enclave's TLS key that it was shown, of its own key
on the connection, and of the order (proto/secrets.proto). So an enclave that the owner speaks to as well can't pass the
order on, and whoever finds the request in a log or in a core file can't send it again. A nonce would add nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from typing import Final, NoReturn, TypeVar

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import DecodeError, Message

from adyton.atls.certificates import spki
from adyton.errors import ApplicationError, StatusCode
from adyton.proto.messages import parse_message
from adyton.proto.secrets_pb2 import Order, SignedOrder

T = TypeVar("T", bound=Message)

SERVICE: Final = "adyton.Secrets"
METHOD: Final = "Order"
MAX_SIGNED_ORDER_BYTES: Final = 128 * 1024
"""A secret of the longest kind, its name, and what is around them."""
_DOMAIN: Final = b"adyton owner order v1\0"
_DIGEST_BYTES: Final = 32


def sign_order(key: ec.EllipticCurvePrivateKey, order: Order, *, leaf_sha256: bytes, client_sha256: bytes) -> bytes:
    """The SignedOrder, encoded.

    `leaf_sha256` and `client_sha256` are the SHA-256 of both ends' keys (DER SubjectPublicKeyInfo) on a connection that
    is attested: the server's certificate's, and the client's own.
    """
    encoded = order.SerializeToString()
    signature = key.sign(_signed(leaf_sha256, client_sha256, encoded), ec.ECDSA(hashes.SHA256()))
    signed = SignedOrder(order=encoded, key=spki(key.public_key()), signature=signature, leaf_sha256=leaf_sha256)
    return signed.SerializeToString()


def verify_order(
    request: bytes, *, owners: Collection[str], is_own_leaf: Callable[[bytes], bool], client_sha256: bytes
) -> Order:
    """The order in a request that came on a connection of that client key, if an owner signed it for this enclave.

    `owners` are ids of keys: SHA-256 of the DER SubjectPublicKeyInfo, in hexadecimal. `is_own_leaf` says whether a
    digest is of a TLS key that this enclave has shown. Raises ApplicationError: INVALID_ARGUMENT, PERMISSION_DENIED, or
    FAILED_PRECONDITION for a key that it has not. A stranger costs a hash; who knows an owner's key, one signature.
    """
    signed = _parse(SignedOrder, request)
    if hashlib.sha256(signed.key).hexdigest() not in owners:
        _refuse(StatusCode.PERMISSION_DENIED, "this key is not one of the enclave's owners")
    if len(client_sha256) != _DIGEST_BYTES or len(signed.leaf_sha256) != _DIGEST_BYTES:
        _refuse(StatusCode.INVALID_ARGUMENT, f"an order names two keys, by {_DIGEST_BYTES} bytes each")
    if not is_own_leaf(signed.leaf_sha256):
        _refuse(StatusCode.FAILED_PRECONDITION, "the order was signed for a certificate that is none of this enclave")
    try:
        message = _signed(signed.leaf_sha256, client_sha256, signed.order)
        _public_key(signed.key).verify(signed.signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        _refuse(StatusCode.PERMISSION_DENIED, "the owner has not signed this order for this connection")
    return _parse(Order, signed.order)


def _signed(leaf_sha256: bytes, client_sha256: bytes, order: bytes) -> bytes:
    """What the signature is over. Each part has one length."""
    return _DOMAIN + leaf_sha256 + client_sha256 + hashlib.sha256(order).digest()


def _public_key(der: bytes) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        _refuse(StatusCode.INVALID_ARGUMENT, "an owner's key is on P-256")
    return key


def _parse(kind: type[T], data: bytes) -> T:
    if len(data) > MAX_SIGNED_ORDER_BYTES:
        _refuse(StatusCode.INVALID_ARGUMENT, f"an order has {MAX_SIGNED_ORDER_BYTES} bytes at most")
    try:
        return parse_message(kind, data)
    except DecodeError:
        _refuse(StatusCode.INVALID_ARGUMENT, f"that is no {kind.__name__}")


def _refuse(status: StatusCode, message: str) -> NoReturn:
    raise ApplicationError(status, message)
