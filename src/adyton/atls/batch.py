"""One quote for all who wait: hardware is slow and serial, so many bindings go under one Merkle root.

Batches nest. A server's process batches its clients, and the process that has the device batches the processes.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final, Protocol

from adyton.atls.binding import parent, report_data
from adyton.errors import AdytonError, ApplicationError, StatusCode
from adyton.tee.devices import Device
from adyton.tee.evidence import Evidence

MAX_WAITING: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """Evidence over a root, and the path from one node to that root."""

    evidence: Evidence
    path: tuple[bytes, ...] = ()


class QuoteSource(Protocol):
    """Makes quotes, one after another."""

    def quote(self, node: bytes) -> Quote:
        """A quote over a node of 64 bytes. Blocks. Raises `AdytonError`."""


class DeviceQuotes:
    """The hardware itself."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def quote(self, node: bytes) -> Quote:
        """As QuoteSource says; the node is the root."""
        return Quote(evidence=self._device.collect_evidence(report_data(node)))


def tree(nodes: Sequence[bytes]) -> tuple[bytes, list[tuple[bytes, ...]]]:
    """The root above `nodes` (one or more), and each one's path to it. A node without a sibling moves up as it is."""
    paths: list[list[bytes]] = [[] for _ in nodes]
    level = [(node, [index]) for index, node in enumerate(nodes)]
    while len(level) > 1:
        above = []
        for (left, on_left), (right, on_right) in zip(level[::2], level[1::2], strict=False):
            for index in on_left:
                paths[index].append(b"R" + right)
            for index in on_right:
                paths[index].append(b"L" + left)
            above.append((parent(left, right), on_left + on_right))
        level = above + level[len(above) * 2 :]
    return level[0][0], [tuple(path) for path in paths]


class BatchedQuotes:
    """Quotes for any number of threads: whoever asks while a quote is being made shares the next one."""

    def __init__(self, source: QuoteSource) -> None:
        self._source = source
        self._changed = threading.Condition()
        self._waiting: list[tuple[bytes, Future[Quote]]] = []
        self._thread: threading.Thread | None = None

    def submit(self, node: bytes) -> Future[Quote]:
        """A future of a quote over `node`. More than `MAX_WAITING` at once: RESOURCE_EXHAUSTED."""
        future: Future[Quote] = Future()
        with self._changed:
            if len(self._waiting) >= MAX_WAITING:
                raise ApplicationError(StatusCode.RESOURCE_EXHAUSTED, f"{MAX_WAITING} clients wait for evidence")
            self._waiting.append((node, future))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="adyton-quotes", daemon=True)
                self._thread.start()
            self._changed.notify()
        return future

    def quote(self, node: bytes) -> Quote:
        """As QuoteSource says."""
        return self.submit(node).result()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                batch, self._waiting = self._waiting, []
            self._answer([each for each in batch if each[1].set_running_or_notify_cancel()])

    def _answer(self, batch: Sequence[tuple[bytes, Future[Quote]]]) -> None:
        if not batch:
            return
        try:
            root, paths = tree([node for node, _ in batch])
            quote = self._source.quote(root)
        except BaseException as problem:  # noqa: BLE001  those who wait must hear of it, and this thread must go on
            for _, future in batch:
                future.set_exception(_for_one(problem))
            return
        for (_, future), path in zip(batch, paths, strict=True):
            future.set_result(Quote(evidence=quote.evidence, path=path + quote.path))


def _for_one(problem: BaseException) -> AdytonError:
    """An error for one of those who wait: an exception object is nobody else's to raise."""
    if isinstance(problem, AdytonError):
        return ApplicationError(problem.status, problem.message)
    return ApplicationError(StatusCode.INTERNAL, f"no evidence: uncaught {type(problem).__name__}")
