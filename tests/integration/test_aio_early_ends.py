"""Calls on asyncio that end before they have properly begun."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from aio_one_shot_servers import SERVICE, OneShotServer, PlainOpener

from adyton.atls.aio_channel import AttestedAioChannel
from adyton.errors import UnreachableError


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OneShotServer]:
    with OneShotServer(tmp_path) as running:
        yield running


@pytest.mark.parametrize("warm", [True, False], ids=["on a session", "without one"])
@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_a_call_may_be_cancelled_at_any_step(server: OneShotServer, steps: int, warm: bool) -> None:
    async def work() -> None:
        channel = AttestedAioChannel(PlainOpener(server))
        method: Any = channel.unary_unary(f"/{SERVICE}/UnaryUnary")
        if warm:
            await method(b"first")
        call = method(b"cancelled")
        for _ in range(steps):
            await asyncio.sleep(0)
        if call.done():  # the server was quicker
            assert not call.cancel()
            assert await call == b"cancelled"
        else:
            assert call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert call.done()
            assert call.cancelled()
            assert await call.code() is grpc.StatusCode.CANCELLED
        assert await method(b"after") == b"after"
        await channel.close()

    asyncio.run(asyncio.wait_for(work(), 20))


def test_a_fresh_failure_does_not_hold_on_to_the_calls_that_got_it(server: OneShotServer) -> None:
    """All of them get the same reason; its traceback must not grow, for it holds the frames of each."""

    async def work() -> None:
        opener = PlainOpener(server, refusals=[UnreachableError("nobody is there")])
        channel = AttestedAioChannel(opener, backoff=lambda _failures: 60.0)
        method: Any = channel.unary_unary(f"/{SERVICE}/UnaryUnary")
        depths = []
        for _ in range(50):
            with pytest.raises(UnreachableError) as caught:
                await method(b"x")
            assert caught.value.__cause__ is not None
            depths.append(len(traceback.extract_tb(caught.value.__cause__.__traceback__)))
        assert depths[-1] <= depths[1]
        assert opener.opens == 1
        await channel.close()

    asyncio.run(asyncio.wait_for(work(), 20))


def test_a_status_in_the_words_of_a_lost_connection_is_an_answer_while_the_connection_stands(
    server: OneShotServer,
) -> None:
    """A servicer that passes on what another server said, and puts metadata of its own in place of our mark."""

    async def work() -> None:
        async with AttestedAioChannel(PlainOpener(server)) as channel:
            method: Any = channel.unary_unary(f"/{SERVICE}/UnaryUnary")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method(b"unmarked: words")
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert server.executed().count("unmarked: words") == 1

    asyncio.run(asyncio.wait_for(work(), 20))
