"""A store's files after a hostile host has edited them: refused, or what was acknowledged to the byte, never more."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import re
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from simulated_machine import SimulatedMachine

from adyton.errors import InUseError, SealedDataError, StorageError, UnsealError
from adyton.sealing.sealer import Sealer
from adyton.sealing.store import SealedStore

FILE: Final = "s.store"
LOG: Final = "s.store-wal"
PAGE_BYTES: Final = 4096
LOG_HEADER_BYTES: Final = 32
LOG_FRAME_BYTES: Final = 24 + PAGE_BYTES
JOURNAL_MAGIC: Final = bytes.fromhex("d9d505f920a163d7")
SUPER_JOURNAL_PAGE: Final = 0x40000000 // PAGE_BYTES + 1
OPENING_SECONDS: Final = 5.0
REFUSALS: Final = (SealedDataError, UnsealError, StorageError, InUseError)

Files = Mapping[str, bytes]
Edit = Callable[[random.Random, bytearray, Sequence[int]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """One store: its files as they were killed and as they were closed, at the last state and at earlier ones."""

    last: tuple[Files, ...]
    earlier: tuple[Files, ...]
    other: bytes
    content: Mapping[str, bytes]


class Host:
    """Who keeps the folder and the machine. In memory where that can be, for each opening waits for the disk."""

    def __init__(self, directory: Path, machine: SimulatedMachine) -> None:
        self.folder = directory / "state"
        self.folder.mkdir()
        self._sealer = Sealer(machine.source())
        self._registers = directory / "machine"
        self._remembered: Files = {}

    def open(self, name: str = "s") -> SealedStore:
        return SealedStore.open(self.folder, name, self._sealer)

    def files(self) -> Files:
        return {path.name: path.read_bytes() for path in self.folder.iterdir()}

    def put(self, files: Files) -> None:
        """These files and no others; and the registers as they were when `remember` was called."""
        for path in self.folder.iterdir():
            path.unlink()
        for name, data in files.items():
            (self.folder / name).write_bytes(data)
        for name, data in self._remembered.items():
            (self._registers / name).write_bytes(data)

    def compact(self) -> None:
        """Rewrite the closed file without free pages, and with zeros where SQLite keeps nothing."""
        connection = sqlite3.connect(self.folder / FILE, isolation_level=None)
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("VACUUM")
        connection.close()

    def remember(self) -> None:
        found = (path for path in self._registers.rglob("*") if path.is_file())
        self._remembered = {str(path.relative_to(self._registers)): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    memory = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
    with SimulatedMachine(directory / "machine") as machine:
        yield Host(directory, machine)
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def history(host: Host) -> History:
    """36 changes in 12 transactions, the file closed and compacted before the last four; else always the same."""
    choice, content, earlier = random.Random(0), dict[str, bytes](), list[Files]()
    store = host.open()
    for number in range(12):
        with store.transaction() as change:
            for _ in range(3):
                name, value = f"name {choice.randrange(20)}", choice.randbytes(choice.choice([0, 10, 100, 1000, 6000]))
                change[name] = content[name] = value
        if number % 4 == 1:
            earlier.append(host.files())
        if number == 7:
            store.close()
            host.compact()
            earlier.append(host.files())
            store = host.open()
    killed = host.files()
    store.close()
    host.compact()
    closed = host.files()
    with host.open("t") as other:
        other.put("name 1", b"another store's")
    host.remember()
    stranger = (host.folder / "t.store").read_bytes()
    return History(last=(killed, closed), earlier=tuple(earlier), other=stranger, content=content)


def flip(choice: random.Random, data: bytearray, places: Sequence[int]) -> None:
    data[place(choice, places)] ^= 1 << choice.randrange(8)


def overwrite(choice: random.Random, data: bytearray, places: Sequence[int]) -> None:
    start, count = place(choice, places), choice.choice([1, 2, 4, 16, 100, PAGE_BYTES])
    data[start : start + count] = choice.randbytes(min(count, len(data) - start))


def insert(choice: random.Random, data: bytearray, places: Sequence[int]) -> None:
    start = place(choice, places)
    data[start:start] = choice.randbytes(choice.choice([1, 24, PAGE_BYTES]))


def delete(choice: random.Random, data: bytearray, places: Sequence[int]) -> None:
    start = place(choice, places)
    del data[start : start + choice.choice([1, 24, 100, PAGE_BYTES])]


def truncate(choice: random.Random, data: bytearray, places: Sequence[int]) -> None:
    del data[place(choice, places) :]


def swap(choice: random.Random, data: bytearray, places: Sequence[int]) -> None:
    one, two = sorted((place(choice, places), place(choice, places)))
    count = min(choice.choice([1, 16, 24, PAGE_BYTES, PAGE_BYTES + 24]), len(data) - two)
    data[one : one + count], data[two : two + count] = data[two : two + count], data[one : one + count]


def copy_a_page(choice: random.Random, data: bytearray, places: Sequence[int]) -> None:
    one, two = (place(choice, places) // PAGE_BYTES * PAGE_BYTES for _ in range(2))
    data[one : one + PAGE_BYTES] = data[two : two + PAGE_BYTES]


def place(choice: random.Random, places: Sequence[int]) -> int:
    """One of them, and more often where the formats' own words are."""
    return choice.choice(places[:200] if choice.random() < 0.1 else places)


