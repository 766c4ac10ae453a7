"""Work in a thread that nobody has to wait for: neither a cancelled caller nor the end of an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """What `work` returns or raises. Unlike asyncio.to_thread, whose threads asyncio.run() waits for."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            tell = functools.partial(_settle, done, work(*arguments, **named))
        except BaseException as problem:  # noqa: BLE001  it belongs to whoever waits
            tell = functools.partial(_fail, done, problem)
        with contextlib.suppress(RuntimeError):  # the loop is closed, so nobody waits
            loop.call_soon_threadsafe(tell)

    threading.Thread(target=run, name="atls-work", daemon=True).start()
    return await done


def _settle(done: asyncio.Future[T], result: T) -> None:
    if not done.done():
        done.set_result(result)


def _fail(done: asyncio.Future[T], problem: BaseException) -> None:
    if not done.done():
        done.set_exception(problem)
