"""What is collected before there is a server: which handlers a server with threads does not take."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2_grpc import HealthServicer

from adyton.enclave.registration import Services
from adyton.errors import ConfigurationError


def plain(_request: Any, _context: Any) -> bytes:
    return b""


async def coroutine(_request: Any, _context: Any) -> bytes:
    return b""


async def generator(_request: Any, _context: Any) -> AsyncIterator[bytes]:
    yield b""


KINDS = [
    grpc.unary_unary_rpc_method_handler,
    grpc.unary_stream_rpc_method_handler,
    grpc.stream_unary_rpc_method_handler,
    grpc.stream_stream_rpc_method_handler,
]


def services(behavior: Any, kind: Any, *, registered: bool) -> Services:
    collected = Services()
    handlers: dict[str, Any] = {"Fine": grpc.unary_unary_rpc_method_handler(plain), "Asked": kind(behavior)}
    if registered:
        collected.add_registered_method_handlers("a.B", handlers)
    else:
        collected.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", handlers),))
    return collected


@pytest.mark.parametrize("registered", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("behavior", [coroutine, generator, functools.partial(coroutine)])
def test_a_coroutine_is_refused_by_the_name_of_its_method(behavior: Any, kind: Any, registered: bool) -> None:
    with pytest.raises(ConfigurationError, match=r"^/a\.B/Asked is an 'async def'"):
        services(behavior, kind, registered=registered).refuse_coroutines()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("registered", [True, False])
def test_anything_else_is_taken(kind: Any, registered: bool) -> None:
    services(plain, kind, registered=registered).refuse_coroutines()


def test_a_generic_handler_that_keeps_its_methods_to_itself_is_taken() -> None:
    class Private(grpc.GenericRpcHandler):
        def service(self, handler_call_details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(plain)

    collected = Services()
    collected.add_generic_rpc_handlers((Private(),))
    collected.refuse_coroutines()
    with pytest.raises(ConfigurationError, match="finds its methods itself"):
        collected.refuse_what_blocks()


@pytest.mark.parametrize("registered", [True, False])
def test_on_asyncio_it_is_the_other_way_round(registered: bool) -> None:
    unary = grpc.unary_unary_rpc_method_handler
    handlers: dict[str, Any] = {"Fine": unary(coroutine), "Left": unary(HealthServicer().Check)}
    collected = Services()
    collected.add_registered_method_handlers("a.B", handlers)
    collected.refuse_what_blocks()
    with pytest.raises(ConfigurationError, match=r"^/a\.B/Fine is no 'async def'"):
        services(coroutine, unary, registered=registered).refuse_what_blocks()
