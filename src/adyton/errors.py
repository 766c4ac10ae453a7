"""Every way in which Adyton says no.

One base class; a subclass for each thing that a caller would do differently. Each class carries the two numbers that
other worlds need: the gRPC status code that it becomes on a wire, and the exit code of the command line. The table is
in docs/errors.md, and a test walks every subclass against it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar


class StatusCode(enum.IntEnum):
    """The canonical codes of google.rpc.Code, which gRPC uses too; here without importing gRPC."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class ExitCode(enum.IntEnum):
    """What the `adyton` command exits with."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_GENUINE = 3
    POLICY_REFUSED = 4
    UNREACHABLE = 5
    UNSUPPORTED_HERE = 6
    BUG = 70


class AdytonError(Exception):
    """Base of all errors that Adyton raises on purpose.

    `status` is the gRPC status that the error becomes on a wire, `exit_code` what the command line exits with, and
    `mend` one line that says what the reader can do about it, or an empty string.
    """

    status: StatusCode = StatusCode.INTERNAL
    exit_code: ClassVar[ExitCode] = ExitCode.BUG

    def __init__(self, message: str, *, mend: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.message} ({self.mend})" if self.mend else self.message


class ConfigurationError(AdytonError):
    """The user's own input is wrong: enclave.toml, a lock file, an argument. Nothing was started."""

    status = StatusCode.INVALID_ARGUMENT
    exit_code = ExitCode.USAGE


class BundleError(AdytonError):
    """A bundle is damaged, is not the one that its digest names, or is not a bundle. Nothing of it was run."""

    status = StatusCode.DATA_LOSS
    exit_code = ExitCode.NOT_GENUINE


class EvidenceError(AdytonError):
    """Evidence is malformed or not genuine. Nothing that it claims may be believed."""

    status = StatusCode.UNAUTHENTICATED
    exit_code = ExitCode.NOT_GENUINE


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a policy has against evidence: what was got, what was wanted, and how to mend it.

    `rule` is the name of the rule that looked, or empty where no rule got so far; `subject` is what it looked at, by
    the key that the policy's file has for it.
    """

    rule: str
    subject: str
    got: str
    wanted: str
    mend: str

    def __str__(self) -> str:
        rule = f"rule {self.rule!r}: " if self.rule else ""
        return f"{rule}{self.subject} is {self.got}, wanted is {self.wanted} ({self.mend})"


class PolicyError(AdytonError):
    """Evidence is genuine and not acceptable. `findings` holds everything that is wrong, not only the first thing."""

    status = StatusCode.PERMISSION_DENIED
    exit_code = ExitCode.POLICY_REFUSED

    def __init__(self, message: str, *, findings: tuple[Finding, ...] = ()) -> None:
        super().__init__(message)
        self.findings = findings

    def __str__(self) -> str:
        return "\n  ".join((self.message, *map(str, self.findings)))


class UnsupportedError(AdytonError):
    """This machine, or this build, can't do what was asked; another could."""

    status = StatusCode.UNIMPLEMENTED
    exit_code = ExitCode.UNSUPPORTED_HERE


class LaunchError(AdytonError):
    """The enclave could not be started; nothing of it is left."""

    status = StatusCode.FAILED_PRECONDITION
    exit_code = ExitCode.UNSUPPORTED_HERE


class AlreadyExistsError(AdytonError):
    """An enclave of that name is loaded already; use another name or destroy that one."""

    status = StatusCode.ALREADY_EXISTS
    exit_code = ExitCode.USAGE


class WrongStateError(AdytonError):
    """The call does not fit the enclave's state. The message names the state it is in and the one it should be in."""

    status = StatusCode.FAILED_PRECONDITION
    exit_code = ExitCode.FAILED


class ApplicationError(AdytonError):
    """The application's own status.

    Raise it in a `TrustedApplication` to answer the host with a code of your choice; the host's call raises the same
    class with the same code and message. Any other exception reaches the host as INTERNAL with the exception's type.
    """

    exit_code = ExitCode.FAILED

    def __init__(self, status: StatusCode, message: str, *, mend: str = "") -> None:
        super().__init__(message, mend=mend)
        if status is StatusCode.OK:
            raise ValueError("OK is not an error")
        self.status = status
        #: Of a failed `load`, whose enclave nobody can ask any more: the last lines that it logged.
        self.log_tail: tuple[str, ...] = ()

    def __str__(self) -> str:
        return _with_log(f"{self.status.name}: {super().__str__()}", self.log_tail)


class EnclaveDiedError(AdytonError):
    """The enclave is gone though nobody destroyed it. Calls in flight may or may not have been carried out.

    `exit_status` is a process's return code (negative: the signal that ended it), or None where there is none;
    `log_tail` holds the last lines that the enclave logged, oldest first; `console` those of them that are its
    machine's and not its own, and were copied neither to `stdout_fd` nor to `stderr_fd`.
    """

    status = StatusCode.UNAVAILABLE
    exit_code = ExitCode.FAILED

    def __init__(
        self,
        message: str,
        *,
        exit_status: int | None = None,
        log_tail: tuple[str, ...] = (),
        console: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.exit_status = exit_status
        self.log_tail = console + log_tail
        self.console = console

    def __str__(self) -> str:
        return _with_log(self.message, self.log_tail)


def _with_log(message: str, log_tail: tuple[str, ...]) -> str:
    return "\n  ".join((message + "; its last log lines:", *log_tail)) if log_tail else message


class DeadlineError(AdytonError):
    """The enclave did not answer in the time that the caller gave it. The call may still be carried out."""

    status = StatusCode.DEADLINE_EXCEEDED
    exit_code = ExitCode.UNREACHABLE


class UnsealError(AdytonError):
    """Sealed data is for other code, or for newer hardware than this. The message names the field that differs."""

    status = StatusCode.PERMISSION_DENIED
    exit_code = ExitCode.POLICY_REFUSED


class SealedDataError(AdytonError):
    """Sealed data is damaged or was changed by somebody else. Nothing of it was used."""

    status = StatusCode.DATA_LOSS
    exit_code = ExitCode.NOT_GENUINE


class RollbackError(SealedDataError):
    """Sealed data is genuine and older than what was acknowledged last, or has a rival. Nothing of it was used."""


class KeyUnavailableError(AdytonError):
    """The hardware or the service that has the sealing key does not give it now. Nothing is lost; try again."""

    status = StatusCode.UNAVAILABLE
    exit_code = ExitCode.UNREACHABLE


class StorageError(AdytonError):
    """The disk is full, read-only or broken, or a store is closed. What was acknowledged before is still there."""

    status = StatusCode.RESOURCE_EXHAUSTED
    exit_code = ExitCode.FAILED


class InUseError(AdytonError):
    """Another process, or another part of this one, has that store or file open."""

    status = StatusCode.FAILED_PRECONDITION
    exit_code = ExitCode.FAILED


class UnreachableError(AdytonError):
    """Nobody answers at that address, or the connection was lost."""

    status = StatusCode.UNAVAILABLE
    exit_code = ExitCode.UNREACHABLE


class ControlProtocolError(AdytonError):
    """The other side of the control protocol sent what the protocol does not allow; the connection is over."""

    status = StatusCode.INTERNAL
    exit_code = ExitCode.BUG
