"""configfs-tsm, the way in which Linux (6.7 and later) gives a guest its reports: SEV-SNP, TDX and CCA alike.

Each report is a directory under /sys/kernel/config/tsm/report (Documentation/ABI/testing/configfs-tsm-report). What one
writes to its `inblob` is taken when the file is closed, and an error of that is lost; so `generation`, which counts the
writes of all attributes, is compared before and after the report is read. The report is made when it is first read.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from adyton.errors import EvidenceError, UnsupportedError
from adyton.tee._kernel import (
    Kernel,
    describe,
    failing_as_evidence,
    present_or_unsupported,
    read_to_end,
    write_at_once,
)
from adyton.tee.evidence import MAX_EVIDENCE_BYTES

REPORTS: Final = "/sys/kernel/config/tsm/report"
PRIVLEVELS: Final = range(4)
"""Of SEV-SNP: VMPL 0, the most privileged, to 3."""

BUSY_SECONDS: Final = 60.0
"""How long a report may be asked for again. One of TDX is in flight for up to 30 s."""
_PAUSE_SECONDS: Final = 0.1
_TEXT_BYTES: Final = 4096
_AGAIN: Final = frozenset({errno.EBUSY, errno.EINTR})

_MEND: Final = "mount configfs on /sys/kernel/config, load the guest's driver (Linux 6.7 or later), and run as root"
_MEANINGS: Final[Mapping[int, str]] = MappingProxyType(
    {
        errno.EBUSY: f"another report has been in the making for {BUSY_SECONDS:g} s",
        errno.EFBIG: "the report is larger than this kernel passes on",
        errno.EINTR: f"it was interrupted for {BUSY_SECONDS:g} s",
        errno.EINVAL: "report_data of that size or that privilege level is not for this hardware",
        errno.EIO: "the hardware or the host refused",
        errno.ENOTTY: "the guest has lost its key to the firmware, until it boots again",
        errno.ENXIO: "the guest's driver was unloaded",
        errno.ETIMEDOUT: "the host did not answer in time",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TsmReport:
    """What the kernel gave: the signed report, and what its provider staples to it, empty if nothing."""

    outblob: bytes
    auxblob: bytes


def check_provider(kernel: Kernel, provider: str) -> None:
    """`UnsupportedError` unless the kernel's reports are of that provider."""
    with failing_as_evidence("configfs-tsm"), _directory(kernel) as directory:
        _check_provider(kernel, directory, provider)


def request_report(kernel: Kernel, provider: str, inblob: bytes) -> bytes:
    """A report of that provider over `inblob`, for hardware that knows no privilege levels and staples nothing.

    `UnsupportedError` if the kernel has none of it, else `EvidenceError`. The report's directory is gone afterwards.
    """
    with failing_as_evidence("configfs-tsm"), _directory(kernel) as directory:
        _check_provider(kernel, directory, provider)
        with _settled(kernel, directory, inblob, writes=1):
            return _blob(kernel, f"{directory}/outblob")


def request_report_at(kernel: Kernel, provider: str, inblob: bytes, privlevel: int | None) -> TsmReport:
    """A report as `request_report` gives it, made at a privilege level: None is the highest that the guest has.

    A level that this guest can't ask for: `UnsupportedError`.
    """
    with failing_as_evidence("configfs-tsm"), _directory(kernel) as directory:
        _check_provider(kernel, directory, provider)
        write_at_once(kernel, f"{directory}/privlevel", _choose(kernel, directory, privlevel))
        with _settled(kernel, directory, inblob, writes=2):
            outblob = _blob(kernel, f"{directory}/outblob")
            return TsmReport(outblob=outblob, auxblob=_blob(kernel, f"{directory}/auxblob"))


@contextmanager
def _directory(kernel: Kernel) -> Iterator[str]:
    """A report of our own, removed at the end. Its name is new: one that a killed process left behind is no matter."""
    path = f"{REPORTS}/adyton-{secrets.token_hex(16)}"
    with present_or_unsupported("configfs-tsm", mend=_MEND):
        kernel.mkdir(path)
    try:
        yield path
    except BaseException:
        with contextlib.suppress(OSError):  # what went wrong first is what matters
            kernel.rmdir(path)
        raise
    kernel.rmdir(path)


def _check_provider(kernel: Kernel, directory: str, provider: str) -> None:
    found = _text(kernel, f"{directory}/provider")
    if found != provider:
        raise UnsupportedError(f"this kernel's reports come from {found[:64]!r}, not {provider!r}")


def _choose(kernel: Kernel, directory: str, privlevel: int | None) -> bytes:
    # A level above the guest's own makes the firmware fail, whereupon the driver throws its key away.
    floor = _number(kernel, f"{directory}/privlevel_floor")
    if privlevel is not None and privlevel < floor:
        raise UnsupportedError(f"privlevel {privlevel} was asked for; this guest may ask for {floor} and above")
    return b"%d" % (floor if privlevel is None else privlevel)


@contextmanager
def _settled(kernel: Kernel, directory: str, inblob: bytes, *, writes: int) -> Iterator[None]:
    """In the body `inblob` is what the report is about: it was taken, and nobody has written since."""
    write_at_once(kernel, f"{directory}/inblob", inblob)
    _check_generation(kernel, directory, writes)
    yield
    _check_generation(kernel, directory, writes)


def _check_generation(kernel: Kernel, directory: str, writes: int) -> None:
    generation = _number(kernel, f"{directory}/generation")
    if generation < writes:
        raise EvidenceError("the kernel did not take the report_data")
    if generation > writes:
        raise EvidenceError(f"somebody else wrote to our report: generation {generation} after {writes} writes")


def _blob(kernel: Kernel, path: str) -> bytes:
    """All of a blob, asked for again while the hardware is busy."""
    deadline = kernel.monotonic() + BUSY_SECONDS
    while True:
        try:
            return read_to_end(kernel, path, at_most=MAX_EVIDENCE_BYTES)
        except OSError as error:
            if error.errno not in _AGAIN or kernel.monotonic() >= deadline:
                meaning = _MEANINGS.get(error.errno or 0, "no report was made")
                raise EvidenceError(f"{meaning}: {describe(error)}") from error
        kernel.sleep(_PAUSE_SECONDS)


def _number(kernel: Kernel, path: str) -> int:
    text = _text(kernel, path)
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(2**64))):
        raise EvidenceError(f"the kernel's {path.rpartition('/')[2]} is no number: {text[:64]!r}")
    return int(text)


def _text(kernel: Kernel, path: str) -> str:
    return read_to_end(kernel, path, at_most=_TEXT_BYTES).decode("ascii", "backslashreplace").strip()
