"""One gRPC server of one process: built, started and stopped, in gRPC's two kinds."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import threading
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from adyton.atls.attester import Attester
from adyton.atls.peer import MEMBERS
from adyton.atls.rpc_threads import RpcThreads
from adyton.atls.servicer import SERVICE, aio_attestation_handler, attestation_handler
from adyton.bundle.settings import ServerSettings, Settings
from adyton.enclave.access import access_interceptors, aio_access_interceptors, check_methods
from adyton.enclave.aio_server import aio_server
from adyton.enclave.application_interceptors import aio_for_application, for_application
from adyton.enclave.health import MAX_WATCHES, SERVICE_NAME, AioHealth, Health
from adyton.enclave.interceptors import AioGuardInterceptor, GuardInterceptor
from adyton.enclave.logs import log_uncaught
from adyton.enclave.ports import MESH, Numbers, open_ports
from adyton.enclave.reading import AioReading, Reading
from adyton.enclave.registration import Around, Services, ThreadsApart
from adyton.errors import ApplicationError, StatusCode

if TYPE_CHECKING:
    from adyton.enclave.secrets_service import SecretsService

T = TypeVar("T")
START_SECONDS = 30.0
REFLECTION_THREADS = 4
#: Calls that may wait for one of these.
REFLECTION_WAITING = 64
#: What a server gets beyond the grace to end: less than the 30 s that a host gives to the end of an enclave.
STOP_SECONDS = 10.0
#: The same for one on an event loop, which handlers can block.
BLOCKED_SECONDS = 2.0

_log = logging.getLogger(__name__)


class Serving(Protocol):
    """A started server."""

    ports: Numbers

    def stop(self, grace_seconds: float) -> None:
        """Refuse new RPCs at once, give those in flight `grace_seconds`, and return when they are over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Where a server listens, port by port; `shared`: with the other servers of this enclave."""

    address: str
    ports: Numbers
    shared: bool


def bind_address(address: str, port: int) -> str:
    """`address` and `port` as gRPC writes them."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def probe_bind(address: str, port: int, *, shared: bool = False) -> socket.socket:
    """A socket bound there, not listening: a reservation of the port. Raises OSError with the reason."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    probe = socket.socket(family, socket.SOCK_STREAM)
    try:
        if shared:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        probe.bind((address, port))
    except OSError:
        probe.close()
        raise
    return probe


def cannot_bind(address: str, port: int) -> ApplicationError:
    """INTERNAL, with the reason that gRPC keeps to itself."""
    try:
        probe_bind(address, port).close()
        reason = os.strerror(errno.EADDRINUSE)
    except OSError as problem:
        reason = problem.strerror or str(problem)
    return ApplicationError(
        StatusCode.INTERNAL, f"Failed to start server: can't listen on {bind_address(address, port)}: {reason}"
    )


def server_options(limits: ServerSettings, listen: Listen) -> list[tuple[str, int]]:
    """gRPC's channel arguments for enclave.toml's [server]."""
    return [
        ("grpc.so_reuseport", int(listen.shared)),
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", limits.max_message_bytes),
        ("grpc.max_concurrent_streams", limits.max_concurrent_streams),
        ("grpc.max_connection_idle_ms", limits.max_connection_idle_ms),
        ("grpc.server_handshake_timeout_ms", limits.handshake_timeout_ms),
        ("grpc.keepalive_time_ms", limits.keepalive_time_ms),
        ("grpc.keepalive_timeout_ms", limits.keepalive_timeout_ms),
        ("grpc.http2.min_ping_interval_without_data_ms", limits.min_ping_interval_ms),
    ]


def _collect(
    add_servicers: Callable[[Any], None], settings: Settings, servicer: Health | AioHealth, reflecting: Any
) -> Services:
    """The application's services, and the standard ones beside them."""
    services = Services()
    add_servicers(services)
    services.of_application = tuple(services.names())
    names = [*services.of_application, SERVICE]
    if settings.server.health:
        servicer.serves(services.of_application)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, services)
        names.append(SERVICE_NAME)
    if settings.server.reflection:
        names.append(reflection.SERVICE_NAME)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflecting(names), services)
    check_methods(settings.access, names, dict(services.methods))
    return services


