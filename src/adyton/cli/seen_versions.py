"""The file of `--state`: the newest version seen of each document of signed reference values. It never goes back."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from adyton.cli.evidence_files import read_file
from adyton.errors import ConfigurationError

MAX_STATE_BYTES: Final = 1024 * 1024
_KEY: Final = "reference_values"


def load_seen_versions(path: Path) -> dict[str, int]:
    """Name → version; empty if the file is not there yet. `ConfigurationError`: it holds something else."""
    try:
        content = read_file(path, at_most=MAX_STATE_BYTES)
    except ConfigurationError as problem:
        if isinstance(problem.__cause__, FileNotFoundError):
            return {}
        raise
    try:
        document = json.loads(content)
        versions = document[_KEY]
        if set(document) == {_KEY} and all(type(version) is int and version >= 0 for version in versions.values()):
            return dict(versions)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise ConfigurationError(
        f"{path} is no state of `adyton verify`", mend="if you remove it, old versions count again"
    )


def keep_seen_versions(path: Path, versions: Mapping[str, int]) -> None:
    """Raise the versions in the file to these, whole or not at all, and whoever else does so at the same time."""
    try:
        with _alone_in(path.absolute().parent):
            before = load_seen_versions(path)
            after = before | {name: max(version, before.get(name, 0)) for name, version in versions.items()}
            if after != before:
                _replace(path, json.dumps({_KEY: after}, indent=2, sort_keys=True) + "\n")
    except OSError as problem:
        raise ConfigurationError(f"can't write {path}: {problem.strerror}") from problem


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}-", delete=False) as scratch:
        try:
            scratch.write(text)
            scratch.flush()
            os.fsync(scratch.fileno())
            Path(scratch.name).replace(path)
        except BaseException:
            Path(scratch.name).unlink(missing_ok=True)
            raise
