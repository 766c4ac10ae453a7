"""COSE_Sign1 (RFC 9052, section 4.2): one signer, ECDSA, the algorithm in the protected header.

`parse_sign1` believes nothing; `verify_sign1` needs a key from elsewhere, and a key fits one algorithm only, so a token
can't talk its verifier into another.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import cbor2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from adyton.errors import EvidenceError
from adyton.tee._cbor import decode_cbor

SIGN1_TAG: Final = 18
ALGORITHM_HEADER: Final = 1
CRITICAL_HEADER: Final = 2

_ALGORITHMS: Final[Mapping[int, tuple[ec.EllipticCurve, ec.ECDSA]]] = {
    -7: (ec.SECP256R1(), ec.ECDSA(hashes.SHA256())),
    -35: (ec.SECP384R1(), ec.ECDSA(hashes.SHA384())),
    -36: (ec.SECP521R1(), ec.ECDSA(hashes.SHA512())),
}
"""ES256, ES384, ES512 (RFC 9053, section 2.1), each with the curve of the same strength."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign1:
    """A well-formed COSE_Sign1 message, not verified. `protected` is the header's bytes as received.

    `to_be_signed` is the Sig_structure of RFC 9052, section 4.4, with no external data.
    """

    protected: bytes
    protected_header: Mapping[Any, Any]
    unprotected_header: Mapping[Any, Any]
    payload: bytes
    signature: bytes
    to_be_signed: bytes


def parse_sign1(data: bytes, what: str) -> Sign1:
    """Parse a COSE_Sign1, with its tag 18 or without."""
    message = decode_cbor(data, what, tags={SIGN1_TAG})
    if isinstance(message, cbor2.CBORTag):
        message = message.value
    return sign1_of(message, what)


def sign1_of(message: object, what: str) -> Sign1:
    """The COSE_Sign1 that is this decoded array of four."""
    if not isinstance(message, (tuple, list)) or len(message) != 4:
        raise EvidenceError(f"{what} is no COSE_Sign1: it is not an array of four")
    protected, unprotected, payload, signature = message
    if not isinstance(protected, bytes) or not isinstance(payload, bytes) or not isinstance(signature, bytes):
        raise EvidenceError(f"{what} is no COSE_Sign1: a part that should be a byte string is not")
    if not isinstance(unprotected, Mapping):
        raise EvidenceError(f"{what} is no COSE_Sign1: its unprotected header is not a map")
    header = _header(protected, what)
    if not header.keys().isdisjoint(unprotected):  # section 3
        raise EvidenceError(f"{what} has the same parameter in its protected and its unprotected header")
    return Sign1(
        protected=protected,
        protected_header=header,
        unprotected_header=unprotected,
        payload=payload,
        signature=signature,
        to_be_signed=cbor2.dumps(["Signature1", protected, b"", payload]),
    )


@functools.lru_cache(maxsize=16)  # it names the algorithm, the same in all of a TEE's messages
def _header(protected: bytes, what: str) -> Mapping[Any, Any]:
    header = decode_cbor(protected, f"the protected header of {what}")
    if not isinstance(header, Mapping):
        raise EvidenceError(f"{what} is no COSE_Sign1: its protected header is not a map")
    if CRITICAL_HEADER in header:  # it lists parameters that a verifier must understand, section 3.1
        raise EvidenceError(f"{what} has critical header parameters, of which none is known")
    return header


def verify_sign1(message: Sign1, key: object, what: str) -> None:
    """Raise `EvidenceError` unless `key`, an EC public key, signed the message with the algorithm of its own curve."""
    algorithm = message.protected_header.get(ALGORITHM_HEADER)
    if type(algorithm) is not int or algorithm not in _ALGORITHMS:
        raise EvidenceError(f"{what} has no known algorithm in its protected header")
    curve, scheme = _ALGORITHMS[algorithm]
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != curve.name:
        raise EvidenceError(f"{what} is signed with COSE algorithm {algorithm}, which is not the key's")
    size = (curve.key_size + 7) // 8
    if len(message.signature) != 2 * size:
        raise EvidenceError(f"the signature of {what} has {len(message.signature)} bytes, not {2 * size}")
    r, s = (int.from_bytes(half, "big") for half in (message.signature[:size], message.signature[size:]))
    try:
        key.verify(encode_dss_signature(r, s), message.to_be_signed, scheme)
    except InvalidSignature:
        raise EvidenceError(f"the signature of {what} does not verify") from None
