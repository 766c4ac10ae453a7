"""Which failed RPCs nobody has seen, so that they may be sent again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    import grpc.aio

ANSWERED_KEY = "adyton-answered"
"""The key of trailing metadata by which our servers mark each UNAVAILABLE that an application answers."""

_NO_CONNECTION = "failed to connect to all addresses"


def never_sent(error: grpc.RpcError | grpc.aio.AioRpcError) -> bool:
    """Whether the RPC that ended with `error` was never carried out, because there was no connection to send it on.

    The channel of a session connects once. When that connection is lost, gRPC wants to dial again, which it may not
    (`one_dial`), and answers an RPC itself: UNAVAILABLE, with these words and no metadata at all. An RPC that
    was under way when the connection was lost has other words. A peer could send the same words as its own status,
    after it has carried the RPC out; our servers mark that status, and the mark is metadata. A peer that lies about
    this could as well lie about what it has carried out.

    `error` is of an RPC that has ended; of one that has not, this blocks.
    """
    call: Any = error
    return (
        call.code() is grpc.StatusCode.UNAVAILABLE
        and (call.details() or "").startswith(_NO_CONNECTION)
        and not call.initial_metadata()
        and not call.trailing_metadata()
    )


def unanswered(error: grpc.RpcError | grpc.aio.AioRpcError) -> bool:
    """Whether `error` leaves in doubt that the connection still stands: UNAVAILABLE, and not marked as an answer.

    One who ends a session for it may attest once too often. One who does not may keep a session that is dead.
    """
    call: Any = error
    if call.code() is not grpc.StatusCode.UNAVAILABLE:
        return False
    return all(key != ANSWERED_KEY for key, _ in call.trailing_metadata() or ())
