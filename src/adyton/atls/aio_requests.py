"""The requests of a stream, kept until it is sure that the stream needs no second try."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterable, Callable
from typing import Any, Final

KEPT_REQUESTS: Final = 8
"""How many requests of an iterator are kept for a second try. gRPC takes one before it has a connection."""

_END: Final = object()


class AioRequests:
    """The requests of an application's iterator, asynchronous or not, for a first try and then for a second.

    gRPC's task of the first try may still wait for the iterator when the second begins. It then hands over what it
    gets: the iterator is never asked by two at a time.
    """

    def __init__(self, source: Any) -> None:
        if isinstance(source, AsyncIterable):
            iterator = aiter(source)
            self._pull: Callable[[], Any] = lambda: anext(iterator, _END)
        else:
            plain = iter(source)
            self._pull = functools.partial(_next_of, plain)
        self._turn = asyncio.Lock()
        self._kept: list[Any] = []
        self._read = 0
        self._try: _Try | None = None
        self._waits: asyncio.Task[Any] | None = None
        self._problem: BaseException | None = None
        self.replayable = True
        """Whether a second try would get every request."""

    @property
    def failed(self) -> bool:
        """Whether the iterator raised."""
        return self._problem is not None

    def again(self) -> _Try:
        """All requests from the first one on; the try before this one gets no more."""
        self._read = 0
        self._try = _Try(self)
        return self._try

    def commit(self) -> None:
        """There will be no second try: keep nothing any more."""
        self.replayable = False

    def stop(self) -> None:
        """The call is over. End a task that waits for the iterator and that no gRPC call would end."""
        if self._waits is not None:
            self._waits.cancel()

    async def next_for(self, current: _Try) -> Any:
        """The next request for that try, or the end."""
        async with self._turn:
            if self._try is current and self._read == len(self._kept) and self._problem is None:
                await self._take()
            if self._try is not current:
                return _END
            if self._read == len(self._kept):
                assert self._problem is not None
                raise self._problem
            self._read += 1
            if self._read > KEPT_REQUESTS:
                self.replayable = False
            request = self._kept[self._read - 1]
            if not self.replayable and self._read == len(self._kept):
                self._kept.clear()
                self._read = 0
            return request

    async def _take(self) -> None:
        """One more request. In a task of its own: a try that is over must not cancel what the next one goes on with."""
        if self._waits is None:
            self._waits = asyncio.ensure_future(self._pull())
            self._waits.add_done_callback(lambda pulled: pulled.cancelled() or pulled.exception())
        await asyncio.wait((self._waits,))
        pulled, self._waits = self._waits, None
        try:
            self._kept.append(pulled.result())
        except BaseException as problem:
            self._problem = problem
            raise


class _Try:
    """The requests for one try. A class, for asyncio would end an abandoned generator in a task of its own."""

    def __init__(self, requests: AioRequests) -> None:
        self._requests = requests

    def __aiter__(self) -> _Try:
        return self

    async def __anext__(self) -> Any:
        request = await self._requests.next_for(self)
        if request is _END:
            raise StopAsyncIteration
        return request


async def _next_of(iterator: Any) -> Any:
    return next(iterator, _END)
