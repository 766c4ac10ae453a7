"""What it takes to have an attested channel: one, a crowd of them, and one whose server has been restarted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from parties import KINDS, OURS, PROJECT, Party, enclave, slow
from throughput import Effort
from translator.translator_pb2 import GetTranslationRequest
from translator.translator_pb2_grpc import TranslatorStub

import adyton
from adyton.atls.aio_channel import AttestedAioChannel
from adyton.atls.aio_connector import AioConnector
from adyton.atls.certificates import parse_certificate, pem
from adyton.atls.client_key import ConnectionKey
from adyton.atls.connector import ATTEST, BlockingConnector
from adyton.atls.dial import find
from adyton.errors import AdytonError

QUOTE_MS, CLIENTS = 39.0, 128
"""How long a TDX quote takes on a virtual machine of a large provider, and how many want one at once."""
REQUEST = GetTranslationRequest(input_word="asylo")


def seconds_of(step: Callable[[], object]) -> float:
    begun = time.perf_counter()
    step()
    return time.perf_counter() - begun


def first_call(party: Party) -> None:
    """A channel, its first RPC, and its end."""
    with party.channel() as channel:
        assert TranslatorStub(channel).GetTranslation(REQUEST).translated_word


def parts(party: Party) -> dict[str, float]:
    """The same on an attested channel, step by step, without the channel that does it; in seconds."""
    connector = party.connector()
    probe = seconds_of(lambda: find(connector.target, connector.audience, 10))
    dialled = connector.dial(10)
    root = pem(parse_certificate(dialled.question.pinned)[0])
    key = seconds_of(lambda: ConnectionKey().credentials(root))
    with grpc.secure_channel(dialled.uri, dialled.credentials, dialled.options) as channel:
        attest: Any = channel.unary_unary(ATTEST)
        begun = time.perf_counter()
        answer = attest(dialled.question.encode())
        connected = time.perf_counter() - begun
        quote = seconds_of(lambda: attest(dialled.question.again().encode()))
        judged = seconds_of(lambda: connector.judge(dialled.question, answer))
        stub = TranslatorStub(channel)
        rpc = seconds_of(lambda: stub.GetTranslation(REQUEST))
    return {
        "resolve, and look at the certificate": probe,
        "make a key, its certificate, credentials": key,
        "connect: TCP and TLS": connected - quote,
        "question, quote, answer": quote,
        "verify and appraise": judged,
        "first RPC": rpc,
    }


def ready(parties: Mapping[str, Party], effort: Effort) -> dict[str, list[float]]:
    """Seconds from nothing to the first answer; and the parts of ours."""
    found: dict[str, list[float]] = {}
    for _ in range(effort.readies):
        for kind in KINDS:
            found.setdefault(f"{kind}: channel and first RPC", []).append(seconds_of(lambda: first_call(parties[kind])))  # noqa: B023
        for name, took in parts(parties[OURS]).items():
            found.setdefault(f"ours: {name}", []).append(took)
    return found


def crowd(effort: Effort) -> tuple[list[float], list[int]]:
    """Seconds until each of many clients that come at once has attested a server, and the quotes that a crowd took."""
    took: list[float] = []
    quotes: list[int] = []
    with slow(QUOTE_MS) as (party, count), ThreadPoolExecutor(CLIENTS) as pool:
        begin = threading.Barrier(CLIENTS)

        def attest(_: int) -> float:
            opener = BlockingConnector(party.connector())
            begin.wait()
            begun = time.perf_counter()
            session = opener.open(60)
            seconds = time.perf_counter() - begun
            session.channel.close()
            return seconds

        for _ in range(effort.crowds):
            before = count()
            took += pool.map(attest, range(CLIENTS))
            quotes.append(count() - before)
    return took, quotes


class Restarting:
    """An enclave that is killed, and started again on its port."""

    def __init__(self) -> None:
        self._bundle = adyton.Bundle.build(PROJECT)
        self._manager = adyton.EnclaveManager()
        self.party = enclave(self._manager, self._bundle)

    def again(self) -> None:
        """Kill it, and return when another one serves."""
        self.kill()
        self._manager = adyton.EnclaveManager()
        self.party = enclave(self._manager, self._bundle, port=self.party.port)

    def kill(self) -> None:
        """End it, without any warning to it or to its clients."""
        for pid in self.party.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(AdytonError):
            self._manager.close()


async def healing(effort: Effort) -> dict[str, list[float]]:
    """Seconds that a call takes which finds that the server is a new one, on a channel of either kind."""
    found: dict[str, list[float]] = {"grpc": [], "grpc.aio": []}
    server = Restarting()
    try:
        connector = server.party.connector()
        with server.party.channel() as blocking:
            async with AttestedAioChannel(AioConnector(connector)) as waiting:
                stub, aio_stub = TranslatorStub(blocking), TranslatorStub(waiting)
                stub.GetTranslation(REQUEST)
                await aio_stub.GetTranslation(REQUEST)
                for _ in range(effort.restarts):
                    await asyncio.to_thread(server.again)
                    found["grpc"].append(seconds_of(lambda: stub.GetTranslation(REQUEST, timeout=20)))
                    begun = time.perf_counter()
                    await aio_stub.GetTranslation(REQUEST, timeout=20)
                    found["grpc.aio"].append(time.perf_counter() - begun)
    finally:
        server.kill()
    return found
