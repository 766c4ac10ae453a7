"""Inside the enclave: ask the simulation's hardware, at the other end of a stream socket, for sealing keys."""

from __future__ import annotations

import os
import socket
import struct
import threading
from typing import Final

from adyton.errors import KeyUnavailableError, RollbackError, SealedDataError, UnsealError, UnsupportedError
from adyton.tee.sealing import KEY_BYTES, REGISTER_BYTES, Binding, FreshnessRegister, SealingKey, SealPolicy
from adyton.tee.simulated.sealing_format import (
    HEAD,
    KEY,
    KEY_ID_BYTES,
    MAX_BYTES,
    READ,
    WRITE,
    Answer,
    Operation,
    SealingIdentity,
    parse_identity,
)

TIMEOUT_SECONDS: Final = 10.0
_REQUEST: Final = struct.Struct(f">BI{KEY_ID_BYTES}s")
_REQUEST_VERSION: Final = 1
_UNSIGNED: Final = "this enclave's code has no signer"


class SimulatedSealing:
    """A `KeySource`; owns the connection. The request: a version byte (1), the tcb in four, a random key id in 32."""

    name: Final = "simulated"
    policies: Final = frozenset({SealPolicy.MEASUREMENT, SealPolicy.SIGNER})

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._connection.settimeout(TIMEOUT_SECONDS)
        self._guard = threading.Lock()
        self._known: SealingIdentity | None = None

    def current(self, policy: SealPolicy) -> Binding:
        """As `KeySource` says."""
        identity = self._identity()
        if policy is SealPolicy.MEASUREMENT:
            return Binding(policy=policy, subject=identity.measurement)
        if policy is not SealPolicy.SIGNER:
            raise UnsupportedError(f"the simulation has no keys for {policy.name.lower()}")
        if not identity.signer:
            raise UnsupportedError(_UNSIGNED, mend="sign the bundle: adyton sign")
        return Binding(policy=policy, subject=identity.signer, product=identity.product, version=identity.version)

    def new_key(self, policy: SealPolicy) -> SealingKey:
        """As `KeySource` says; fresh each time."""
        binding, tcb = self.current(policy), self._identity().tcb
        key_id = os.urandom(KEY_ID_BYTES)
        key = self._key(binding, tcb, key_id)
        request = _REQUEST.pack(_REQUEST_VERSION, tcb, key_id)
        return SealingKey(key=key, binding=binding, request=request, tcb=str(tcb))

    def same_key(self, binding: Binding, request: bytes) -> bytes:
        """As `KeySource` says."""
        try:
            version, tcb, key_id = _REQUEST.unpack(request)
        except struct.error:
            raise SealedDataError("this key request is not one of the simulation's") from None
        if version != _REQUEST_VERSION:
            raise SealedDataError(f"key requests of version {version} are not known here")
        _check_owner(binding, self._identity())
        return self._key(binding, tcb, key_id)

    def register(self, binding: Binding, label: bytes) -> FreshnessRegister:
        """As `KeySource` says; a file of the simulation's on the host."""
        _check_owner(binding, self._identity())
        return _Register(self, binding.policy, label)

    def ask(self, operation: Operation, payload: bytes = b"") -> bytes:
        """One question to the hardware. After a failure the connection is closed: a late answer would be misread."""
        with self._guard:
            try:
                self._connection.sendall(HEAD.pack(operation, len(payload)) + payload)
                status, length = HEAD.unpack(self._receive(HEAD.size))
                reply = self._receive(length if length <= MAX_BYTES else -1)
            except BaseException as problem:
                self._connection.close()
                if not isinstance(problem, (OSError, ValueError)):
                    raise
                raise KeyUnavailableError("the simulation's hardware does not answer") from problem
        if status == Answer.OK:
            return reply
        if status == Answer.OTHER_VALUE:
            raise RollbackError("the register holds another value: somebody else has written it since")
        text = reply.decode("utf-8", "backslashreplace")
        raise UnsealError(text) if status == Answer.REFUSED else KeyUnavailableError(f"the simulation failed: {text}")

    def _receive(self, count: int) -> bytes:
        received = b""
        while len(received) != count:
            part = self._connection.recv(count - len(received))
            if not part:
                raise ConnectionResetError
            received += part
        return received

    def _identity(self) -> SealingIdentity:
        if self._known is None:
            try:
                self._known = parse_identity(self.ask(Operation.IDENTITY))
            except (struct.error, ValueError) as problem:
                raise KeyUnavailableError("the simulation's hardware does not say who this is") from problem
        return self._known

    def _key(self, binding: Binding, tcb: int, key_id: bytes) -> bytes:
        key = self.ask(Operation.KEY, KEY.pack(binding.policy, binding.version, tcb, key_id))
        if len(key) != KEY_BYTES:
            raise KeyUnavailableError(f"the simulation's hardware gave {len(key)} bytes for a key")
        return key


class _Register:
    def __init__(self, hardware: SimulatedSealing, policy: SealPolicy, label: bytes) -> None:
        self._hardware = hardware
        self._policy = policy
        self._label = label

    def read(self) -> bytes | None:
        return self._hardware.ask(Operation.READ, READ.pack(self._policy, self._label)) or None

    def write(self, value: bytes, *, after: bytes | None) -> None:
        if len(value) != REGISTER_BYTES:
            raise ValueError(f"a register has {REGISTER_BYTES} bytes, not {len(value)}")
        self._hardware.ask(Operation.WRITE, WRITE.pack(self._policy, self._label, value) + (after or b""))


def _check_owner(binding: Binding, identity: SealingIdentity) -> None:
    """Refuse in words what the hardware would refuse by another key."""
    if binding.policy is SealPolicy.MEASUREMENT:
        if binding != Binding(policy=binding.policy, subject=identity.measurement):
            mine = identity.measurement.hex()
            raise UnsealError(f"the measurement is {mine}; the data was sealed for {binding.subject.hex()}")
        return
    if binding.policy is not SealPolicy.SIGNER:
        raise UnsealError(f"the policy is {binding.policy.name.lower()}, for which the simulation has no keys")
    if not identity.signer:
        raise UnsealError(f"{_UNSIGNED}; the data was sealed for the signer {binding.subject.hex()}")
    if binding.subject != identity.signer:
        raise UnsealError(f"the signer is {identity.signer.hex()}; the data was sealed for {binding.subject.hex()}")
    if binding.product != identity.product:
        raise UnsealError(f"the product is {identity.product!r}; the data was sealed for {binding.product[:64]!r}")
    if binding.version > identity.version:
        raise UnsealError(f"the version is {identity.version}; the data was sealed for {binding.version} or later")
