"""gRPC's credentials of an enclave's ports, whose certificates are renewed while the server runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final

import grpc

from adyton.atls.certificates import key_pem, open_client_ca, pem
from adyton.atls.identity import Identity, IdentitySource, chain_pem

MIN_SWAP_SECONDS: Final = 1.0
"""gRPC's core (grpc/grpc#36693) crashes if certificates are swapped at every handshake; so seldom, it does not."""

Roots = Callable[[Identity], bytes]


class _Fetcher:
    """Tells gRPC at each new connection whether the certificates have changed: almost always None, they have not."""

    def __init__(self, source: IdentitySource, roots: Roots | None) -> None:
        self._source = source
        self._roots = roots
        self._guard = threading.Lock()
        self._shown = source.current()
        self._swapped_at = time.monotonic()

    def configuration(self, identity: Identity) -> grpc.ServerCertificateConfiguration:
        pair = (key_pem(identity.leaf.key), chain_pem(identity))
        return grpc.ssl_server_certificate_configuration([pair], self._roots(identity) if self._roots else None)

    def first(self) -> grpc.ServerCertificateConfiguration:
        return self.configuration(self._shown)

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        with self._guard:
            if time.monotonic() - self._swapped_at < MIN_SWAP_SECONDS:
                return None
            identity = self._source.current()
            if identity is self._shown or identity.leaf.spki_sha256 == self._shown.leaf.spki_sha256:
                return None
            self._shown, self._swapped_at = identity, time.monotonic()
            return self.configuration(identity)


def attested_port(source: IdentitySource) -> grpc.ServerCredentials:
    """For the port of ATLS: every client shows a certificate under the open client CA, which says nothing of who it is.

    Never add a root: the core would take certificates of one root's leaves for those of the other.
    """
    return _credentials(source, lambda _identity: pem(open_client_ca().certificate))


def mesh_port(source: IdentitySource) -> grpc.ServerCredentials:
    """For enrolled callers only: clients show a certificate of the enclave's own CA."""
    return _credentials(source, lambda identity: pem(identity.ca.certificate))


def plain_tls_port(source: IdentitySource) -> grpc.ServerCredentials:
    """For clients that have the enclave's CA from elsewhere. They show no certificate; binding level `key`."""
    return _credentials(source, None)


def _credentials(source: IdentitySource, roots: Roots | None) -> grpc.ServerCredentials:
    fetcher = _Fetcher(source, roots)
    make: Any = grpc.dynamic_ssl_server_credentials  # its types don't know that a fetcher may answer None
    credentials: grpc.ServerCredentials = make(
        fetcher.first(), fetcher, require_client_authentication=roots is not None
    )
    return credentials
