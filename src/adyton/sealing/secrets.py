"""Secrets that an enclave's owner sent: kept in a sealed store where there is one, else in memory alone."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from adyton.errors import ApplicationError, DeadlineError, StatusCode
from adyton.sealing.records import MAX_NAME_BYTES
from adyton.sealing.store import SealedStore

MAX_SECRET_BYTES: Final = 64 * 1024
MAX_SECRETS: Final = 1000
_HEAD: Final = struct.Struct(">IQ")
_POLL_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretInfo:
    """What may be said of a secret: how often it was sent, and when last (seconds since 1970)."""

    name: str
    version: int
    changed_at: int


class SecretReader(Protocol):
    """Who has the secrets."""

    def secret(self, name: str) -> bytes | None:
        """The value of that name."""

    def secret_names(self) -> list[str]:
        """All names, sorted."""


class Secrets(Mapping[str, bytes]):
    """The application's view: `secrets["db-password"]`, as it is now. Nothing that prints it prints a value."""

    def __init__(self, reader: SecretReader) -> None:
        self._reader = reader

    def __getitem__(self, name: str) -> bytes:
        value = self._reader.secret(name)
        if value is None:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._reader.secret_names())

    def __len__(self) -> int:
        return len(self._reader.secret_names())

    def __repr__(self) -> str:
        return f"<Secrets: {len(self)}>"

    def wait(self, name: str, timeout_seconds: float | None = None) -> bytes:
        """The value, as soon as the owner has sent it. DeadlineError if that takes longer than the time."""
        until = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while (value := self._reader.secret(name)) is None:
            if until is not None and time.monotonic() >= until:
                raise DeadlineError(f"the secret {name!r} was not sent in {timeout_seconds:g} s")
            time.sleep(_POLL_SECONDS)
        return value


class KeptSecrets:
    """Reads and writes them. Safe in threads."""

    def __init__(self, store: SealedStore | None) -> None:
        self._store = store
        self._guard = threading.Lock()
        self._values = {} if store is None else {name: store[name] for name in store.names()}

    @property
    def durable(self) -> bool:
        """Whether they outlive the enclave."""
        return self._store is not None

    def close(self) -> None:
        """Let the store go."""
        if self._store is not None:
            self._store.close()

    def secret(self, name: str) -> bytes | None:
        """As SecretReader says."""
        value = self._values.get(name)
        return None if value is None else value[_HEAD.size :]

    def secret_names(self) -> list[str]:
        """As SecretReader says."""
        return sorted(self._values)

    def infos(self) -> list[SecretInfo]:
        """What there is, without the values, by name."""
        return [_info(name, self._values[name]) for name in sorted(self._values)]

    def put(self, name: str, value: bytes, *, replace: bool) -> SecretInfo:
        """Keep it. ALREADY_EXISTS or NOT_FOUND if it is there and should not be replaced, or the other way round.

        INVALID_ARGUMENT for a name without 1 to 1024 bytes or a value of more than 64 KiB, RESOURCE_EXHAUSTED for more
        than 1000 secrets; and what a store's transaction raises: then it is as before.
        """
        _check(name, value)
        with self._guard:
            before = self._values.get(name)
            if before is None and replace:
                raise ApplicationError(StatusCode.NOT_FOUND, f"there is no secret {name!r} to rotate")
            if before is not None and not replace:
                raise ApplicationError(StatusCode.ALREADY_EXISTS, f"the secret {name!r} is there: rotate it")
            if before is None and len(self._values) >= MAX_SECRETS:
                raise ApplicationError(StatusCode.RESOURCE_EXHAUSTED, f"an enclave keeps {MAX_SECRETS} secrets")
            version = 1 + (0 if before is None else _info(name, before).version)
            kept = _HEAD.pack(version, max(0, int(time.time()))) + value
            if self._store is not None:
                self._store.put(name, kept)
            self._values[name] = kept
        return _info(name, kept)


def _check(name: str, value: bytes) -> None:
    if not 0 < len(name.encode()) <= MAX_NAME_BYTES or not name.isprintable():
        raise ApplicationError(StatusCode.INVALID_ARGUMENT, f"a secret's name has 1 to {MAX_NAME_BYTES} bytes of text")
    if len(value) > MAX_SECRET_BYTES:
        raise ApplicationError(StatusCode.INVALID_ARGUMENT, f"a secret has {MAX_SECRET_BYTES} bytes at most")


def _info(name: str, kept: bytes) -> SecretInfo:
    version, changed_at = _HEAD.unpack_from(kept)
    return SecretInfo(name=name, version=version, changed_at=changed_at)
