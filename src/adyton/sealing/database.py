"""The file of a store: SQLite, alone in it, with nothing in memory that other processes share. It decides nothing.

The file comes from a hostile host. What is read from it is verified above; here SQLite is told to distrust it: no
triggers or views (the schema must be ours to the letter), no memory map, no shared-memory file.
"""

from __future__ import annotations

import contextlib
import sqlite3
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from adyton.errors import AdytonError, InUseError, SealedDataError, StorageError
from adyton.sealing.disk import sync_folder
from adyton.sealing.records import MAX_VALUE_BYTES

_SCHEMA: Final = (
    "CREATE TABLE meta (id INTEGER PRIMARY KEY, sealed_key BLOB NOT NULL, root BLOB NOT NULL) STRICT",
    "CREATE TABLE record (hashed BLOB PRIMARY KEY, record BLOB NOT NULL) STRICT, WITHOUT ROWID",
)
_SETTINGS: Final = (
    "PRAGMA locking_mode = EXCLUSIVE",  # before the journal's mode: then WAL needs no file of shared memory
    "PRAGMA trusted_schema = OFF",
    "PRAGMA cell_size_check = ON",
    "PRAGMA mmap_size = 0",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA synchronous = FULL",  # a commit is on the disk when it returns
)
_MAX_ROW_BYTES: Final = 2 * MAX_VALUE_BYTES
_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_DISK: Final = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}
)


class Database:
    """One open file; what it is asked for is one row, all rows, or one transaction. Not safe in threads."""

    def __init__(self, path: Path) -> None:
        """Open it, or make it, and lock it. `InUseError`, `StorageError`, or `SealedDataError` for what is no store."""
        self._path = path
        self._connect()

    def _connect(self) -> None:
        try:
            _check_files(self._path)
        except OSError as problem:
            raise StorageError(f"the store {self._path} can't be read or written: {problem.strerror}") from problem
        with self._failing():
            self._connection = sqlite3.connect(self._path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            with self._failing():
                self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_ROW_BYTES)
        for each in _SETTINGS:
            self._connection.execute(each)
        (mode,) = self._connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise StorageError(f"{self._path}: SQLite's journal is {mode}, not wal")
        self._connection.execute("BEGIN EXCLUSIVE")  # takes the lock, and keeps it after the commit
        if self._schema() != _SCHEMA:
            raise SealedDataError(f"{self._path} is a database with other tables than a store's")
        self._connection.execute("COMMIT")

    def _schema(self) -> tuple[str, ...]:
        """What is in the file; SQLite's own objects have no text."""
        return tuple(text for (text,) in self._connection.execute("SELECT sql FROM sqlite_master ORDER BY rowid"))

    def meta(self) -> tuple[bytes, bytes] | None:
        """The sealed key and the root, or None in a new file."""
        with self._failing():
            rows = self._connection.execute("SELECT id, sealed_key, root FROM meta LIMIT 2").fetchall()
        if not rows:
            return None
        if len(rows) > 1 or rows[0][0] != 1:
            raise SealedDataError(f"{self._path} has other rows than a store's")
        return self._blob(rows[0][1]), self._blob(rows[0][2])

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """Hash and record of each; for one pass."""
        with self._failing():
            (verdict,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise SealedDataError(f"{self._path} is damaged")
            for hashed, record in self._connection.execute("SELECT hashed, record FROM record"):
                yield self._blob(hashed), self._blob(record)

    def record(self, hashed: bytes) -> bytes | None:
        """One record."""
        with self._failing():
            row = self._connection.execute("SELECT record FROM record WHERE hashed = ?", (hashed,)).fetchone()
        return None if row is None else self._blob(row[0])

    def commit(self, *, sealed_key: bytes, root: bytes, records: Mapping[bytes, bytes | None]) -> None:
        """Write these records (None: remove it) and the root, all or nothing, on the disk when it returns.

        Raises StorageError when the disk did not take it; nothing has changed then, unless `meta` says otherwise.
        """
        with self._failing():
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                for hashed, record in records.items():
                    if record is None:
                        self._connection.execute("DELETE FROM record WHERE hashed = ?", (hashed,))
                    else:
                        self._connection.execute("INSERT OR REPLACE INTO record VALUES (?, ?)", (hashed, record))
                self._connection.execute("INSERT OR REPLACE INTO meta VALUES (1, ?, ?)", (sealed_key, root))
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise

    def settle(self) -> None:
        """What has been read is on the disk when this returns; a process that was killed may have left it unsynced."""
        with self._failing():
            (busy, *_) = self._connection.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
        if busy:
            raise StorageError(f"the store {self._path} can't be written")

    def reopen(self) -> None:
        """Ask the file again, not the connection: what a failed commit has left in it counts. Raises as opening it."""
        self.close()
        self._connect()

    def close(self) -> None:
        """Let the file go. What was committed is in it."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    def _blob(self, value: Any) -> bytes:
        """What a strict table holds, unless somebody wrote to the file by hand."""
        if not isinstance(value, bytes):
            raise SealedDataError(f"{self._path} holds what no store writes")
        return value

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, sqlite3.Warning, OverflowError, UnicodeDecodeError) as problem:
            _fail(self._path, problem)


def _check_files(path: Path) -> None:
    """A regular file, made whole if there is none, and no rollback journal beside it. Raises OSError too.

    SQLite would roll such a journal back, and remove a file whose path stands in it: the host's choice. A store never
    has one, for its file begins in WAL mode.
    """
    journal = path.with_name(f"{path.name}-journal")
    if journal.is_symlink() or journal.exists():
        raise SealedDataError(
            f"{journal} is there, and no store has a journal of that kind", mend="somebody put it there"
        )
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise SealedDataError(f"{path} is not a file")
    except FileNotFoundError:
        _make_file(path)


def _make_file(path: Path) -> None:
    """An empty store, under another name first; its own name is linked to it when it is whole and on the disk."""
    with tempfile.TemporaryDirectory(prefix=".new-store-", dir=path.parent) as folder:
        new = Path(folder, path.name)
        connection = sqlite3.connect(new, isolation_level=None)
        try:
            for each in ("PRAGMA synchronous = FULL", *_SCHEMA, "PRAGMA journal_mode = WAL"):
                connection.execute(each)
        except sqlite3.Error as problem:
            _fail(path, problem)
        finally:
            connection.close()
        with contextlib.suppress(FileExistsError):  # another process was faster
            path.hardlink_to(new)
    sync_folder(path.parent)


def _fail(path: Path, problem: Exception) -> NoReturn:
    code = getattr(problem, "sqlite_errorcode", 0) & 0xFF
    failure: AdytonError
    if code in _BUSY:
        failure = InUseError(f"the store {path} is open elsewhere")
    elif code in _DISK:
        failure = StorageError(f"the store {path} can't be read or written: {problem}")
    else:
        failure = SealedDataError(f"{path} is damaged: {problem}")
    raise failure from problem
