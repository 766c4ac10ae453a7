"""adyton.Secrets, by which owners send secrets to the enclave: for both kinds of server.

It stands beside the Attestation service and is guarded by the owner's signature alone. Nothing of an order or of its
answer is logged but which kind it was, and no interceptor of the application's sees either.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol

import grpc
from cryptography import x509

from adyton.atls.attester import check_connection
from adyton.atls.certificates import open_client_ca
from adyton.atls.identity import RotatingIdentity
from adyton.atls.owner import METHOD, SERVICE, verify_order
from adyton.atls.rpc_threads import RpcThreads
from adyton.atls.servicer import connection_of
from adyton.errors import ApplicationError, StatusCode
from adyton.proto.secrets_pb2 import Order, OrderReply, SecretEntry
from adyton.sealing.secrets import SecretInfo

ORDER_THREADS: Final = 2
"""So many orders are carried out at once. Strangers may wait for each other."""
ORDER_WAITING: Final = 16
"""So many more may wait for that, on a server with threads."""

_log = logging.getLogger(__name__)


class SecretKeeper(Protocol):
    """Who keeps the secrets: the first process itself, or a server process's connection to it."""

    @property
    def durable(self) -> bool:
        """As KeptSecrets says."""

    def infos(self) -> list[SecretInfo]:
        """As KeptSecrets says."""

    def put(self, name: str, value: bytes, *, replace: bool) -> SecretInfo:
        """As KeptSecrets says."""


class SecretsService:
    """Carries out orders of `owners`, which are ids of keys. `keeper` is asked for only when there is an order."""

    def __init__(
        self, *, owners: Collection[str], identity: RotatingIdentity, keeper: Callable[[], SecretKeeper]
    ) -> None:
        self._owners = frozenset(owners)
        self._identity = identity
        self._keeper = keeper

    def handler(self) -> grpc.GenericRpcHandler:
        """The service for grpc.server(). It has threads of its own, as the Attestation service has."""

        def order(request: bytes, context: Any) -> bytes:
            return self.answer(request, attested_client(context))

        order.experimental_thread_pool = RpcThreads(ORDER_THREADS, "owner", ORDER_WAITING)  # type: ignore[attr-defined]
        return _handler(order)

    def aio_handler(self) -> grpc.GenericRpcHandler:
        """The service for grpc.aio.server(). Keeping a secret waits for a disk, so it is done in threads too."""
        pool = ThreadPoolExecutor(ORDER_THREADS, "owner")

        async def order(request: bytes, context: Any) -> bytes:
            client_sha256 = attested_client(context)
            return await asyncio.get_running_loop().run_in_executor(pool, self.answer, request, client_sha256)

        return _handler(order)

    def answer(self, request: bytes, client_sha256: bytes) -> bytes:
        """The encoded OrderReply to a SignedOrder that came on a connection of that client key. May block.

        Raises ApplicationError as `verify_order`, and what keeping a secret or a CA raises.
        """
        order = verify_order(
            request,
            owners=self._owners,
            is_own_leaf=lambda digest: self._identity.current().find(digest) is not None,
            client_sha256=client_sha256,
        )
        reply = self._carry_out(order)
        _log.info("an owner's order was carried out", extra={"order": order.WhichOneof("call")})
        return reply.SerializeToString()

    def _carry_out(self, order: Order) -> OrderReply:
        match order.WhichOneof("call"):
            case "put":
                keeper = self._keeper()
                info = keeper.put(order.put.name, order.put.value, replace=order.put.replace)
                return OrderReply(secrets=[_entry(info)], durable=keeper.durable)
            case "list":
                keeper = self._keeper()
                return OrderReply(secrets=map(_entry, keeper.infos()), durable=keeper.durable)
            case "rotate_identity":
                return OrderReply(ca=self._identity.rotate().ca.der)
            case _:
                raise ApplicationError(StatusCode.INVALID_ARGUMENT, "this enclave does not know that order")


def attested_client(context: Any) -> bytes:
    """What names the client's key of the connection that a call came on; FAILED_PRECONDITION on another port.

    The mesh port has client keys too, but not of one connection each. There the certificate is under another CA, as TLS
    has verified.
    """
    connection = connection_of(context)
    check_connection(connection)
    if connection.client_sha256:
        (certificate,) = context.auth_context()["x509_pem_cert"]
        if x509.load_pem_x509_certificate(certificate).issuer == open_client_ca().certificate.subject:
            return connection.client_sha256
    raise ApplicationError(StatusCode.FAILED_PRECONDITION, "owners' orders are taken on the attested port only")


def _entry(info: SecretInfo) -> SecretEntry:
    return SecretEntry(name=info.name, version=info.version, changed_at=info.changed_at)


def _handler(order: Callable[[bytes, Any], Any]) -> grpc.GenericRpcHandler:
    handlers: dict[str, Any] = {METHOD: grpc.unary_unary_rpc_method_handler(order)}
    return grpc.method_handlers_generic_handler(SERVICE, handlers)
