"""Sealing beside the bare cipher, and what sealed files and stores cost: `python3 dev.py bench sealing`.

Who seals and the bare cipher take turns in one process. Bare is what anybody would write: a random nonce, `encrypt`;
`decrypt`. Its cipher object is ready, and it leaves out all else: no header, no context, nothing that finds the key
again. A goal that is missed is named, and the exit code is then 1.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import itertools
import os
import platform
import socket
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

from adyton.sealing.chunks import CHUNK_BYTES
from adyton.sealing.file import SealedFile
from adyton.sealing.sealer import Sealer
from adyton.sealing.store import SealedStore
from adyton.tee.sealing import Binding
from adyton.tee.simulated.platform import SimulatedPlatform
from adyton.tee.simulated.sealing import SimulatedSealing
from adyton.tee.simulated.sealing_platform import serve_sealing

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
BEGIN, END = "<!-- bench sealing: begin -->\n", "<!-- bench sealing: end -->\n"
TMPFS = Path("/dev/shm")

GOAL = 1.5
SECRET_BYTES = 1024
CONTEXT = b"a context of the benchmark"
CALLS = 100
"""In one turn: long enough for the clock, short enough that what else runs meets both."""

Call = Callable[[], object]
Times = dict[str, list[float]]
"""Seconds of each round, by what was done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is done: rounds of calls, of transactions, and of files and opened stores; sizes of these."""

    calls: int
    transactions: int
    files: int
    file_bytes: int
    records: tuple[int, ...]


FULL = Effort(calls=1000, transactions=300, files=9, file_bytes=64 * 1024 * 1024, records=(1000, 100_000))
QUICK = Effort(calls=20, transactions=5, files=2, file_bytes=1024 * 1024, records=(10, 100))


class Forgetful(SimulatedSealing):
    """Hardware without a register."""

    def register(self, binding: Binding, label: bytes) -> None:  # type: ignore[override]  # as KeySource has it
        """None, whoever asks."""


@contextlib.contextmanager
def sealers(folder: Path) -> Iterator[dict[str, Sealer]]:
    """A sealer of an enclave of the simulation whose registers are in that folder, and one that has no registers."""
    with contextlib.ExitStack() as stack:
        made = {}
        for name, kind in (("register", SimulatedSealing), ("none", Forgetful)):
            hardware = SimulatedPlatform.open(folder).sealing(hashlib.sha384(b"bench").digest())
            inside, outside = (stack.enter_context(each) for each in socket.socketpair())
            threading.Thread(target=serve_sealing, args=(hardware, outside), daemon=True).start()
            made[name] = Sealer(kind(inside))
        yield made


def in_turn(calls: Mapping[str, Call], rounds: int, times: int = 1) -> Times:
    """What each takes, in seconds a call, in every round; all have been called before."""
    found: Times = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            begun = time.perf_counter()
            for _ in range(times):
                call()
            found[name].append((time.perf_counter() - begun) / times)
    return found


# --- one secret


def of_secrets(sealer: Sealer, rounds: int) -> Times:
    """Ours, bare and bare under a fixed nonce, one after the other in each round."""
    secret, fixed, cipher = os.urandom(SECRET_BYTES), os.urandom(12), AESGCMSIV(os.urandom(32))
    nonce = os.urandom(12)
    encrypted, sealed = cipher.encrypt(nonce, secret, None), sealer.seal(secret, context=CONTEXT)

    def bare() -> tuple[bytes, bytes]:
        drawn = os.urandom(12)
        return drawn, cipher.encrypt(drawn, secret, None)

    def bare_both() -> bytes:
        drawn, made = bare()
        return cipher.decrypt(drawn, made, None)

    calls: dict[str, Call] = {
        "seal": lambda: sealer.seal(secret, context=CONTEXT),
        "seal, bare": bare,
        "seal, fixed": lambda: cipher.encrypt(fixed, secret, None),
        "unseal": lambda: sealer.unseal(sealed, context=CONTEXT),
        "unseal, bare": lambda: cipher.decrypt(nonce, encrypted, None),
        "both": lambda: sealer.unseal(sealer.seal(secret, context=CONTEXT), context=CONTEXT),
        "both, bare": bare_both,
        "both, fixed": lambda: cipher.decrypt(fixed, cipher.encrypt(fixed, secret, None), None),
    }
    return in_turn(calls, rounds, CALLS)


def of_new_keys(sealer: Sealer, rounds: int) -> Times:
    """What asks the hardware and derives a key: a context's first seal, and the first unseal of another process."""
    numbers = itertools.count()
    sealed = sealer.seal(bytes(SECRET_BYTES), context=CONTEXT)
    calls: dict[str, Call] = {
        "the first seal of a context": lambda: sealer.seal(b"", context=b"%d" % next(numbers)),
        "the first unseal of a new sealer": lambda: Sealer(sealer.source).unseal(sealed, context=CONTEXT),
    }
    return in_turn(calls, rounds)


