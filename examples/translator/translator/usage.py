"""How many words each client has had translated: a sealed store, and the interceptor that counts into it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import grpc

import adyton

METHODS: Final = "/examples.grpc_server.Translator/"
CLIENT_NAME: Final = "client-name"
"""Metadata: who an anonymous client says that it is. It is a claim, and nobody checks it."""
USAGE_COUNT: Final = "usage-count"
"""Trailing metadata: the words of this client until now. They are on the disk when it is sent."""
ANONYMOUS: Final = "claims anonymous"
MAX_CLIENTS: Final = 10_000
"""Anybody can claim names, and each has a record. Who claims a new one when there are so many counts as anonymous."""

_CLAIMED: Final = re.compile(r"[!-~]{1,64}")


def client_of(context: Any) -> str:
    """Whom to count for: an enclave that has enrolled, by what it is; anybody else by the name that it claims.

    The first word tells the two apart, so that no claim looks like an attested identity. ApplicationError
    (INVALID_ARGUMENT) for a claim that is not 1 to 64 printable ASCII characters without spaces.
    """
    peer = adyton.peer(context)
    if peer is not None:
        return f"attested {peer.tee} {peer.measurement.hex()} {peer.rule}"
    claimed = dict(context.invocation_metadata()).get(CLIENT_NAME)
    if claimed is None:
        return ANONYMOUS
    if not isinstance(claimed, str) or not _CLAIMED.fullmatch(claimed):
        raise adyton.ApplicationError(
            adyton.StatusCode.INVALID_ARGUMENT, f"{CLIENT_NAME} is 1 to 64 printable characters without spaces"
        )
    return f"claims {claimed}"


class Usage:
    """The counts. Safe in threads."""

    def __init__(self, store: adyton.SealedStore) -> None:
        self._store = store

    def add(self, client: str, words: int) -> int:
        """The client's count with these words, on the disk when this returns. Raises as a store's transaction."""
        with self._store.transaction() as change:
            if client.startswith("claims ") and client not in change and len(self._store) >= MAX_CLIENTS:
                client = ANONYMOUS
            count = int(change.get(client) or 0) + words
            change[client] = b"%d" % count
        return count


class UsageInterceptor(grpc.ServerInterceptor):
    """Counts the words that the service has translated; a client is told of no count that is not on the disk.

    A word alone is counted before its answer is sent: if the disk does not take the count, there is no answer. A text
    is counted once, at its end, however it ends; an enclave that dies in the middle loses the words of that text.
    """

    def __init__(self, usage: Usage) -> None:
        self._usage = usage

    def intercept_service(self, continuation: Any, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """As grpc.ServerInterceptor has it; health and reflection are not counted."""
        handler = continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(METHODS):
            return handler
        serializers = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(self._count_text(handler.stream_stream), **serializers)
        return grpc.unary_unary_rpc_method_handler(self._count_word(handler.unary_unary), **serializers)

    def _count_word(self, translate: Any) -> Any:
        def counted(request: Any, context: Any) -> Any:
            client = client_of(context)
            response = translate(request, context)
            self._add(context, client, 1)
            return response

        return counted

    def _count_text(self, translate: Any) -> Any:
        def counted(requests: Iterator[Any], context: Any) -> Iterator[Any]:
            client, words = client_of(context), 0
            try:
                for response in translate(requests, context):
                    words += 1
                    yield response
            finally:
                self._add(context, client, words)

        return counted

    def _add(self, context: Any, client: str, words: int) -> None:
        count = self._usage.add(client, words)
        context.set_trailing_metadata(((USAGE_COUNT, str(count)),))
