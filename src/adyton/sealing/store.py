"""A small transactional store whose file the host can keep, copy and destroy, and neither read nor change.

The truth about the records is in the enclave's memory: the tag of each, as it was last committed. What is read from the
file must have it. When a store is opened, everything in it is verified before anything is served, and where the
hardware has a register, that this is the last state that was acknowledged, or the one after it that was not any more.

An acknowledged transaction went these steps in this order: written to the disk, written to the register, returned.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Self

from adyton.errors import AdytonError, RollbackError, SealedDataError, StorageError, UnsealError
from adyton.sealing.database import Database
from adyton.sealing.header import parse_header, split_header
from adyton.sealing.records import MODULUS, STORE_KEY_BYTES, Records, Root, root_digest, tag_of
from adyton.sealing.sealer import Sealer
from adyton.tee.sealing import FreshnessRegister

_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
_CONTEXT: Final = b"adyton store v1 "


class SealedStore:
    """Values (bytes, up to 16 MiB) by name (text, up to 1024 bytes), in one file. Safe in threads; one process.

        with SealedStore.open(directory, "usage", sealer) as store:
            with store.transaction() as change:
                change["alice"] = change.get("alice", b"") + b"."
            store["alice"]

    A transaction is on the disk when its `with` ends; if it ends by an exception, nothing has changed. `protected` says
    whether the hardware would notice the file of last week.
    """

    def __init__(self, database: Database, sealer: Sealer, register: FreshnessRegister | None, name: bytes) -> None:
        """Use `open`."""
        self._database = database
        self._sealer = sealer
        self._register = register
        self._context = name
        self._guard = threading.RLock()
        self._changing = False
        self._fault: AdytonError | None = None
        self._tags: dict[bytes, bytes] = {}
        self._digest: bytes | None = None
        found = database.meta()
        if found is None:
            self._begin()
        else:
            self._verify(*found)

    @classmethod
    def open(cls, directory: Path, name: str, sealer: Sealer, *, instance: str = "") -> Self:
        """The store of that name (small letters, digits, '-') in an existing folder, made if there is none.

        `instance` tells apart enclaves of the same code on one machine, each with a folder of its own: what the
        hardware remembers, it remembers for each.

        Raises UnsealError if it is for other code or another instance, SealedDataError if it was changed, RollbackError
        if it is not the last state, InUseError if it is open already, StorageError, KeyUnavailableError,
        UnsupportedError.
        """
        if not _NAME.fullmatch(name):
            raise ValueError("a store's name has small letters, digits and '-', 63 at most")
        context = _CONTEXT + f"{instance}/{name}".encode()
        register = sealer.source.register(sealer.source.current(sealer.policy), hashlib.sha256(context).digest())
        path = directory / f"{name}.store"
        database = Database(path)
        try:
            return cls(database, sealer, register, context)
        except (SealedDataError, UnsealError) as problem:
            database.close()
            raise type(problem)(f"{problem.message}, in {path.name}", mend=problem.mend) from None
        except BaseException:
            database.close()
            raise

    @property
    def protected(self) -> bool:
        """Whether an older copy of the whole file would be noticed."""
        return self._register is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the file go. Safe to call twice."""
        with self._guard:
            self._fault = self._fault or StorageError("the store is closed")
            self._database.close()

    def __getitem__(self, name: str) -> bytes:
        value = self.get(name)
        if value is None:
            raise KeyError(name)
        return value

    def get(self, name: str, default: bytes | None = None) -> bytes | None:
        """The value of a name, or `default`.

        SealedDataError if the file was changed meanwhile; the store is closed then.
        """
        hashed = self._records.hash_name(name)
        with self._guard:
            self._check_usable()
            return self._read(hashed)[1] if hashed in self._tags else default

    def __contains__(self, name: str) -> bool:
        with self._guard:
            self._check_usable()
            return self._records.hash_name(name) in self._tags

    def __len__(self) -> int:
        with self._guard:
            self._check_usable()
            return len(self._tags)

    def names(self) -> list[str]:
        """All names, sorted. Reads every record."""
        with self._guard:
            self._check_usable()
            return sorted(self._read(hashed)[0] for hashed in self._tags)

    def put(self, name: str, value: bytes) -> None:
        """A transaction of one value."""
        with self.transaction() as change:
            change[name] = value

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Changes that happen together or not at all. Others wait meanwhile. No transaction inside another."""
        with self._guard:
            self._check_usable()
            if self._changing:
                raise RuntimeError("a transaction of this store is open in this thread")
            self._changing = True
            try:
                change = Transaction(self)
                yield change
                self._commit(change.changes())
            finally:
                self._changing = False

    def reseal(self) -> None:
        """Seal all of it anew, under a new key, for this version of the code and the present security version.

        From then on an earlier version of a signer's code can't open it, nor make it believe anything with the key that
        it knew. One transaction; all values are in memory meanwhile.
        """
        with self._guard:
            self._check_usable()
            key = os.urandom(STORE_KEY_BYTES)
            keys, changes, tags = Records(key), dict[bytes, bytes | None].fromkeys(self._tags), dict[bytes, bytes]()
            for old in self._tags:
                name, value = self._read(old)
                hashed = keys.hash_name(name)
                changes[hashed] = record = keys.encrypt(hashed, name, value)
                tags[hashed] = tag_of(record)
            total = sum(keys.weight(hashed, tag) for hashed, tag in tags.items())
            sealed_key = self._sealer.seal_anew(key, context=self._context)
            self._write(keys, sealed_key, self._root.after(self._digest, count=len(tags), total=total), changes, tags)

    @property
    def sealed_version(self) -> int:
        """The least version of a signer's code that can open it; 0 under other policies."""
        return parse_header(split_header(self._sealed_key)[0]).binding.version

    def _begin(self) -> None:
        """A new store; where something remembers one of that name, its file was taken away."""
        self._root = Root.first()
        if self._register is not None and self._register.read() is not None:
            raise RollbackError(
                "the hardware remembers a store of that name, and its file is gone",
                mend="restore it; or give the enclave another name: adyton run --name",
            )
        self._digest = None
        key = os.urandom(STORE_KEY_BYTES)
        self._write(Records(key), self._sealer.seal(key, context=self._context), self._root, {}, {})

    def _verify(self, sealed_key: bytes, root: bytes) -> None:
        key = self._sealer.unseal(sealed_key, context=self._context)
        self._check_policy(sealed_key)
        self._records = Records(key)
        self._root = self._records.decrypt_root(root)
        self._sealed_key, self._digest = sealed_key, (digest := root_digest(sealed_key, root))
        total = 0
        for hashed, record in self._database.records():
            name, _ = self._records.decrypt(hashed, record)
            if self._records.hash_name(name) != hashed or hashed in self._tags:
                raise SealedDataError("a record of the store stands under another's name, or twice")
            self._tags[hashed] = tag_of(record)
            total += self._records.weight(hashed, tag_of(record))
        if (len(self._tags), total % MODULUS) != (self._root.count, self._root.total):
            raise SealedDataError("a record of the store is missing, or of another time than the rest")
        if self._register is not None:
            self._check_fresh(self._register, digest)

    def _check_policy(self, sealed_key: bytes) -> None:
        """Another policy has another register, and that one can't know which state was the last."""
        found = parse_header(split_header(sealed_key)[0]).binding.policy
        if found is not self._sealer.policy:
            have, want = found.name.lower(), self._sealer.policy.name.lower()
            raise UnsealError(
                f"the store's policy is {have}; this enclave seals for {want}",
                mend="open it as it was sealed, and copy its values to a store of another name",
            )

    def _check_fresh(self, register: FreshnessRegister, digest: bytes) -> None:
        """The last acknowledged state, or its successor that a crash came too early for; then that one from now on."""
        last = register.read()
        if last == digest:
            return
        if last is None and (self._root.generation, self._root.count) == (0, 0):
            # Nothing in it was ever acknowledged. It is not taken as it is: where somebody has deleted the register, a
            # host could give back all of the past, step by step, each the next one's successor.
            self._begin()
            return
        if last is None or last != self._root.previous:
            raise RollbackError("the store is not the one that was written last: this file is older, or a rival of it")
        self._database.settle()
        try:
            register.write(digest, after=last)
        except RollbackError:
            if register.read() != digest:  # unless an interrupted write of this very state has come through meanwhile
                raise

    def _read(self, hashed: bytes) -> tuple[str, bytes]:
        try:
            record = self._database.record(hashed)
            if record is None or tag_of(record) != self._tags[hashed]:
                raise SealedDataError("the store's file was changed while it was open")
            return self._records.decrypt(hashed, record)
        except SealedDataError as problem:
            raise self._broken(problem) from None

    def _commit(self, changes: Mapping[str, bytes | None]) -> None:
        self._check_usable()  # it may have been closed meanwhile
        records: dict[bytes, bytes | None] = {}
        for name, value in changes.items():
            hashed = self._records.hash_name(name)
            if value is not None:
                records[hashed] = self._records.encrypt(hashed, name, value)
            elif hashed in self._tags:
                records[hashed] = None
        if not records:
            return
        removed = [self._records.weight(each, self._tags[each]) for each in records if each in self._tags]
        added = {each: tag_of(record) for each, record in records.items() if record is not None}
        weights = [self._records.weight(each, tag) for each, tag in added.items()]
        root = self._root.after(
            self._digest,
            count=self._root.count + len(added) - len(removed),
            total=self._root.total + sum(weights) - sum(removed),
        )
        self._write(self._records, self._sealed_key, root, records, added)

    def _write(
        self,
        keys: Records,
        sealed_key: bytes,
        root: Root,
        records: Mapping[bytes, bytes | None],
        added: Mapping[bytes, bytes],
    ) -> None:
        """The one way to the disk: write, remember, and only then believe it.

        Until the end the store counts as broken: whatever interrupts this leaves no memory that the file is not like.
        """
        before = self._digest
        encrypted = keys.encrypt_root(root)
        digest = root_digest(sealed_key, encrypted)
        self._fault = StorageError("the store's last write was interrupted", mend="open it again")
        try:
            self._database.commit(sealed_key=sealed_key, root=encrypted, records=records)
            if self._register is not None:
                self._register.write(digest, after=before)
            for each in records:
                self._tags.pop(each, None)
            self._tags.update(added)
            self._records, self._root, self._sealed_key, self._digest = keys, root, sealed_key, digest
        except StorageError:
            self._recover()
            raise
        except RollbackError:
            raise self._broken(RollbackError("a copy of this store has been written elsewhere since")) from None
        except AdytonError as problem:
            raise self._broken(problem) from None
        except BaseException:
            self._database.close()
            raise
        self._fault = None

    def _recover(self) -> None:
        """After a commit that the disk did not take: go on if the file is as it was. Else opening it again decides."""
        with contextlib.suppress(AdytonError):
            self._database.reopen()
            found = self._database.meta()
            if found is not None and root_digest(*found) == self._digest:
                self._fault = None
                return
        self._database.close()

    def _broken(self, problem: AdytonError) -> AdytonError:
        self._fault = problem
        self._database.close()
        return problem

    def _check_usable(self) -> None:
        if self._fault is not None:
            raise self._fault


class Transaction:
    """Changes to a store, which sees them only when all of them are on the disk."""

    def __init__(self, store: SealedStore) -> None:
        self._store = store
        self._changes: dict[str, bytes | None] = {}

    def __getitem__(self, name: str) -> bytes:
        value = self.get(name)
        if value is None:
            raise KeyError(name)
        return value

    def get(self, name: str, default: bytes | None = None) -> bytes | None:
        """The value as this transaction leaves it, or `default`."""
        value = self._changes[name] if name in self._changes else self._store.get(name)
        return default if value is None else value

    def __setitem__(self, name: str, value: bytes) -> None:
        if not isinstance(value, (bytes, bytearray, memoryview)):
            raise TypeError(f"a value is bytes, not {type(value).__name__}")
        self._changes[name] = bytes(value)

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise KeyError(name)
        self._changes[name] = None

    def __contains__(self, name: str) -> bool:
        return self._changes[name] is not None if name in self._changes else name in self._store

    def changes(self) -> Mapping[str, bytes | None]:
        """What was changed: a value, or None for what is removed."""
        return self._changes
