"""The application's own interceptors, kept away from the Attestation service and from owners' orders.

An interceptor that asks callers for a token, or that counts them, is for the application's methods. A client can't
show anything to a server that it has not attested yet. What an owner sends is for the enclave's store alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc
import grpc.aio

from adyton.bundle.access import OWN_PREFIXES


def for_application(interceptors: Iterable[Any]) -> list[grpc.ServerInterceptor]:
    """For grpc.server()."""
    return [_Interceptor(each) for each in interceptors]


def aio_for_application(interceptors: Iterable[Any]) -> list[grpc.aio.ServerInterceptor]:
    """For grpc.aio.server()."""
    return [_AioInterceptor(each) for each in interceptors]


class _Interceptor(grpc.ServerInterceptor):
    def __init__(self, inner: grpc.ServerInterceptor) -> None:
        self._inner = inner

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        if handler_call_details.method.startswith(OWN_PREFIXES):
            return continuation(handler_call_details)
        return self._inner.intercept_service(continuation, handler_call_details)


class _AioInterceptor(grpc.aio.ServerInterceptor):
    def __init__(self, inner: grpc.aio.ServerInterceptor) -> None:
        self._inner = inner

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        if handler_call_details.method.startswith(OWN_PREFIXES):
            return await continuation(handler_call_details)
        return await self._inner.intercept_service(continuation, handler_call_details)
