"""A virtual TPM for tests: its launch, QEMU's part of the talk, and evidence as the guest's device collects it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from adyton.host.image.reference.hcrtm import launch_document
from adyton.host.launch.qemu.sandbox import new_uid
from adyton.host.launch.qemu.swtpm_control import Command
from adyton.host.launch.qemu.vtpm import Vtpm
from adyton.host.launch.qemu.vtpm_authority import VtpmAuthority
from adyton.tee.tpm.device import TpmDevice
from adyton.tee.tpm.verify import VerifiedTpm, verify_tpm
from adyton.testing.kernels.emulated import EmulatedKernel, Files
from adyton.testing.kernels.tpm import TpmNode

needs_swtpm = pytest.mark.skipif(shutil.which("swtpm") is None, reason="swtpm is not installed: apt install swtpm")

SECONDS = 20.0
REPORT_DATA = bytes(range(64))
DIGESTS = {name: hashlib.sha256(name.encode()).digest() for name in ("application", "kernel", "system")}
DOCUMENT = launch_document(DIGESTS, "panic=-1")
PASSWORD = bytes.fromhex("00000009 40000009 0000 00 0000")
STARTUP, PCR_EXTEND, PCR_RESET = 0x144, 0x182, 0x13D
STORE_VOLATILE = 10
OK, TPM_FAIL = bytes(4), struct.pack(">I", 9)


class Qemu:
    """What QEMU says to its TPM's emulator, in that order; and what the guest's driver has of it."""

    def __init__(self, vtpm: Vtpm) -> None:
        self.control = socket.socket(fileno=os.dup(vtpm.qemu_fd))
        vtpm.release()
        self.control.settimeout(SECONDS)
        self.data, theirs = socket.socketpair()
        self.data.settimeout(SECONDS)
        with theirs:
            assert self.command(Command.SET_DATAFD, descriptors=[theirs.fileno()]) == OK

    def command(self, command: int, body: bytes = b"", *, descriptors: Sequence[int] = ()) -> bytes:
        socket.send_fds(self.control, [struct.pack(">I", command) + body], list(descriptors))
        return self.control.recv(4096)

    def reset(self) -> None:
        """The machine starts, or starts again, and so does whoever drives the TPM in it."""
        assert self.command(Command.STOP) == OK
        assert self.command(Command.SET_BUFFERSIZE, struct.pack(">I", 4096))[:4] == OK
        assert self.command(Command.INIT, bytes(4)) == OK
        assert self.transmit(struct.pack(">HIIH", 0x8001, 12, STARTUP, 0))[6:10] == OK

    def transmit(self, command: bytes) -> bytes:
        self.data.sendall(command)
        response = b""
        while len(response) < 10 or len(response) < struct.unpack_from(">I", response, 2)[0]:
            part = self.data.recv(4096)
            assert part
            response += part
        return response

    def on_pcr(self, code: int, index: int, parameters: bytes = b"") -> bytes:
        """The response code of a command about a PCR, with an empty password."""
        body = struct.pack(">I", index) + PASSWORD + parameters
        return self.transmit(struct.pack(">HII", 0x8002, 10 + len(body), code) + body)[6:10]

    def extend(self, index: int, data: bytes) -> None:
        digest = struct.pack(">IH", 1, 0x000B) + hashlib.sha256(data).digest()
        assert self.on_pcr(PCR_EXTEND, index, digest) == OK

    def close(self) -> None:
        self.control.close()
        self.data.close()


@contextmanager
def running(
    directory: Path, authority: VtpmAuthority, document: bytes | None = DOCUMENT
) -> Iterator[tuple[Vtpm, Qemu]]:
    """A TPM, and a machine on it that has started."""
    directory.mkdir(exist_ok=True)
    vtpm = Vtpm.start(directory, document=document, authority=authority, uid=new_uid())
    with contextlib.closing(vtpm), contextlib.closing(Qemu(vtpm)) as qemu:
        qemu.reset()
        yield vtpm, qemu


def quoted(
    qemu: Qemu, authority: VtpmAuthority, certificates: Sequence[bytes], event_log: bytes | None, *files: Files
) -> VerifiedTpm:
    """What the guest's evidence proves to a client that trusts the authority."""
    with EmulatedKernel(TpmNode(qemu.transmit), *files) as kernel:
        device = TpmDevice(certificates=certificates, event_log=event_log, kernel=kernel)
        evidence = device.collect_evidence(REPORT_DATA)
    anchor = hashlib.sha256(authority.root.public_bytes(Encoding.DER)).digest()
    return verify_tpm(evidence, anchors={anchor}, now=datetime.now(UTC))


def pcr_0(qemu: Qemu, vtpm: Vtpm, authority: VtpmAuthority) -> bytes:
    return quoted(qemu, authority, vtpm.certificates, vtpm.event_log).quote.pcrs["sha256"][0]


def ends(process: subprocess.Popen[bytes]) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(SECONDS)
    return process.returncode is not None
