"""The TPM 2.0 commands that sealing takes (TCG TPM 2.0 Library, part 3): keys that never leave it, and NV indices.

The owner's hierarchy is authorised by an empty password, which is what a TPM comes with; what is kept in it, by policy.
"""

from __future__ import annotations

import enum
import hashlib
import os
import struct
import threading
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Final

from adyton.errors import EvidenceError, KeyUnavailableError, SealedDataError
from adyton.tee._binary import Reader
from adyton.tee._kernel import Kernel
from adyton.tee._tpm_commands import OWNER, SHA256, SHA256_BYTES, Tpm, flushed, parameters_of, sized
from adyton.tee._tpm_policies import COORDINATE_BYTES, Policy, name_of
from adyton.tee._tpm_sessions import PolicySession, opened_session
from adyton.tee._tpm_transport import (
    RC_HANDLE,
    RC_NV_DEFINED,
    RESPONSE_BYTES,
    TpmTransport,
    check_response_code,
    is_error,
    opened_tpm,
)

MAX_PRIVATE_BYTES: Final = 512
"""Of a key's private area, which the TPM has encrypted; it takes about 150."""

STORAGE_TEMPLATE: Final = bytes.fromhex(
    "0023000b"  # ECC, named by SHA-256
    "00030472"  # fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, decrypt
    "0000"  # no policy
    "000600800043"  # AES-128-CFB
    "0010"  # no scheme
    "00030010"  # P-256, no KDF
    "00000000"  # nothing unique: the same key whenever it is asked for
)
"""The key that keeps the others, as a TPMT_PUBLIC."""
_KEY_TEMPLATE: Final = bytes.fromhex(
    "0008000b"  # a keyed hash, named by SHA-256
    "000404b2"  # fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, noDA, sign; so never with a password
)
_HMAC_SHA256: Final = bytes.fromhex("0005000b")
_NV_ATTRIBUTES: Final = 0x02080008  # policy writes, policy reads, no dictionary attack logic
_NV_WRITTEN: Final = 0x20000000
_PARAMETER_ERROR: Final = 0x0C0
_FIRMWARE_VERSION: Final = struct.pack(">III", 6, 0x10B, 2)

_ALONE: Final = threading.RLock()
"""A TPM without a resource manager has room for three keys. A child that is forked finds the lock free."""
os.register_at_fork(before=_ALONE.acquire, after_in_parent=_ALONE.release, after_in_child=_ALONE.release)


class _Command(enum.IntEnum):
    NV_DEFINE_SPACE = 0x12A
    CREATE_PRIMARY = 0x131
    NV_WRITE = 0x137
    NV_READ = 0x14E
    CREATE = 0x153
    HMAC = 0x155
    LOAD = 0x157
    NV_READ_PUBLIC = 0x169
    GET_CAPABILITY = 0x17A


_WANT_PASSWORD: Final = frozenset({_Command.NV_DEFINE_SPACE, _Command.CREATE_PRIMARY, _Command.CREATE, _Command.LOAD})


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageKey:
    """The loaded key that keeps the others. `public_sha256` tells this TPM from another, and from itself cleared."""

    handle: int
    point: bytes
    public_sha256: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptKey:
    """What a TPM gives out of a key: `unique` (32 bytes) of its public area, and its encrypted private area."""

    unique: bytes
    private: bytes


