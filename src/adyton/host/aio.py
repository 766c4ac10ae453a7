"""EnclaveManager and EnclaveClient for asyncio: the same enclaves, awaited instead of waited for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from adyton.errors import AdytonError, DeadlineError, EnclaveDiedError
from adyton.host import manager
from adyton.host.bundles import Bundle
from adyton.proto.enclave_pb2 import EnclaveConfig, EnclaveFinal, EnclaveInput, EnclaveOutput
from adyton.tee.evidence import Evidence

T = TypeVar("T")


class EnclaveClient:
    """One loaded enclave; the methods and errors of adyton.EnclaveClient, as coroutines."""

    def __init__(self, client: manager.EnclaveClient) -> None:
        self._client = client
        self.name = client.name

    async def enter_and_run(
        self,
        input: EnclaveInput | None = None,
        *,
        timeout_seconds: float = manager.RUN_SECONDS,
    ) -> EnclaveOutput:
        """The application's `run(input)`. Cancelling the task does not cancel the call inside."""
        return await self._wait(self._client.run_future(input), timeout_seconds, "run")

    async def collect_evidence(self, question: bytes, *, timeout_seconds: float = manager.RUN_SECONDS) -> Evidence:
        """As adyton.host.manager.EnclaveClient.collect_evidence."""
        return await self._wait(self._client.evidence_future(question), timeout_seconds, "collect_evidence")

    async def wait_stop_requested(self) -> str:
        """Wait until the application asks to be finalized; its reason."""
        return await _shielded(self._client.stop_requested)

    def address_of(self, port: int) -> str:
        """Where a client on this host reaches a port of the enclave: "host:port"."""
        return self._client.address_of(port)

    def log_tail(self) -> tuple[str, ...]:
        """The last lines that the enclave logged, oldest first."""
        return self._client.log_tail()

    async def destroy(self, final: EnclaveFinal | None = None, *, timeout_seconds: float | None = None) -> None:
        """As adyton.EnclaveClient.destroy. It goes on if the task is cancelled."""
        work = asyncio.to_thread(self._client.destroy, final, timeout_seconds=timeout_seconds)
        await asyncio.shield(asyncio.ensure_future(work))

    async def _wait(self, future: Future[T], timeout_seconds: float, what: str) -> T:
        try:
            async with asyncio.timeout(timeout_seconds):
                return await _shielded(future)
        except EnclaveDiedError:
            self._client.death_was_told = True
            raise
        except TimeoutError:
            raise DeadlineError(f"enclave {self.name!r}: {what} was not answered in {timeout_seconds:.1f} s") from None


def _shielded(future: Future[T]) -> asyncio.Future[T]:
    """To be awaited. Who is cancelled meanwhile cancels nothing inside, and asyncio complains of no abandoned error."""

    def retrieve(done: asyncio.Future[T]) -> None:
        if not done.cancelled():
            done.exception()

    waiting = asyncio.wrap_future(future)
    waiting.add_done_callback(retrieve)
    return asyncio.shield(waiting)


class EnclaveManager:
    """As adyton.EnclaveManager, and an asynchronous context manager."""

    def __init__(self) -> None:
        self._manager = manager.EnclaveManager()

    async def __aenter__(self) -> EnclaveManager:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.close()
        except AdytonError:
            if error is None:
                raise

    async def load(
        self,
        name: str,
        target: Bundle | Path | str,
        config: EnclaveConfig | None = None,
        *,
        on: str = "process",
        state: Path | None = None,
        timeout_seconds: float = manager.LOAD_SECONDS,
    ) -> EnclaveClient:
        """As adyton.EnclaveManager.load. A task that is cancelled meanwhile leaves no enclave behind."""
        loading = _Loading()
        try:
            return EnclaveClient(
                await asyncio.to_thread(
                    loading.run,
                    lambda: self._manager.load(
                        name, target, config, on=on, state=state, timeout_seconds=timeout_seconds
                    ),
                )
            )
        except asyncio.CancelledError:
            loading.abandon()
            raise

    async def close(self) -> None:
        """Destroy every enclave that is still loaded. Raises the first error, after all of them are gone."""
        await asyncio.to_thread(self._manager.close)


class _Loading:
    """A load in a thread, whose result may have become unwanted: then it is destroyed, in a thread too."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._abandoned = False
        self._client: manager.EnclaveClient | None = None

    def run(self, load: Callable[[], manager.EnclaveClient]) -> manager.EnclaveClient:
        """In the thread: load, and destroy again if nobody waits any more."""
        client = load()
        with self._guard:
            self._client = client
            abandoned = self._abandoned
        if abandoned:
            client.destroy()
        return client

    def abandon(self) -> None:
        """In the event loop: nobody waits any more."""
        with self._guard:
            self._abandoned = True
            client = self._client
        if client is not None:
            threading.Thread(target=client.destroy).start()
