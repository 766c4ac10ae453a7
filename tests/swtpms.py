"""A machine with a real swtpm, on which code is started: what a TPM's sealing is tested against."""

from __future__ import annotations

import contextlib
import hashlib
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from adyton.tee.tpm.approvals import encode_approvals, make_approvals, signer_of
from adyton.tee.tpm.sealing import SEALING_PCRS, TpmSealing
from adyton.testing.kernels.emulated import EmulatedKernel, OpenFile
from adyton.testing.kernels.tpm import Swtpm, TpmNode, Transmit

SHUTDOWN, PCR_EXTEND, GET_CAPABILITY, NV_UNDEFINE_SPACE, CLEAR = 0x145, 0x182, 0x17A, 0x122, 0x126
LOCKOUT, PLATFORM, OWNER = 0x4000000A, 0x4000000C, 0x40000001
PRODUCT: Final = b"translator"
_PASSWORD: Final = bytes.fromhex("00000009 40000009 0000 00 0000")
_HANDLES: Final = {"transient": 0x80000000, "sessions": 0x02000000, "saved": 0x03000000, "nv": 0x01000000}
_SIGNERS: dict[str, ec.EllipticCurvePrivateKey] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """What the machine measures when it starts: PCR → what it is extended with."""

    pcrs: tuple[tuple[int, bytes], ...]

    @property
    def values(self) -> Mapping[int, bytes]:
        """The PCRs that are sealed to."""
        values = {index: bytes(32) for index in SEALING_PCRS}
        for index, measured in self.pcrs:
            values[index] = hashlib.sha256(values[index] + hashlib.sha256(measured).digest()).digest()
        return values


class Machine:
    """One at a time is running; who opens its TPM is running, so another boot is a restart. The TPM's state stays."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self._swtpm = Swtpm(directory)
        self._guard = threading.RLock()
        self._running: Boot | None = None

    def start(self, boot: Boot) -> None:
        """Unless it is what runs."""
        with self._guard:
            if boot == self._running:
                return
            self.stop()
            self._swtpm.__enter__()
            self._running = boot
            for index, measured in boot.pcrs:
                self.extend(index, measured)

    def stop(self) -> None:
        """In order, as an operating system does it."""
        with self._guard:
            if self._running is not None:
                self.command(SHUTDOWN, struct.pack(">H", 0))
                self._swtpm.__exit__()
                self._running = None

    def transmit(self, command: bytes) -> bytes:
        """To the TPM and back."""
        with self._guard:
            return self._swtpm.transmit(command)

    def command(self, code: int, parameters: bytes, *handles: int) -> bytes:
        """The response to a command, after its head. `handles`: the first is authorised by an empty password."""
        body = struct.pack(f">{len(handles)}I", *handles) + (_PASSWORD if handles else b"") + parameters
        response = self.transmit(struct.pack(">HII", 0x8002 if handles else 0x8001, 10 + len(body), code) + body)
        (response_code,) = struct.unpack_from(">I", response, 6)
        assert response_code == 0, hex(response_code)
        return response[10:]

    def extend(self, index: int, measured: bytes) -> None:
        """A PCR, while the machine runs."""
        self.command(PCR_EXTEND, struct.pack(">IH", 1, 0x000B) + hashlib.sha256(measured).digest(), index)

    def handles(self, kind: str) -> list[int]:
        """What the TPM has loaded ("transient", "sessions", "saved") or keeps ("nv")."""
        found = self.command(GET_CAPABILITY, struct.pack(">III", 1, _HANDLES[kind], 256))
        (count,) = struct.unpack_from(">I", found, 5)
        return list(struct.unpack_from(f">{count}I", found, 9))

    def undefine(self, index: int) -> None:
        """As its owner."""
        self.command(NV_UNDEFINE_SPACE, b"", OWNER, index)

    def clear(self) -> None:
        """As the firmware's setup does it."""
        self.command(CLEAR, b"", LOCKOUT)

    def kernel(self, boot: Boot, transmit: Transmit | None = None) -> EmulatedKernel:
        """Of the machine when it has started so. `transmit`: what is between the kernel and the TPM."""
        return EmulatedKernel(BootedNode(self, boot, transmit or self.transmit))