@functools.cache
def holding(data: bytes, log: bytes) -> Sequence[int]:
    """Where a file holds something: not in long runs of zeros, and not in pages that the log has a later one of."""
    later = {int.from_bytes(log[at : at + 4]) for at in range(LOG_HEADER_BYTES, len(log), LOG_FRAME_BYTES)}
    empty = {at for run in re.finditer(rb"\0{8,}", data) for at in range(*run.span())}
    return [at for at in range(len(data)) if at not in empty and at // PAGE_BYTES + 1 not in later]


EDITS: Final[tuple[Edit, ...]] = (flip, flip, flip, overwrite, insert, delete, truncate, swap, copy_a_page)


def edited(choice: random.Random, history: History) -> tuple[str, Files]:
    """The last state's files after one edit of one of them, and what was done."""
    last = choice.choice(history.last)
    while True:
        what, files = edited_once(choice, history, last)
        if files != last:
            return what, files


def edited_once(choice: random.Random, history: History, last: Files) -> tuple[str, Files]:
    """As `edited`; it may be an edit that changes nothing."""
    files = dict(last)
    name, kind = choice.choice(sorted(files)), choice.randrange(len(EDITS) + 4)
    if kind < len(EDITS):
        data = bytearray(files[name])
        EDITS[kind](choice, data, holding(files[name], files.get(LOG, b"") if name == FILE else b""))
        files[name] = bytes(data)
        return EDITS[kind].__name__, files
    if kind == len(EDITS):
        del files[name]
        return "remove", files
    if kind == len(EDITS) + 1:
        files[FILE] = history.other
        return "another store's", files
    if kind == len(EDITS) + 2:
        old = choice.choice(history.earlier + history.last)
        taken = choice.choice(sorted(old))
        files[taken] = old[taken]
        return "mix", files
    suffix = choice.choice(["-journal", "-wal", "-shm"])
    files[FILE + suffix] = journal_like(choice, history)
    return f"add {suffix}", files


def journal_like(choice: random.Random, history: History) -> bytes:
    """A rollback journal of a page of another time, with SQLite's magic; or just something."""
    if choice.random() < 0.3:
        return choice.randbytes(choice.choice([0, 10, 5000]))
    number, old = choice.randrange(1, 6), choice.choice(history.earlier)[FILE]
    page = old[(number - 1) * PAGE_BYTES : number * PAGE_BYTES].ljust(PAGE_BYTES, b"\0")
    checksum = sum(page[place] for place in range(PAGE_BYTES - 200, 0, -200)) & 0xFFFFFFFF
    record = number.to_bytes(4) + page + checksum.to_bytes(4)
    return journal_header(1, len(history.last[1][FILE]) // PAGE_BYTES) + record


def journal_header(records: int, pages: int) -> bytes:
    """Of SQLite's rollback journal, with sectors of 512 bytes and 0 for the checksums to start at."""
    numbers = b"".join(number.to_bytes(4) for number in (records, 0, pages, 512, PAGE_BYTES))
    return (JOURNAL_MAGIC + numbers).ljust(512, b"\0")


def attempt(host: Host, *allowed_contents: Mapping[str, bytes]) -> tuple[str, bool]:
    """What an opening came to, in words, and whether that is allowed: one of these contents, or a refusal."""
    begun = time.monotonic()
    try:
        with host.open() as store:
            same = {name: store[name] for name in store.names()} in allowed_contents
            outcome, allowed = ("served", True) if same else ("served something else", False)
    except REFUSALS as problem:
        outcome, allowed = type(problem).__name__, True
    except Exception as problem:  # an error that is in no table is as wrong as an answer
        outcome, allowed = f"{type(problem).__name__} escaped", False
    return outcome, allowed and time.monotonic() - begun < OPENING_SECONDS


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_random_edit_is_accepted(host: Host, history: History, count: int) -> None:
    """Edits are where SQLite keeps something; one that it never reads (the -shm file) leaves what was acknowledged."""
    seed = int(os.environ.get("ADYTON_EDITS_SEED") or random.SystemRandom().randrange(1 << 32))
    choice, outcomes, wrong = random.Random(seed), Counter[str](), list[str]()
    for number in range(count):
        what, files = edited(choice, history)
        host.put(files)
        outcome, allowed = attempt(host, history.content)
        outcomes[outcome] += 1
        if not allowed:
            wrong.append(f"edit {number}, {what}: {outcome}")
    print(f"ADYTON_EDITS_SEED={seed}: {dict(outcomes)}")
    assert not wrong, f"ADYTON_EDITS_SEED={seed}"
    assert outcomes["served"] < count / 10


@pytest.mark.parametrize("count", [200, pytest.param(3000, marks=pytest.mark.slow)])
def test_an_edit_under_an_open_store_is_never_believed(host: Host, history: History, count: int) -> None:
    """Until it refuses, what it says is right and what it acknowledges is kept, or the file is refused later."""
    seed = int(os.environ.get("ADYTON_EDITS_SEED") or random.SystemRandom().randrange(1 << 32))
    choice, outcomes, wrong = random.Random(seed), Counter[str](), list[str]()
    for number in range(count):
        host.put(choice.choice(history.last))
        states = [history.content]
        with host.open() as store:
            change_values(choice, store, states)
            what = edit_under(choice, host)
            forget(store)
            while_open, allowed = use(choice, store, states)
        if not allowed:
            wrong.append(f"edit {number}, {what}: {while_open}")
        outcome, allowed = attempt(host, *states)
        if not allowed:
            wrong.append(f"edit {number}, {what}, {while_open}, opened again: {outcome}")
        outcomes[f"{while_open}, then {outcome}"] += 1
    print(f"ADYTON_EDITS_SEED={seed}: {dict(outcomes)}")
    assert not wrong, f"ADYTON_EDITS_SEED={seed}"
    assert sum(outcomes.values()) - outcomes["right, then served"] > count / 3


def change_values(choice: random.Random, store: SealedStore, states: list[Mapping[str, bytes]]) -> None:
    """One transaction; what it leaves is added to `states`, and alone in there when it is acknowledged."""
    values = {f"name {choice.randrange(20)}": choice.randbytes(choice.choice([0, 100, 6000])) for _ in range(2)}
    states.append({**states[-1], **values})
    with store.transaction() as change:
        for name, value in values.items():
            change[name] = value
    del states[:-1]


def edit_under(choice: random.Random, host: Host) -> str:
    """Edit the file or its log, as they stand, in place; what was done."""
    files, kind = host.files(), choice.choice(EDITS)
    name = choice.choice([FILE, LOG])
    data = bytearray(files[name])
    kind(choice, data, range(len(data)))
    with (host.folder / name).open("r+b") as file:
        file.write(data)
        file.truncate()
    return f"{kind.__name__} in {name}"


def forget(store: SealedStore) -> None:
    """What SQLite has in memory of the file, so that it must read the file; as when that is larger than its cache."""
    store._database._connection.execute("PRAGMA shrink_memory")


def use(choice: random.Random, store: SealedStore, states: list[Mapping[str, bytes]]) -> tuple[str, bool]:
    """Read and write until it refuses; that in words, and whether every answer was right. `states` as before."""
    try:
        for _ in range(3):
            if any(store.get(name) != value for name, value in choice.sample(sorted(states[0].items()), 3)):
                return "a wrong answer", False
            change_values(choice, store, states)
        same = {name: store[name] for name in store.names()} == states[0]
    except REFUSALS as problem:
        return type(problem).__name__, True
    except Exception as problem:  # as in `attempt`
        return f"{type(problem).__name__} escaped", False
    return ("right", True) if same else ("a wrong answer", False)


def test_the_files_are_served_unless_they_are_edited(host: Host, history: History) -> None:
    for files in history.last:
        host.put(files)
        assert attempt(host, history.content) == ("served", True)


def test_a_schema_that_is_no_text_is_refused(host: Host, history: History) -> None:
    """SQLite quotes it in its message, and that has to be made into text."""
    closed = history.last[1]
    schema, rest = closed[FILE][:PAGE_BYTES], closed[FILE][PAGE_BYTES:]
    host.put({FILE: schema.replace(b"record", b"rec\xbdrd", 2) + rest})
    assert attempt(host, history.content) == ("SealedDataError", True)


def test_a_journal_can_not_name_a_file_to_delete(host: Host, history: History, tmp_path: Path) -> None:
    """SQLite deletes the super-journal that a rollback journal names, be it whatever, when it has rolled back."""
    precious = tmp_path / "a file of the enclave's"
    precious.write_bytes(b"precious")
    closed, name = history.last[1], str(precious).encode()
    tail = (SUPER_JOURNAL_PAGE.to_bytes(4), name, len(name).to_bytes(4), sum(name).to_bytes(4), JOURNAL_MAGIC)
    host.put({**closed, f"{FILE}-journal": journal_header(0, len(closed[FILE]) // PAGE_BYTES) + b"".join(tail)})
    attempt(host, history.content)
    assert precious.read_bytes() == b"precious"


@pytest.mark.parametrize("suffix", ["", "-wal", "-journal"])
def test_a_link_is_not_followed(host: Host, history: History, tmp_path: Path, suffix: str) -> None:
    """Else the host chooses a file of the enclave's that SQLite makes or writes to."""
    for target, before in ((tmp_path / "none", None), (tmp_path / "empty", b"")):
        if before is not None:
            target.write_bytes(before)
        host.put(history.last[1])
        link = host.folder / f"new.store{suffix}"
        link.symlink_to(target)
        with contextlib.suppress(*REFUSALS):
            host.open("new").close()
        assert (target.read_bytes() if target.exists() else None) == before
