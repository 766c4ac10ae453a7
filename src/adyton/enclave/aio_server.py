"""grpc.aio's server, but for how it takes calls of methods that it does not have.

Its main loop decodes the path of such a call as UTF-8, and ends for good where that is impossible: one frame of any
client would end the server, and grpc.aio has no way to begin it again. So such calls never get that far. All methods
have to be registered ones (Services.refuse_what_blocks sees to it).

What is used here of grpcio is not public, and locked by its digest; tests/integration/test_aio_server.py holds it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, Final

import grpc
import grpc.aio
from grpc._cython import cygrpc  # type: ignore[attr-defined]

_UNKNOWN: Final = (grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


def aio_server(
    interceptors: Sequence[Any] | None, options: Sequence[tuple[str, Any]], maximum_concurrent_rpcs: int
) -> grpc.aio.Server:
    """As grpc.aio.server() makes it. Call it where the event loop runs."""
    server: Any = grpc.aio.server()
    loop = asyncio.get_running_loop()
    server._server = _Core(loop, None, (), interceptors or (), tuple(options), maximum_concurrent_rpcs)
    made: grpc.aio.Server = server
    return made


class _Core(cygrpc.AioServer):  # type: ignore[misc]
    def _make_request_call_future(self, method: bytes | None) -> asyncio.Future[Any]:
        """The next call of a registered method; or, for None, of any other, which never comes to be."""
        if method is not None:
            call: asyncio.Future[Any] = super()._make_request_call_future(method)
            return call
        return asyncio.get_running_loop().create_task(self._refuse_what_is_unknown())

    async def _refuse_what_is_unknown(self) -> None:
        """Raises when the server ends."""
        refusing: set[asyncio.Task[None]] = set()
        while True:
            task = asyncio.get_running_loop().create_task(_refuse(await self._request_call()))
            refusing.add(task)
            task.add_done_callback(refusing.discard)


async def _refuse(call: Any) -> None:
    with contextlib.suppress(Exception):  # abort() raises when it has answered
        await cygrpc._ServicerContext(call, None, None, asyncio.get_running_loop()).abort(*_UNKNOWN)
