"""The disk of a virtual machine that has a state folder: a sparse file there with a journalling file system in it.

The host makes the file system once, empty, and never reads it again: what is on it is the guest's, who mounts it, and
makes it as large as the disk if that has grown.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import subprocess
import time
from pathlib import Path
from typing import Final

from adyton.errors import InUseError, LaunchError, UnsupportedError
from adyton.sealing.disk import sync_folder

NAME: Final = "disk.img"
#: How long a machine whose host was killed may take to let go of its disk.
LOCK_SECONDS: Final = 5.0
MEND: Final = "Debian, Ubuntu: apt install e2fsprogs"

_PROGRAMS: Final = "/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin"
#: No block is kept for root. A new file reads as zeros, so neither the journal nor the inodes have to be written.
_OPTIONS: Final = ("-q", "-F", "-b", "4096", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=1")
_MKFS_SECONDS: Final = 60.0
_LOCK_POLL_SECONDS: Final = 0.05


def find_mkfs() -> str | None:
    """The path of the program that makes file systems, whatever PATH is; None where it is not installed."""
    return shutil.which("mkfs.ext4", path=_PROGRAMS)


def open_disk(folder: Path, size_mb: int) -> int:
    """A descriptor of the folder's disk, for QEMU; made if it is not there, and grown to `size_mb` if it is smaller.

    It is locked as long as it or a copy of it is open, so a machine whose host is gone keeps it until its own end.
    Raises LaunchError, UnsupportedError without mkfs.ext4, InUseError, or OSError.
    """
    path = folder / NAME
    if not os.path.lexists(path):
        _make(path, size_mb)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as problem:
        raise LaunchError(f"the machine's disk {path} can't be opened: {problem.strerror}") from problem
    try:
        _lock(descriptor, path)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise LaunchError(
                f"the machine's disk {path} is no file of its own", mend="put back the file that was there"
            )
        if status.st_size < size_mb << 20:
            os.ftruncate(descriptor, size_mb << 20)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _make(path: Path, size_mb: int) -> None:
    """All of it or nothing: a host that is killed meanwhile leaves a file that the next one makes anew."""
    mkfs = find_mkfs()
    if mkfs is None:
        raise UnsupportedError("a state folder needs mkfs.ext4, which is not installed", mend=MEND)
    unfinished = path.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    try:
        with unfinished.open("xb") as file:
            file.truncate(size_mb << 20)
            _make_file_system(mkfs, unfinished)
            os.fsync(file.fileno())
        unfinished.chmod(0o600)
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)
    sync_folder(path.parent)


def _make_file_system(mkfs: str, file: Path) -> None:
    command = [mkfs, *_OPTIONS, str(file)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_MKFS_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as problem:
        raise LaunchError(f"mkfs.ext4 made no file system in {_MKFS_SECONDS:.0f} s") from problem
    if done.returncode:
        said = " ".join(done.stderr.split())[-300:] or f"exit code {done.returncode}"
        raise LaunchError(f"mkfs.ext4 can't make a file system in {file.parent}: {said}")


def _lock(descriptor: int, path: Path) -> None:
    until = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise InUseError(f"another machine has the disk {path}", mend="end that one first") from None
            time.sleep(_LOCK_POLL_SECONDS)
        else:
            return
