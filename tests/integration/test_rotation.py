"""Certificates that live for two seconds, renewed under load: nobody notices."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from channel_parties import ECHO, KINDS, connector_to, serving, slow_device

from adyton.atls.batch import BatchedQuotes, DeviceQuotes
from adyton.atls.certificates import parse_certificate, spki_sha256
from adyton.atls.connector import BlockingConnector
from adyton.atls.server_credentials import MIN_SWAP_SECONDS
from adyton.atls.session import Session

LEAF_LIFETIME = timedelta(seconds=2)
ROTATIONS = 4
AT_MOST_SECONDS = 30.0
NEWCOMERS, STANDING = 4, 4


class Load:
    """Threads that connect, and threads that call, until enough leaves were seen. The first error ends everything."""

    def __init__(self, opener: BlockingConnector) -> None:
        self._opener = opener
        self._begun = time.monotonic()
        self._guard = threading.Lock()
        self._over = threading.Event()
        self.leaves: dict[bytes, float] = {}
        self.connections = 0
        self.calls = 0

    def run(self) -> float:
        """For how many seconds it went on. Raises what any thread raised."""
        with ThreadPoolExecutor(NEWCOMERS + STANDING) as pool:
            threads: list[Future[None]] = [pool.submit(self._until_over, self._connect) for _ in range(NEWCOMERS)]
            standing = [self._opener.open(20) for _ in range(STANDING)]
            threads += [pool.submit(self._until_over, functools.partial(self._call, each)) for each in standing]
            for thread in threads:
                thread.result(AT_MOST_SECONDS + 30)
            for session in standing:
                session.channel.close()
        return time.monotonic() - self._begun

    def _until_over(self, step: Callable[[], None]) -> None:
        try:
            while not self._over.is_set():
                step()
                if time.monotonic() - self._begun > AT_MOST_SECONDS:
                    return
        finally:
            self._over.set()

    def _connect(self) -> None:
        """A new connection, attested by what it was shown, and once more on that same connection."""
        session = self._opener.open(20)
        self._call(session)
        self._opener.renew(session, 20)
        session.channel.close()
        leaf = spki_sha256(parse_certificate(session.question.pinned)[1])
        with self._guard:
            self.connections += 1
            self.leaves.setdefault(leaf, time.monotonic())
            if len(self.leaves) > ROTATIONS:
                self._over.set()

    def _call(self, session: Session[grpc.Channel]) -> None:
        echo: Any = session.channel.unary_unary(ECHO)
        assert echo(b"still there?", timeout=20) == b"still there?"
        with self._guard:
            self.calls += 1


@pytest.mark.parametrize("kind", KINDS)
def test_certificates_rotate_under_load_without_an_error(kind: str, tmp_path: Path) -> None:
    with (
        slow_device(tmp_path, 0.0) as (device, hardware),
        serving(BatchedQuotes(DeviceQuotes(device)), kind=kind, leaf_lifetime=LEAF_LIFETIME) as target,
    ):
        load = Load(BlockingConnector(connector_to(target, hardware)))
        seconds = load.run()
    rotations = len(load.leaves) - 1
    print(
        f"{kind}: {rotations} rotations in {seconds:.1f} s; {load.connections} connections and {load.calls} calls, "
        "no error"
    )
    assert rotations >= ROTATIONS
    assert rotations <= seconds / MIN_SWAP_SECONDS
    assert load.connections > 10 * rotations
    assert load.calls > load.connections
