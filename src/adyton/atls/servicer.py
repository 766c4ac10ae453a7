"""The Attestation service as gRPC serves it, for both kinds of server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc

from adyton.atls.attester import Attester, Connection
from adyton.atls.failures import GRPC_CODES
from adyton.atls.peer import client_spki_sha256
from adyton.atls.rpc_threads import RpcThreads
from adyton.errors import AdytonError, ApplicationError, DeadlineError, StatusCode

if TYPE_CHECKING:
    from adyton.atls.registrar import Registrar

SERVICE: Final = "adyton.atls.Attestation"
QUOTE_SECONDS: Final = 60.0
MAX_THREADS: Final = 256
"""How many clients of one process may wait for a quote at once, on a server with threads; as many wait for them."""
ENROL_THREADS: Final = 4
"""Callers' evidence is verified by so many at once."""
ENROL_WAITING: Final = 64
"""So many more may wait for that, on a server with threads."""


def connection_of(context: Any) -> Connection:
    """What TLS says of the connection that a call came on. FAILED_PRECONDITION for a client key that is not P-256."""
    facts = context.auth_context()
    key = client_spki_sha256(context)
    if key is None and facts.get("x509_pem_cert") and list(facts.get("ssl_session_reused", ())) == [b"false"]:
        raise ApplicationError(StatusCode.FAILED_PRECONDITION, "attestation needs a client key on P-256")

    def fact(name: str) -> str:
        values = facts.get(name)
        return values[0].decode("ascii", "replace") if values else ""

    return Connection(
        tls_version=fact("ssl_tls_version"),
        session_reused=fact("ssl_session_reused") != "false",
        server_name=fact("ssl_requested_server_name"),
        client_sha256=key or b"",
        address=context.peer().rpartition(":")[0],
    )


def attestation_handler(attester: Attester) -> grpc.GenericRpcHandler:
    """The service for grpc.server(). It has threads of its own: those of the application do not wait for quotes."""
    pool = RpcThreads(MAX_THREADS, "attest", waiting=MAX_THREADS)

    def attest(request: bytes, context: Any) -> bytes:
        try:
            pending = attester.begin(request, connection_of(context))
            return pending.finish(pending.quote.result(QUOTE_SECONDS))
        except TimeoutError:
            context.abort(*_status(DeadlineError("the hardware gave no evidence in time")))
        except AdytonError as problem:
            context.abort(*_status(problem))
        raise AssertionError  # abort does not return

    attest.experimental_thread_pool = pool  # type: ignore[attr-defined]
    steps = _enrolment(attester, RpcThreads(ENROL_THREADS, "enrol", ENROL_WAITING))
    return _handler({"Attest": attest} | {name: _blocking(step) for name, step in steps.items()})


def aio_attestation_handler(attester: Attester) -> grpc.GenericRpcHandler:
    """The service for grpc.aio.server()."""

    async def attest(request: bytes, context: Any) -> bytes:
        try:
            pending = attester.begin(request, connection_of(context))
            quote = await asyncio.wait_for(asyncio.wrap_future(pending.quote), QUOTE_SECONDS)
            return pending.finish(quote)
        except TimeoutError:
            await context.abort(*_status(DeadlineError("the hardware gave no evidence in time")))
        except AdytonError as problem:
            await context.abort(*_status(problem))
        raise AssertionError  # abort does not return

    steps = _enrolment(attester, ThreadPoolExecutor(ENROL_THREADS, "enrol"))
    return _handler({"Attest": attest} | {name: _coroutine(step) for name, step in steps.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """A step of enrolment, and the threads that take it: those of the application do not verify evidence."""

    take: Callable[[bytes, Connection], bytes]
    pool: ThreadPoolExecutor


def _enrolment(attester: Attester, pool: ThreadPoolExecutor) -> dict[str, _Step]:
    def registrar() -> Registrar:
        if attester.registrar is None:
            message = "this enclave enrols nobody: its enclave.toml has no access.policy"
            raise ApplicationError(StatusCode.FAILED_PRECONDITION, message)
        return attester.registrar

    return {
        "Challenge": _Step(take=lambda request, connection: registrar().challenge(request, connection), pool=pool),
        "Enrol": _Step(take=lambda request, connection: registrar().enrol(request, connection), pool=pool),
    }


def _blocking(step: _Step) -> Callable[[bytes, Any], bytes]:
    def serve(request: bytes, context: Any) -> bytes:
        try:
            return step.take(request, connection_of(context))
        except AdytonError as problem:
            context.abort(*_status(problem))
        raise AssertionError  # abort does not return

    serve.experimental_thread_pool = step.pool  # type: ignore[attr-defined]
    return serve


def _coroutine(step: _Step) -> Callable[[bytes, Any], Any]:
    async def serve(request: bytes, context: Any) -> bytes:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(step.pool, step.take, request, connection_of(context))
        except AdytonError as problem:
            await context.abort(*_status(problem))
        raise AssertionError  # abort does not return

    return serve


def _handler(methods: dict[str, Callable[[bytes, Any], Any]]) -> grpc.GenericRpcHandler:
    handlers: dict[str, Any] = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
    return grpc.method_handlers_generic_handler(SERVICE, handlers)


def _status(problem: AdytonError) -> tuple[grpc.StatusCode, str]:
    return GRPC_CODES[problem.status], problem.message
