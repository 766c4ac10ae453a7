"""gRPC across a trunk."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
from trunks import MIB, SECONDS, Trunks


def _unary(request: bytes, context: grpc.ServicerContext) -> bytes:
    return request[::-1]


def _stream(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    for request in requests:
        yield request * 2


def test_grpc_works_across_the_trunk() -> None:
    trunks = Trunks()  # not the fixture's: gRPC keeps descriptors of its own for the next channel
    with contextlib.closing(trunks), ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool)
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "unary": grpc.unary_unary_rpc_method_handler(_unary),
            "stream": grpc.stream_stream_rpc_method_handler(_stream),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("probe", handlers),))
        port = trunks.forward(server.add_insecure_port("127.0.0.1:0"))
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            _call_all(channel)
        server.stop(None).wait(SECONDS)


def _call_all(channel: grpc.Channel) -> None:
    unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/probe/unary")
    stream: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream("/probe/stream")
    for each in range(50):
        assert unary(b"ab" * each, timeout=SECONDS) == b"ba" * each
    assert unary(bytes(3 * MIB), timeout=SECONDS) == bytes(3 * MIB)
    sent = [bytes([each]) * 100_000 for each in range(40)]
    assert list(stream(iter(sent), timeout=SECONDS)) == [each * 2 for each in sent]
    endless = stream(itertools.repeat(bytes(1000)))
    next(endless)
    endless.cancel()
    assert unary(b"ab", timeout=SECONDS) == b"ba"
