"""A quote takes 39 ms and hardware makes one at a time: how long a crowd of clients waits for evidence.

The crowd is real: 128 connections of their own keys to a real server, and each client judges its own answer.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from channel_parties import KINDS, SlowHardware, connector_to, serving, slow_device

from adyton.atls.attestation import BindingLevel
from adyton.atls.batch import BatchedQuotes, DeviceQuotes, Quote, QuoteSource
from adyton.atls.connector import ATTEST, BlockingConnector, Connector
from adyton.atls.question import Question

CLIENTS = 128
QUOTE_SECONDS = 0.039
MOST_QUOTES = 3


class CountedQuotes(BatchedQuotes):
    """Knows how many have asked."""

    def __init__(self, source: QuoteSource) -> None:
        super().__init__(source)
        self._arrivals = threading.Semaphore(0)

    def submit(self, node: bytes) -> Future[Quote]:
        try:
            return super().submit(node)
        finally:
            self._arrivals.release()

    def wait_for(self, count: int) -> None:
        for _ in range(count):
            assert self._arrivals.acquire(timeout=60)


@dataclass(frozen=True, kw_only=True)
class Enclave:
    """A server over hardware of its own, and what connects to it."""

    hardware: SlowHardware
    quotes: CountedQuotes
    connector: Connector


@contextlib.contextmanager
def enclave(folder: Path, kind: str, seconds: float = QUOTE_SECONDS) -> Iterator[Enclave]:
    with slow_device(folder, seconds) as (device, hardware):
        quotes = CountedQuotes(DeviceQuotes(device))
        with serving(quotes, kind=kind) as target:
            yield Enclave(hardware=hardware, quotes=quotes, connector=connector_to(target, hardware))


@contextlib.contextmanager
def crowd(connector: Connector) -> Iterator[list[tuple[grpc.Channel, Question]]]:
    """Clients, each with a connection and a key of its own, who have asked nothing yet."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(16) as pool:
        dialled = list(pool.map(lambda _: connector.dial(60), range(CLIENTS)))
        channels = [
            stack.enter_context(grpc.secure_channel(each.uri, each.credentials, each.options)) for each in dialled
        ]
        for ready in [grpc.channel_ready_future(channel) for channel in channels]:
            ready.result(60)
        yield [(channel, each.question) for channel, each in zip(channels, dialled, strict=True)]


def ask(clients: list[tuple[grpc.Channel, Question]]) -> list[Any]:
    """All of them, one after the other without a pause; the calls."""
    calls = []
    for channel, question in clients:
        attest: Any = channel.unary_unary(ATTEST)
        calls.append(attest.future(question.encode(), timeout=60))
    return calls


def check_answers(connector: Connector, clients: list[tuple[grpc.Channel, Question]], calls: list[Any]) -> int:
    """Each client believes its own answer; how many quotes are behind them."""
    judged = [connector.judge(question, call.result()) for (_, question), call in zip(clients, calls, strict=True)]
    assert len(judged) == CLIENTS
    assert {each.level for each in judged} == {BindingLevel.CONNECTION}
    return len({each.appraisal.evidence_sha256 for each in judged})


@pytest.mark.parametrize("kind", KINDS)
def test_128_clients_who_wait_at_once_share_three_quotes_at_most(kind: str, tmp_path: Path) -> None:
    with enclave(tmp_path, kind) as there, crowd(there.connector) as clients:
        there.hardware.free.clear()  # or some had their answers before the last have asked
        calls = ask(clients)
        there.quotes.wait_for(CLIENTS)
        begun = time.perf_counter()
        there.hardware.free.set()
        for call in calls:
            call.result()
        seconds = time.perf_counter() - begun
        quotes = there.hardware.quotes
        print(f"{kind}: {CLIENTS} clients wait, {quotes} quotes, {seconds * 1000:.0f} ms until the last is answered")
        assert check_answers(there.connector, clients, calls) == quotes <= MOST_QUOTES
    assert quotes * QUOTE_SECONDS < 0.12
    assert seconds < 0.12 + 1.0  # to send so many answers, on a machine with other work


@pytest.mark.parametrize("kind", KINDS)
def test_slow_hardware_adds_a_few_quotes_to_what_the_connections_cost(kind: str, tmp_path: Path) -> None:
    seconds, quotes = {}, 0
    for each in (0.0, QUOTE_SECONDS):
        with enclave(tmp_path, kind, each) as there, crowd(there.connector) as clients:
            begun = time.perf_counter()
            calls = ask(clients)
            for call in calls:
                call.result()
            seconds[each] = time.perf_counter() - begun
            quotes = there.hardware.quotes
            assert check_answers(there.connector, clients, calls) == quotes
    instant, slow = seconds.values()
    print(
        f"{kind}: {CLIENTS} clients ask: {slow * 1000:.0f} ms with {quotes} quotes of {QUOTE_SECONDS * 1000:.0f} ms, "
        f"{instant * 1000:.0f} ms with an instant device"
    )
    assert quotes <= slow / QUOTE_SECONDS + 1  # one after the other
    assert slow < instant + (MOST_QUOTES + 1) * QUOTE_SECONDS + 1.0  # what a busy machine adds, on either side


@pytest.mark.parametrize("kind", KINDS)
def test_128_clients_who_come_at_once_are_all_let_in(kind: str, tmp_path: Path) -> None:
    """From nothing: each looks at the certificate, makes a key, shakes hands, asks and judges."""
    with enclave(tmp_path, kind) as there, ThreadPoolExecutor(CLIENTS) as pool:
        opener = BlockingConnector(there.connector)
        begun = time.perf_counter()
        sessions = list(pool.map(lambda _: opener.open(60), range(CLIENTS)))
        seconds = time.perf_counter() - begun
        quotes = there.hardware.quotes
        print(f"{kind}: {CLIENTS} clients from nothing: {quotes} quotes, {seconds * 1000:.0f} ms")
        assert len({session.question.client_sha256 for session in sessions}) == CLIENTS
        # Handshakes spread them, so there are more quotes, but never one for each, and never two at a time.
        assert quotes <= seconds / QUOTE_SECONDS + 1
        assert quotes < CLIENTS / 2
        for session in sessions:
            session.channel.close()