class SealingTpm:
    """A TPM behind an open descriptor. What it refuses, or answers out of form, is an `EvidenceError`."""

    def __init__(self, kernel: Kernel, descriptor: int) -> None:
        self._transport = TpmTransport(kernel, descriptor)
        self._tpm = Tpm(kernel, descriptor)

    def read_pcrs(self, pcrs: Collection[int]) -> dict[int, bytes]:
        """Their values in the SHA-256 bank."""
        return self._tpm.read_pcrs(pcrs)

    def firmware_version(self) -> int:
        """64 bits that its maker counts up."""
        response = self._execute(_Command.GET_CAPABILITY, parameters=_FIRMWARE_VERSION)
        if response.take(9, "capability")[1:] != struct.pack(">II", 6, 2):
            raise EvidenceError("the TPM does not say its firmware's version")
        _, high, _, low = struct.unpack(">4I", response.take(16, "properties"))
        version: int = high << 32 | low
        return version

    @contextmanager
    def storage_key(self) -> Iterator[StorageKey]:
        """A key after `STORAGE_TEMPLATE` in the owner's hierarchy, always the same until that is cleared."""
        parameters = sized(sized(b"") + sized(b"")) + sized(STORAGE_TEMPLATE) + sized(b"") + bytes(4)
        response = self._execute(_Command.CREATE_PRIMARY, OWNER, parameters=parameters)
        handle = response.number(4, "handle")
        with flushed(self._transport, handle):
            public = parameters_of(response).prefixed(2, "public area", at_most=RESPONSE_BYTES)
            point = _storage_point(public)
            yield StorageKey(handle=handle, point=point, public_sha256=hashlib.sha256(public).digest())

    def create_key(self, parent: StorageKey, policy_digest: bytes) -> KeptKey:
        """A new key that the TPM makes up, and that works for that policy alone, in this TPM alone."""
        sensitive, public = sized(sized(b"") + sized(b"")), sized(_key_public(policy_digest, b""))
        parameters = sensitive + public + sized(b"") + bytes(4)
        response = parameters_of(self._execute(_Command.CREATE, parent.handle, parameters=parameters))
        private = response.prefixed(2, "private area", at_most=MAX_PRIVATE_BYTES)
        made = response.prefixed(2, "public area", at_most=RESPONSE_BYTES)
        unique = made[-SHA256_BYTES:]
        if made != _key_public(policy_digest, unique):
            raise EvidenceError("the TPM made another key than the one that it was told to make")
        return KeptKey(unique=unique, private=private)

    def hmac(self, parent: StorageKey, kept: KeptKey, policy: Policy, message: bytes) -> bytes:
        """HMAC-SHA-256 of a message (1024 bytes at most) by that key, encrypted on its way.

        `UnsealError` if the policy does not let in; `SealedDataError` if the key is not one of this parent and policy.
        """
        public = _key_public(policy.digest, kept.unique)
        with self._loaded(parent, public, kept.private) as handle, self._session(parent, policy) as session:
            parameters = sized(message) + struct.pack(">H", SHA256)
            key = session.execute(_Command.HMAC, (handle,), name_of(public), parameters, secret=True)
        if len(key) != SHA256_BYTES:
            raise EvidenceError(f"the TPM gives an HMAC of {len(key)} bytes, not {SHA256_BYTES}")
        return key

    def find_register(self, index: int, policy_digest: bytes, size: int) -> bool | None:
        """Whether the register of that policy at an NV index was written; None if there is none there, or another."""
        public = self.nv_public(index)
        for written in (False, True):
            if public == nv_public(index, policy_digest, size, written=written):
                return written
        return None

    def nv_public(self, index: int) -> bytes | None:
        """The TPMS_NV_PUBLIC of an NV index; None if it is not defined."""
        response_code, response = self._attempt(_Command.NV_READ_PUBLIC, index)
        if is_error(response_code, RC_HANDLE):
            return None
        check_response_code(_Command.NV_READ_PUBLIC.name, response_code)
        return response.prefixed(2, "public area", at_most=RESPONSE_BYTES)

    def define_register(self, index: int, policy_digest: bytes, size: int) -> bool:
        """Make an NV index that is written and read by that policy alone; False if there is one already."""
        parameters = sized(b"") + sized(nv_public(index, policy_digest, size, written=False))
        response_code, _ = self._attempt(_Command.NV_DEFINE_SPACE, OWNER, parameters=parameters)
        if response_code != RC_NV_DEFINED:
            check_response_code(_Command.NV_DEFINE_SPACE.name, response_code)
        return response_code == 0

    def read_register(self, parent: StorageKey, index: int, policy: Policy, size: int) -> bytes:
        """The content of an index that was written. `UnsealError` if the policy does not let in."""
        name = name_of(nv_public(index, policy.digest, size, written=True))
        with self._session(parent, policy) as session:
            parameters = struct.pack(">HH", size, 0)
            content = session.execute(_Command.NV_READ, (index, index), 2 * name, parameters, secret=True)
        if len(content) != size:
            raise EvidenceError(f"the NV index 0x{index:08x} gives {len(content)} bytes, not {size}")
        return content

    def write_register(self, parent: StorageKey, index: int, policy: Policy, content: bytes, *, written: bool) -> None:
        """All of the index; `written`: it was before. `UnsealError` if the policy does not let in."""
        name = name_of(nv_public(index, policy.digest, len(content), written=written))
        with self._session(parent, policy) as session:
            session.execute(_Command.NV_WRITE, (index, index), 2 * name, sized(content) + bytes(2))

    @contextmanager
    def _loaded(self, parent: StorageKey, public: bytes, private: bytes) -> Iterator[int]:
        parameters = sized(private) + sized(public)
        response_code, response = self._attempt(_Command.LOAD, parent.handle, parameters=parameters)
        if response_code & _PARAMETER_ERROR == _PARAMETER_ERROR:
            raise SealedDataError("the TPM knows no such key: the request is damaged, or it is of another binding")
        check_response_code(_Command.LOAD.name, response_code)
        handle = response.number(4, "handle")
        with flushed(self._transport, handle):
            yield handle

    def _session(self, salt_key: StorageKey, policy: Policy) -> AbstractContextManager[PolicySession]:
        return opened_session(self._transport, salt_key.handle, salt_key.point, policy)

    def _execute(self, command: _Command, *handles: int, parameters: bytes = b"") -> Reader:
        return self._transport.execute(command, *handles, parameters=parameters, password=command in _WANT_PASSWORD)

    def _attempt(self, command: _Command, *handles: int, parameters: bytes = b"") -> tuple[int, Reader]:
        return self._transport.attempt(command, handles, parameters, password=command in _WANT_PASSWORD)


