"""What an author of an enclave writes: a TrustedApplication."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adyton.bundle.settings import Settings
from adyton.proto.enclave_pb2 import EnclaveConfig, EnclaveFinal, EnclaveInput, EnclaveOutput

if TYPE_CHECKING:
    from adyton.tee.devices import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class EnclaveContext:
    """What an application knows about the enclave that it is in.

    `application_directory` holds the bundle's files and is measured; `data_directory` is the enclave's own to write,
    empty at the start and gone at the end. `worker`
    is the number of this server process where there are several, else None. `request_stop` asks
    the host to finalize the enclave; a hostile host may ignore it.
    """

    name: str
    settings: Settings
    application_directory: Path
    data_directory: Path
    device: Device | None
    worker: int | None
    request_stop: Callable[[str], None]


class TrustedApplication:
    """An application that runs inside an enclave. Override what you need.

    Raise `adyton.ApplicationError` to answer the host with a status of your own; any other exception reaches the host
    as INTERNAL with its type, and its traceback goes to the enclave's log. `config`, `input` and `final` come from the
    host and are not trusted.
    """

    #: Set by the runtime before initialize().
    context: EnclaveContext

    def initialize(self, config: EnclaveConfig) -> None:
        """Called once, first. If it raises, the enclave is taken down."""

    def run(self, input: EnclaveInput) -> EnclaveOutput | None:
        """Called as often as the host likes, also by several threads at once."""

    def finalize(self, final: EnclaveFinal) -> None:
        """Called once, last, when no run is in flight any more (or its time is over). The enclave ends after it."""
