"""ECDSA over P-256 with SHA-256, with one valid encoding per signature, for the signer and the verifier alike.

Of each ECDSA signature (r, s) there is a twin (r, n - s) that anybody can make. Only the one with the lower s counts
here, so evidence can't be changed at all without its key: no second form of the same evidence passes as new.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from adyton.errors import EvidenceError

P256_ORDER: Final = 0xFFFFFFFF_00000000_FFFFFFFF_FFFFFFFF_BCE6FAAD_A7179E84_F3B9CAC2_FC632551
"""n of NIST SP 800-186, section 3.2.1.3."""


def sign_low_s(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """A DER signature (at most 71 bytes) whose s is in the lower half. The key must be of P-256."""
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    return encode_dss_signature(r, min(s, P256_ORDER - s))


def verify_low_s(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> None:
    """Raise `EvidenceError` unless that is the canonical DER form of a valid signature. The key must be of P-256."""
    try:
        key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        _, s = decode_dss_signature(signature)
    except (InvalidSignature, ValueError):
        raise EvidenceError("the signature of the simulated evidence does not verify") from None
    if s > P256_ORDER // 2:
        raise EvidenceError("the signature of the simulated evidence is not in its canonical form (high s)")
