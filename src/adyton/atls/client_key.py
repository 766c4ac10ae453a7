"""The client's key for one connection."""

from __future__ import annotations

import grpc
from cryptography.hazmat.primitives.asymmetric import ec

from adyton.atls.certificates import issue_open_client, key_pem, pem, spki_sha256
from adyton.errors import EvidenceError


class ConnectionKey:
    """A fresh P-256 key and its certificate under the open client CA. What has this key is one connection.

    gRPC gets the key itself, and is held to one dial (`one_dial`), so it signs one handshake. gRPC's interface for keys
    that sign in Python would say so by itself, but it calls Python while it holds locks of its core, and closing a
    channel at that moment stops the whole interpreter.
    """

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.spki_sha256 = spki_sha256(self._key.public_key())

    def credentials(self, root_pem: bytes) -> grpc.ChannelCredentials:
        """What gRPC connects with, to the server under that root and no other."""
        if not root_pem.strip():
            raise EvidenceError("no root to connect under")  # gRPC would take the system's
        return grpc.ssl_channel_credentials(
            root_certificates=root_pem,
            private_key=key_pem(self._key),
            certificate_chain=pem(issue_open_client(self._key)),
        )
