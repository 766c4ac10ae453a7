"""What an enclave keeps: its sealer, its stores, its secrets; each made when it is first asked for.

The sealing keys are the hardware's, or come from outside, as enclave.toml says (`[sealing]`). A server process of
`workers = N` has neither hardware nor secrets; it asks the first process (keeper.py).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adyton.bundle.settings import Settings
from adyton.errors import StorageError, UnsupportedError
from adyton.sealing.sealer import Sealer
from adyton.sealing.secrets import KeptSecrets, Secrets
from adyton.sealing.store import SealedStore
from adyton.tee.sealing import KeySource, SealPolicy

if TYPE_CHECKING:
    from adyton.enclave.keeper import KeeperClient

RESERVED: Final = "adyton-"
"""How names of Adyton's own stores begin."""
_POLICIES: Final = {"measurement": SealPolicy.MEASUREMENT, "signer": SealPolicy.SIGNER}

_OWN_CONTEXTS: Final = b"adyton "

_log = logging.getLogger(__name__)
_current: Vault | None = None


class Vault:
    """One enclave's. Safe in threads. `find_source` is asked once, for the source of its keys.

    `instance` is the enclave's name, which its host chose: two enclaves of the same code are told apart by it.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        instance: str,
        state_directory: Path | None,
        find_source: Callable[[], KeySource],
        keeper: KeeperClient | None = None,
    ) -> None:
        self._settings = settings
        self._instance = instance
        self._state_directory = state_directory
        self._find_source = find_source
        self._keeper = keeper
        self._guard = threading.RLock()
        self._sealer: Sealer | None = None
        self._secrets: KeptSecrets | None = None

    @property
    def sealer(self) -> Sealer:
        """By `[sealing]`. Raises UnsupportedError where there is no sealing key, with what to configure instead."""
        with self._guard:
            if self._sealer is None:
                sealing, source = self._settings.sealing, self._find_source()
                policy = _POLICIES[sealing.policy] if SealPolicy.EXTERNAL not in source.policies else None
                signers = list(map(bytes.fromhex, sealing.signers))
                self._sealer = Sealer(source, policy=policy, min_version=sealing.min_version, signers=signers)
            return self._sealer

    @property
    def keeps(self) -> bool:
        """Whether there is a folder that outlives the enclave."""
        return self._state_directory is not None

    def store(self, name: str) -> SealedStore:
        """The application's store of that name, as `SealedStore.open`; StorageError if there is no state folder."""
        if name.startswith(RESERVED):
            raise ValueError(f"names that begin with {RESERVED!r} are Adyton's own")
        return self._open(name)

    def own_store(self, name: str) -> SealedStore:
        """A store of Adyton's own: one for each code or signer, so that other code begins anew, not with an error.

        An update closes it to the code before; a higher `min_version`, which says that code was broken, begins anew.
        """
        sealer = self.sealer
        current = sealer.source.current(sealer.policy)
        least = self._settings.sealing.min_version
        store = self._open(f"{RESERVED}{name}-{current.subject.hex()[:16]}" + (f"-{least}" if least > 1 else ""))
        if store.sealed_version < current.version:
            store.reseal()
        return store

    def _open(self, name: str) -> SealedStore:
        if self._state_directory is None:
            raise StorageError(
                "this enclave has no state folder: nothing that it writes outlives it", mend="adyton run --state DIR"
            )
        return SealedStore.open(self._state_directory, name, self.sealer, instance=self._instance)

    @property
    def secrets(self) -> Secrets:
        """What the owners sent."""
        return Secrets(self.kept_secrets if self._keeper is None else self._keeper)

    @property
    def kept_secrets(self) -> KeptSecrets:
        """The same, to be written too; in the first process.

        In memory alone where there is no state folder, or no sealing key for what is in it.
        """
        with self._guard:
            if self._secrets is None:
                self._secrets = KeptSecrets(self._secrets_store())
            return self._secrets

    def _secrets_store(self) -> SealedStore | None:
        if not self.keeps:
            return None
        try:
            return self.own_store("secrets")
        except UnsupportedError as problem:
            _log.warning("secrets are kept in memory only: %s", problem)
            return None


def enter(vault: Vault) -> None:
    """This process is the enclave that has that vault; there is one enclave to a process."""
    global _current  # noqa: PLW0603
    _current = vault


def _sealer(context: bytes) -> Sealer:
    if context.startswith(_OWN_CONTEXTS):
        raise ValueError(f"contexts that begin with {_OWN_CONTEXTS!r} are Adyton's own")
    if _current is None:
        raise UnsupportedError("only code inside an enclave can seal", mend="call it from a TrustedApplication")
    return _current.sealer


def seal(secret: bytes, *, context: bytes = b"") -> bytes:
    """`secret` (up to 64 MiB), sealed for whom enclave.toml's `sealing.policy` says; inside an enclave.

    `context` (up to 1024 bytes, not secret) says what it is for, and must be given again. Raises ValueError for sizes,
    UnsupportedError where there is no sealing key, KeyUnavailableError where it is not given now.
    """
    return _sealer(context).seal(secret, context=context)


def unseal(sealed: bytes, *, context: bytes = b"") -> bytes:
    """The secret in what `seal` made.

    Raises UnsealError (PERMISSION_DENIED), which names the field, for data of other code, another context or newer
    hardware; SealedDataError for data that somebody changed; and what `seal` raises.
    """
    return _sealer(context).unseal(sealed, context=context)


def reseal(sealed: bytes, *, context: bytes = b"") -> bytes:
    """The same secret, sealed anew: for after an update of the code or of the hardware. Raises as both others."""
    return _sealer(context).reseal(sealed, context=context)
