"""The standard health service (grpc.health.v1), for gRPC's two kinds of server.

The servicers of grpcio-health-checking send while they hold a lock. In a server with threads, a watch that ends at that
moment stops the server for good: the one thread that handles gRPC's events waits for the lock, and its holder waits for
an event (grpc/grpc, pull request 43403). A client that takes no answer can hold that lock as long as it likes. Here
such a client holds a thread for a bounded time, and nothing else. Statuses change once: when the server ends.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from concurrent import futures
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from adyton.atls.rpc_threads import RpcThreads
from adyton.enclave.rpc_timer import RpcTimer

SERVICE_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

#: A client that does not take an answer within this time loses its watch, for it holds a thread until then.
TAKING_SECONDS = 2.0
#: How long the end of a server waits until all that watch have been told; those that take their answers are at once.
TELLING_SECONDS = 1.0
#: So many clients watch at once; on asyncio each of them takes up one of the server's RPCs.
MAX_WATCHES = 256
_THREADS = 64
_MAX_NAME = 1024  # characters; a watch keeps the name that it asks for

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

_TOO_MANY = (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many clients watch at once")
_NO_NAME = (grpc.StatusCode.INVALID_ARGUMENT, "no service has so long a name")


class _Statuses(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it comes without types
    """What the two servicers know: which services there are, and whether the server is ending."""

    def __init__(self) -> None:
        self._services = frozenset([""])
        self._ends = False

    def serves(self, services: Iterable[str]) -> None:
        """The full names of the services that are serving, beside "": the server as a whole."""
        self._services |= frozenset(services)

    def _status(self, service: str) -> Any:
        if service not in self._services:
            return _UNKNOWN
        return _NOT_SERVING if self._ends else _SERVING

    def _list(self) -> health_pb2.HealthListResponse:
        statuses = {name: health_pb2.HealthCheckResponse(status=self._status(name)) for name in self._services}
        return health_pb2.HealthListResponse(statuses=statuses)


class _Watch:
    """One client that watches, in a server with threads."""

    def __init__(self, status: Callable[[], Any], send: Callable[[Any], None], cancel: Callable[[], None]) -> None:
        self._status = status
        self._send = send
        self._cancel = cancel
        self._told: Any = None
        self._turn = threading.Lock()  # of those who send; what ends the watch does not take it

    def tell(self, timer: RpcTimer) -> None:
        """Send the status if the client has not got it; returns when the client has taken it or the watch has ended."""
        with self._turn:
            status = self._status()
            if status == self._told:
                return
            self._told = status
            timer.begin(self, self._cancel)
            try:
                self._send(health_pb2.HealthCheckResponse(status=status))
            finally:
                timer.end(self)


class Health(_Statuses):
    """For grpc.server(). All services of it are serving until `end`."""

    def __init__(self, most_watches: int = MAX_WATCHES) -> None:
        super().__init__()
        self._most_watches = most_watches
        self._watches: dict[_Watch, None] = {}  # each change of it is one step of the interpreter
        self._timer = RpcTimer(TAKING_SECONDS)

    def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:  # noqa: N802
        """The status of one service; NOT_FOUND if there is no such service."""
        status = self._status(request.service)
        if status == _UNKNOWN:
            context.set_code(grpc.StatusCode.NOT_FOUND)
            return health_pb2.HealthCheckResponse()
        return health_pb2.HealthCheckResponse(status=status)

    def List(self, request: health_pb2.HealthListRequest, context: Any) -> health_pb2.HealthListResponse:  # noqa: ARG002, N802
        """The status of each service."""
        return self._list()

    def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Any, send_response_callback: Callable[[Any], None]
    ) -> None:
        """The status of one service now, and when it changes. Holds a thread only while an answer is being sent."""
        if len(self._watches) >= self._most_watches:
            context.abort(*_TOO_MANY)
        if len(request.service) > _MAX_NAME:
            context.abort(*_NO_NAME)
        watch = _Watch(lambda: self._status(request.service), send_response_callback, context.cancel)
        self._watches[watch] = None
        if context.add_callback(lambda: self._watches.pop(watch, None)):
            watch.tell(self._timer)
        else:
            self._watches.pop(watch, None)

    Watch.experimental_non_blocking = True  # type: ignore[attr-defined]
    Watch.experimental_thread_pool = RpcThreads(_THREADS, "health", MAX_WATCHES)  # type: ignore[attr-defined]

    def end(self) -> None:
        """Say NOT_SERVING from now on, and tell those that watch."""
        self._ends = True
        tellers = futures.ThreadPoolExecutor(_THREADS, "health")
        told = [tellers.submit(watch.tell, self._timer) for watch in list(self._watches)]
        futures.wait(told, TELLING_SECONDS)


class AioHealth(_Statuses):
    """For grpc.aio.server(). All services of it are serving until `end`."""

    def __init__(self, most_watches: int = MAX_WATCHES) -> None:
        super().__init__()
        self._ending = asyncio.Event()
        self._free_watches = most_watches

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:  # noqa: N802
        """As with Health."""
        status = self._status(request.service)
        if status == _UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return health_pb2.HealthCheckResponse(status=status)

    async def List(self, request: health_pb2.HealthListRequest, context: Any) -> health_pb2.HealthListResponse:  # noqa: ARG002, N802
        """As with Health."""
        return self._list()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:  # noqa: N802
        """As with Health. A client that takes no answer holds a coroutine and nothing else."""
        if not self._free_watches:
            await context.abort(*_TOO_MANY)
        if len(request.service) > _MAX_NAME:
            await context.abort(*_NO_NAME)
        self._free_watches -= 1
        try:
            told = await self._tell(request.service, context)
            await self._ending.wait()
            await self._tell(request.service, context, told)
            await asyncio.Event().wait()
        finally:
            self._free_watches += 1

    async def end(self) -> None:
        """As with Health; those that watch are told while the server's calls have their grace."""
        self._ends = True
        self._ending.set()

    async def _tell(self, service: str, context: Any, told: Any = None) -> Any:
        status = self._status(service)
        if status != told:
            await context.write(health_pb2.HealthCheckResponse(status=status))
        return status
