"""RPCs passed on from a server to a channel, whatever their methods are: as bytes, each message as it comes.

On the wire the four kinds of RPC are one: a stream of requests, a stream of responses. A message is read only when the
one before it was taken by the other side, so that of a stream no more than gRPC's own buffers is ever held here.

With threads, not on asyncio: where a server ends an RPC while a request is being written, grpc.aio's client replaces
the server's status by INTERNAL, "Internal error from Core".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import grpc

from adyton.bundle.access import ATTESTATION_PREFIX

Metadatum = tuple[str, str | bytes]

_STATUS_DETAILS: Final = "grpc-status-details-bin"
#: What each connection says for itself.
_OF_A_CONNECTION: Final = frozenset({"te", "content-type", "user-agent"})
#: A server of gRPC says of a call without a deadline that it has some 10^18 seconds left.
_FOREVER_SECONDS: Final = 10 * 365 * 86400


class Passage(grpc.GenericRpcHandler):
    """A handler for grpc.server() that passes every RPC on to `channel`."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """As grpc.GenericRpcHandler says. Attestation is this side's own, and no local client's."""
        if handler_call_details.method.startswith(ATTESTATION_PREFIX):
            return None
        method: Any = self._channel.stream_stream(handler_call_details.method)

        def pass_on(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            call: Any = method(
                requests, timeout=_seconds_left(context), metadata=passed_on(context.invocation_metadata())
            )
            if not context.add_callback(call.cancel):  # when the client is gone, so is the call
                call.cancel()
            try:
                context.send_initial_metadata(passed_on(call.initial_metadata()))
                yield from call
            except grpc.RpcError:
                _fail_as(call, context)
            context.set_trailing_metadata(passed_on(call.trailing_metadata()))

        return grpc.stream_stream_rpc_method_handler(pass_on)


def _fail_as(call: Any, context: grpc.ServicerContext) -> None:
    """End with the status of `call`, which has failed."""
    context.set_trailing_metadata(passed_on(call.trailing_metadata()))
    context.abort(call.code(), call.details() or "")


def _seconds_left(context: grpc.ServicerContext) -> float | None:
    left: float | None = context.time_remaining()
    return left if left is not None and left < _FOREVER_SECONDS else None


def passed_on(metadata: Iterable[Metadatum] | None) -> tuple[Metadatum, ...]:
    """The metadata that is the application's, and not gRPC's or HTTP's own."""
    return tuple((key, value) for key, value in metadata or () if _is_applications(key))


def _is_applications(key: str) -> bool:
    return key == _STATUS_DETAILS or not (key in _OF_A_CONNECTION or key.startswith(("grpc-", ":")))
