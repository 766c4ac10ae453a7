"""32 bytes in a TPM's NV memory that only a policy writes and reads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Final

from adyton.errors import KeyUnavailableError, RollbackError
from adyton.tee._kernel import Kernel
from adyton.tee._tpm_policies import Policy
from adyton.tee._tpm_sealing import SealingTpm, opened_for_sealing
from adyton.tee.sealing import REGISTER_BYTES

OWNERS: Final = range(0x01A00000, 0x01C00000)
"""Handles for registers. TCG leaves 0x01800000 to 0x01BFFFFF to a TPM's owner; who chooses by hand begins below."""
_WRITING: Final = threading.Lock()
ATTEMPTS: Final = 8
"""How many handles a register may be at, should others have taken the first."""


class TpmRegister:
    """A `FreshnessRegister`. Which handle it is at follows from its policy, and its label is part of that.

    swtpm takes 2 ms for a read or write, and 4 ms under SIGNER, where it verifies a signature too. A TPM of hardware
    takes tens of times as long, and writing wears it out: makers promise some 100,000 times.

    It stops who changes the disk. It does not stop who may delete the index: whoever has the owner's hierarchy, which
    has no password here, so root on any system that runs on this TPM; or clears the TPM. A deleted register reads None,
    and who has written to it must treat that as a rollback. A host that emulates the TPM can do anything to it.
    """

    def __init__(self, kernel: Kernel, policy: Policy) -> None:
        self._kernel = kernel
        self._policy = policy
        self._digest = policy.digest

    def read(self) -> bytes | None:
        """As `FreshnessRegister` says. `UnsealError` if PCRs have changed since the register was asked for."""
        with opened_for_sealing(self._kernel) as tpm:
            index, written = self._find(tpm)
            if index is None or not written:
                return None
            with tpm.storage_key() as key:
                return tpm.read_register(key, index, self._policy, REGISTER_BYTES)

    def write(self, value: bytes, *, after: bytes | None) -> None:
        """As `FreshnessRegister` says; exactly 32 bytes, else `ValueError`. `UnsealError` as `read`.

        A TPM can't compare and write in one command. It is one machine's, so who else could write is in this process.
        """
        if len(value) != REGISTER_BYTES:
            raise ValueError(f"a register has {REGISTER_BYTES} bytes, not {len(value)}")
        with _WRITING, opened_for_sealing(self._kernel) as tpm:
            index, written = self._find(tpm)
            if index is None:
                index, written = self._define(tpm)
            with tpm.storage_key() as key:
                found = tpm.read_register(key, index, self._policy, REGISTER_BYTES) if written else None
                if found != after:
                    raise RollbackError("the TPM's register holds another value: somebody else has written it since")
                tpm.write_register(key, index, self._policy, value, written=written)

    def _find(self, tpm: SealingTpm) -> tuple[int | None, bool]:
        """Where it is, and whether it was written. One that was goes before one that somebody else has defined."""
        unwritten = None
        for index in self._handles():
            written = tpm.find_register(index, self._digest, REGISTER_BYTES)
            if written:
                return index, True
            if written is False and unwritten is None:
                unwritten = index
        return unwritten, False

    def _define(self, tpm: SealingTpm) -> tuple[int, bool]:
        """At the first handle that is free, or where another process has just done it."""
        for index in self._handles():
            if tpm.define_register(index, self._digest, REGISTER_BYTES):
                return index, False
            written = tpm.find_register(index, self._digest, REGISTER_BYTES)
            if written is not None:
                return index, written
        taken = f"0x{next(self._handles()):08x} and the {ATTEMPTS - 1} handles after it"
        raise KeyUnavailableError(f"the TPM's NV indices at {taken} belong to others", mend="free one of them")

    def _handles(self) -> Iterator[int]:
        first = int.from_bytes(self._digest[:4], "big")
        for attempt in range(ATTEMPTS):
            yield OWNERS[(first + attempt) % len(OWNERS)]
