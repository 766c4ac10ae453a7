"""The cache: believed only as far as its digests go, and shared without a lock."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from pathlib import Path

import pytest

from adyton.errors import ConfigurationError
from adyton.host.image.cache import Cache, default_cache


def test_a_file_is_found_by_its_digest_and_can_not_be_written_by_accident(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    digest = cache.add(b"content")
    path = cache.find(digest)
    assert digest == hashlib.sha256(b"content").digest()
    assert path == cache.path(digest.hex())
    assert path.read_bytes() == b"content"
    assert path.stat().st_mode & 0o777 == 0o444


def test_a_damaged_file_is_as_one_that_was_never_there(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    digest = cache.add(b"content")
    cache.path(digest.hex()).chmod(0o644)
    cache.path(digest.hex()).write_bytes(b"c0ntent")
    assert cache.find(digest) is None
    assert not cache.path(digest.hex()).exists()
    assert cache.add(b"content") == digest
    assert cache.find(digest)


def test_a_note_is_kept_and_a_damaged_one_says_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.note({"a": "1", "b": "2"}, {"answer": "42"})
    assert Cache(tmp_path).noted({"b": "2", "a": "1"}) == {"answer": "42"}
    assert cache.noted({"a": "1"}) == {}
    for odd in (b"", b"{", b"[]", b'{"answer": 42}', b"\xff"):
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


def test_the_cache_is_where_the_user_has_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert default_cache() == Path("/elsewhere/adyton/image")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/a")
    assert default_cache() == Path("/home/a/.cache/adyton/image")
