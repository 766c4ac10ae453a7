"""gRPC's method handlers, and what of the runtime stands around them."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias, TypeVar

import grpc
import grpc.aio

from adyton.errors import ApplicationError, ConfigurationError, StatusCode

Behavior = Callable[..., Any]
Serializer = Callable[[Any], bytes]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
B = TypeVar("B", bound=Behavior)

LEFT_OUT: Final = "this service does not have this method"

#: What gRPC looks for at a behavior: threads of its own, and whether it answers by a callback.
_MARKS: Final = ("experimental_thread_pool", "experimental_non_blocking")

#: (request streams, response streams) → how gRPC makes a handler of that kind.
_KINDS: Final[dict[tuple[bool, bool], Any]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def behavior_of(handler: Handler) -> Behavior:
    """What a handler calls, whichever of the four kinds it is."""
    found: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    behavior: Behavior = found
    return behavior


def rebuild(handler: Handler, wrapped: Behavior, serializer: Serializer | None = None) -> Handler:
    """A handler of the same kind around another behavior, and with another serializer if one is given."""
    made: Handler = _KINDS[bool(handler.request_streaming), bool(handler.response_streaming)](
        marked_like(behavior_of(handler), wrapped),
        handler.request_deserializer,
        serializer or handler.response_serializer,
    )
    return made


def reading_bytes(handler: Handler, wrapped: Behavior, parse: Callable[[bytes], Any] | None = None) -> Handler:
    """The same as one that takes a stream: of bytes, or of what `parse` makes of them."""
    made: Handler = _KINDS[True, bool(handler.response_streaming)](
        marked_like(behavior_of(handler), wrapped), parse, handler.response_serializer
    )
    return made


def marked_like(behavior: Behavior, wrapped: B) -> B:
    """`wrapped`, to be run by gRPC as it would run `behavior`, but for what it says itself."""
    for name in _MARKS:
        if (mark := getattr(behavior, name, None)) and not getattr(wrapped, name, None):
            setattr(wrapped, name, mark)
    return wrapped


def runs_on_asyncio(behavior: Behavior) -> bool:
    """Whether it is an `async def`, which is for servers on asyncio alone, and they for nothing else."""
    return inspect.iscoroutinefunction(behavior) or inspect.isasyncgenfunction(behavior)


def for_asyncio(behavior: Behavior, method: str) -> Behavior:
    """What a server on asyncio is to call. Raises ConfigurationError for what would block it.

    Of a servicer that leaves a method out, protoc's own is called, which is no coroutine.
    """
    if runs_on_asyncio(behavior):
        return behavior
    if getattr(behavior, "__module__", "").endswith("_pb2_grpc"):
        return _not_implemented
    raise ConfigurationError(
        f"{method} is no 'async def', and an AioGrpcApplication serves on an event loop",
        mend="make it one, or derive the application from adyton.GrpcApplication",
    )


async def _not_implemented(_request: Any, _context: Any) -> Any:
    raise ApplicationError(StatusCode.UNIMPLEMENTED, LEFT_OUT)


class Guard(grpc.ServerInterceptor):
    """What the runtime puts around methods of grpc.server(): once, or, as an interceptor, around each call."""

    def wrap(self, handler: Handler, method: str) -> Handler:
        """The same handler with the guard around it; `method` is "/package.Service/Method"."""
        raise NotImplementedError

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """As grpc.ServerInterceptor has it."""
        handler = continuation(handler_call_details)
        return None if handler is None else self.wrap(handler, handler_call_details.method)


class AioGuard(grpc.aio.ServerInterceptor):
    """The same for grpc.aio.server()."""

    def wrap(self, handler: Handler, method: str) -> Handler:
        """As Guard says."""
        raise NotImplementedError

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """As grpc.aio.ServerInterceptor has it."""
        handler = await continuation(handler_call_details)
        return None if handler is None else self.wrap(handler, handler_call_details.method)
