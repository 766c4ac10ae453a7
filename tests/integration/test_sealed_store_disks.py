"""A store on a disk that is full, read-only or broken: it says so, and keeps what it has acknowledged."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from killing import Ledger, Traced, Work, content_of, why_not

from adyton.errors import AdytonError, KeyUnavailableError, StorageError
from adyton.sealing.store import SealedStore

VALUE: Final = bytes(20_000)
NEW_NAMESPACES: Final = 0x10000000 | 0x00020000  # of users and of mounts
READ_ONLY, REMOUNT = 1, 32
CAN_NOT: Final = 1
FAILED, UNAVAILABLE, REFUSES, DONE = 10, 11, 12, 13


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where that can be."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as made:
        yield Path(made).resolve()


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(seed=0, steps=0)


@contextlib.contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file of this process grows beyond that many bytes; Python ignores the signal that says so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fill(store: SealedStore) -> int:
    """Put values until the disk takes no more; how many it took."""
    for number in range(1000):
        try:
            store.put(str(number), VALUE)
        except StorageError:
            return number
    raise AssertionError("the disk is never full")


def test_a_store_whose_file_may_not_grow_goes_on_and_takes_more_when_it_may(ledger: Ledger, folder: Path) -> None:
    with ledger.open(folder) as store:
        with file_limit(300_000):
            count = fill(store)
            assert content_of(store) == {str(number): VALUE for number in range(count)}
            for _ in range(2):
                with pytest.raises(StorageError):
                    store.put("large", bytes(400_000))
        store.put("more", VALUE)
        found = content_of(store)
    assert count > 5
    with ledger.open(folder) as store:
        assert content_of(store) == found == {**{str(number): VALUE for number in range(count)}, "more": VALUE}


def test_a_new_store_whose_file_may_not_grow_leaves_nothing_and_is_made_later(ledger: Ledger, folder: Path) -> None:
    for limit in range(0, 30_000, 2000):
        here = folder / str(limit)
        with file_limit(limit), contextlib.suppress(StorageError, KeyUnavailableError):
            ledger.open(here).close()
        assert not leftovers(here)
        with ledger.open(here) as store:
            assert len(store) == 0


def leftovers(folder: Path) -> list[Path]:
    """What was to become a store."""
    return [path for path in (folder / "state").iterdir() if path.name.startswith(".")]


class Mount:
    """A tmpfs at a path, in namespaces of this process's own."""

    def __init__(self, path: Path, options: str) -> None:
        """OSError where that is not allowed."""
        self._path = path
        user, group = os.getuid(), os.getgid()
        _call("unshare", NEW_NAMESPACES)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        path.mkdir(exist_ok=True)
        self.change(0, options)

    def change(self, flags: int, options: str) -> None:
        """Mount it, or with REMOUNT among the flags, change it."""
        _call("mount", b"tmpfs", os.fsencode(self._path), b"tmpfs", flags, options.encode())


def _call(name: str, *arguments: bytes | int) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def on_own_disk(path: Path, options: str, work: Callable[[Mount], None]) -> None:
    """Do that in a child with a small disk at `path`. Its AssertionError is raised here."""

    def inside(acknowledge: Callable[[int], None]) -> None:
        try:
            mount = Mount(path, options)
        except OSError:
            acknowledge(CAN_NOT)
        else:
            work(mount)

    if CAN_NOT in run(inside, path):
        pytest.skip("no disk of its own can be mounted here")