def ratio(found: Times, name: str, base: str) -> float:
    """The median of what one takes beside what the other takes in the same round."""
    return statistics.median(ours / other for ours, other in zip(found[name], found[base], strict=True))


def secret_table(found: Times) -> Iterator[str]:
    yield "| 1 KiB | ours, µs | bare, µs | beside it | fixed nonce, µs | beside it |\n|---|---|---|---|---|---|"
    for name in ("seal", "unseal", "both"):
        bare, fixed = f"{name}, bare", f"{name}, fixed"
        cells = [spread(found[name], 1e6), spread(found[bare], 1e6), f"{ratio(found, name, bare):.2f}"]
        cells += [spread(found[fixed], 1e6), f"{ratio(found, name, fixed):.2f}"] if fixed in found else ["", ""]
        yield f"| {' | '.join((name, *cells))} |"


# --- files


def of_files(sealer: Sealer, folders: Mapping[str, Path], effort: Effort) -> Times:
    """A file that is written and read whole, chunk by chunk; beside it, the bare cipher on chunks of that size."""
    chunk, nonce, cipher = os.urandom(CHUNK_BYTES), bytes(12), AESGCMSIV(os.urandom(32))
    encrypted, count = cipher.encrypt(nonce, chunk, None), effort.file_bytes // CHUNK_BYTES

    def write(path: Path) -> None:
        with SealedFile.create(path, sealer) as file:
            for _ in range(count):
                file.write(chunk)

    def read(path: Path) -> None:
        with SealedFile.open(path, sealer) as file:
            while file.read(CHUNK_BYTES):
                pass

    def bare(operation: Callable[[bytes, bytes, None], bytes], data: bytes) -> None:
        for _ in range(count):
            operation(nonce, data, None)

    calls: dict[str, Call] = {
        "bare cipher, encrypt": functools.partial(bare, cipher.encrypt, chunk),
        "bare cipher, decrypt": functools.partial(bare, cipher.decrypt, encrypted),
    }
    for place, folder in folders.items():
        calls[f"SealedFile, write, {place}"] = functools.partial(write, folder / "file")
        calls[f"SealedFile, read, {place}"] = functools.partial(read, folder / "file")
    return in_turn(calls, effort.files)


def file_table(found: Times, size: int) -> Iterator[str]:
    yield f"| {size // 1024 // 1024} MiB | MB a second | time beside the bare cipher |\n|---|---|---|"
    for name, seconds in found.items():
        base = f"bare cipher, {'encrypt' if name.endswith('encrypt') or ', write' in name else 'decrypt'}"
        rates = spread([size / 1e6 / each for each in seconds], digits=0)
        yield f"| {name} | {rates} | {ratio(found, name, base):.2f} |"


# --- stores


@contextlib.contextmanager
def plain(path: Path, value: bytes) -> Iterator[Call]:
    """A transaction of that value by SQLite alone, with the settings of a store that decide what it costs."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        for each in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL"):
            database.execute(f"PRAGMA {each}").fetchall()
        database.execute("CREATE TABLE record (name TEXT PRIMARY KEY, value BLOB)")
        yield functools.partial(database.execute, "INSERT OR REPLACE INTO record VALUES ('name', ?)", (value,))


def of_transactions(folder: Path, rounds: int) -> Times:
    """Of one value of 1 KiB each: SQLite's, a store's without a register, and one's with it; and `get`."""
    value = os.urandom(SECRET_BYTES)
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(sealers(folder))
        stores = {each: stack.enter_context(SealedStore.open(folder, each, made[each])) for each in made}
        calls: dict[str, Call] = {
            "SQLite alone, transaction": stack.enter_context(plain(folder / "plain", value)),
            "transaction, no register": lambda: stores["none"].put("name", value),
            "transaction, register": lambda: stores["register"].put("name", value),
        }
        return in_turn(calls, rounds) | in_turn({"get": lambda: stores["register"]["name"]}, rounds, CALLS)