@contextmanager
def opened_for_sealing(kernel: Kernel) -> Iterator[SealingTpm]:
    """The TPM, alone in this process. Not there: `UnsupportedError`; failing or refusing: `KeyUnavailableError`."""
    try:
        with _ALONE, opened_tpm(kernel) as descriptor:
            yield SealingTpm(kernel, descriptor)
    except EvidenceError as error:
        raise KeyUnavailableError(error.message, mend=error.mend) from error


def nv_public(index: int, policy_digest: bytes, size: int, *, written: bool) -> bytes:
    """The TPMS_NV_PUBLIC of a register."""
    attributes = _NV_ATTRIBUTES | (_NV_WRITTEN if written else 0)
    return struct.pack(">IHI", index, SHA256, attributes) + sized(policy_digest) + struct.pack(">H", size)


def _key_public(policy_digest: bytes, unique: bytes) -> bytes:
    return _KEY_TEMPLATE + sized(policy_digest) + _HMAC_SHA256 + sized(unique)


def _storage_point(public: bytes) -> bytes:
    reader = Reader(public, "the TPM's storage key", order="big")
    if reader.take(len(STORAGE_TEMPLATE) - 4, "template") != STORAGE_TEMPLATE[:-4]:
        raise EvidenceError("the TPM made another storage key than the one that it was told to make")
    x, y = (reader.prefixed(2, name, at_most=COORDINATE_BYTES) for name in "xy")
    reader.end()
    if len(x) != COORDINATE_BYTES or len(y) != COORDINATE_BYTES:
        raise EvidenceError("the TPM does not fill up the coordinates of its storage key")
    return x + y
