"""The few calls on files that devices make, as one object: inside it is the kernel, in tests an emulation of it."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from adyton.errors import EvidenceError, UnsupportedError

_CHUNK_BYTES: Final = 64 * 1024
_ABSENT: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO, errno.EACCES, errno.EPERM, errno.EROFS}
)
"""What a call on a file that is not there, or not for us, fails with."""


class Kernel(Protocol):
    """Each call does and raises what its namesake in `os`, `fcntl` or `time` does. Safe in threads."""

    def open(self, path: str, flags: int) -> int:
        """A descriptor, which children do not inherit."""

    def read(self, descriptor: int, count: int) -> bytes:
        """Up to that many bytes; none at the end."""

    def write(self, descriptor: int, data: bytes) -> int:
        """How many of the bytes were taken."""

    def close(self, descriptor: int) -> None:
        """The descriptor is gone, whatever is raised."""

    def ioctl(self, descriptor: int, request: int, buffer: bytearray) -> int:
        """The kernel may change `buffer`."""

    def mkdir(self, path: str) -> None:
        """Make one directory."""

    def rmdir(self, path: str) -> None:
        """Remove one directory."""

    def monotonic(self) -> float:
        """Seconds since some time."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class LinuxKernel:
    """The kernel that this process runs on."""

    def open(self, path: str, flags: int) -> int:
        """As `os.open`."""
        return os.open(path, flags)

    def read(self, descriptor: int, count: int) -> bytes:
        """As `os.read`."""
        return os.read(descriptor, count)

    def write(self, descriptor: int, data: bytes) -> int:
        """As `os.write`."""
        return os.write(descriptor, data)

    def close(self, descriptor: int) -> None:
        """As `os.close`."""
        os.close(descriptor)

    def ioctl(self, descriptor: int, request: int, buffer: bytearray) -> int:
        """As `fcntl.ioctl` with a buffer that it changes."""
        result: int = fcntl.ioctl(descriptor, request, buffer, True)
        return result

    def mkdir(self, path: str) -> None:
        """As `os.mkdir`."""
        os.mkdir(path)  # noqa: PTH102  a path in here is what the kernel calls it

    def rmdir(self, path: str) -> None:
        """As `os.rmdir`."""
        os.rmdir(path)  # noqa: PTH106

    def monotonic(self) -> float:
        """As `time.monotonic`."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """As `time.sleep`."""
        time.sleep(seconds)


@contextmanager
def opened(kernel: Kernel, path: str, flags: int) -> Iterator[int]:
    """A descriptor of the file, closed at the end."""
    descriptor = kernel.open(path, flags)
    try:
        yield descriptor
    finally:
        kernel.close(descriptor)


def read_to_end(kernel: Kernel, path: str, *, at_most: int) -> bytes:
    """All of a file whose size nobody knows before; more than that many bytes are an `EvidenceError`."""
    content = b""
    with opened(kernel, path, os.O_RDONLY) as descriptor:
        while part := kernel.read(descriptor, _CHUNK_BYTES):
            content += part
            if len(content) > at_most:
                raise EvidenceError(f"{path} gives more than {at_most} bytes")
    return content


def write_at_once(kernel: Kernel, path: str, data: bytes) -> None:
    """One write, and the file is closed: files that are no files take what one write brings. Short, `EvidenceError`."""
    with opened(kernel, path, os.O_WRONLY) as descriptor:
        written = kernel.write(descriptor, data)
    if written != len(data):
        raise EvidenceError(f"{path} took {written} of {len(data)} bytes")


@contextmanager
def present_or_unsupported(what: str, *, mend: str) -> Iterator[None]:
    """A call of the body that finds nothing there, or may not: `UnsupportedError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        raise UnsupportedError(f"no {what} here: {describe(error)}", mend=mend) from error


@contextmanager
def failing_as_evidence(what: str) -> Iterator[None]:
    """Any other error of the kernel in the body is `EvidenceError`: the hardware is there, and there is no evidence."""
    try:
        yield
    except OSError as error:
        raise EvidenceError(f"{what} failed: {describe(error)}") from error


@contextmanager
def opened_device(kernel: Kernel, path: str, what: str, *, mend: str) -> Iterator[int]:
    """A driver's device, for reading and writing. Not there: `UnsupportedError`; any other failure: `EvidenceError`."""
    with failing_as_evidence(f"the {what}"):
        with present_or_unsupported(what, mend=mend):
            descriptor = kernel.open(path, os.O_RDWR)
        try:
            yield descriptor
        finally:
            kernel.close(descriptor)


def describe(error: OSError) -> str:
    """Name and meaning of an error of the kernel, and of which file."""
    name = errno.errorcode.get(error.errno or 0, str(error.errno))
    file = f" on {error.filename}" if error.filename else ""
    return f"{name} ({error.strerror}){file}"