def run(work: Work, folder: Path) -> list[int]:
    """The work in a child; what it acknowledged."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with Traced(work, folder) as child:
        for _ in child.points():
            pass
    return child.acknowledged


def test_a_full_disk_costs_the_transaction_and_nothing_else(ledger: Ledger, folder: Path) -> None:
    def work(mount: Mount) -> None:
        with ledger.open(folder) as store:
            count = fill(store)
            before = {str(number): VALUE for number in range(count)}
            assert count > 5
            assert content_of(store) == before
        with ledger.open(folder) as store:  # it is still full
            assert content_of(store) == before
            with pytest.raises(StorageError):
                store.put("large", bytes(400_000))
            mount.change(REMOUNT, "size=8m")
            store.put("more", VALUE)
        with ledger.open(folder) as store:
            assert content_of(store) == {**before, "more": VALUE}

    on_own_disk(folder / "state", "size=400k", work)


def test_a_new_store_on_a_full_disk_leaves_nothing_and_is_made_when_there_is_room(ledger: Ledger, folder: Path) -> None:
    def work(mount: Mount) -> None:
        refused = 0
        for size in range(4, 100, 4):
            mount.change(REMOUNT, f"size={size}k")
            try:
                ledger.open(folder).close()
            except StorageError:
                refused += 1
                assert not leftovers(folder)
        assert refused > 3
        with ledger.open(folder) as store:
            store.put("a", VALUE)

    on_own_disk(folder / "state", "size=4k", work)


def test_a_read_only_disk_is_a_storage_error(ledger: Ledger, folder: Path) -> None:
    def work(mount: Mount) -> None:
        mount.change(REMOUNT | READ_ONLY, "")
        with pytest.raises(StorageError):
            ledger.open(folder)
        mount.change(REMOUNT, "")
        with ledger.open(folder) as store:
            store.put("a", VALUE)
        mount.change(REMOUNT | READ_ONLY, "")
        with pytest.raises(StorageError):
            ledger.open(folder)
        mount.change(REMOUNT, "")
        with ledger.open(folder) as store:
            assert content_of(store) == {"a": VALUE}

    on_own_disk(folder / "state", "size=1m", work)


def test_when_the_registers_have_no_room_the_store_stops_and_is_right_later(ledger: Ledger, folder: Path) -> None:
    def work(mount: Mount) -> None:
        store = ledger.open(folder)
        store.put("a", b"1")
        with (folder / "registers/filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while filler.write(bytes(4096)):
                pass
        with pytest.raises(KeyUnavailableError):
            store.put("a", b"2")
        with pytest.raises(KeyUnavailableError):
            store.get("a")
        store.close()
        with pytest.raises(KeyUnavailableError):
            ledger.open(folder)
        mount.change(REMOUNT, "size=1m")
        with ledger.open(folder) as store:
            assert store["a"] == b"2"

    on_own_disk(folder / "registers", "size=64k", work)


failing = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="how a system call is made to fail is known for x86-64"
)


@failing
@pytest.mark.parametrize(("error", "steps"), [(errno.EIO, 2), pytest.param(errno.ENOSPC, 12, marks=pytest.mark.slow)])
def test_a_failure_of_any_one_call_loses_nothing_that_was_acknowledged(folder: Path, error: int, steps: int) -> None:
    """It is no error, or one that says that the disk or the hardware failed."""
    ledger, place, failed = Ledger(seed=1, steps=steps, largest=8000), 0, True

    def work(acknowledge: Callable[[int], None]) -> None:
        with contextlib.suppress(StorageError, KeyUnavailableError):
            ledger.work(here)(acknowledge)

    while failed:
        here, failed = folder / str(place), False
        for each in ("state", "registers"):
            (here / each).mkdir(parents=True)
        with Traced(work, here) as child:
            for number, _ in enumerate(child.points()):
                if number == place:
                    child.fail(error)
                    failed = True
        ledger.check(here, len(child.acknowledged))
        shutil.rmtree(here)
        place += 1
    assert place > 15 * steps


@failing
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
def test_a_transaction_that_a_disk_error_stopped_does_not_come_back(ledger: Ledger, folder: Path, error: int) -> None:
    """Whatever write or sync fails: what the store says next is what is there after a kill, and for good."""
    failures, place, failed = [], 0, True
    while failed:
        here = folder / str(place)
        with ledger.open(here) as store:
            store.put("a", b"1")
        told, failed, what = put_with_failure(ledger, here, place, error)
        with ledger.open(here) as store:
            found = store["a"]
        said = {1: {b"1"}, 2: {b"2"}, REFUSES: {b"1", b"2"}}[told[-2]]
        if found not in said or (DONE in told and found != b"2"):
            failures.append(f"{what}: the store said {told}, and after a kill it says {found!r}")
        place += 1
    assert place > 8
    assert not failures


def put_with_failure(ledger: Ledger, folder: Path, place: int, error: int) -> tuple[list[int], bool, str]:
    """A child puts another value and reads it; the n-th call of the former fails. What it told, whether one did."""

    def work(acknowledge: Callable[[int], None]) -> None:
        store = ledger.open(folder)
        acknowledge(0)
        try:
            store.put("a", b"2")
            acknowledge(DONE)
        except StorageError:
            acknowledge(FAILED)
        except KeyUnavailableError:
            acknowledge(UNAVAILABLE)
        try:
            acknowledge(int(store["a"]))
        except AdytonError:
            acknowledge(REFUSES)
        acknowledge(0)
        os._exit(0)  # as a kill: the store is not closed

    number, what = 0, ""
    with Traced(work, folder) as child:
        for point in child.points():
            if child.acknowledged == [0]:
                if number == place:
                    child.fail(error)
                    what = f"{point.call} of {point.path.name}"
                number += 1
    return child.acknowledged, bool(what), what
