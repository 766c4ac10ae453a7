"""What a launcher is: how a kind of enclave is started, seen by the manager. adyton.testing.launchers checks one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from adyton.errors import AdytonError
from adyton.host.bundles import Bundle
from adyton.proto.frames import Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchRequest:
    """What to start, and what the host decides about it. Descriptors are the host's own; None: not connected.

    `address` and `ports`: where clients on the host are to reach the enclave's servers; ports that the enclave is to
    choose itself are not among them. `state`: the folder that outlives the enclave, made if it is not there.
    """

    name: str
    bundle: Bundle
    address: str = "localhost"
    ports: tuple[int, ...] = ()
    host_name: str | None = None
    stdin_fd: int | None = None
    stdout_fd: int | None = None
    stderr_fd: int | None = None
    log_directory: Path | None = None
    state: Path | None = None


class LaunchedEnclave(Protocol):
    """A started enclave, whose runtime will say Ready on `control`."""

    control: Stream

    def address_of(self, port: int) -> str:
        """Where a client on the host reaches what listens on `port` inside, as gRPC writes it."""

    def explain(self, *, started: bool) -> AdytonError:
        """Why the enclave is gone, with its exit status and last log lines. Ends it first if it is not gone.

        `started`: whether its runtime had said Ready; from then on its exit status is what untrusted code chose.
        """

    def log_tail(self) -> tuple[str, ...]:
        """The last lines that it logged, oldest first."""

    def wait(self, timeout_seconds: float) -> bool:
        """Whether it has ended within that time."""

    def close(self) -> None:
        """End it if it has not ended, and leave nothing behind. Safe to call twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """One thing that a launcher can or can't use on this machine, for `adyton doctor`."""

    name: str
    available: bool
    detail: str


def say_nothing(_: str) -> None:
    """For a `prepare` whom nobody hears."""


class Launcher(Protocol):
    """A technology that enclaves run on."""

    @property
    def technology(self) -> str:
        """Its name on the command line (`--on`)."""

    @property
    def warning(self) -> str:
        """What every command that uses it says, or an empty string."""

    def capabilities(self) -> list[Capability]:
        """What this machine offers to it. The first entry says whether it can launch at all."""

    def prepare(self, bundle: Bundle, say: Callable[[str], None] = say_nothing) -> None:
        """What takes long the first time and needs no enclave; `say` is told of it. Raises as `launch`."""

    def measurements(self, bundle: Bundle) -> dict[str, object]:
        """The content of measurements.json for what this launcher starts of the bundle. Raises as `prepare`."""

    def anchors(self) -> dict[str, bytes]:
        """TEE → SHA-256 of the root with which this machine itself vouches for it; empty for real hardware.

        Made on first use. Raises LaunchError.
        """

    def launch(self, request: LaunchRequest) -> LaunchedEnclave:
        """Start an enclave. Raises LaunchError, UnsupportedError or InUseError, and then leaves nothing behind."""
