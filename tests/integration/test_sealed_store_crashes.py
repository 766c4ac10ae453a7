"""A store whose enclave is stopped, interrupted, run twice, or loses power at the worst moment.

Nothing that was acknowledged is lost.
"""

from __future__ import annotations

import contextlib
import linecache
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, Final, Self

import pytest
from killing import Child, Ledger, Point, Traced, Work, why_not
from simulated_machine import SimulatedMachine

from adyton.errors import AdytonError, InUseError, RollbackError
from adyton.sealing.sealer import Sealer
from adyton.sealing.store import SealedStore
from adyton.tee.simulated.sealing import SimulatedSealing
from adyton.tee.simulated.sealing_format import Operation

WATCHED: Final = ("adyton/sealing/", "adyton/tee/simulated/sealing.py")
QUESTIONS: Final = frozenset({Operation.IDENTITY, Operation.KEY, Operation.READ})


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[SimulatedMachine]:
    with SimulatedMachine(tmp_path / "machine") as machine:
        yield machine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    path.mkdir()
    return path


class HeldSealing:
    """The host stops an enclave when it is about to change a register; `go` lets it go on."""

    def __init__(self, source: SimulatedSealing, patch: pytest.MonkeyPatch) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        self._ask = source.ask
        patch.setattr(source, "ask", self._held)

    def _held(self, operation: Operation, payload: bytes = b"") -> bytes:
        if operation not in QUESTIONS:
            self.reached.set()
            assert self.go.wait(30)
        return self._ask(operation, payload)


