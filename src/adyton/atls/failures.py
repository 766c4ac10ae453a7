"""Adyton's errors as gRPC raises its own: whoever catches `grpc.RpcError` catches them, and so does their own class."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn

import grpc
import grpc.aio

from adyton.errors import AdytonError, StatusCode

GRPC_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
"""From the number of a status to gRPC's name for it."""


def rpc_failure(error: AdytonError) -> grpc.RpcError:
    """A new exception of the class of `error` and of `grpc.RpcError`, with the fields of `error`.

    It has the methods of grpc.Call and grpc.Future too, for that is what an interceptor expects of a failed RPC. Its
    `__cause__` is `error`. Make one for each caller: an exception that two threads raise mixes their tracebacks.
    """
    failure: grpc.RpcError = _copy(error, _FailedRpc)
    return failure


def aio_rpc_failure(error: AdytonError) -> grpc.aio.AioRpcError:
    """The same for asyncio: its class is also `grpc.aio.AioRpcError`."""
    failure: grpc.aio.AioRpcError = _copy(error, grpc.aio.AioRpcError)
    nothing = grpc.aio.Metadata()
    grpc.aio.AioRpcError.__init__(failure, GRPC_CODES[error.status], nothing, nothing, str(error), str(error))
    failure.args = error.args  # which that __init__ has emptied
    return failure


def cancelled(message: str) -> AdytonError:
    """What a caller gets who, or whose channel, gave up a call before it was sent."""
    error = AdytonError(message)
    error.status = StatusCode.CANCELLED
    return error


def _copy(error: AdytonError, rpc_error: Any) -> Any:
    """Without __init__, whose arguments differ from class to class."""
    own: Any = type(error)
    kind = _class_of(own, rpc_error)
    copy = kind.__new__(kind, *error.args)
    copy.__dict__.update(error.__dict__)
    copy.__cause__ = error
    return copy


@functools.cache
def _class_of(kind: Any, rpc_error: Any) -> Any:
    """One class for each pair. Made by the metaclass of `rpc_error`, for gRPC's have one of their own."""
    return type(rpc_error)(kind.__name__, (kind, rpc_error), {"__module__": kind.__module__, "__doc__": kind.__doc__})


class _FailedRpc(grpc.RpcError, grpc.Call, grpc.Future):  # type: ignore[type-arg]  # no generic when it runs
    """An RPC that is over and has failed, though gRPC never saw it."""

    def code(self) -> grpc.StatusCode:
        status: int = self.status  # type: ignore[attr-defined]  # an AdytonError, by the time there is an object
        return GRPC_CODES[status]

    def details(self) -> str:
        return str(self)

    def debug_error_string(self) -> str:
        return str(self)

    def initial_metadata(self) -> Any:
        return ()

    def trailing_metadata(self) -> Any:
        return ()

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> Any:
        return None

    def add_callback(self, callback: Callable[[], None]) -> bool:  # noqa: ARG002
        return False

    def cancel(self) -> bool:
        return False

    def cancelled(self) -> bool:
        return False

    def running(self) -> bool:
        return False

    def done(self) -> bool:
        return True

    def result(self, timeout: float | None = None) -> NoReturn:  # noqa: ARG002
        raise self

    def exception(self, timeout: float | None = None) -> Exception:  # noqa: ARG002
        return self

    def traceback(self, timeout: float | None = None) -> TracebackType | None:  # noqa: ARG002
        return self.__traceback__

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        fn(self)
