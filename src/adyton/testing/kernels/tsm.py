"""configfs-tsm as Linux 6.7 to 6.16 has it (drivers/virt/coco/guest/report.c), traps included."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from adyton.testing.kernels.emulated import Content, Driver, OpenFile, failure

REPORTS: Final = "/sys/kernel/config/tsm/report"
OUTBLOB_BYTES: Final = 32 * 1024
INBLOB_BYTES: Final = 64
_HIGHEST_PRIVLEVEL: Final = 3


@dataclass(slots=True)
class _Report:
    writes: int = 0
    """The generation, which every write of every attribute advances."""
    writes_at_report: int = -1
    inblob: bytes = b""
    privlevel: int = 0
    outblob: bytes = b""
    auxblob: bytes = b""


class Tsm(Driver):
    """The reports of one provider; None is a kernel whose guest driver is not loaded.

    `quote` is the hardware: report_data in, report out. It is asked when the report is first read, and again if
    somebody wrote since. `auxblob` and privilege levels are there with `sev_guest` only, as in Linux. A test may have
    the kernel lose the commit of an inblob (`lose_inblob`), or somebody else write to the report just before a file of
    it is opened (`intrude_at`).
    """

    def __init__(
        self,
        *,
        provider: str | None,
        quote: Callable[[bytes], bytes] = bytes,
        auxblob: bytes = b"",
        privlevel_floor: int = 0,
        lose_inblob: bool = False,
        intrude_at: str | None = None,
    ) -> None:
        self.provider = provider
        self.quote = quote
        self.auxblob = auxblob
        self.privlevel_floor = privlevel_floor
        self.privlevels: list[int] = []
        """With which privilege level each report was made."""
        self._lose_inblob = lose_inblob
        self._intrude_at = intrude_at
        self._reports: dict[str, _Report] = {}

    def leftovers(self) -> Iterable[str]:
        """Reports that nobody removed."""
        return tuple(self._reports)

    def mkdir(self, path: str) -> bool:
        """Make a report."""
        parent, _, name = path.rpartition("/")
        if parent != REPORTS:
            return False
        assert name.isascii(), name
        if self.provider is None:
            raise failure(errno.ENXIO, path)
        if path in self._reports:
            raise failure(errno.EEXIST, path)
        self._reports[path] = _Report()
        return True

    def rmdir(self, path: str) -> bool:
        """Remove a report."""
        return self._reports.pop(path, None) is not None

    def open(self, path: str, flags: int) -> OpenFile | None:
        """An attribute of a report."""
        directory, _, attribute = path.rpartition("/")
        report = self._reports.get(directory)
        if report is None:
            return None
        if attribute == self._intrude_at:
            self._intrude_at = None
            report.writes, report.inblob = report.writes + 1, b"\xff" * INBLOB_BYTES
        if flags == os.O_WRONLY:
            return self._writable(report, attribute)
        assert flags == os.O_RDONLY, f"{path} was opened with {flags}"
        return self._readable(report, attribute)

    def _writable(self, report: _Report, attribute: str) -> OpenFile | None:
        if attribute == "inblob":
            return _Inblob(report, lose=self._lose_inblob)
        if attribute == "privlevel" and self.provider == "sev_guest":
            return _Privlevel(report, self.privlevel_floor)
        return None

    def _readable(self, report: _Report, attribute: str) -> OpenFile | None:
        texts = {"provider": self.provider, "generation": report.writes}
        blobs = {"outblob": lambda: report.outblob}
        if self.provider == "sev_guest":
            texts["privlevel_floor"] = self.privlevel_floor
            blobs["auxblob"] = lambda: report.auxblob
        if attribute in blobs:
            return _Blob(lambda: self._make(report), blobs[attribute])
        return Content(f"{texts[attribute]}\n".encode()) if attribute in texts else None

    def _make(self, report: _Report) -> None:
        """Ask the hardware, unless the report that it gave is still right."""
        if not report.inblob:
            raise failure(errno.EINVAL)
        if report.writes_at_report == report.writes:
            return
        if len(report.inblob) != INBLOB_BYTES:
            raise failure(errno.EINVAL)
        report.outblob, report.auxblob = self.quote(report.inblob), self.auxblob
        report.writes_at_report = report.writes
        self.privlevels.append(report.privlevel)


class _Inblob(OpenFile):
    """Committed when it is closed. What goes wrong then, nobody hears."""

    def __init__(self, report: _Report, *, lose: bool) -> None:
        self._report = report
        self._lose = lose
        self._written = b""

    def write(self, data: bytes) -> int:
        """To a buffer."""
        assert not self._written, "a second write of inblob"
        assert data, "an empty write of inblob"
        self._written = data
        return len(data)

    def close(self) -> None:
        """Where it counts."""
        if self._written and not self._lose:
            self._report.writes, self._report.inblob = self._report.writes + 1, self._written


class _Privlevel(OpenFile):
    """Committed when it is written."""

    def __init__(self, report: _Report, floor: int) -> None:
        self._report = report
        self._floor = floor

    def write(self, data: bytes) -> int:
        """One number in text."""
        if not self._floor <= int(data) <= _HIGHEST_PRIVLEVEL:
            raise failure(errno.EINVAL)
        self._report.writes, self._report.privlevel = self._report.writes + 1, int(data)
        return len(data)


class _Blob(OpenFile):
    """Made when it is first read, and not made again while it is open."""

    def __init__(self, make: Callable[[], None], get: Callable[[], bytes]) -> None:
        self._make = make
        self._get = get
        self._content: Content | None = None

    def read(self, count: int) -> bytes:
        """What is next."""
        if self._content is None:
            self._make()
            if len(self._get()) > OUTBLOB_BYTES:
                raise failure(errno.EFBIG)
            self._content = Content(self._get())
        return self._content.read(count)
