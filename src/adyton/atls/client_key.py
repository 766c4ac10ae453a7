"""The client's key for one connection: it signs one TLS 1.3 handshake and nothing else, ever."""

from __future__ import annotations

import inspect
import threading
from typing import Any, Final

import grpc
import grpc.experimental
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from adyton.atls.certificates import issue_open_client, pem, spki_sha256
from adyton.errors import EvidenceError

_CONTEXT: Final = b"\x20" * 64 + b"TLS 1.3, client CertificateVerify\x00"
"""What a client signs begins so (RFC 8446, section 4.4.3); a hash of the handshake follows."""
_HASH_BYTES: Final = (32, 48)

# The function without the decorator that warns of an experimental interface at its first use.
_credentials: Any = inspect.unwrap(grpc.experimental.ssl_channel_credentials_with_custom_signer)
_ALGORITHM: Final = grpc.experimental.PrivateKeySignatureAlgorithm.ECDSA_SECP256R1_SHA256


class OneShotKey:
    """A fresh P-256 key. A second handshake fails, so whatever has this key is one connection."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._guard = threading.Lock()
        self._used = False
        self.spki_sha256 = spki_sha256(self._key.public_key())

    def sign(self, message: bytes, algorithm: object, _on_complete: object) -> bytes:
        """gRPC's signing callback. Raises, which fails the handshake, at a second use or for another kind of message.

        Called in a thread of gRPC's core.
        """
        hashed = message.removeprefix(_CONTEXT)
        if algorithm != _ALGORITHM or len(message) - len(hashed) != len(_CONTEXT) or len(hashed) not in _HASH_BYTES:
            raise EvidenceError("a client's key signs a TLS 1.3 handshake and nothing else")
        with self._guard:
            if self._used:
                raise EvidenceError("a client's key signs one handshake; the connection is over")
            self._used = True
        return self._key.sign(message, ec.ECDSA(hashes.SHA256()))

    def credentials(self, root_pem: bytes) -> grpc.ChannelCredentials:
        """What gRPC takes to connect once, to the server under that root and no other."""
        if not root_pem.strip():
            raise EvidenceError("no root to connect under")  # gRPC would take the system's
        made: grpc.ChannelCredentials = _credentials(
            private_key_sign_fn=self.sign,
            root_certificates=root_pem,
            certificate_chain=pem(issue_open_client(self._key)),
        )
        return made
