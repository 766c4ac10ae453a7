"""The attested channel beside gRPC without TLS, with TLS, and with client certificates: `python3 dev.py bench channel`.

All servers run at once and take turns at being asked, so that what else the machine does meets all of them: the
servers on one CPU, the client on another. They are started anew several times, for two processes of one program differ
by several percent. What is compared is the CPU time that a server spends on an RPC; requests a second and latencies
depend much more on what else runs. A goal that is missed is named, and the exit code is then 1.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version

os.environ["GRPC_VERBOSITY"] = "NONE"  # read as gRPC is loaded, whose core logs each connection that comes to nothing

from connecting import CLIENTS, QUOTE_MS, crowd, healing, ready
from parties import OURS, PROJECT, TLS, client_certificate, on_cpus
from picture import Bar, picture
from throughput import Effort, Sample, Samples, by_stubs, servers, unary, workers

DOCS = PROJECT.parent.parent / "docs"
BEGIN, END = "<!-- bench channel: begin -->\n", "<!-- bench channel: end -->\n"
GOAL = 1.02
Loads = dict[str, dict[str, list[Sample]]]
"""What each server did, by the kind of load."""
FULL = Effort(generations=5, rounds=6, seconds=0.2, connections=(1, 8, 64), readies=12, restarts=7, crowds=5)
QUICK = Effort(generations=1, rounds=1, seconds=0.1, connections=(1, 8), readies=2, restarts=1, crowds=1)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The median, and the middle half of the values."""
    low, middle, high = quartiles(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratio(samples: Samples, name: str, base: str) -> float:
    """The median of what the server spends beside what the other one spends in the same round."""
    pairs = zip(samples[name], samples[base], strict=True)
    return statistics.median(ours.cpu / others.cpu for ours, others in pairs)


def load_table(found: Mapping[str, Samples], base: str) -> Iterator[str]:
    yield f"| load | server | server CPU, µs | beside {base} | a second | latency, µs |"
    yield "|---|---|---|---|---|---|"
    for title, samples in found.items():
        for name, turns in samples.items():
            cells = (
                title,
                name,
                spread([each.cpu for each in turns]),
                f"{ratio(samples, name, base):.3f}",
                f"{statistics.median(each.rate for each in turns):.0f}",
                "" if title.startswith("stream") else f"{statistics.median(each.latency for each in turns):.0f}",
            )
            yield f"| {' | '.join(cells)} |"


def time_table(found: Mapping[str, Sequence[float]]) -> Iterator[str]:
    yield "| what | ms |"
    yield "|---|---|"
    for title, seconds in found.items():
        yield f"| {title} | {spread([1000 * each for each in seconds], 2)} |"


def crowd_line(took: Sequence[float], quotes: Sequence[int]) -> str:
    ordered = sorted(1000 * each for each in took)
    first, middle, late, last = (ordered[int(part * (len(ordered) - 1))] for part in (0, 0.5, 0.95, 1))
    return (
        f"{CLIENTS} clients at once, {QUOTE_MS:.0f} ms a quote: attested after {first:.0f} ms (the first), "
        f"{middle:.0f} (median), {late:.0f} (95 %), {last:.0f} (the last); {statistics.median(quotes):.0f} quotes."
    )


def goal_lines(found: Mapping[str, Samples]) -> Iterator[str]:
    """Whether the goal is met: of unary RPCs, by the cheap client."""
    for title, samples in found.items():
        reached = ratio(samples, OURS, TLS)
        verdict = "met" if reached <= GOAL else "missed"
        yield f"- {verdict}: {title}: ours takes {reached:.3f} of TLS, the goal is {GOAL}"


def gather(found: Loads, title: str, samples: Samples) -> None:
    """Add what servers of one generation did to what those before them did."""
    for name, turns in samples.items():
        found.setdefault(title, {}).setdefault(name, []).extend(turns)


def measured(effort: Effort) -> Iterator[tuple[str, str]]:
    """Kind and text of each part of the report, as soon as it is known: table, picture, goal."""
    cpus = os.sched_getaffinity(0)
    with client_certificate() as certificate:
        plain: Loads = {}
        stubs: Loads = {}
        times: dict[str, list[float]] = {}
        for _ in range(effort.generations):
            with servers({min(cpus)}) as parties, on_cpus({max(cpus)}):
                for count in effort.connections:
                    title = f"unary, {count} connection{'s' * (count > 1)}"
                    gather(plain, title, unary(parties, count, effort, certificate))
                for title, samples in by_stubs(parties, effort).items():
                    gather(stubs, title, samples)
                for name, took in ready(parties, effort).items():
                    times.setdefault(name, []).extend(took)
        yield "table", "\n".join(load_table(plain, TLS))
        yield "picture", picture({title: bars(samples) for title, samples in plain.items()})
        yield "table", "\n".join(load_table(stubs, TLS))
        yield "table", "\n".join(time_table(times))
        yield "table", crowd_line(*crowd(effort))
        several = {f"unary, {effort.connections[-1]} connections": workers(cpus, effort, certificate)}
        yield "table", "\n".join(load_table(several, "TLS, 1 process"))
        healed = {f"first RPC after a restart, {kind}": took for kind, took in asyncio.run(healing(effort)).items()}
        yield "table", "\n".join(time_table(healed))
        yield "goal", "\n".join(goal_lines(plain))


def bars(samples: Samples) -> list[Bar]:
    return [Bar(name, *quartiles([each.cpu for each in turns])) for name, turns in samples.items()]


def write(tables: Sequence[str], drawn: str) -> None:
    page = DOCS / "performance.md"
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(before + BEGIN + "\n" + "\n\n".join(tables) + "\n\n" + END + after)
    (DOCS / "performance.svg").write_text(drawn)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a second of everything: numbers that say nothing")
    parser.add_argument("--write", action="store_true", help="put tables and picture into docs/")
    arguments = parser.parse_args()
    versions = f"CPython {platform.python_version()}, grpcio {version('grpcio')}, {os.cpu_count()} CPUs"
    tables, drawn, missed = [versions + ". Medians, and in brackets the middle half."], "", False
    print(tables[0], flush=True)
    for kind, text in measured(QUICK if arguments.quick else FULL):
        if kind == "picture":
            drawn = text
            continue
        tables.append(text)
        missed = missed or "missed: " in text
        print(f"\n{text}", flush=True)
    if arguments.write:
        write(tables, drawn)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