def _most_watches(limits: ServerSettings) -> int:
    return min(MAX_WATCHES, limits.max_concurrent_rpcs // 2)


def _listen(server: Any, limits: ServerSettings, listen: Listen, attester: Attester) -> Numbers:
    bound = {}
    for port in open_ports(limits):
        number = listen.ports[port.name]
        credentials = port.credentials(attester.identity)
        try:
            bound[port.name] = server.add_secure_port(bind_address(listen.address, number), credentials)
        except RuntimeError as problem:
            raise cannot_bind(listen.address, number) from problem
    if attester.registrar is not None:
        attester.registrar.mesh_port = bound.get(MESH.name, 0)
    if MESH.name in bound:
        MEMBERS.trust(attester.identity)
    return bound


class ThreadedServing:
    """grpc.server(): a pool of threads. The faster kind for short unary RPCs."""

    def __init__(
        self,
        settings: Settings,
        add_servicers: Callable[[grpc.Server], None],
        interceptors: Iterable[Any],
        listen: Listen,
        attester: Attester,
        secrets: SecretsService | None = None,
    ) -> None:
        limits = settings.server
        self._health = Health(_most_watches(limits))
        services = _collect(add_servicers, settings, self._health, reflection.ReflectionServicer)
        services.refuse_coroutines()
        services.add_generic_rpc_handlers((attestation_handler(attester),))
        if secrets is not None:
            services.add_generic_rpc_handlers((secrets.handler(),))
        guards = [
            GuardInterceptor(settings.logging, limits.max_rpc_ms),
            *access_interceptors(settings.access),
            ThreadsApart(reflection.SERVICE_NAME, REFLECTION_THREADS, REFLECTION_WAITING),
            Reading(limits.request_timeout_ms),
        ]
        around = Around(guards, for_application(interceptors))
        self._server = grpc.server(
            RpcThreads(limits.threads, "rpc"),
            interceptors=around.interceptors,
            options=server_options(limits, listen),
            maximum_concurrent_rpcs=limits.max_concurrent_rpcs,
        )
        services.add_to(self._server, around)
        self.ports = _listen(self._server, limits, listen, attester)
        self._server.start()

    def stop(self, grace_seconds: float) -> None:
        """As Serving says. A handler that ignores the end of its RPC is not waited for."""
        self._health.end()
        if not self._server.stop(grace_seconds).wait(grace_seconds + STOP_SECONDS):
            _log.warning("the server does not end; it is not waited for")


class AioServing:
    """grpc.aio.server(), on an event loop in a thread of its own. The better kind for streams and for waiting."""

    def __init__(
        self,
        settings: Settings,
        add_servicers: Callable[[grpc.aio.Server], None],
        interceptors: Iterable[Any],
        listen: Listen,
        attester: Attester,
        secrets: SecretsService | None = None,
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(self._log_uncaught)
        self._messages = settings.logging.exception_messages
        threading.Thread(target=self._keep_running, name="rpc-loop", daemon=True).start()
        self._health = AioHealth(_most_watches(settings.server))
        self._server: Any = None
        self.ports: Numbers = {}

        async def start() -> None:
            limits = settings.server
            services = _collect(add_servicers, settings, self._health, reflection.aio.ReflectionServicer)
            services.refuse_what_blocks()
            services.add_generic_rpc_handlers((aio_attestation_handler(attester),))
            if secrets is not None:
                services.add_generic_rpc_handlers((secrets.aio_handler(),))
            guards = [
                AioGuardInterceptor(settings.logging, limits.max_rpc_ms),
                *aio_access_interceptors(settings.access),
                AioReading(limits.request_timeout_ms),
            ]
            around = Around(guards, aio_for_application(interceptors))
            self._server = aio_server(around.interceptors, server_options(limits, listen), limits.max_concurrent_rpcs)
            services.add_to(self._server, around)
            self.ports = _listen(self._server, limits, listen, attester)
            await self._server.start()

        self._run(start(), START_SECONDS)

    def stop(self, grace_seconds: float) -> None:
        """As Serving says. A handler still running after its time gets CancelledError.

        One that blocks the loop can't, and is not waited for either: the process is about to end.
        """

        async def stop() -> None:
            await self._health.end()
            await self._server.stop(grace_seconds)

        try:
            self._run(stop(), grace_seconds + BLOCKED_SECONDS)
        except TimeoutError:
            _log.warning("the event loop is blocked; its handlers are not waited for")

    def _keep_running(self) -> None:
        """Run the loop for ever: asyncio lets a task's SystemExit out of it, and a task must not end the server."""
        while True:
            try:
                self._loop.run_forever()
            except BaseException as error:  # noqa: BLE001
                log_uncaught(_log, "a task tried to end the event loop", error, messages=self._messages)

    def _log_uncaught(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What nobody awaited. asyncio's own handler would log messages, which may quote a request."""
        if isinstance(error := context.get("exception"), BaseException):
            log_uncaught(_log, "uncaught exception in the event loop", error, messages=self._messages)
        else:
            _log.error("the event loop complains")

    def _run(self, work: Coroutine[Any, Any, T], timeout_seconds: float) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_seconds)
