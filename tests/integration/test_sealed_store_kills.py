"""A store whose enclave is killed at each of its writes: what was acknowledged is there, and nothing by halves."""

from __future__ import annotations

import os
import random
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import pytest
from killing import Ledger, Point, Traced, Work, why_not

LONG_POINTS: Final = 1000


@pytest.fixture(scope="module", autouse=True)
def traceable() -> None:
    if (reason := why_not()) is not None:
        pytest.skip(reason)


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where that can be: the page cache outlives a process, so what a kill leaves is the same there."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as made:
        yield Path(made)


def kill(work: Work, folder: Path, at: int) -> Traced:
    """The work, killed where it enters its n-th call that changes the folder, unless it ends before."""
    folder.mkdir(exist_ok=True)
    with Traced(work, folder) as child:
        for number, _ in enumerate(child.points()):
            if number == at:
                child.kill()
    return child


def kills(work: Work, folder: Path, before: Path | None = None) -> Iterator[list[int]]:
    """At each point in turn: the folder is as `before` (or empty) and then as the kill left it; what was acknowledged.

    Ends when the work does.
    """
    at, happened = 0, True
    while happened:
        shutil.rmtree(folder, ignore_errors=True)
        if before is not None:
            shutil.copytree(before, folder)
        child = kill(work, folder, at)
        yield child.acknowledged
        at, happened = at + 1, child.killed


@pytest.mark.parametrize("steps", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_kill_at_any_write_loses_nothing_that_was_acknowledged(folder: Path, steps: int) -> None:
    """From the first call that makes the store's file to the last that closes it."""
    ledger, count = Ledger(seed=1, steps=steps, largest=8000), 0
    for acknowledged in kills(ledger.work(folder / "s"), folder / "s"):
        ledger.check(folder / "s", len(acknowledged))
        count += 1
    assert count > 15 * steps


def test_a_kill_while_it_recovers_from_a_kill_loses_nothing(folder: Path) -> None:
    check_recoveries(folder, random.Random(0).sample(range(90), 6))


@pytest.mark.slow
def test_a_kill_while_it_recovers_from_many_kills_loses_nothing(folder: Path) -> None:
    check_recoveries(folder, range(0, 200, 5))


def check_recoveries(folder: Path, places: Iterable[int]) -> None:
    ledger, count = Ledger(seed=2, steps=6, largest=8000), 0

    def recover(_: object) -> None:
        ledger.open(folder / "again").close()

    for at in places:
        shutil.rmtree(folder / "first", ignore_errors=True)
        first = kill(ledger.work(folder / "first"), folder / "first", at)
        for _ in kills(recover, folder / "again", before=folder / "first"):
            ledger.check(folder / "again", len(first.acknowledged))
            count += 1
        if not first.killed:
            break
    assert count > 50


@pytest.mark.slow
def test_at_no_write_of_a_long_history_would_a_kill_lose_anything(folder: Path) -> None:
    """The child is stopped, not killed, and what it has written is copied: a kill would leave just that.

    Its log grows over the size at which SQLite moves it into the file while the store is open.
    """
    large = [{"large": bytes([number]) * 430_000} for number in range(9)]
    ledger, written = Ledger(seed=3, steps=35, first=large), ""
    with Traced(ledger.work(folder / "s"), folder / "s") as child:
        for point in child.points():
            if len(child.acknowledged) >= len(large):
                shutil.copytree(folder / "s", folder / "copy")
                ledger.check(folder / "copy", len(child.acknowledged))
                shutil.rmtree(folder / "copy")
                written += letter(point)
    assert len(written) > LONG_POINTS
    assert re.search("lf+ +l", written), "the log was not moved into the file while the store was open"


def letter(point: Point) -> str:
    """What is written to: the store's file, its log, or else."""
    if point.call == "unlink":
        return "u"
    return {"s.store": "f", "s.store-wal": "l"}.get(point.path.name, " ")
