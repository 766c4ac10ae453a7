"""An emulated kernel: its drivers, who is using them, its clock, and the errors that a test wants of it."""

# ruff: noqa: ARG002  what a kind of file or driver does not do, it does whatever it is told

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, Self

Operation = Literal["open", "read", "write", "close", "ioctl", "mkdir", "rmdir"]
_FIRST_DESCRIPTOR: Final = 1000


class OpenFile:
    """A file that somebody has open. What a kind of file does not do fails as it does in Linux."""

    def read(self, count: int) -> bytes:
        """Up to that many bytes."""
        raise failure(errno.EBADF)

    def write(self, data: bytes) -> int:
        """How many of the bytes were taken."""
        raise failure(errno.EBADF)

    def ioctl(self, request: int, buffer: bytearray) -> int:
        """May change `buffer`."""
        raise failure(errno.ENOTTY)

    def close(self) -> None:
        """The last that is heard of this file."""


class Content(OpenFile):
    """A file that is read from front to back, and does not seek."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def read(self, count: int) -> bytes:
        """What is next."""
        part, self._content = self._content[:count], self._content[count:]
        return part


class Driver:
    """What answers for some paths: a file system, or a device."""

    def open(self, path: str, flags: int) -> OpenFile | None:
        """None if the path is not its own."""

    def mkdir(self, path: str) -> bool:
        """False if the path is not its own."""
        return False

    def rmdir(self, path: str) -> bool:
        """False if the path is not its own."""
        return False

    def leftovers(self) -> Iterable[str]:
        """What somebody made and did not remove."""
        return ()


class Files(Driver):
    """Files that can be read, with their content."""

    def __init__(self, **contents: bytes) -> None:
        self._contents = contents

    def open(self, path: str, flags: int) -> OpenFile | None:
        """Those files, by path."""
        return Content(self._contents[path]) if path in self._contents else None


@dataclass(slots=True, kw_only=True)
class _Fault:
    operation: Operation
    path_end: str
    number: int
    times: int


class EmulatedKernel:
    """Drivers behind the interface of `adyton.tee._kernel.Kernel`. Time passes only where somebody sleeps.

    As a context manager it checks at the end that nothing was left open or lying about. No read gives more than
    `read_at_most` bytes.
    """

    def __init__(self, *drivers: Driver, read_at_most: int = 1 << 20) -> None:
        self._drivers = drivers
        self._read_at_most = read_at_most
        self._lock = threading.RLock()
        self._open: dict[int, tuple[str, OpenFile]] = {}
        self._last_descriptor = _FIRST_DESCRIPTOR
        self._faults: list[_Fault] = []
        self._now = 0.0

    def fail(self, operation: Operation, path_end: str, number: int, *, times: int = 1) -> None:
        """The next so many operations on paths that end so fail with that errno."""
        self._faults.append(_Fault(operation=operation, path_end=path_end, number=number, times=times))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.check_nothing_left()

    def check_nothing_left(self) -> None:
        """`AssertionError` if a file is open or something made was not removed."""
        left = [path for path, _ in self._open.values()]
        left += [path for driver in self._drivers for path in driver.leftovers()]
        assert not left, f"left behind: {left}"

    def open(self, path: str, flags: int) -> int:
        """The first driver that knows the path opens it."""
        with self._lock:
            self._maybe_fail("open", path)
            for driver in self._drivers:
                if (file := driver.open(path, flags)) is not None:
                    self._last_descriptor += 1
                    self._open[self._last_descriptor] = path, file
                    return self._last_descriptor
            raise failure(errno.ENOENT, path)

    def read(self, descriptor: int, count: int) -> bytes:
        """Of an open file."""
        return self._file("read", descriptor).read(min(count, self._read_at_most))

    def write(self, descriptor: int, data: bytes) -> int:
        """To an open file."""
        return self._file("write", descriptor).write(data)

    def ioctl(self, descriptor: int, request: int, buffer: bytearray) -> int:
        """Of an open device."""
        return self._file("ioctl", descriptor).ioctl(request, buffer)

    def close(self, descriptor: int) -> None:
        """An open file, which is gone then, whatever comes of it."""
        with self._lock:
            assert descriptor in self._open, f"{descriptor} is not open"
            path, file = self._open.pop(descriptor)
            file.close()
            self._maybe_fail("close", path)

    def mkdir(self, path: str) -> None:
        """Where a driver lets one."""
        with self._lock:
            self._maybe_fail("mkdir", path)
            if not any(driver.mkdir(path) for driver in self._drivers):
                raise failure(errno.ENOENT, path)

    def rmdir(self, path: str) -> None:
        """Where a driver lets one."""
        with self._lock:
            self._maybe_fail("rmdir", path)
            if not any(driver.rmdir(path) for driver in self._drivers):
                raise failure(errno.ENOENT, path)

    def monotonic(self) -> float:
        """How long anybody has slept, in seconds."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Takes no time."""
        with self._lock:
            self._now += seconds

    def _file(self, operation: Operation, descriptor: int) -> OpenFile:
        with self._lock:
            assert descriptor in self._open, f"{descriptor} is not open"
            path, file = self._open[descriptor]
            self._maybe_fail(operation, path)
            return file

    def _maybe_fail(self, operation: Operation, path: str) -> None:
        for fault in self._faults:
            if fault.times and fault.operation == operation and path.endswith(fault.path_end):
                fault.times -= 1
                raise failure(fault.number)


def failure(number: int, path: str | None = None) -> OSError:
    """The exception that Python makes of an errno."""
    return OSError(number, os.strerror(number), path) if path else OSError(number, os.strerror(number))
