"""What servers spend on RPCs that follow each other on open connections: each is asked in its turn."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import load
from parties import INSECURE, MTLS, OURS, PROJECT, TLS, Party, bare, enclave, on_cpus
from translator.translator_pb2 import GetTranslationRequest, GetTranslationResponse
from translator.translator_pb2_grpc import TranslatorStub

import adyton
from adyton.atls.certificates import DEFAULT_AUDIENCE

WORD, TRANSLATED = "asylo", "sanctuary"
LARGE = "x" * 65536
RPC = load.Rpc(
    path="/examples.grpc_server.Translator/GetTranslation",
    request=GetTranslationRequest(input_word=WORD).SerializeToString(),
    answer=GetTranslationResponse(translated_word=TRANSLATED).SerializeToString(),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is measured; `rounds` and `readies` in each generation of servers."""

    generations: int
    rounds: int
    seconds: float
    connections: Sequence[int]
    readies: int
    restarts: int
    crowds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One turn of one server: CPU time and latency in µs for each RPC or message, and how many there were a second."""

    cpu: float
    rate: float
    latency: float


Samples = Mapping[str, Sequence[Sample]]
Ask = Callable[[], load.Work]


def in_turn(parties: Mapping[str, Party], asks: Mapping[str, Ask], rounds: int) -> Samples:
    """Ask each server once a round, and begin each round with another one."""
    samples: dict[str, list[Sample]] = {name: [] for name in asks}
    names = list(asks)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            before = parties[name].cpu_seconds()
            work = asks[name]()
            cpu = parties[name].cpu_seconds() - before
            samples[name].append(
                Sample(
                    cpu=1e6 * cpu / work.count,
                    rate=work.count / work.seconds,
                    latency=1e6 * statistics.median(work.latencies),
                )
            )
    return samples


@contextlib.contextmanager
def servers(cpus: set[int]) -> Iterator[dict[str, Party]]:
    """One of each kind, on those CPUs."""
    with contextlib.ExitStack() as stack:
        with on_cpus(cpus):
            started = {kind: stack.enter_context(bare(kind)) for kind in (INSECURE, TLS, MTLS)}
            manager = stack.enter_context(adyton.EnclaveManager())
            started[OURS] = enclave(manager, adyton.Bundle.build(PROJECT))
        yield started


def unary(parties: Mapping[str, Party], count: int, effort: Effort, certificate: Path) -> Samples:
    """One RPC after the other on each of `count` connections, by the cheap client."""
    with contextlib.ExitStack() as stack:
        asks: dict[str, Ask] = {}
        for name, party in parties.items():
            shown = certificate if party.kind in (MTLS, OURS) else None
            tls = None if party.kind == INSECURE else load.client_context(shown)
            made = stack.enter_context(load.connections(count, party.port, RPC, tls, DEFAULT_AUDIENCE))
            asks[name] = lambda made=made: load.drive(made, effort.seconds)  # type: ignore[misc]
        return in_turn(parties, asks, effort.rounds)


def calls(stub: TranslatorStub, seconds: float) -> load.Work:
    """One call after the other, as an ordinary client makes them."""
    latencies, begun = [], time.perf_counter()
    request, now = GetTranslationRequest(input_word=WORD), begun
    while now - begun < seconds:
        answer = stub.GetTranslation(request)
        assert answer.translated_word == TRANSLATED
        latencies.append(time.perf_counter() - now)
        now += latencies[-1]
    return load.Work(count=len(latencies), seconds=now - begun, latencies=latencies)


def stream(stub: TranslatorStub, word: str, seconds: float) -> load.Work:
    """Words up and words down, in one stream, as fast as flow control allows."""
    begun = time.perf_counter()

    def words() -> Iterator[GetTranslationRequest]:
        while time.perf_counter() - begun < seconds:
            yield GetTranslationRequest(input_word=word)

    count = sum(1 for _ in stub.TranslateText(words()))
    took = time.perf_counter() - begun
    return load.Work(count=count, seconds=took, latencies=[took / count])


def by_stubs(parties: Mapping[str, Party], effort: Effort) -> dict[str, Samples]:
    """What an ordinary client does, which has a channel of grpcio, or an attested one."""
    with contextlib.ExitStack() as stack:
        stubs = {name: TranslatorStub(stack.enter_context(party.channel())) for name, party in parties.items()}
        kinds: dict[str, Callable[[TranslatorStub], load.Work]] = {
            "unary, 1 stub": lambda stub: calls(stub, effort.seconds),
            "stream, 5 bytes": lambda stub: stream(stub, WORD, effort.seconds),
            "stream, 64 KiB": lambda stub: stream(stub, LARGE, effort.seconds),
        }
        found = {}
        for title, ask in kinds.items():
            asks: dict[str, Ask] = {name: (lambda ask=ask, stub=stub: ask(stub)) for name, stub in stubs.items()}  # type: ignore[misc]
            for warm in asks.values():
                warm()
            found[title] = in_turn(parties, asks, effort.rounds)
        return found


def workers(cpus: set[int], effort: Effort, certificate: Path) -> Samples:
    """One process of bare TLS, and an enclave with one server process and with two; the client goes where it likes."""
    first = {min(cpus)}
    with contextlib.ExitStack() as stack:
        with on_cpus(first):
            parties = {"TLS, 1 process": stack.enter_context(bare(TLS))}
            one = stack.enter_context(adyton.EnclaveManager())
            parties["ours, 1 worker"] = enclave(one, bundle := adyton.Bundle.build(PROJECT))
        two = stack.enter_context(adyton.EnclaveManager())
        parties["ours, 2 workers"] = enclave(two, bundle, workers=2)
        longer = dataclasses.replace(effort, rounds=effort.rounds * effort.generations)
        return unary(parties, effort.connections[-1], longer, certificate)
