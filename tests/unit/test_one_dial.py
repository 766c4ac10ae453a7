"""gRPC is held to one TCP connection; and a build that can't be is noticed."""

from __future__ import annotations

import socket
import tracemalloc
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from observing import eventually

from adyton.atls.one_dial import ARGUMENT, OneDial
from adyton.errors import UnsupportedError


def answer(request: bytes, _context: Any) -> bytes:
    return request


def serve(target: str) -> tuple[grpc.Server, int]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    handlers: dict[str, Any] = {"Echo": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("tests.Echo", handlers),))
    port = server.add_insecure_port(target)
    server.start()
    return server, port


@pytest.fixture(params=["ipv4", "unix"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "unix":
        yield f"unix:{tmp_path}/socket"
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    yield f"127.0.0.1:{port}"


def test_each_channel_has_a_count_of_its_own_and_they_take_little_memory() -> None:
    """gRPC may look at one after its channel is gone, so they are kept; a host decides how many there are."""
    addresses = {int(OneDial()) for _ in range(5000)}
    assert len(addresses) == 5000
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(20 * 1024):
            OneDial()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 64 * 20 * 1024 + 512 * 1024  # the last block's views are ready to be used


def test_a_channel_dials_once_and_never_again(target: str) -> None:
    server, _ = serve(target)
    once = OneDial()
    options = [(ARGUMENT, once), ("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 100)]
    with grpc.insecure_channel(target, options) as channel:
        call: Any = channel.unary_unary("/tests.Echo/Echo")
        assert call(b"first", timeout=10) == b"first"
        once.check_used()
        server.stop(None).wait()
        again, _ = serve(target)
        for _ in range(3):
            with pytest.raises(grpc.RpcError) as caught:
                call(b"second", timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "failed to connect to all addresses" in str(caught.value.details())
        with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as other:
            free: Any = other.unary_unary("/tests.Echo/Echo")
            assert free(b"third", timeout=10) == b"third"
        again.stop(None).wait()


def test_channels_do_not_share_their_dial(target: str) -> None:
    server, _ = serve(target)
    for number in range(3):
        with grpc.insecure_channel(target, [(ARGUMENT, OneDial())]) as channel:
            call: Any = channel.unary_unary("/tests.Echo/Echo")
            assert call(bytes([number]), timeout=10) == bytes([number])
    server.stop(None).wait()


def test_a_build_of_grpc_that_does_not_ask_is_noticed() -> None:
    with pytest.raises(UnsupportedError, match="can't be held to one connection"):
        OneDial().check_used()


def test_many_channels_come_and_go(target: str) -> None:
    server, _ = serve(target)
    answered: list[bytes] = []

    def visit(number: int) -> None:
        with grpc.insecure_channel(target, [(ARGUMENT, OneDial()), ("grpc.use_local_subchannel_pool", 1)]) as channel:
            call: Any = channel.unary_unary("/tests.Echo/Echo")
            answered.append(call(bytes([number]), timeout=10))

    with futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(visit, range(200)))
    eventually(lambda: len(answered) == 200)
    server.stop(None).wait()