def test_of_two_copies_that_write_at_once_one_is_refused(
    machine: SimulatedMachine, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was acknowledged to one copy's clients must not vanish because the other was stopped before its write."""
    acknowledged: list[bytes] = []
    copy, source = tmp_path / "copy", machine.source()

    def put(store: SealedStore, value: bytes) -> None:
        try:
            store.put("a", value)
        except RollbackError:
            return
        acknowledged.append(value)

    with SealedStore.open(folder, "s", Sealer(machine.source())) as one:
        one.put("a", b"0")
        shutil.copytree(folder, copy)
        with SealedStore.open(copy, "s", Sealer(source)) as other:
            held = HeldSealing(source, monkeypatch)
            writer = threading.Thread(target=put, args=(other, b"2"))
            writer.start()
            assert held.reached.wait(30)
            put(one, b"1")
            held.go.set()
            writer.join()
    assert acknowledged == surviving(machine, folder, copy)


def surviving(machine: SimulatedMachine, *folders: Path) -> list[bytes]:
    """The value of "a" in each of these that can still be opened."""
    found = []
    for each in folders:
        try:
            with SealedStore.open(each, "s", Sealer(machine.source())) as store:
                found.append(store["a"])
        except RollbackError:
            continue
    return found


def count(store: SealedStore) -> int:
    """Put the number after the one that is there."""
    with store.transaction() as change:
        number = int(change.get("n", b"0") or b"0") + 1
        change["n"] = str(number).encode()
    return number


def both(one: Work, other: Work) -> tuple[list[int], list[int]]:
    """Two processes at once, and what each acknowledged."""
    with Child(one) as first, Child(other) as second:
        first.wait()
        second.wait()
    return first.acknowledged, second.acknowledged


def test_of_two_processes_on_one_folder_one_is_refused_and_neither_loses_anything(folder: Path) -> None:
    ledger, barrier = Ledger(seed=0, steps=0), multiprocessing.get_context("fork").Barrier(2)

    def work(acknowledge: Callable[[int], None]) -> None:
        barrier.wait(30)
        done = 0
        while done < 40:
            with contextlib.suppress(InUseError), ledger.open(folder) as store:
                acknowledge(count(store))
                done += 1
                continue
            acknowledge(0)

    one, other = both(work, work)
    assert sorted({*one, *other} - {0}) == list(range(1, 81))
    assert 0 in {*one, *other}, "they were never in each other's way"
    with ledger.open(folder) as store:
        assert store["n"] == b"80"


@pytest.mark.parametrize("rounds", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_of_two_enclaves_on_copies_at_once_one_goes_on_and_keeps_everything(folder: Path, rounds: int) -> None:
    """Whoever is refused has acknowledged nothing; whoever is not has all that it acknowledged."""
    ledger, barrier = Ledger(seed=0, steps=0), multiprocessing.get_context("fork").Barrier(2)
    here, there = folder / "here", folder / "there"
    ledger.open(here).close()
    there.mkdir()
    (there / "registers").symlink_to(here / "registers")

    def enclave(place: Path) -> Work:
        def work(acknowledge: Callable[[int], None]) -> None:
            with contextlib.suppress(RollbackError), ledger.open(place) as store:
                barrier.wait(30)
                for _ in range(5):
                    acknowledge(count(store))

        return work

    for last in range(0, 5 * rounds, 5):
        shutil.copytree(here / "state", there / "state")
        acknowledged = both(enclave(here), enclave(there))
        assert sorted(acknowledged) == [[], list(range(last + 1, last + 6))]
        winner, loser = (here, there) if acknowledged[0] else (there, here)
        with pytest.raises(RollbackError):
            ledger.open(loser)
        with ledger.open(winner) as store:
            assert store["n"] == str(last + 5).encode()
        shutil.rmtree(loser / "state")
        if winner is there:
            (there / "state").rename(here / "state")


class Interruption:
    """A signal whose handler raises KeyboardInterrupt, at the n-th line of the store's and the source's code.

    Not where a `with` or a `try` begins or ends: Python looks for signals only behind calls, and what a tracer raises
    there would leave a lock that no signal leaves.
    """

    def __init__(self, line: int) -> None:
        self._left = line

    @property
    def happened(self) -> bool:
        return self._left < 0

    def during(self, work: Callable[[], object]) -> None:
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            work()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if self.happened or not any(each in frame.f_code.co_filename for each in WATCHED):
            return None
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).split()
        if event == "line" and line[0] not in {"with", "try:"}:
            self._left -= 1
            if self.happened:
                raise KeyboardInterrupt
        return self._trace


def test_an_interrupt_at_any_line_of_a_transaction_damages_nothing(machine: SimulatedMachine, folder: Path) -> None:
    """The transaction happens or does not; the store goes on or refuses; and its file opens again."""
    damaged, line, happened = [], 0, True
    while happened:
        store = SealedStore.open(folder, f"s{line}", Sealer(machine.source()))
        store.put("a", b"1")
        interruption = Interruption(line)
        interruption.during(lambda store=store: store.put("a", b"2"))  # type: ignore[misc]
        allowed = {b"1", b"2"} if (happened := interruption.happened) else {b"2"}
        try:
            store.put("a", b"3")
            allowed = {b"3"}
        except (AdytonError, RuntimeError):
            allowed.add(b"3")
        store.close()
        if (outcome := reopened(machine, folder, f"s{line}")) not in allowed:
            damaged.append((line, outcome))
        line += 1
    assert line > 50
    assert not damaged


def test_an_interrupted_write_that_comes_through_after_all_is_no_rollback(
    machine: SimulatedMachine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hardware may be slower than the enclave, which is back and has read the register as it was."""
    first, second = machine.source(), machine.source()
    under_way: list[tuple[Operation, bytes]] = []

    def interrupted(operation: Operation, payload: bytes = b"") -> bytes:
        if operation in QUESTIONS:
            return SimulatedSealing.ask(first, operation, payload)
        under_way.append((operation, payload))
        raise KeyboardInterrupt

    def overtaken(operation: Operation, payload: bytes = b"") -> bytes:
        if operation not in QUESTIONS and under_way:
            SimulatedSealing.ask(first, *under_way.pop())
        return SimulatedSealing.ask(second, operation, payload)

    with SealedStore.open(folder, "s", Sealer(first)) as store:
        store.put("a", b"1")
        monkeypatch.setattr(first, "ask", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.put("a", b"2")
    monkeypatch.setattr(second, "ask", overtaken)
    with SealedStore.open(folder, "s", Sealer(second)) as store:
        assert store["a"] == b"2"
        store.put("a", b"3")
    assert under_way == []
    assert surviving(machine, folder) == [b"3"]


def reopened(machine: SimulatedMachine, folder: Path, name: str) -> object:
    """The value of "a", or the refusal."""
    try:
        with SealedStore.open(folder, name, Sealer(machine.source())) as store:
            return store["a"]
    except AdytonError as problem:
        return f"{type(problem).__name__}: {problem}"


class Disk:
    """What of a folder outlives a power cut for sure: files as of their last fsync, names as of their folder's.

    A file is known by its inode, which is held open so that no other gets that number.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[int, BinaryIO] = {}
        self._contents: dict[int, bytes] = {}
        self._names: dict[Path, Mapping[str, int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def follow(self, child: Traced) -> Iterator[Point]:
        """The child's points. What it syncs there is on the disk when it comes to the next one."""
        for point in child.points():
            self._look()
            yield point
            if child.killed or point.call not in {"fsync", "fdatasync"}:
                continue
            if point.path.is_dir():
                self._names[point.path] = self._look()[point.path]
            else:
                number = point.path.stat().st_ino
                self._contents[number] = self._read(number)

    def cut(self, target: Path, choice: random.Random, unsynced: str) -> None:
        """Make `target` as the disk is after a power cut: of what was not synced "nothing", "all" or "some" is left."""
        shutil.rmtree(target, ignore_errors=True)
        for folder, current in self._look().items():
            here = target / folder.relative_to(self._folder)
            here.mkdir(parents=True, exist_ok=True)
            kept = unsynced == "all" or (unsynced == "some" and choice.random() < 0.5)
            for name, number in (current if kept else self._names.get(folder, {})).items():
                old, new = self._contents[number], self._read(number)
                content = {"nothing": lambda old, _: old, "all": lambda _, new: new, "some": mixed(choice)}[unsynced]
                (here / name).write_bytes(content(old, new))

    def _look(self) -> dict[Path, dict[str, int]]:
        """The names that are there now, by folder; a file that was not there before has nothing on the disk."""
        found = {}
        for base, _, names in os.walk(self._folder):
            found[Path(base)] = {name: Path(base, name).stat().st_ino for name in names}
            for name, number in found[Path(base)].items():
                if number not in self._files:
                    self._files[number] = Path(base, name).open("rb")  # noqa: SIM115  until the end
                    self._contents[number] = b""
        return found

    def _read(self, number: int) -> bytes:
        descriptor = self._files[number].fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def mixed(choice: random.Random) -> Callable[[bytes, bytes], bytes]:
    """How a disk may have some of the later writes to a file: a beginning of them, or here and there, or zeros."""

    def mix(old: bytes, new: bytes) -> bytes:
        length, unit, left = choice.choice([len(old), len(new)]), choice.choice([64, 512, 4096]), bytearray()
        share, end = choice.choice([0.1, 0.5, 0.9]), choice.randrange(len(new) + 1) if choice.random() < 0.5 else None
        for start in range(0, length, unit):
            later = start < end if end is not None else choice.random() < share
            left += (new if later else old)[start : start + unit].ljust(unit, b"\0")
        return bytes(left[:length])

    return mix


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where that can be."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    where = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=where if os.access(where, os.W_OK) else None) as made:
        yield Path(made).resolve()


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_after_a_power_cut_at_any_point_what_was_acknowledged_is_there(memory: Path, every: int) -> None:
    """Nobody refuses an honest machine: with nothing, all, or some of what it had not synced, the store opens."""
    seed = random.SystemRandom().randrange(1 << 32)
    choice, ledger, count = random.Random(seed), Ledger(seed=4, steps=20, largest=8000), 0
    print(f"seed {seed}")
    with Disk(memory / "s") as disk, Traced(ledger.work(memory / "s"), memory / "s") as child:
        for number, _ in enumerate(disk.follow(child)):
            if number % every == 0:
                for unsynced in ("nothing", "all", "some", "some"):
                    disk.cut(memory / "cut", choice, unsynced)
                    ledger.check(memory / "cut", len(child.acknowledged))
                    count += 1
    assert count > 1000 / every


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_a_power_cut_after_a_restart_after_a_kill_is_no_rollback(memory: Path, every: int) -> None:
    """What a killed enclave had written and not synced is read again by the next one, and is not on the disk yet."""
    ledger, refused, at, happened = Ledger(seed=1, steps=5, largest=8000), [], 0, True
    while happened:
        folder, where = memory / str(at), "the end"
        folder.mkdir()
        with Disk(folder) as disk:
            with Traced(ledger.work(folder), folder) as killed:
                for number, point in enumerate(disk.follow(killed)):
                    if number == at:
                        killed.kill()
                        where = f"{point.call} of {point.path.name}"
            with Traced(lambda _, folder=folder: leave_open(ledger.open(folder)), folder) as restarted:  # type: ignore[misc]
                for _ in disk.follow(restarted):
                    pass
            disk.cut(memory / "cut", random.Random(0), "nothing")
        try:
            ledger.check(memory / "cut", len(killed.acknowledged))
        except RollbackError:
            refused.append(where)
        shutil.rmtree(folder)
        at, happened = at + every, killed.killed
    assert not refused


def leave_open(_: SealedStore) -> None:
    """The power is cut while the store is open: its file is not closed."""
    os._exit(0)
