"""Sealed files: streams that are too large for one `Sealer.seal`, written once and read anywhere.

A file is written from its beginning to its end and gets its name when it is whole and on the disk; to append or to
change is to write another. So at each moment, also after a crash, the name has all of the old file or all of the new
one, and a chunk that was put back from an older version can't fit: each version has keys of its own. To change chunks
in place would need a journal and a counter to be as safe, and that is a database: `SealedStore` is one.

Nothing in a file can tell that the file itself is an older one that the host kept. Whoever needs to know keeps the
`identity` of the last one in a `SealedStore` and gives it to `open`. Since a crash can come between the two, give each
version a name of its own: write the file, then put its name and identity into the store, then delete the one before.
"""

from __future__ import annotations

import contextlib
import io
import operator
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, Self

from adyton.errors import RollbackError, SealedDataError, UnsealError, UnsupportedError
from adyton.sealing.chunks import (
    CHUNK_BYTES,
    HEAD_BYTES,
    SECRET_BYTES,
    SLOT_BYTES,
    TRAILER_BYTES,
    ChunkReader,
    FileKeys,
    Trailer,
    file_length,
    pack_slot,
    parse_slot,
)
from adyton.sealing.disk import check_open, disk_errors, lock_file, open_regular
from adyton.sealing.file_writer import SealedFileWriter, open_unfinished
from adyton.sealing.sealer import Sealer

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_CONTEXT: Final = b"adyton file v1 "


