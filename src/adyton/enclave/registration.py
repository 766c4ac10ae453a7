"""What a server serves, collected before there is a server, and what stands around each of its methods.

The runtime's own guards are put around a method once, when it is registered. As interceptors they would be put there
anew for each RPC, and cost each some microseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import grpc

from adyton.atls.rpc_threads import RpcThreads
from adyton.enclave.handlers import AioGuard, Guard, Handler, behavior_of, for_asyncio, rebuild, runs_on_asyncio
from adyton.errors import ConfigurationError


class ThreadsApart(Guard):
    """A guard for grpc.server() that gives one service threads of its own, so that its streams hold no others."""

    def __init__(self, service: str, threads: int, waiting: int) -> None:
        self._prefix = f"/{service}/"
        self._pool = RpcThreads(threads, service, waiting)

    def wrap(self, handler: Handler, method: str) -> Handler:
        """As Guard says."""
        if not method.startswith(self._prefix):
            return handler
        behavior = behavior_of(handler)

        def apart(request: Any, context: Any) -> Any:
            return behavior(request, context)

        apart.experimental_thread_pool = self._pool  # type: ignore[attr-defined]
        return rebuild(handler, apart)


class Around:
    """The runtime's guards, the outermost first, and within them the application's interceptors, if there are any."""

    def __init__(self, guards: Sequence[Guard | AioGuard], application: Sequence[Any]) -> None:
        self._guards = guards
        self._by_interceptors = bool(application)
        self.interceptors: list[Any] | None = [*guards, *application] if application else None

    def wrap(self, handler: Handler, method: str) -> Handler:
        """What is to be registered; the handler itself where the server's interceptors wrap it."""
        if self._by_interceptors:
            return handler
        for guard in reversed(self._guards):
            handler = guard.wrap(handler, method)
        return handler


class Services:
    """Stands for the server while servicers are added; it can do nothing else.

    `of_application` are the full names of the application's services.
    """

    def __init__(self) -> None:
        self.handlers: list[Any] = []
        self.methods: list[tuple[str, Any]] = []
        self.of_application: tuple[str, ...] = ()

    def add_generic_rpc_handlers(self, handlers: Iterable[Any]) -> None:
        """As grpc.Server has it."""
        self.handlers += handlers

    def add_registered_method_handlers(self, service_name: str, method_handlers: Any) -> None:
        """As grpc.Server has it."""
        self.methods.append((service_name, method_handlers))

    def names(self) -> list[str]:
        """Full names of the services that were added."""
        generic = {each.service_name() for each in self.handlers if isinstance(each, grpc.ServiceRpcHandler)}
        return sorted(generic | {name for name, _ in self.methods})

    def refuse_coroutines(self) -> None:
        """For a server with threads: it would send a coroutine as the response. ConfigurationError names the method."""
        for method, handler in self._handlers_by_method().items():
            if runs_on_asyncio(behavior_of(handler)):
                raise ConfigurationError(
                    f"{method} is an 'async def', and a GrpcApplication serves with threads",
                    mend="derive the application from adyton.AioGrpcApplication, or make the method a plain 'def'",
                )

    def refuse_what_blocks(self) -> None:
        """For a server on asyncio. ConfigurationError names the method.

        gRPC would run what is no coroutine in threads, and never gets back the thread of a stream that its client ends
        early. And it can't be told beforehand which methods a generic handler has that finds them itself.
        """
        if self._dynamic_handlers():
            raise ConfigurationError(
                "a generic handler that finds its methods itself can't be served on asyncio",
                mend="use grpc.method_handlers_generic_handler, or derive the application from adyton.GrpcApplication",
            )
        for method, handler in self._handlers_by_method().items():
            for_asyncio(behavior_of(handler), method)

    def _handlers_by_method(self) -> dict[str, Handler]:
        """Those that can be known before a call. gRPC's own generic handlers have theirs in a private dictionary."""
        known: dict[str, Handler] = {}
        for each in self.handlers:
            known |= getattr(each, "_method_handlers", {})
        for service, handlers in self.methods:
            known |= {f"/{service}/{name}": handler for name, handler in handlers.items()}
        return known

    def _dynamic_handlers(self) -> list[Any]:
        return [each for each in self.handlers if not hasattr(each, "_method_handlers")]

    def add_to(self, server: Any, around: Around) -> None:
        """Give everything to a real server: as registered methods, as far as they are known."""
        server.add_generic_rpc_handlers(tuple(_Wrapped(each, around) for each in self._dynamic_handlers()))
        for method, handler in self._handlers_by_method().items():
            service, _, name = method.removeprefix("/").rpartition("/")
            server.add_registered_method_handlers(service, {name: around.wrap(handler, method)})


class _Wrapped(grpc.GenericRpcHandler):
    """A generic handler whose methods are wrapped, each once."""

    _MOST_KNOWN = 1024

    def __init__(self, inner: Any, around: Around) -> None:
        self._inner = inner
        self._around = around
        self._known: dict[str, tuple[Handler, Handler]] = {}

    def service(self, handler_call_details: Any) -> Handler | None:
        handler: Handler | None = self._inner.service(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        known = self._known.get(method)
        if known is None or known[0] is not handler:
            known = handler, self._around.wrap(handler, method)
            if len(self._known) < self._MOST_KNOWN:
                self._known[method] = known
        return known[1]