class BootedNode(TpmNode):
    """/dev/tpmrm0 of the machine when it has started so."""

    def __init__(self, machine: Machine, boot: Boot, transmit: Transmit) -> None:
        super().__init__(transmit)
        self._machine = machine
        self._boot = boot

    def open(self, path: str, flags: int) -> OpenFile | None:
        """Start the machine, if something else runs on it."""
        self._machine.start(self._boot)
        return super().open(path, flags)


def signer_key(name: str) -> ec.EllipticCurvePrivateKey:
    """Always the same key for a name."""
    if name not in _SIGNERS:
        _SIGNERS[name] = ec.generate_private_key(ec.SECP256R1())
    return _SIGNERS[name]


def boot_of(code: str, version: int = 1) -> Boot:
    """A launch without firmware of that code."""
    return Boot(pcrs=((0, f"{code} {version}".encode()),))


def approve(boots: Sequence[Boot], *, signer: str = "s", version: int = 1, product: bytes = PRODUCT) -> list[bytes]:
    """A document of the signer for each."""
    key = signer_key(signer)
    made = [make_approvals(key, product=product, version=version, pcrs=boot.values) for boot in boots]
    return [encode_approvals(each) for each in made]


def sealing(kernel: EmulatedKernel, approvals: Sequence[bytes] = (), signer: str = "s") -> TpmSealing:
    """A source on that kernel that believes that signer."""
    return TpmSealing(kernel=kernel, approvals=approvals, signer=signer_of(signer_key(signer).public_key()))


class TpmWorld:
    """`adyton.testing.sealers.SealingWorld`: machines in folders beside each other, each with its TPM."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.machine = Machine(directory / "machine")
        self._others: list[TpmWorld] = []

    def source(self, *, code: str = "a", signer: str = "s", version: int = 1, tcb: int = 1) -> TpmSealing:
        """The TPM's own firmware is no part of a policy, so `tcb` changes nothing."""
        boot = boot_of(code, version)
        return sealing(self.machine.kernel(boot), approve([boot], signer=signer, version=version), signer)

    def elsewhere(self) -> TpmWorld:
        """The same, with a TPM of its own."""
        directory = self._directory / f"other-{len(self._others)}"
        directory.mkdir()
        self._others.append(TpmWorld(directory))
        return self._others[-1]

    def close(self) -> None:
        """Stop all machines."""
        self.machine.stop()
        for other in self._others:
            other.close()


@contextmanager
def world_in(directory: Path) -> Iterator[TpmWorld]:
    """A world that is gone at the end."""
    with contextlib.closing(TpmWorld(directory)) as world:
        yield world


def refusing(transmit: Transmit, code: int, response_code: int, *, times: int = 1 << 30) -> Transmit:
    """That TPM, but for so many commands of that code, which it refuses."""
    left = [times]

    def refused(command: bytes) -> bytes:
        if struct.unpack_from(">I", command, 6) != (code,) or not left[0]:
            return transmit(command)
        left[0] -= 1
        return struct.pack(">HII", 0x8001, 10, response_code)

    return refused


def before(transmit: Transmit, code: int, action: Callable[[], None]) -> Transmit:
    """That TPM; once, before a command of that code, something happens."""
    pending = [action]

    def watched(command: bytes) -> bytes:
        if struct.unpack_from(">I", command, 6) == (code,) and pending:
            pending.pop()()
        return transmit(command)

    return watched


def changing(transmit: Transmit, code: int, change: Callable[[bytes], bytes]) -> Transmit:
    """That TPM, but somebody changes its responses to commands of that code."""

    def changed(command: bytes) -> bytes:
        response = transmit(command)
        return change(response) if struct.unpack_from(">I", command, 6) == (code,) else response

    return changed
