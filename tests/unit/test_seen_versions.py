"""The file of `--state`: versions of signed reference values, which never go back."""

from __future__ import annotations

import contextlib
import json
import resource
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from adyton.cli.seen_versions import keep_seen_versions, load_seen_versions
from adyton.errors import ConfigurationError


def test_versions_are_kept_and_never_go_back(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    assert load_seen_versions(path) == {}
    keep_seen_versions(path, {"a": 7})
    keep_seen_versions(path, {"a": 6, "b": 1})
    assert load_seen_versions(path) == {"a": 7, "b": 1}
    assert json.loads(path.read_text()) == {"reference_values": {"a": 7, "b": 1}}
    assert [each.name for each in tmp_path.iterdir()] == ["state.json"]


def test_nothing_new_is_not_written(tmp_path: Path) -> None:
    keep_seen_versions(tmp_path / "state.json", {})
    assert not (tmp_path / "state.json").exists()


def test_two_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    threads = [threading.Thread(target=keep_seen_versions, args=(path, {f"n{n}": n + 1, "all": n})) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert load_seen_versions(path) == {f"n{n}": n + 1 for n in range(20)} | {"all": 19}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "null",
        "{}",
        '{"reference_values": 1}',
        '{"reference_values": {"a": true}}',
        '{"reference_values": {"a": -1}}',
        '{"reference_values": {}, "more": 1}',
        "[" * 100_000,
    ],
)
def test_a_damaged_state_is_not_taken_for_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(content)
    for use in (load_seen_versions, lambda path: keep_seen_versions(path, {"a": 1})):
        with pytest.raises(ConfigurationError, match="is no state of `adyton verify`"):
            use(path)
    assert path.read_text() == content


def test_a_state_that_can_not_be_read_or_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigurationError, match=r"can't read .*Is a directory"):
        load_seen_versions(tmp_path / "folder")
    with pytest.raises(ConfigurationError, match=r"can't write .*No such file"):
        keep_seen_versions(tmp_path / "none" / "state.json", {"a": 1})


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    keep_seen_versions(path, {"a": 1})
    with no_more_bytes_in_files(), pytest.raises(ConfigurationError, match=r"can't write .*File too large"):
        keep_seen_versions(path, {"a": 2})
    assert load_seen_versions(path) == {"a": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["state.json"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@contextlib.contextmanager
def no_more_bytes_in_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
