"""Folders that belong to one enclave, and that are gone with it, whoever was killed.

Each is below one folder of the user's, and locked by the host's process as long as that lives: with flock, on the
folder itself, which cleaners of /tmp respect too. Whoever makes a new one removes those whose lock is free, for their
host was killed before it could.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from adyton.errors import LaunchError

_PREFIX = "enclave-"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: How long another process may hold the lock under which folders are made and swept.
LOCK_SECONDS = 10.0


class PrivateDirectory:
    """A new folder, 0700, for one enclave. Raises LaunchError where none can be made."""

    def __init__(self) -> None:
        try:
            root = _root()
            with _registry_lock(root):
                _sweep(root)
                self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
                try:
                    self._lock = os.open(self.path, _FOLDER)
                except OSError:
                    self.path.rmdir()
                    raise
                fcntl.flock(self._lock, fcntl.LOCK_EX)
        except OSError as problem:
            raise LaunchError(f"no folder for the enclave can be made: {problem}") from problem

    def close(self) -> None:
        """Remove the folder. Safe to call twice."""
        if self._lock >= 0:
            _remove(self.path)
            os.close(self._lock)
            self._lock = -1
            if self.path.exists():
                _remove(self.path)  # which takes descriptors, and now there is one more


def _root() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if Path(runtime).is_absolute() and os.access(runtime, os.W_OK):
        root = Path(runtime) / "adyton"
    else:
        root = Path(tempfile.gettempdir()) / f"adyton-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    status = root.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise LaunchError(f"{root} should be a folder of this user's that no one else can enter", mend=f"remove {root}")
    return root


@contextlib.contextmanager
def _registry_lock(root: Path) -> Iterator[None]:
    descriptor = os.open(root, _FOLDER)
    until = time.monotonic() + LOCK_SECONDS
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise LaunchError(f"{root} is locked by another process") from None
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _sweep(root: Path) -> None:
    for path in root.glob(f"{_PREFIX}*"):
        try:
            descriptor = os.open(path, _FOLDER)
        except OSError:
            continue  # not one of ours
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path)
        except BlockingIOError:
            pass  # its host lives
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    """Remove a folder whose enclave is gone, also where that has left folders that nobody may write to."""
    shutil.rmtree(path, ignore_errors=True)
    if not path.exists():
        return
    with contextlib.suppress(OSError):
        folders = [path]
        while folders:
            folder = folders.pop()
            folder.chmod(0o700)
            folders += [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    shutil.rmtree(path, ignore_errors=True)
