"""The ports of an enclave's server: which there are, how each is secured, by which extensions a host asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc

from adyton.atls.identity import IdentitySource
from adyton.atls.server_credentials import attested_port, mesh_port, plain_tls_port
from adyton.bundle.settings import ServerSettings
from adyton.proto import grpc_application_pb2 as extensions


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """One kind of port. `asked` is the extension of EnclaveConfig, `answered` that of EnclaveOutput."""

    name: str
    credentials: Callable[[IdentitySource], grpc.ServerCredentials]
    is_open: Callable[[ServerSettings], bool]
    asked: Any
    answered: Any


ATTESTED: Final = Port(
    name="attested",
    credentials=attested_port,
    is_open=lambda _settings: True,
    asked=extensions.port,
    answered=extensions.actual_server_port,
)
PLAIN_TLS: Final = Port(
    name="plain_tls",
    credentials=plain_tls_port,
    is_open=lambda settings: settings.plain_tls,
    asked=extensions.plain_tls_port,
    answered=extensions.actual_plain_tls_port,
)
MESH: Final = Port(
    name="mesh",
    credentials=mesh_port,
    is_open=lambda settings: settings.mesh,
    asked=extensions.mesh_port,
    answered=extensions.actual_mesh_port,
)
PORTS: Final = (ATTESTED, PLAIN_TLS, MESH)

Numbers = Mapping[str, int]
"""Port numbers by the name of the port."""


def open_ports(settings: ServerSettings) -> tuple[Port, ...]:
    """The ports that enclave.toml opens."""
    return tuple(port for port in PORTS if port.is_open(settings))
