"""The cache of what images are made of, and of images: files by their SHA-256, and notes of what a key led to.

Each file is written whole or not at all, so any number of one user's processes may share a cache. A file is believed
only after its digest is checked; one that was damaged is removed, as if it had never been there. Notes are believed as
they are, so the folders have to be the user's alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from adyton.errors import ConfigurationError

KEPT_SECONDS = 30 * 24 * 3600
"""What nobody used for so long goes."""
SCRATCH_SECONDS = 24 * 3600
"""No build takes so long: what is older was left by one that was killed."""

_FOR_OTHERS_TO_WRITE = stat.S_IWGRP | stat.S_IWOTH
_SHA256 = re.compile(r"[0-9a-f]{64}")


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/adyton/image`; a relative or empty XDG_CACHE_HOME does not count, as that standard says.

    Raises ConfigurationError if there is no such place.
    """
    cache_home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache_home.is_absolute():
        with contextlib.suppress(RuntimeError):
            cache_home = Path.home() / ".cache"
    if not cache_home.is_absolute():
        raise ConfigurationError("there is no place for the cache of images", mend="set HOME or XDG_CACHE_HOME")
    return cache_home / "adyton" / "image"


class Cache:
    """A folder of files by digest and of notes by key, made if it is not there.

    Raises ConfigurationError if it can't be used, and if anybody else could have written to it.
    """

    def __init__(self, root: Path) -> None:
        self._files, self._notes, self._scratch = root / "files", root / "notes", root / "scratch"
        with _explained(root):
            root.parent.mkdir(parents=True, exist_ok=True)
        for folder in (root, self._files, self._notes, self._scratch):
            with _explained(folder):
                folder.mkdir(mode=0o700, exist_ok=True)
                _make_private(folder)

    def add(self, content: bytes) -> str:
        """Keep `content`; its SHA-256, in hexadecimal."""
        digest = hashlib.sha256(content).hexdigest()
        self._write(self.path(digest), content)
        return digest

    def find(self, digest: str) -> Path | None:
        """The file of that SHA-256, in hexadecimal, checked just now; None if it is not here or was damaged.

        None as well for what is no digest, so that a note which was damaged leads to nothing.
        """
        if not _SHA256.fullmatch(digest):
            return None
        path = self.path(digest)
        try:
            self._touch(path)
            with path.open("rb") as source:
                if hashlib.file_digest(source, "sha256").hexdigest() == digest:
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
        """Keep that `key` led to `value`. That is something new, so what was not used for long goes."""
        self._write(self._note_path(key), json.dumps(dict(value)).encode())
        self._prune()

    def noted(self, key: Mapping[str, str]) -> dict[str, str]:
        """What `key` led to; empty if nobody knows."""
        path = self._note_path(key)
        try:
            self._touch(path)
            value = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
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

    def _touch(self, path: Path) -> None:
        """Remember that `path` is used. From then on nobody prunes it, unless its time comes again.

        A cache that can only be read is not pruned from here, and serves as well.
        """
        with contextlib.suppress(OSError), self._locked(fcntl.LOCK_SH):
            os.utime(path)

    def _prune(self) -> None:
        """Remove what was not used for long, and what builds that were killed left behind."""
        kept = {self._files: KEPT_SECONDS, self._notes: KEPT_SECONDS, self._scratch: SCRATCH_SECONDS}
        with _explained(self._files), self._locked(fcntl.LOCK_EX):
            for path, seconds in ((each, seconds) for folder, seconds in kept.items() for each in folder.iterdir()):
                with contextlib.suppress(FileNotFoundError):  # another's scratch folder comes and goes
                    if path.lstat().st_mtime < time.time() - seconds:
                        shutil.rmtree(path) if path.is_dir() else path.unlink()

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        """Between who uses and who prunes. It is the kernel's, so nobody's death leaves it behind."""
        descriptor = os.open(self._files, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, how)
            yield
        finally:
            os.close(descriptor)

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


def _make_private(folder: Path) -> None:
    """Take the rights of all others from `folder`. Raises ConfigurationError if one of them could have written to it.

    Who owns a symbolic link or the folder above can put another folder in its place: that is this user, or root.
    """
    mine, status = os.geteuid(), folder.stat()
    owners = {status.st_uid, folder.lstat().st_uid}
    above = {folder.parent.stat().st_uid, folder.resolve().parent.stat().st_uid}
    if owners != {mine} or above - {mine, 0} or status.st_mode & _FOR_OTHERS_TO_WRITE:
        raise ConfigurationError(
            f"other users may write to {folder}, and images would be built of what they put there",
            mend="remove it, or let XDG_CACHE_HOME name a folder of your own",
        )
    if stat.S_IMODE(status.st_mode) != stat.S_IRWXU:
        folder.chmod(stat.S_IRWXU)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise ConfigurationError(f"can't write {path}: {problem.strerror}") from problem
