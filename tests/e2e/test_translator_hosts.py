"""What a host does to the translator's state folder: whatever it is, no server comes of it, and no other count."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_line import running
from counting import assert_refused, at, build, channel_to, count, count_after_a_start, kill_the_host

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as it stands."""
    return build(tmp_path_factory.mktemp("plain") / "project")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A folder with a state folder, one with what that was before, and one with another enclave's of the same code."""

    latest: Path
    older: Path
    other: Path


@pytest.fixture(scope="module")
def kept(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    folder = tmp_path_factory.mktemp("kept")
    made = Kept(latest=folder / "latest", older=folder / "older", other=folder / "other")
    for each, name in ((made.latest, "kept"), (made.other, "other")):
        each.mkdir()
        with running(plain, *at(each, name)) as server, channel_to(server, plain) as channel:
            assert count(channel, "ada") == 1
            if each is made.latest:
                shutil.copytree(made.latest, made.older)
                assert count(channel, "ada") == 2
            kill_the_host(server)
    return made


def edit_root(file: Path, _: Path) -> None:
    """Through SQLite, so that no checksum tells."""
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        (root,) = database.execute("SELECT root FROM meta").fetchone()
        database.execute("UPDATE meta SET root = ?", (bytes([root[0] ^ 1, *root[1:]]),))


def edit_record(file: Path, _: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        (record,) = database.execute("SELECT record FROM record").fetchone()
        database.execute("UPDATE record SET record = ?", (record[:-1] + bytes([record[-1] ^ 1]),))


def damage(file: Path, _: Path) -> None:
    """All but the first page; in a page's free room it would harm nothing."""
    content = file.read_bytes()
    file.write_bytes(content[:4096] + b"\xaa" * (len(content) - 4096))


def truncate(file: Path, _: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def take_away(file: Path, _: Path) -> None:
    file.unlink()


def replace(file: Path, by: Path) -> None:
    shutil.copy(by, file)


ROOT = "DATA_LOSS: the store's root was changed"
RECORD = "DATA_LOSS: a record of the store was changed"
DAMAGED = r"DATA_LOSS: .*\.store is damaged"
GONE = r"DATA_LOSS: the hardware remembers a store of that name, and its file is gone"
OLD = r"DATA_LOSS: the store is not the one that was written last"
ANOTHERS = r"PERMISSION_DENIED: the data was sealed for the context"
ATTACKS: dict[str, tuple[str, Callable[[Path, Path], None], str, str]] = {
    "an edited root": ("*.store", edit_root, "", ROOT),
    "an edited record": ("*.store", edit_record, "", RECORD),
    "a damaged file": ("*.store", damage, "", DAMAGED),
    "half a file": ("*.store", truncate, "", DAMAGED),
    "no file": ("*.store", take_away, "", GONE),
    "another enclave's file": ("*.store", replace, "other", ANOTHERS),
    "an older file": ("usage.store", replace, "older", OLD),
    "a damaged journal": ("*.store-wal", damage, "", f"{OLD}|{GONE}"),
    "half a journal": ("*.store-wal", truncate, "", f"{OLD}|{GONE}"),
    "no journal": ("*.store-wal", take_away, "", f"{OLD}|{GONE}"),
    "another enclave's journal": ("*.store-wal", replace, "other", ANOTHERS),
    "an older journal": ("usage.store-wal", replace, "older", OLD),
}


def settle(state: Path) -> None:
    """What SQLite's journals hold is in the files; whoever has the folder can do that."""
    for each in state.glob("*.store"):
        with contextlib.closing(sqlite3.connect(each)) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert not [each for each in state.glob("*-wal") if each.stat().st_size]


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_host_that_changes_a_file_gets_no_server(attack: str, plain: Path, kept: Kept, tmp_path: Path) -> None:
    pattern, change, source, message = ATTACKS[attack]
    names = sorted(each.name for each in kept.latest.glob(f"state/{pattern}"))
    assert len(names) == (1 if pattern.startswith("usage") else 2)
    for name in names:
        folders = {each: shutil.copytree(getattr(kept, each), tmp_path / name / each) for each in Kept.__slots__}
        if name.endswith(".store"):
            for each in folders.values():
                settle(each / "state")
        change(folders["latest"] / "state" / name, folders[source or "latest"] / "state" / name)
        assert_refused(message, plain, *at(folders["latest"], "kept"))


def test_a_whole_folder_of_yesterday_is_refused_and_the_latest_is_not(plain: Path, kept: Kept, tmp_path: Path) -> None:
    older, other, latest = (
        shutil.copytree(getattr(kept, each), tmp_path / each) for each in ("older", "other", "latest")
    )
    assert_refused(OLD, plain, *at(older, "kept"))
    assert_refused(ANOTHERS, plain, *at(other, "kept"))
    assert count_after_a_start("ada", plain, *at(latest, "kept")) == 2
