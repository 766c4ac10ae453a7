"""The folder that outlives an enclave: made if it is not there, looked at, and held for one enclave at a time.

The hold is a lock on the folder itself (flock), which ends with the host's process, whatever ends that.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path
from typing import Final

from adyton.errors import InUseError, LaunchError
from adyton.host.launch.launcher import LaunchRequest
from adyton.sealing.disk import sync_folder

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


class StateDirectory:
    """One enclave's hold on a state folder. The folder, 0700 where this makes it, is never removed.

    Raises LaunchError where it is not a folder that this user alone can write to, and InUseError where another enclave
    has it. What lies in it is not looked at.
    """

    path: Path
    """Absolute, and no link."""

    def __init__(self, path: Path) -> None:
        try:
            _make(path)
            self._lock = os.open(path, _FOLDER)
        except (OSError, ValueError) as problem:
            mend = "name a folder of this user's, or one that can be made"
            why = problem.strerror if isinstance(problem, OSError) else problem
            raise LaunchError(f"the state folder {str(path)!r} can't be used: {why}", mend=mend) from problem
        try:
            self.path = Path(f"/proc/self/fd/{self._lock}").readlink()
            self._check()
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            os.close(self._lock)
            raise InUseError(
                f"another enclave has the state folder {self.path}", mend="end that one first"
            ) from problem
        except BaseException:
            os.close(self._lock)
            raise

    def _check(self) -> None:
        status = os.fstat(self._lock)
        if status.st_uid != os.geteuid():
            mend = "give the enclave a folder of its own"
            raise LaunchError(f"the state folder {self.path} belongs to another user", mend=mend)
        if status.st_mode & _OTHERS_WRITE:
            mend = f"chmod go-w {self.path}"
            raise LaunchError(f"the state folder {self.path} can be written to by other users", mend=mend)

    def close(self) -> None:
        """Let another enclave have it. Safe to call twice."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def hold_state(request: LaunchRequest, on_failure: contextlib.ExitStack) -> StateDirectory | None:
    """The request's state folder, if it has one. Raises as `StateDirectory`."""
    if request.state is None:
        return None
    state = StateDirectory(request.state)
    on_failure.callback(state.close)
    return state


def _make(path: Path) -> None:
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return
    sync_folder(path.parent)  # what the enclave syncs in the folder is kept only if the folder is
