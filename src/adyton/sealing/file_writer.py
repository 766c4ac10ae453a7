"""A sealed file while it is written: see `adyton.sealing.file`."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self

from adyton.errors import SealedDataError, StorageError
from adyton.sealing.chunks import ChunkWriter, FileKeys, Trailer
from adyton.sealing.disk import check_open, disk_errors, lock_file, open_regular, sync_folder

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class SealedFileWriter(io.RawIOBase):
    """A sealed file that is being written, from `SealedFile.create`. For one thread at a time.

    It gets its name when the `with` around it ends, whatever closed it before (an `io.TextIOWrapper` does); if that
    ends by an exception, there is no file. Without a `with` it gets its name by `close`. In memory is one chunk, and 16
    bytes for each that was written, which is 256 KiB for a GiB. What a killed process leaves unfinished is named
    `.NAME.sealing`, and the next one to write that name takes it away.

    A write that fails is the last: nothing is kept, and `close` raises StorageError.
    """

    def __init__(self, path: Path, unfinished: Path, file: BinaryIO, keys: FileKeys, head: bytes) -> None:
        """Use `SealedFile.create`."""
        self._path = path
        self._unfinished = unfinished
        self._file = file
        self._writer = ChunkWriter(file, keys)
        self._inside = False
        self._failed = False
        self._trailer: Trailer | None = None
        self._identity: bytes | None = None
        with self._all_or_nothing():
            self._file.write(head)

    def __enter__(self) -> Self:
        self._inside = True
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inside = False
        if kind is None:
            self._check_failed()
            self.close()
        else:
            self.discard()

    def __del__(self) -> None:
        if not self._file.closed:
            warnings.warn(f"{self._path} was never closed, so it was not written", ResourceWarning, 2, self)
            self.discard()

    @property
    def identity(self) -> bytes:
        """As `SealedFile.identity`. ValueError before the file has its name."""
        if self._identity is None:
            raise ValueError("a file has an identity when it is written and closed")
        return self._identity

    def writable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """How many bytes were written."""
        check_open(self)
        return self._writer.size

    def write(self, data: ReadableBuffer, /) -> int:
        """Append all of it. StorageError when the disk is full or fails."""
        check_open(self)
        self._check_failed()
        content = memoryview(data).cast("B")
        with self._all_or_nothing():
            self._writer.write(content)
        return len(content)

    def close(self) -> None:
        """Write what is left; when this returns, the file is whole, on the disk, and has its name.

        Inside a `with` the name comes at its end. StorageError when the disk does not take it: the name is as it was,
        unless the message says otherwise. Safe to call twice.
        """
        if not self.closed:
            try:
                self._check_failed()
                self._finish()
            finally:
                super().close()
        if not self._inside:
            self._publish()

    def discard(self) -> None:
        """Give up: nothing is kept, and the name is as it was. Does nothing once the file has its name."""
        self._remove()
        super().close()

    def _finish(self) -> None:
        with self._all_or_nothing():
            self._trailer = self._writer.finish()
            self._file.flush()
            os.fsync(self._file.fileno())

    def _publish(self) -> None:
        if self._file.closed or self._trailer is None:
            return
        with self._all_or_nothing():
            self._unfinished.replace(self._path)
        self._file.close()
        try:
            sync_folder(self._path.parent)
        except OSError as problem:
            text = f"{self._path} is written, and may be as before after a crash: {problem.strerror}"
            raise StorageError(text) from problem
        self._identity = self._trailer.identity

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        try:
            with disk_errors(self._path):
                yield
        except BaseException:
            self._failed = True
            self._remove()
            raise

    def _remove(self) -> None:
        if not self._file.closed:
            with contextlib.suppress(OSError):
                self._unfinished.unlink()
            with contextlib.suppress(OSError):
                self._file.close()

    def _check_failed(self) -> None:
        if self._failed:
            raise StorageError(f"a write to {self._path} failed, so nothing of it was kept")


def open_unfinished(path: Path) -> BinaryIO:
    """The file that is to be renamed: empty, and nobody else's until it is closed."""
    descriptor = open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW)
    file = os.fdopen(descriptor, "wb")
    try:
        lock_file(file, path)
        if os.fstat(descriptor).st_nlink > 1:
            raise SealedDataError(f"{path} has another name as well")
        file.truncate(0)
    except BaseException:
        file.close()
        raise
    return file
