"""Ordinary channels to the mesh port of a server, for a caller that has enrolled there.

The server was attested, and its CA with it, so plain mutual TLS is enough from then on: no further attestation for each
connection, and any gRPC channel, with its retries and its load balancing.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Unpack

import grpc

from adyton.atls.certificates import DEFAULT_AUDIENCE, key_pem, pem
from adyton.atls.connect import ConnectOptions, PolicySource, connector
from adyton.atls.connector import WITHOUT_PROXY, BlockingConnector, Options, check_options
from adyton.atls.dial import Target
from adyton.atls.sessions import OPEN_SECONDS
from adyton.errors import ConfigurationError, UnsupportedError

if TYPE_CHECKING:
    from adyton.atls.connector import Connector
    from adyton.atls.enrolling import Enrolment


def join(
    target: str, policy: PolicySource, *, timeout: float = OPEN_SECONDS, **options: Unpack[ConnectOptions]
) -> Membership:
    """Attest the enclave at `target` by `policy` and enrol there with `identity`. Arguments and errors as `connect`."""
    membership = Membership(connector(target, policy, **options))
    membership.renew(timeout)
    return membership


class Membership:
    """A caller's enrolment with one server, and the certificate that it has from it. Safe in threads."""

    def __init__(self, connector: Connector) -> None:
        if connector.caller is None:
            raise ConfigurationError("who joins must attest itself", mend="identity=self.context.identity(role=…)")
        self._connector = connector
        self._guard = threading.Lock()
        self._enrolment: Enrolment | None = None
        self._renew_at = 0.0

    def renew(self, timeout: float = OPEN_SECONDS) -> None:
        """Attest the server and enrol again, on a connection of its own, for a new key and certificate."""
        with self._guard:
            self._renew(timeout)

    def channel(
        self, target: str | None = None, *, timeout: float = OPEN_SECONDS, options: Options = ()
    ) -> grpc.Channel:
        """A gRPC channel to the mesh port, at the host that was attested unless `target` names another of its replicas.

        Renews first where half of the certificate's time is over; `timeout` is for that. A channel keeps its
        certificate: an hour later its calls have no identity any more, and it can't connect again. Make a new one
        before.
        """
        with self._guard:
            if self._enrolment is None or time.monotonic() >= self._renew_at:
                self._renew(timeout)
            enrolment = self._enrolment
        assert enrolment is not None
        credentials = grpc.ssl_channel_credentials(
            pem(enrolment.ca), key_pem(enrolment.key), pem(enrolment.certificate)
        )
        check_options(options)
        own = [("grpc.ssl_target_name_override", DEFAULT_AUDIENCE), *WITHOUT_PROXY]
        made: grpc.Channel = grpc.secure_channel(
            target or self._mesh_target(enrolment.mesh_port), credentials, [*options, *own]
        )
        return made

    def _renew(self, timeout: float) -> None:
        enrolment = BlockingConnector(self._connector).join(timeout)
        self._enrolment = enrolment
        self._renew_at = time.monotonic() + enrolment.renew_after_seconds

    def _mesh_target(self, port: int) -> str:
        attested: Target = self._connector.target
        if not port or attested.path:
            raise UnsupportedError(
                f"{attested.text} has no mesh port", mend="its enclave.toml needs server.mesh = true"
            )
        return f"[{attested.host}]:{port}" if ":" in attested.host else f"{attested.host}:{port}"
