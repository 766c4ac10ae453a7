"""The sealed store: what it keeps, what it refuses, and what a host can do to its file."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from simulated_machine import SimulatedMachine

from adyton.errors import InUseError, RollbackError, SealedDataError, StorageError, UnsealError
from adyton.sealing.sealer import Sealer
from adyton.sealing.store import SealedStore
from adyton.tee.sealing import SealPolicy

FILE = "s.store"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[SimulatedMachine]:
    with SimulatedMachine(tmp_path / "machine") as machine:
        yield machine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "state folder"
    path.mkdir()
    return path


@pytest.fixture
def opened(machine: SimulatedMachine, folder: Path) -> Callable[[], SealedStore]:
    """Open the store as the same enclave, started again."""
    return lambda: SealedStore.open(folder, "s", Sealer(machine.source()))


def test_what_was_put_is_there_after_a_restart(opened: Callable[[], SealedStore]) -> None:
    with opened() as store:
        store.put("a", b"1")
        store.put("é", b"")
        assert store.protected
    with opened() as store:
        assert (store["a"], store["é"], store.get("b"), len(store)) == (b"1", b"", None, 2)
        assert ("a" in store, "b" in store, store.names()) == (True, False, ["a", "é"])
        with pytest.raises(KeyError):
            store["b"]


def test_a_transaction_happens_whole(opened: Callable[[], SealedStore]) -> None:
    with opened() as store:
        with store.transaction() as change:
            change["a"], change["b"] = b"1", b"2"
            del change["a"]
            assert (change.get("a"), change["b"], change.get("c", b"x")) == (None, b"2", b"x")
            assert "b" not in store
        assert store.names() == ["b"]


def test_a_transaction_that_raises_changes_nothing(opened: Callable[[], SealedStore]) -> None:
    with opened() as store:
        store.put("a", b"1")
        with contextlib.suppress(ZeroDivisionError), store.transaction() as change:
            change["a"] = b"2"
            change["b"] = b"2"
            raise ZeroDivisionError
        assert (store["a"], store.names()) == (b"1", ["a"])
        store.put("a", b"3")
    with opened() as store:
        assert store["a"] == b"3"


def test_names_and_values_are_bounded(opened: Callable[[], SealedStore]) -> None:
    with opened() as store:
        for name, value in (("", b""), ("n" * 1025, b""), ("n", bytes(16 * 1024 * 1024 + 1))):
            with pytest.raises(ValueError, match="bytes"):
                store.put(name, value)
        with pytest.raises(TypeError):
            store.put("n", 5)  # type: ignore[arg-type]
        store.put("n" * 1024, bytes(1024 * 1024))
        assert len(store) == 1


def test_transactions_of_several_threads_follow_each_other(opened: Callable[[], SealedStore]) -> None:
    with opened() as store:

        def count() -> None:
            for _ in range(20):
                with store.transaction() as change:
                    change["n"] = str(int(change.get("n", b"0") or b"0") + 1).encode()

        threads = [threading.Thread(target=count) for _ in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert store["n"] == b"80"


def test_a_transaction_inside_another_is_refused(opened: Callable[[], SealedStore]) -> None:
    with opened() as store, store.transaction(), pytest.raises(RuntimeError, match="is open in this thread"):
        store.put("a", b"")


def test_a_second_opening_is_refused(opened: Callable[[], SealedStore]) -> None:
    with opened(), pytest.raises(InUseError, match="is open elsewhere"):
        opened()
    opened().close()


def test_neither_names_nor_values_are_in_the_file(opened: Callable[[], SealedStore], folder: Path) -> None:
    with opened() as store:
        store.put("a-name-to-look-for", b"a-value-to-look-for")
        written = b"".join(path.read_bytes() for path in folder.iterdir())
    written += b"".join(path.read_bytes() for path in folder.iterdir())
    assert b"look-for" not in written


def test_other_code_can_not_open_it(machine: SimulatedMachine, folder: Path) -> None:
    SealedStore.open(folder, "s", Sealer(machine.source())).close()
    with pytest.raises(UnsealError, match="measurement"):
        SealedStore.open(folder, "s", Sealer(machine.source(code="b")))


def test_reseal_takes_it_to_a_later_version_and_closes_it_to_the_earlier(
    machine: SimulatedMachine, folder: Path
) -> None:
    def opened(code: str, version: int) -> SealedStore:
        sealer = Sealer(machine.source(code=code, version=version), policy=SealPolicy.SIGNER)
        return SealedStore.open(folder, "s", sealer)

    with opened("a", 1) as store:
        store.put("a", b"1")
    with opened("b", 2) as store:
        assert store["a"] == b"1"
    with opened("a", 1) as store:
        store.put("a", b"2")
    with opened("b", 2) as store:
        store.reseal()
        store.put("a", b"3")
    with pytest.raises(UnsealError, match="the version is 1; the data was sealed for 2 or later"):
        opened("a", 1)
    with opened("b", 2) as store:
        assert store["a"] == b"3"


def test_another_policy_is_refused_by_name(machine: SimulatedMachine, folder: Path) -> None:
    SealedStore.open(folder, "s", Sealer(machine.source())).close()
    with pytest.raises(UnsealError, match="policy is measurement; this enclave seals for signer"):
        SealedStore.open(folder, "s", Sealer(machine.source(), policy=SealPolicy.SIGNER))


def test_an_older_file_is_refused(opened: Callable[[], SealedStore], folder: Path) -> None:
    with opened() as store:
        store.put("a", b"1")
    shutil.copy(folder / FILE, folder / "old")
    with opened() as store:
        store.put("a", b"2")
    shutil.copy(folder / "old", folder / FILE)
    with pytest.raises(RollbackError, match="this file is older, or a rival of it"):
        opened()


def test_a_file_that_was_taken_away_is_missed(opened: Callable[[], SealedStore], folder: Path) -> None:
    opened().close()
    (folder / FILE).unlink()
    with pytest.raises(RollbackError, match="its file is gone"):
        opened()


def test_a_copy_that_goes_on_stops_the_original(machine: SimulatedMachine, folder: Path, tmp_path: Path) -> None:
    with SealedStore.open(folder, "s", Sealer(machine.source())) as store:
        store.put("a", b"1")
        shutil.copytree(folder, tmp_path / "copy")
        with SealedStore.open(tmp_path / "copy", "s", Sealer(machine.source())) as rival:
            rival.put("a", b"2")
        with pytest.raises(RollbackError, match="written elsewhere"):
            store.put("a", b"3")
        with pytest.raises(RollbackError):
            store["a"]
    with pytest.raises(RollbackError):
        SealedStore.open(folder, "s", Sealer(machine.source()))


def test_another_stores_file_is_refused(machine: SimulatedMachine, folder: Path) -> None:
    for name in ("s", "t"):
        SealedStore.open(folder, name, Sealer(machine.source())).close()
    shutil.copy(folder / "t.store", folder / FILE)
    with pytest.raises(UnsealError, match="context"):
        SealedStore.open(folder, "s", Sealer(machine.source()))


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM record WHERE hashed = (SELECT hashed FROM record LIMIT 1)",
        "UPDATE record SET record = (SELECT record FROM record ORDER BY hashed DESC LIMIT 1)",
        "INSERT INTO record SELECT zeroblob(32), record FROM record LIMIT 1",
        "UPDATE record SET record = zeroblob(40)",
        "UPDATE record SET record = x''",
        "UPDATE meta SET root = zeroblob(108)",
        "UPDATE meta SET root = x''",
        "UPDATE meta SET sealed_key = x''",
        "UPDATE meta SET id = 2",
        "INSERT INTO meta SELECT 2, sealed_key, root FROM meta",
        "CREATE TABLE more (x)",
        "CREATE TRIGGER t AFTER INSERT ON meta BEGIN DELETE FROM record; END",
        "DROP TABLE record",
        "ALTER TABLE record RENAME TO other",
    ],
)
def test_a_change_to_the_file_is_refused(opened: Callable[[], SealedStore], folder: Path, change: str) -> None:
    with opened() as store:
        store.put("a", b"1")
        store.put("b", b"2")
    connection = sqlite3.connect(folder / FILE)
    connection.execute(change)
    connection.commit()
    connection.close()
    with pytest.raises(SealedDataError):
        opened()


def test_without_its_row_it_is_a_new_store_which_is_a_rollback(opened: Callable[[], SealedStore], folder: Path) -> None:
    opened().close()
    connection = sqlite3.connect(folder / FILE)
    connection.execute("DELETE FROM meta")
    connection.commit()
    connection.close()
    with pytest.raises(RollbackError, match="remembers"):
        opened()


def test_a_change_while_it_is_open_is_refused(opened: Callable[[], SealedStore], folder: Path) -> None:
    with opened() as store:
        for number in range(100):
            store.put(str(number), bytes(40_000))  # more than SQLite has in its cache
        for path in folder.iterdir():
            data = bytearray(path.read_bytes())
            data[4096:] = bytes(len(data) - 4096)
            with path.open("r+b") as file:
                file.write(data)
        with pytest.raises(SealedDataError):
            store.names()
        with pytest.raises(SealedDataError):
            store.put("a", b"")


def test_what_is_no_database_is_refused(opened: Callable[[], SealedStore], folder: Path) -> None:
    (folder / FILE).write_bytes(b"not a database, and longer than a header " * 100)
    with pytest.raises(SealedDataError, match="is damaged"):
        opened()


def test_a_closed_store_says_so(opened: Callable[[], SealedStore]) -> None:
    store = opened()
    store.close()
    store.close()
    with pytest.raises(StorageError, match="closed"):
        store.get("a")


@pytest.mark.parametrize("name", ["", "S", "../s", "s/t", "1", "s" * 64])
def test_a_store_has_a_plain_name(machine: SimulatedMachine, folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match="a store's name"):
        SealedStore.open(folder, name, Sealer(machine.source()))


def test_a_folder_that_is_not_there_is_a_storage_error(machine: SimulatedMachine, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        SealedStore.open(tmp_path / "none", "s", Sealer(machine.source()))


def test_the_past_is_not_given_back_step_by_step_where_the_register_was_deleted(
    machine: SimulatedMachine, opened: Callable[[], SealedStore], folder: Path, tmp_path: Path
) -> None:
    """Each state is the successor of the one before; the first is nobody's, so it must not be taken for the last."""
    kept = []
    for number in range(4):
        with opened() as store:
            if number:
                store.put("n", str(number).encode())
        kept.append(folder / f"kept-{number}")
        shutil.copy(folder / FILE, kept[-1])
    shutil.rmtree(tmp_path / "machine" / "registers")
    shutil.copy(kept[0], folder / FILE)
    with opened() as store:
        assert store.names() == []
    for older in kept:
        shutil.copy(older, folder / FILE)
        with pytest.raises(RollbackError):
            opened()


