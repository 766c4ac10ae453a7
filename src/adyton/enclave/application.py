"""What an author of an enclave writes: a TrustedApplication."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adyton.bundle.settings import Settings
from adyton.errors import ApplicationError, PolicyError, StatusCode
from adyton.proto.enclave_pb2 import EnclaveConfig, EnclaveFinal, EnclaveInput, EnclaveOutput

if TYPE_CHECKING:
    from adyton.atls.enrolling import CallerIdentity
    from adyton.enclave.keeper import KeeperClient
    from adyton.enclave.vault import Vault
    from adyton.policy.document import Policy
    from adyton.sealing.secrets import Secrets
    from adyton.sealing.store import SealedStore
    from adyton.tee.devices import Device

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnclaveContext:
    """What an application knows about the enclave that it is in.

    `application_directory` holds the bundle's files and is measured; `data_directory` is the enclave's own to write,
    empty at the start and gone at the end. `state_directory` outlives the enclave; None if the host gives none. The
    host can read, change, copy and remove what is there: keep only what is sealed. `config_sha256` is of the
    configuration as the host sent it. `worker` is the number of this server process where there are several, else
    None; such a process has no device, and `keeper` is its connection to the one that has. `reference_values` are the
    signed documents that came with the configuration, not verified yet. `request_stop` asks the host to finalize the
    enclave; a hostile host may ignore it. `key_release_address` is where the host says that the key-release enclave is.
    `vault` has what the enclave keeps.
    """

    name: str
    settings: Settings
    application_directory: Path
    data_directory: Path
    state_directory: Path | None = None
    config_sha256: bytes
    device: Device | None
    worker: int | None
    keeper: KeeperClient | None
    request_stop: Callable[[str], None]
    reference_values: tuple[bytes, ...] = ()
    key_release_address: str = ""
    vault: Vault

    @property
    def secrets(self) -> Secrets:
        """What the enclave's owners sent: `secrets["db-password"]`, or `secrets.wait("db-password")`; see [secrets]."""
        return self.vault.secrets

    def store(self, name: str) -> SealedStore:
        """The sealed store of that name in the state folder, made if there is none; see `SealedStore.open`."""
        return self.vault.store(name)

    def identity(self, *, role: str) -> CallerIdentity:
        """What this enclave attests itself with to another one: `adyton.connect(…, identity=…)`.

        UNIMPLEMENTED where no device makes evidence; ConfigurationError for a role that is no DNS label.
        """
        from adyton.atls.batch import DeviceQuotes
        from adyton.atls.claims import encode_claims
        from adyton.atls.enrolling import CallerIdentity

        if self.keeper is not None:
            return CallerIdentity(role=role, claims=self.keeper.current().claims, quotes=self.keeper)
        if self.device is None:
            raise ApplicationError(StatusCode.UNIMPLEMENTED, "this enclave has no device that makes evidence")
        claims = encode_claims(name=self.name, config_sha256=self.config_sha256)
        return CallerIdentity(role=role, claims=claims, quotes=DeviceQuotes(self.device))

    def policy(self, path: str) -> Policy:
        """The policy in that file of the bundle, with those of `reference_values` that it can use.

        What it can't use is logged and left out, for another policy may be meant; a rule without its values refuses
        all evidence. Raises ConfigurationError.
        """
        from adyton.atls.connect import load_policy

        file = self.application_directory / path
        policy, used = load_policy(file), list[bytes]()
        for document in self.reference_values:
            try:
                policy = load_policy(file, [*used, document])
            except PolicyError as problem:
                _log.warning("signed reference values are not used", extra={"policy": path, "reason": problem.message})
            else:
                used.append(document)
        return policy


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
