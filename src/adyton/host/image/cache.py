"""The cache of what images are made of, and of images: files by their SHA-256, and notes of what a key led to.

Each file is written whole or not at all, so any number of processes may share a cache. A file is believed only after
its digest is checked; one that was damaged is removed, as if it had never been there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from adyton.errors import ConfigurationError


def default_cache() -> Path:
    """Where the cache is if nobody says otherwise: `adyton/image` in the user's folder of caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adyton" / "image"


class Cache:
    """A folder of files by digest and of notes by key. Raises ConfigurationError if it can't be used."""

    def __init__(self, root: Path) -> None:
        self._files, self._notes, self._scratch = root / "files", root / "notes", root / "scratch"
        for folder in (self._files, self._notes, self._scratch):
            with _explained(folder):
                folder.mkdir(parents=True, exist_ok=True)

    def add(self, content: bytes) -> bytes:
        """Keep `content`; its SHA-256, 32 bytes."""
        digest = hashlib.sha256(content).digest()
        self._write(self.path(digest.hex()), content)
        return digest

    def find(self, digest: bytes) -> Path | None:
        """The file of that SHA-256, checked just now; None if it is not here or was damaged."""
        path = self.path(digest.hex())
        try:
            with path.open("rb") as source:
                if hashlib.file_digest(source, "sha256").digest() == digest:
                    return path
            path.unlink(missing_ok=True)
        except FileNotFoundError:
            pass
        except OSError as problem:
            raise ConfigurationError(f"can't read {path}: {problem.strerror}") from problem
        return None

    def path(self, digest: str) -> Path:
        """Where the file of that SHA-256, in hexadecimal, is or would be."""
        return self._files / digest

    def note(self, key: Mapping[str, str], value: Mapping[str, str]) -> None:
        """Keep that `key` led to `value`."""
        self._write(self._note_path(key), json.dumps(dict(value)).encode())

    def noted(self, key: Mapping[str, str]) -> dict[str, str]:
        """What `key` led to; empty if nobody knows."""
        try:
            value = json.loads(self._note_path(key).read_bytes())
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) and all(isinstance(each, str) for each in value.values()) else {}

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder of one's own, which is gone afterwards."""
        with _explained(self._scratch):
            folder = tempfile.TemporaryDirectory(dir=self._scratch)
        with folder as path:
            yield Path(path)

    def _note_path(self, key: Mapping[str, str]) -> Path:
        return self._notes / hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()

    def _write(self, path: Path, content: bytes) -> None:
        with _explained(path), tempfile.NamedTemporaryFile(dir=self._scratch, delete=False) as target:
            try:
                target.write(content)
                target.flush()
                os.fchmod(target.fileno(), 0o444)
                Path(target.name).replace(path)
            except BaseException:
                Path(target.name).unlink(missing_ok=True)
                raise


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise ConfigurationError(f"can't write {path}: {problem.strerror}") from problem
