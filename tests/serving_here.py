"""gRPC's two kinds of server in this process, with the runtime's interceptors and without TLS."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

Add = Callable[[Any], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A server that runs. `run` awaits something on its event loop, or hands on what there is nothing to await of."""

    port: int
    has_threads: bool
    run: Callable[[Any], Any]

    def channel(self) -> grpc.Channel:
        return grpc.insecure_channel(f"127.0.0.1:{self.port}")


@contextlib.contextmanager
def with_threads(
    add: Add, interceptors: list[Any] | None = None, pool: ThreadPoolExecutor | None = None
) -> Iterator[Served]:
    server = grpc.server(pool or ThreadPoolExecutor(2), interceptors=interceptors)
    add(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield Served(port=port, has_threads=True, run=lambda result: result)
    assert server.stop(0).wait(5)


@contextlib.contextmanager
def on_asyncio(add: Add, interceptors: list[Any] | None = None) -> Iterator[Served]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(10)

    async def start() -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server(interceptors=interceptors)
        add(server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    server, port = run(start())
    yield Served(port=port, has_threads=False, run=run)
    run(server.stop(0))
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
