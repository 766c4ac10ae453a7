"""The simulation's hardware on the host: sealing keys, and registers that outlive the enclave.

Everything is derived from the key of the platform's root, which lies in a file of this user: it protects nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
import struct
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from adyton.tee.sealing import KEY_BYTES, REGISTER_BYTES, SealPolicy
from adyton.tee.simulated.sealing_format import (
    HEAD,
    KEY,
    READ,
    WRITE,
    Answer,
    Operation,
    SealingIdentity,
    encode_identity,
)
from adyton.tee.simulated.signed_code import SignedCode

_DOMAIN: Final = b"adyton simulated sealing v1\0"


class Registers:
    """Values of 32 bytes by name, each in a file of its own, which is replaced whole. None: in memory."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._values: dict[str, bytes] = {}
        self._guard = threading.Lock()

    def read(self, name: str) -> bytes | None:
        """What was written last; a file of another size counts as nothing."""
        if self._directory is None:
            return self._values.get(name)
        with contextlib.suppress(FileNotFoundError):
            value = (self._directory / name).read_bytes()
            return value if len(value) == REGISTER_BYTES else None
        return None

    def write(self, name: str, value: bytes, after: bytes | None) -> bool:
        """Written for good when this returns True; False if what was in it is not `after`. Raises OSError."""
        with self._guard, self._alone():
            if self.read(name) != after:
                return False
            if self._directory is None:
                self._values[name] = value
            else:
                _replace(self._directory, name, value)
            return True

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process writes meanwhile: the registers are one machine's, whichever of its programs has them."""
        if self._directory is None:
            yield
            return
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _replace(directory: Path, name: str, value: bytes) -> None:
    """Replace a file whole, so that it stays replaced when the power fails."""
    descriptor, temporary = tempfile.mkstemp(prefix=".register-", dir=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(value)
            file.flush()
            os.fsync(descriptor)
        Path(temporary).replace(directory / name)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class _OtherValueError(Exception):
    """Another value is in the register than its writer thought."""


class SealingHardware:
    """What gives one enclave its keys: of that measurement, and signed if `signed` says so."""

    def __init__(
        self,
        root: ec.EllipticCurvePrivateKey,
        *,
        measurement: bytes,
        signed: SignedCode | None,
        tcb: int,
        registers: Registers,
    ) -> None:
        private = root.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self._secret = _derive(private, b"root")
        self._registers = registers
        self._identity = SealingIdentity(
            measurement=measurement,
            tcb=tcb,
            version=signed.version if signed else 0,
            signer=signed.signer if signed else b"",
            product=signed.product.encode() if signed else b"",
        )

    def answer(self, operation: int, payload: bytes) -> tuple[Answer, bytes]:
        """The reply to one request, whatever it is."""
        try:
            return Answer.OK, self._answer(Operation(operation), payload)
        except PermissionError as problem:
            return Answer.REFUSED, str(problem).encode()
        except _OtherValueError:
            return Answer.OTHER_VALUE, b""
        except (ValueError, struct.error, OSError) as problem:
            return Answer.FAILED, f"{type(problem).__name__}: {problem}".encode()[:200]

    def _answer(self, operation: Operation, payload: bytes) -> bytes:
        if operation is Operation.IDENTITY:
            return encode_identity(self._identity)
        if operation is Operation.KEY:
            policy, version, tcb, key_id = KEY.unpack(payload)
            return self._key(SealPolicy(policy), version, tcb, key_id)
        if operation is Operation.READ:
            policy, label = READ.unpack(payload)
            return self._registers.read(self._register(SealPolicy(policy), label)) or b""
        policy, label, value = WRITE.unpack(payload[: WRITE.size])
        if not self._registers.write(self._register(SealPolicy(policy), label), value, payload[WRITE.size :] or None):
            raise _OtherValueError
        return b""

    def _key(self, policy: SealPolicy, version: int, tcb: int, key_id: bytes) -> bytes:
        if tcb > self._identity.tcb:
            raise PermissionError(f"tcb {tcb} is newer than this hardware's {self._identity.tcb}")
        if policy is SealPolicy.SIGNER and not 0 < version <= self._identity.version:
            raise PermissionError(f"version {version} is later than this code's {self._identity.version}")
        return _derive(self._secret, b"key" + struct.pack(">II", version, tcb) + self._owner(policy) + key_id)

    def _register(self, policy: SealPolicy, label: bytes) -> str:
        return hashlib.sha256(_derive(self._secret, b"register" + self._owner(policy) + label)).hexdigest()

    def _owner(self, policy: SealPolicy) -> bytes:
        """Who shares keys and registers, in bytes that nobody else has."""
        if policy is SealPolicy.MEASUREMENT:
            return b"m" + self._identity.measurement
        if policy is SealPolicy.SIGNER and self._identity.signer:
            return b"s" + self._identity.signer + hashlib.sha256(self._identity.product).digest()
        raise PermissionError("this code was not signed")


def _derive(secret: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=_DOMAIN + info).derive(secret)


def serve_sealing(hardware: SealingHardware, connection: socket.socket) -> None:
    """Answer the enclave's `SimulatedSealing` until it ends. For a thread of the launcher; does not close it."""
    with contextlib.suppress(OSError):
        while len(head := _receive(connection, HEAD.size)) == HEAD.size:
            operation, length = HEAD.unpack(head)
            status, reply = hardware.answer(operation, _receive(connection, length))
            connection.sendall(HEAD.pack(status, len(reply)) + reply)


def _receive(connection: socket.socket, count: int) -> bytes:
    """That many bytes, or fewer if the stream ends before."""
    received = b""
    while len(received) < count and (part := connection.recv(count - len(received))):
        received += part
    return received
