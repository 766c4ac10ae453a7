"""What files of an enclave have in common: locks, names that stay after a power cut, and errors of the disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from adyton.errors import InUseError, SealedDataError, StorageError

_DISK: Final = frozenset({errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EROFS})


def lock_file(file: BinaryIO, path: Path) -> None:
    """Until it is closed. InUseError if another has it, or has renamed it since it was opened."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine: bool = os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        mine = False
    if not mine:
        raise InUseError(f"{path} is being written elsewhere")


def open_regular(path: Path, flags: int) -> int:
    """A descriptor of a file that is one: a pipe in its place would block for ever. Raises OSError too."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise SealedDataError(f"{path} is not a file")


def sync_folder(path: Path) -> None:
    """The names in a folder are on the disk when this returns. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What a full, read-only or broken disk says, as StorageError; other OSErrors say it themselves."""
    try:
        yield
    except OSError as problem:
        if problem.errno not in _DISK:
            raise
        raise StorageError(f"{path} can't be read or written: {problem.strerror}") from problem


def check_open(file: io.RawIOBase) -> None:
    """ValueError for a stream that was closed."""
    if file.closed:
        raise ValueError("the file is closed")
