"""What a KMS has: keys and who gets them, ciphertexts, and the envelopes that it sends to enclaves."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.padding import PKCS7

from adyton.enclave.key_sources import _cms


class KmsError(Exception):
    """An answer that is none, by KMS' name."""


@dataclass(slots=True, kw_only=True)
class KmsKey:
    """A key, and the PCR0s that its policy allows. `error`: what every call with it fails with, if anything."""

    arn: str
    allowed: Collection[bytes]
    error: str = ""
    secret: bytes = field(default_factory=lambda: os.urandom(32), repr=False)

    def encrypt(self, plaintext: bytes, context: bytes) -> bytes:
        """A CiphertextBlob: which key, nonce, ciphertext."""
        nonce = os.urandom(12)
        return self.label + nonce + AESGCM(self.secret).encrypt(nonce, plaintext, context)

    def decrypt(self, blob: bytes, context: bytes) -> bytes:
        """What `encrypt` encrypted. `KmsError` for anything else."""
        label, nonce, ciphertext = blob[:32], blob[32:44], blob[44:]
        if label != self.label:
            raise KmsError("IncorrectKeyException")
        try:
            return AESGCM(self.secret).decrypt(nonce, ciphertext, context)
        except (InvalidTag, ValueError):
            raise KmsError("InvalidCiphertextException") from None

    @property
    def label(self) -> bytes:
        """What says in a blob which key it is."""
        return hashlib.sha256(self.arn.encode()).digest()


def enveloped(recipient: RSAPublicKey, content: bytes, *, in_pieces: bool = True) -> bytes:
    """CMS as KMS makes it: indefinite lengths outside, definite ones within; the content in pieces or whole."""
    key, iv, padder = os.urandom(32), os.urandom(16), PKCS7(128).padder()
    encryptor = Cipher(AES256(key), CBC(iv)).encryptor()
    ciphertext = encryptor.update(padder.update(content) + padder.finalize()) + encryptor.finalize()
    piece = _element(_cms.OCTET_STRING, ciphertext)
    version = _element(_cms.INTEGER, b"\x02")
    recipient_info = _element(
        _cms.SEQUENCE,
        version,
        _element(_cms.IMPLICIT_0, os.urandom(32)),
        _element(_cms.SEQUENCE, _cms.RSAES_OAEP_SHA256),
        _element(_cms.OCTET_STRING, recipient.encrypt(key, _cms.OAEP_SHA256)),
    )
    cipher = _element(_cms.OBJECT_IDENTIFIER, _cms.AES_256_CBC), _element(_cms.OCTET_STRING, iv)
    encrypted = _unmeasured(
        _cms.SEQUENCE,
        _element(_cms.OBJECT_IDENTIFIER, _cms.DATA),
        _element(_cms.SEQUENCE, *cipher),
        _unmeasured(_cms.CONSTRUCTED_0, piece) if in_pieces else _element(_cms.IMPLICIT_0, ciphertext),
    )
    data = _unmeasured(_cms.SEQUENCE, version, _element(_cms.SET, recipient_info), encrypted)
    kind = _element(_cms.OBJECT_IDENTIFIER, _cms.ENVELOPED_DATA)
    return _unmeasured(_cms.SEQUENCE, kind, _unmeasured(_cms.CONSTRUCTED_0, data))


def _element(tag: int, *content: bytes) -> bytes:
    data = b"".join(content)
    length = bytes([len(data)]) if len(data) < 0x80 else b"\x82" + len(data).to_bytes(2)
    return bytes([tag]) + length + data


def _unmeasured(tag: int, *content: bytes) -> bytes:
    return bytes([tag, 0x80]) + b"".join(content) + b"\0\0"