def of_opening(folder: Path, effort: Effort) -> Times:
    """A store of that many records of 1 KiB that is opened, whose every record is verified."""
    calls: dict[str, Call] = {}
    with sealers(folder) as made:
        for count in effort.records:
            open_it = functools.partial(SealedStore.open, folder, f"store-{count}", made["register"])
            with open_it() as store, store.transaction() as change:
                for number in range(count):
                    change[str(number)] = os.urandom(SECRET_BYTES)
            calls[f"open, {count:,} records"] = functools.partial(open_and_close, open_it)
        return in_turn(calls, effort.files)


def open_and_close(open_it: Callable[[], SealedStore]) -> None:
    open_it().close()


def store_table(found: Mapping[str, Times]) -> Iterator[str]:
    yield f"| store | {' | '.join(f'{place}, ms' for place in found)} | of it for the disk |"
    yield "|---" * (len(found) + 2) + "|"
    slow, fast = found.values()
    for name in slow:
        share = 1 - statistics.median(fast[name]) / statistics.median(slow[name])
        cells = (name, spread(slow[name], 1e3, 3), spread(fast[name], 1e3, 3))
        yield f"| {' | '.join(cells)} | {f'{share:.0%}' if 'transaction' in name else ''} |"


# --- the report


def spread(values: Sequence[float], factor: float = 1, digits: int = 2) -> str:
    """The median, and the middle half of the values."""
    low, middle, high = (factor * each for each in statistics.quantiles(values, n=4, method="inclusive"))
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def goal_lines(found: Times) -> Iterator[str]:
    for name in ("seal", "unseal", "both"):
        reached = ratio(found, name, f"{name}, bare")
        verdict = "met" if reached <= GOAL else "missed"
        yield f"- {verdict}: {name}, 1 KiB: ours takes {reached:.2f} of the bare cipher, the goal is {GOAL}"


def measured(effort: Effort, folders: Mapping[str, Path]) -> Iterator[str]:
    """Each part of the report, as soon as it is known; the verdicts last."""
    yield (
        f"CPython {platform.python_version()}, cryptography {version('cryptography')}, SQLite "
        f"{sqlite3.sqlite_version}, {os.cpu_count()} CPUs. Medians, and in brackets the middle half."
    )
    with sealers(folders["disk"]) as made:
        secrets = of_secrets(made["register"], effort.calls)
        yield "\n".join(secret_table(secrets))
        keys = of_new_keys(made["register"], effort.transactions)
        yield "\n".join(["| what | µs |\n|---|---|", *(f"| {name} | {spread(keys[name], 1e6, 0)} |" for name in keys)])
        yield "\n".join(file_table(of_files(made["register"], folders, effort), effort.file_bytes))
    stores = {
        place: of_transactions(folder, effort.transactions) | of_opening(folder, effort)
        for place, folder in folders.items()
    }
    yield "\n".join(store_table(stores))
    yield "\n".join(goal_lines(secrets))


def write(text: str) -> None:
    page = DOCS / "performance.md"
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{text}\n\n{END}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few rounds of small files and stores")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    arguments = parser.parse_args()
    (ROOT / "build").mkdir(exist_ok=True)
    parts = []
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as disk, tempfile.TemporaryDirectory(dir=TMPFS) as memory:
        for part in measured(QUICK if arguments.quick else FULL, {"disk": Path(disk), "tmpfs": Path(memory)}):
            parts.append(part)
            print(part, end="\n\n", flush=True)
    if arguments.write:
        write("\n\n".join(parts))
    return int("- missed" in parts[-1])


if __name__ == "__main__":
    sys.exit(main())
