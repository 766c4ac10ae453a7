"""CMS EnvelopedData (RFC 5652, section 6) as AWS KMS makes it: bytes and the recipient's private key → the content.

    ContentInfo          envelopedData
      EnvelopedData      version 2, of one recipient
        KeyTransRecipientInfo   version 2, a subjectKeyIdentifier, RSAES-OAEP with SHA-256 twice, the encrypted key
        EncryptedContentInfo    data, AES-256-CBC with its IV, the content: whole, or in pieces

BER: lengths may be indefinite, and KMS' are. Everything else that CMS allows is refused: `cryptography` opens CMS too,
but knows neither OAEP nor indefinite lengths. What is not authenticated here is who made it: anyone can encrypt to a
public key.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.padding import PKCS7

MAX_ENVELOPE_BYTES: Final = 6144
"""As much as KMS says that it sends (CiphertextForRecipient)."""
OAEP_SHA256: Final = OAEP(mgf=MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)

INTEGER: Final = 0x02
OCTET_STRING: Final = 0x04
OBJECT_IDENTIFIER: Final = 0x06
SEQUENCE: Final = 0x30
SET: Final = 0x31
IMPLICIT_0: Final = 0x80
CONSTRUCTED_0: Final = 0xA0

ENVELOPED_DATA: Final = bytes.fromhex("2a864886f70d010703")
DATA: Final = bytes.fromhex("2a864886f70d010701")
AES_256_CBC: Final = bytes.fromhex("60864801650304012a")
RSAES_OAEP_SHA256: Final = bytes.fromhex(
    "06092a864886f70d010107302fa00f300d06096086480165030402010500"
    "a11c301a06092a864886f70d010108300d06096086480165030402010500"
)
"""The AlgorithmIdentifier's content, with NULL parameters of the hashes, as KMS sends it."""
_WITHOUT_NULLS: Final = bytes.fromhex(
    "06092a864886f70d010107302ba00d300b0609608648016503040201a11a301806092a864886f70d010108300b0609608648016503040201"
)
"""The same in RFC 4055's other spelling, which is OpenSSL's."""
_VERSION_2: Final = b"\x02"
_INDEFINITE: Final = 0x80
_END_OF_CONTENTS: Final = b"\0\0"


def open_envelope(envelope: bytes, key: RSAPrivateKey) -> bytes:
    """The content that was encrypted to this key. `ValueError` for whatever is no such envelope, or another's."""
    if len(envelope) > MAX_ENVELOPE_BYTES:
        raise ValueError(f"an envelope of {len(envelope)} bytes; {MAX_ENVELOPE_BYTES} are allowed")
    reader = _Reader(envelope)
    with reader.inside(SEQUENCE):
        reader.expect(OBJECT_IDENTIFIER, ENVELOPED_DATA)
        with reader.inside(CONSTRUCTED_0), reader.inside(SEQUENCE):
            reader.expect(INTEGER, _VERSION_2)
            encrypted_key = _recipient(reader)
            iv, ciphertext = _encrypted_content(reader)
    reader.end()
    try:
        return _decrypt(key.decrypt(encrypted_key, OAEP_SHA256), iv, ciphertext)
    except ValueError:
        # One error for the key, the padding and the rest, without its cause: whoever sees it learns nothing from it.
        raise ValueError("it does not open with this key") from None


def _recipient(reader: _Reader) -> bytes:
    """The encrypted key of the one KeyTransRecipientInfo. Which key it names does not matter: it opens, or does not."""
    with reader.inside(SET), reader.inside(SEQUENCE):
        reader.expect(INTEGER, _VERSION_2)
        reader.take(IMPLICIT_0)
        if reader.take(SEQUENCE) not in (RSAES_OAEP_SHA256, _WITHOUT_NULLS):
            raise ValueError("the key is not encrypted with RSAES-OAEP and SHA-256")
        return reader.take(OCTET_STRING)


def _encrypted_content(reader: _Reader) -> tuple[bytes, bytes]:
    """The IV and the ciphertext."""
    with reader.inside(SEQUENCE):
        reader.expect(OBJECT_IDENTIFIER, DATA)
        with reader.inside(SEQUENCE):
            reader.expect(OBJECT_IDENTIFIER, AES_256_CBC)
            iv = reader.take(OCTET_STRING)
        if reader.next_is(IMPLICIT_0):
            return iv, reader.take(IMPLICIT_0)
        pieces = []
        with reader.inside(CONSTRUCTED_0):
            while reader.next_is(OCTET_STRING):
                pieces.append(reader.take(OCTET_STRING))
        return iv, b"".join(pieces)


def _decrypt(key: bytes, iv: bytes, ciphertext: bytes) -> bytes:
    decryptor = Cipher(AES256(key), CBC(iv)).decryptor()
    unpadder = PKCS7(AES256.block_size).unpadder()
    padded = decryptor.update(ciphertext) + decryptor.finalize()
    return unpadder.update(padded) + unpadder.finalize()


class _Reader:
    """A cursor over BER that is told what must come next."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0
        self._end = len(data)

    def next_is(self, tag: int) -> bool:
        """Whether an element of that tag comes next."""
        return self._position < self._end and self._data[self._position] == tag

    @contextmanager
    def inside(self, tag: int) -> Iterator[None]:
        """The body reads all that is in the constructed element which comes next."""
        length = self._header(tag)
        outer = self._end
        if length is not None:
            self._end = self._position + length
        yield
        if length is None:
            if self._bytes(len(_END_OF_CONTENTS)) != _END_OF_CONTENTS:
                raise ValueError(f"more than there should be in the element {tag:#04x}")
        else:
            self.end()
        self._end = outer

    def take(self, tag: int) -> bytes:
        """The content of the element that comes next, which must have a length."""
        length = self._header(tag)
        if length is None:
            raise ValueError(f"the element {tag:#04x} has no length")
        return self._bytes(length)

    def expect(self, tag: int, content: bytes) -> None:
        """That element, and no other."""
        if self.take(tag) != content:
            raise ValueError(f"the element {tag:#04x} before {self._position} is not what KMS sends")

    def end(self) -> None:
        """Nothing more comes."""
        if self._position != self._end:
            raise ValueError(f"{self._end - self._position} bytes more than there should be")

    def _header(self, tag: int) -> int | None:
        """The length of the element that must come next; None: indefinite."""
        if self._bytes(1)[0] != tag:
            raise ValueError(f"no element {tag:#04x} before {self._position}")
        first = self._bytes(1)[0]
        if first == _INDEFINITE:
            return None
        length = int.from_bytes(self._bytes(first - _INDEFINITE)) if first > _INDEFINITE else first
        if length > self._end - self._position:
            raise ValueError(f"the element {tag:#04x} goes on after what holds it")
        return length

    def _bytes(self, count: int) -> bytes:
        if count > self._end - self._position:
            raise ValueError(f"it ends after {self._position} bytes")
        self._position += count
        return self._data[self._position - count : self._position]