class SealedFile(io.RawIOBase):
    """A sealed file, open to be read. For one thread at a time.

        with SealedFile.create(path, sealer) as target:
            shutil.copyfileobj(source, target)
        with SealedFile.open(path, sealer, expected=target.identity) as file:
            file.seek(-100, os.SEEK_END)
            file.read()

    Every chunk is verified before a byte of it is returned, each time that it comes from the disk; of each level of the
    file one is kept in memory. `read` and `readinto` stop short only at the end, so `zipfile` and the like can use it
    as it is; for lines put an `io.BufferedReader` around it.

    Reading raises SealedDataError for a chunk that was changed, and StorageError if the disk fails.
    """

    def __init__(self, path: Path, file: BinaryIO, keys: FileKeys, trailer: Trailer) -> None:
        """Use `open`."""
        self._path = path
        self._file = file
        self._reader = ChunkReader(file, keys, trailer)
        self._trailer = trailer
        self._position = 0

    @staticmethod
    def create(path: Path, sealer: Sealer, *, context: bytes = b"") -> SealedFileWriter:
        """A new file, to be written; one that has the name keeps it until the new one is whole.

        `context` (up to 1000 bytes, not secret) must be given again to open it. Raises as `Sealer.seal`; InUseError if
        somebody is writing a file of that name; StorageError; an OSError such as FileNotFoundError or PermissionError
        if the name is at fault.
        """
        secret = os.urandom(SECRET_BYTES)
        slot = pack_slot(sealer.seal(secret, context=_CONTEXT + context))
        unfinished = path.with_name(f".{path.name}.sealing")
        with disk_errors(path):
            return SealedFileWriter(path, unfinished, open_unfinished(unfinished), FileKeys(secret), 2 * slot)

    @classmethod
    def open(cls, path: Path, sealer: Sealer, *, context: bytes = b"", expected: bytes | None = None) -> Self:
        """A file that `create` made. Its size and its end are verified now, chunks as they are read.

        UnsealError, which names the field, for a file of other code, another context or newer hardware; SealedDataError
        for one that was changed; RollbackError for one whose identity is not `expected`; UnsupportedError for a policy
        that this TEE has no keys for; KeyUnavailableError; StorageError; an OSError such as FileNotFoundError or
        IsADirectoryError if the name is at fault.
        """
        with contextlib.ExitStack() as opened, disk_errors(path):
            file = opened.enter_context(os.fdopen(open_regular(path, os.O_RDONLY), "rb"))
            ends = _verify_ends(file, sealer, context)
            if expected is not None and expected != ends.trailer.identity:
                raise RollbackError(f"{path} is genuine, and another than was expected")
            opened.pop_all()
            return cls(path, file, ends.keys, ends.trailer)

    @staticmethod
    def reseal(path: Path, sealer: Sealer, *, context: bytes = b"") -> None:
        """Seal the file's secret for this version of the code and the present security version.

        Writes some KiB, whatever the size; content, keys and identity stay, and who has the file open can go on. After
        a crash it is as before or done. It closes the file to older code that does not know the secret yet: if that
        code was broken, write the content to a new file instead. Raises as `open` and `create`.
        """
        with disk_errors(path), os.fdopen(open_regular(path, os.O_RDWR), "r+b") as file:
            lock_file(file, path)
            ends = _verify_ends(file, sealer, context)
            slot = pack_slot(sealer.reseal(ends.sealed, context=_CONTEXT + context))
            for number in (1 - ends.slot, ends.slot):  # the good one last, when the other one is good
                file.seek(number * SLOT_BYTES)
                file.write(slot)
                file.flush()
                os.fsync(file.fileno())

    @property
    def size(self) -> int:
        """Of the content, in bytes."""
        return self._trailer.size

    @property
    def identity(self) -> bytes:
        """32 bytes that name this content, as it was written this time; not secret."""
        return self._trailer.identity

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go there; beyond the end there is nothing to read. ValueError for a place before the beginning."""
        check_open(self)
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}
        if whence not in bases:
            raise ValueError(f"whence is 0, 1 or 2, not {whence}")
        target = bases[whence] + operator.index(offset)
        if target < 0:
            raise ValueError(f"{target} is before the beginning")
        self._position = target
        return target

    def read(self, size: int | None = -1, /) -> bytes:
        """The next `size` bytes, fewer only at the end; all that are left for None and negative numbers."""
        check_open(self)
        left = max(0, self.size - self._position)
        content = bytearray(left if size is None or size < 0 else min(size, left))
        self.readinto(content)
        return bytes(content)

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill `buffer`, less only at the end; how many bytes were read.

        When it raises, the position is as before, and the buffer may have verified content in it.
        """
        check_open(self)
        target = memoryview(buffer).cast("B")
        wanted, done = min(len(target), self.size - self._position), 0
        while done < wanted:
            number, start = divmod(self._position + done, CHUNK_BYTES)
            with disk_errors(self._path):
                chunk = self._reader.chunk(number)
            piece = memoryview(chunk)[start : start + wanted - done]
            target[done : done + len(piece)] = piece
            done += len(piece)
        self._position += done
        return done

    def write(self, _data: ReadableBuffer, /) -> int:
        """No: io.UnsupportedOperation."""
        raise io.UnsupportedOperation("a sealed file is written once; to change it is to create another")

    def close(self) -> None:
        """Let the file go. Safe to call twice."""
        self._file.close()
        super().close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ends:
    """Both ends of a file, verified, and which of its slots had the sealed secret."""

    slot: int
    sealed: bytes
    keys: FileKeys
    trailer: Trailer


def _verify_ends(file: BinaryIO, sealer: Sealer, context: bytes) -> _Ends:
    slot, sealed, secret = _unseal_head(file.read(HEAD_BYTES), sealer, context)
    keys = FileKeys(secret)
    length = file.seek(0, os.SEEK_END)
    file.seek(max(0, length - TRAILER_BYTES))
    trailer = keys.parse_trailer(file.read(TRAILER_BYTES))
    wanted = file_length(trailer.size)
    if length != wanted:
        raise SealedDataError(f"the sealed file has {length} bytes and was written with {wanted}")
    return _Ends(slot=slot, sealed=sealed, keys=keys, trailer=trailer)


def _unseal_head(head: bytes, sealer: Sealer, context: bytes) -> tuple[int, bytes, bytes]:
    """Slot, sealed secret and secret: of the first slot, or, if a reseal was cut off in that one, the second."""
    first, second = parse_slot(head[:SLOT_BYTES]), parse_slot(head[SLOT_BYTES:])
    try:
        return 0, first, sealer.unseal(first, context=_CONTEXT + context)
    except (SealedDataError, UnsealError, UnsupportedError) as problem:
        try:
            return 1, second, sealer.unseal(second, context=_CONTEXT + context)
        except SealedDataError:
            raise problem from None
