"""The cache: believed only as far as its digests go, and shared without a lock."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pwd
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import pytest

from adyton.errors import ConfigurationError
from adyton.host.image.cache import KEPT_SECONDS, SCRATCH_SECONDS, Cache, default_cache

FOLDERS = ("", "files", "notes", "scratch")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


def age(*paths: Path, seconds: float = KEPT_SECONDS + 60) -> None:
    """Let these be last used so long ago."""
    for path in paths:
        os.utime(path, (time.time() - seconds,) * 2)


def test_a_file_is_found_by_its_digest_and_can_not_be_written_by_accident(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    digest = cache.add(b"content")
    path = cache.find(digest)
    assert digest == hashlib.sha256(b"content").hexdigest()
    assert path == cache.path(digest)
    assert path.read_bytes() == b"content"
    assert path.stat().st_mode & 0o777 == 0o444


def test_a_damaged_file_is_as_one_that_was_never_there(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    digest = cache.add(b"content")
    cache.path(digest).chmod(0o644)
    cache.path(digest).write_bytes(b"c0ntent")
    assert cache.find(digest) is None
    assert not cache.path(digest).exists()
    assert cache.add(b"content") == digest
    assert cache.find(digest)


def test_a_note_is_kept_and_a_damaged_one_says_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.note({"a": "1", "b": "2"}, {"answer": "42"})
    assert Cache(tmp_path).noted({"b": "2", "a": "1"}) == {"answer": "42"}
    assert cache.noted({"a": "1"}) == {}
    for odd in (b"", b"{", b"[]", b'{"answer": 42}', b"\xff", b"[" * 99_999):
        for path in (tmp_path / "notes").iterdir():
            path.unlink()
            path.write_bytes(odd)
        assert cache.noted({"a": "1", "b": "2"}) == {}


def test_many_may_add_the_same_at_once(tmp_path: Path) -> None:
    content = bytes(1_000_000)
    found: list[bool] = []

    def add() -> None:
        cache = Cache(tmp_path)
        found.extend(cache.find(cache.add(content)) is not None for _ in range(10))

    threads = [threading.Thread(target=add) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert found == [True] * 80
    assert not list((tmp_path / "scratch").iterdir())


def test_a_scratch_folder_is_gone_afterwards_even_after_a_failure(tmp_path: Path) -> None:
    with contextlib.suppress(RuntimeError), Cache(tmp_path).scratch() as folder:
        (folder / "a").write_text("x")
        raise RuntimeError
    assert not folder.exists()
    assert not list((tmp_path / "scratch").iterdir())


def test_a_cache_that_can_not_be_made_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="can't write"):
        Cache(tmp_path / "file" / "cache")


def test_the_folders_are_the_users_alone(tmp_path: Path) -> None:
    for root in (tmp_path / "new" / "cache", tmp_path / "old"):
        for folder in FOLDERS if root.name == "old" else ():
            (root / folder).mkdir(mode=0o755)
        Cache(root)
        assert [(root / each).stat().st_mode & 0o777 for each in FOLDERS] == [0o700] * 4


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_cache_that_others_may_write_to_is_not_used(tmp_path: Path, folder: str, mode: int) -> None:
    Cache(tmp_path)
    (tmp_path / folder).chmod(mode)
    with pytest.raises(ConfigurationError, match="other users may write to") as problem:
        Cache(tmp_path)
    assert "XDG_CACHE_HOME" in problem.value.mend
    assert (tmp_path / folder).stat().st_mode & 0o777 == mode


@needs_root
@pytest.mark.parametrize("folder", ["..", *FOLDERS])
def test_a_cache_of_another_user_is_not_used(tmp_path: Path, folder: str) -> None:
    root = tmp_path / "adyton" / "image"
    Cache(root)
    os.chown(root / folder, 65534, -1)
    with pytest.raises(ConfigurationError, match="other users may write to"):
        Cache(root)


def test_a_cache_may_be_a_link_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "image").symlink_to(tmp_path / "disk")
    assert Cache(tmp_path / "image").find(Cache(tmp_path / "disk").add(b"content"))


@needs_root
@pytest.mark.parametrize("owned", ["link/image", "disk"])
def test_a_link_that_another_user_can_lead_elsewhere_is_not_followed(tmp_path: Path, owned: str) -> None:
    for folder in ("link", "disk/image"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "link" / "image").symlink_to(tmp_path / "disk" / "image")
    os.chown(tmp_path / owned, 65534, -1, follow_symlinks=False)
    with pytest.raises(ConfigurationError, match="other users may write to"):
        Cache(tmp_path / "link" / "image")


def test_what_nobody_used_for_long_goes_when_something_new_comes(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    old, used, recent = (cache.path(cache.add(content)) for content in (b"old", b"used", b"recent"))
    cache.note({"a": "old"}, {"b": "1"})
    cache.note({"a": "used"}, {"b": "2"})
    left_behind = tmp_path / "scratch" / "killed"
    (left_behind / "inner").mkdir(parents=True)
    age(old, used, *(tmp_path / "notes").iterdir(), left_behind)
    age(recent, seconds=KEPT_SECONDS - 60)
    assert cache.find(used.name) == used
    assert cache.noted({"a": "used"}) == {"b": "2"}
    assert old.exists()
    cache.note({"a": "new"}, {"b": "3"})
    assert set((tmp_path / "files").iterdir()) == {used, recent}
    assert [cache.noted({"a": each}) for each in ("old", "used", "new")] == [{}, {"b": "2"}, {"b": "3"}]
    assert not list((tmp_path / "scratch").iterdir())


def test_what_a_killed_build_left_goes_after_a_day(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    script = (
        "import os, sys; from pathlib import Path; from adyton.host.image.cache import Cache\n"
        "with Cache(Path(sys.argv[1])).scratch() as folder:\n"
        "    folder.joinpath('state').touch(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script, tmp_path], check=False).returncode == -9
    (left,) = (tmp_path / "scratch").iterdir()
    file = cache.path(cache.add(b"old"))
    with cache.scratch() as mine:
        age(left, file, seconds=SCRATCH_SECONDS + 60)
        cache.note({"a": "b"}, {"c": "d"})
        assert list((tmp_path / "scratch").iterdir()) == [mine]
    assert file.exists()


@pytest.mark.parametrize("odd", ["", "zz", "00", "../../../etc/passwd", "A" * 64, "0" * 64 + "\n", "\0", "\ud800"])
def test_what_is_no_digest_leads_to_no_file(tmp_path: Path, odd: str) -> None:
    assert Cache(tmp_path).find(odd) is None


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap, to mount a folder so that none can write")
def test_a_cache_that_can_only_be_read_serves_as_well(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    digest = cache.add(b"content")
    cache.note({"a": "b"}, {"file": digest})
    script = (
        "import sys; from pathlib import Path; from adyton.host.image.cache import Cache\n"
        "cache = Cache(Path(sys.argv[1])); print(cache.find(cache.noted({'a': 'b'})['file']).read_bytes())"
    )
    bwrap = ["bwrap", "--dev-bind", "/", "/", "--ro-bind", str(tmp_path), str(tmp_path)]
    done = subprocess.run(
        [*bwrap, sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "b'content'\n", done.stderr


@contextlib.contextmanager
def held(root: Path, how: int) -> Iterator[None]:
    """The lock, as another process has it that finds (LOCK_SH) or prunes (LOCK_EX)."""
    descriptor = os.open(root / "files", os.O_RDONLY)
    fcntl.flock(descriptor, how)
    try:
        yield
    finally:
        os.close(descriptor)


def test_what_another_process_just_finds_is_not_pruned(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    path = cache.path(cache.add(b"content"))
    age(path)
    with ThreadPoolExecutor(1) as pool, held(tmp_path, fcntl.LOCK_SH):
        pruning = pool.submit(cache.note, {"a": "b"}, {"c": "d"})
        with pytest.raises(TimeoutError):
            pruning.result(0.3)
        os.utime(path)
    assert pruning.done()
    assert path.exists()


def test_what_another_process_just_prunes_is_not_found(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    digest = cache.add(b"content")
    with ThreadPoolExecutor(1) as pool, held(tmp_path, fcntl.LOCK_EX):
        finding = pool.submit(cache.find, digest)
        with pytest.raises(TimeoutError):
            finding.result(0.3)
        cache.path(digest).unlink()
    assert finding.result() is None


def test_the_cache_is_where_the_user_has_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert default_cache() == Path("/elsewhere/adyton/image")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/a")
    assert default_cache() == Path("/home/a/.cache/adyton/image")
    for no_place in ("", "relative/cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", no_place)
        assert default_cache() == Path("/home/a/.cache/adyton/image")


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> NoReturn:
        raise KeyError(uid)

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(ConfigurationError, match="no place for the cache") as problem:
        default_cache()
    assert problem.value.mend == "set HOME or XDG_CACHE_HOME"