def _rows(path: Path) -> list[tuple[bytes, bytes]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT hashed, record FROM record").fetchall()


def test_reseal_changes_every_key(machine: SimulatedMachine, folder: Path) -> None:
    """Who had the store's key when an older version was broken can neither read nor forge what comes after."""
    with SealedStore.open(folder, "s", Sealer(machine.source())) as store:
        store.put("a", b"1")
        store.put("b", b"2")
    before = _rows(folder / FILE)
    with SealedStore.open(folder, "s", Sealer(machine.source())) as store:
        store.reseal()
        assert (store["a"], store["b"], len(store)) == (b"1", b"2", 2)
        store.put("a", b"3")
    after = _rows(folder / FILE)
    assert not {each for row in before for each in row} & {each for row in after for each in row}
    assert len(after) == 2
    with SealedStore.open(folder, "s", Sealer(machine.source())) as store:
        assert (store["a"], store["b"]) == (b"3", b"2")


def test_a_journal_beside_the_file_is_refused_when_it_is_opened_again(
    opened: Callable[[], SealedStore], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened() as store:
        store.put("a", b"1")

        def full(*_: object, **__: object) -> None:
            (folder / f"{FILE}-journal").write_bytes(b"names a file")
            raise StorageError("full")

        monkeypatch.setattr(store._database, "commit", full)
        with pytest.raises(StorageError, match="full"):
            store.put("a", b"2")
        with pytest.raises(StorageError, match="interrupted"):
            store.get("a")
    with pytest.raises(SealedDataError, match="no store has a journal"):
        opened()
