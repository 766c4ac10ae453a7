"""Signed code, as an SGX SIGSTRUCT says it: this measurement is that product's version N, says the holder of a key.

JSON of at most 512 KiB:

    {"product": "translator", "version": 2, "signer": "<SPKI DER>", "measurement": "<48 bytes>", "signature": "<DER>"}

with bytes in hexadecimal, and perhaps more keys, which are others' business, such as approvals for TPMs. The signature
is ECDSA over P-256 with SHA-256, of `signature_input`. Who the signer is means nothing by itself: sealed data is bound
to the digest of its key.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from adyton.errors import ConfigurationError
from adyton.tee.sealing import MAX_SUBJECT_BYTES, MAX_VERSION
from adyton.tee.simulated.format import MEASUREMENT_BYTES

MAX_SIGNED_CODE_BYTES: Final = 512 * 1024
_DOMAIN: Final = b"adyton signed code v1\0"
_ALGORITHM: Final = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedCode:
    """What a signature was verified for. `signer` is the SHA-256 of the key's SPKI DER."""

    signer: bytes
    product: str
    version: int
    measurement: bytes


def sign_code(key: ec.EllipticCurvePrivateKey, *, product: str, version: int, measurement: bytes) -> dict[str, Any]:
    """The JSON object. `ValueError` for a key that is not of P-256, or what is out of bounds."""
    if key.curve.name != "secp256r1":
        raise ValueError("code is signed with a key of P-256")
    signer = _spki(key.public_key())
    code = SignedCode(signer=hashlib.sha256(signer).digest(), product=product, version=version, measurement=measurement)
    return {
        "product": product,
        "version": version,
        "signer": signer.hex(),
        "measurement": measurement.hex(),
        "signature": key.sign(signature_input(code), _ALGORITHM).hex(),
    }


def signature_input(code: SignedCode) -> bytes:
    """What is signed: domain, version, and the product's length before it, then the measurement."""
    product = code.product.encode()
    if not 0 < len(product) <= MAX_SUBJECT_BYTES or not 0 < code.version <= MAX_VERSION:
        raise ValueError(f"a product has 1 to {MAX_SUBJECT_BYTES} bytes, a version is 1 to {MAX_VERSION}")
    if len(code.measurement) != MEASUREMENT_BYTES:
        raise ValueError(f"a measurement has {MEASUREMENT_BYTES} bytes")
    return _DOMAIN + struct.pack(">IB", code.version, len(product)) + product + code.measurement


def verify_signed_code(data: bytes) -> SignedCode:
    """What stands in the bytes of the file, the signature verified. `ConfigurationError` if it is none."""
    if len(data) > MAX_SIGNED_CODE_BYTES:
        raise ConfigurationError(f"a signature has {MAX_SIGNED_CODE_BYTES} bytes at most")
    try:
        return _verify(json.loads(data))
    except InvalidSignature:
        raise ConfigurationError("the signature of the code is not its signer's", mend="sign it again") from None
    except (KeyError, TypeError, ValueError, RecursionError, UnsupportedAlgorithm) as problem:
        raise ConfigurationError("this is no signature of code", mend="make one: adyton sign") from problem


def _verify(fields: dict[str, Any]) -> SignedCode:
    signer = bytes.fromhex(fields["signer"])
    key = serialization.load_der_public_key(signer)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TypeError("not a key of P-256")
    if type(fields["version"]) is not int or not isinstance(fields["product"], str) or _spki(key) != signer:
        raise TypeError("a field of another type")
    code = SignedCode(
        signer=hashlib.sha256(signer).digest(),
        product=fields["product"],
        version=fields["version"],
        measurement=bytes.fromhex(fields["measurement"]),
    )
    key.verify(bytes.fromhex(fields["signature"]), signature_input(code), _ALGORITHM)
    return code


def _spki(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
