"""A virtual machine as QEMU's command line describes it: no display; no card and no disk unless it is asked for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from adyton.errors import UnsupportedError

#: What else Linux is told, measured like everything else on its command line. No self-tests of its own cryptography
#: and no jitter entropy: they take half a second under emulation, and nothing in the guest uses either. A ramfs, for a
#: tmpfs may take half of the memory only, and of 256 MB the image needs more.
_LINUX: Final = (
    "panic=-1 loglevel=4 no_timer_check rootfstype=ramfs cryptomgr.notests=1 initcall_blacklist=jent_mod_init"
)
_CONSOLES: Final = {"x86_64": "ttyS0", "aarch64": "ttyAMA0"}
_PROGRAMS: Final = {"x86_64": "qemu-system-x86_64", "aarch64": "qemu-system-aarch64"}
_BOARDS: Final = {
    "x86_64": "q35,smm=off,i8042=off,sata=off,smbus=off,vmport=off,graphics=off,usb=off",
    "aarch64": "virt,gic-version=3",
}
_EMULATED: Final = {"x86_64": "max,-la57", "aarch64": "cortex-a72"}
"""The processor where QEMU emulates it."""
PACKAGES: Final = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm"}
_DISK_SET: Final = 1
"""QEMU's number for the one set of descriptors."""
#: Seccomp, in QEMU itself: no new privileges, no programs, no other scheduling.
_SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


@dataclass(frozen=True, slots=True, kw_only=True)
class Protection:
    """What is otherwise of a machine that its host can't look into, and which of the host's devices QEMU uses for it.

    `board` is added to -M; `objects` are an -object each.
    """

    board: str
    processor: str
    objects: tuple[str, ...]
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What is started. The descriptors are connected stream sockets, QEMU's ends, but for `disk_fd`, a file's.

    `firmware` is a file, or the name of one of QEMU's own; None where the machine needs none. `tpm_fd` and `disk_fd`:
    None for a machine without. `network`: a card with a way out. `protection`: None where the host is trusted.
    """

    architecture: str
    accelerator: str
    memory_mb: int
    cpus: int
    firmware: str | None
    kernel: str
    initrd: str
    command_line: str
    trunk_fd: int
    monitor_fd: int
    tpm_fd: int | None
    network: bool
    disk_fd: int | None = None
    protection: Protection | None = None

    @property
    def devices(self) -> tuple[str, ...]:
        """The host's devices that QEMU uses."""
        if self.protection is not None:
            return self.protection.devices
        return ("/dev/kvm",) if self.accelerator == "kvm" else ()

    def arguments(self) -> list[str]:
        """QEMU's command line."""
        words = bare_machine(self.architecture, self.accelerator, self.protection)
        words += ["-m", str(self.memory_mb), "-smp", str(self.cpus)]
        if self.firmware is not None:
            words += ["-bios", self.firmware]
        words += ["-chardev", f"socket,id=monitor,fd={self.monitor_fd}", "-mon", "chardev=monitor,mode=control"]
        words += ["-device", "virtio-serial-pci", "-chardev", f"socket,id=trunk,fd={self.trunk_fd}"]
        words += ["-device", "virtserialport,chardev=trunk,name=adyton.trunk"]
        if self.tpm_fd is not None:
            device = "tpm-crb" if self.architecture == "x86_64" else "tpm-tis-device"
            words += ["-chardev", f"socket,id=tpm,fd={self.tpm_fd}", "-tpmdev", "emulator,id=tpm0,chardev=tpm"]
            words += ["-device", f"{device},tpmdev=tpm0"]
        if self.disk_fd is not None:
            words += _disk(self.disk_fd)
        if self.network:
            words += ["-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0,romfile="]
        return [*words, "-kernel", self.kernel, "-initrd", self.initrd, "-append", self.command_line]


def _disk(descriptor: int) -> list[str]:
    """A disk in that file. The guest's flushes reach the host's disk; an error is the guest's, which goes on with it.

    QEMU would stop the machine instead when the host's file system is full.
    """
    node = {
        "driver": "raw",
        "node-name": "state",
        "cache": {"direct": False, "no-flush": False},
        "file": {"driver": "file", "filename": f"/dev/fdset/{_DISK_SET}", "aio": "threads"},
    }
    device = "virtio-blk-pci,drive=state,write-cache=on,werror=report,rerror=report"
    return ["-add-fd", f"fd={descriptor},set={_DISK_SET}", "-blockdev", json.dumps(node), "-device", device]


def bare_machine(architecture: str, accelerator: str, protection: Protection | None = None) -> list[str]:
    """QEMU, its board and its processor, with no device but a console on its standard output."""
    kvm = accelerator == "kvm"
    board, processor = _BOARDS[architecture], "host" if kvm else _EMULATED[architecture]
    if protection is not None:
        board, processor = f"{board},{protection.board}", protection.processor
    words = [_PROGRAMS[architecture], "-M", board, "-accel", "kvm" if kvm else "tcg,thread=multi", "-cpu", processor]
    for each in protection.objects if protection else ():
        words += ["-object", each]
    words += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-sandbox", _SANDBOX]
    return [*words, "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]


def linux_command_line(architecture: str) -> str:
    """What Linux is told. It is measured, so whatever a host adds is seen."""
    if architecture not in _CONSOLES:
        raise UnsupportedError(f"no virtual machine for {architecture!r}", mend=f"known: {', '.join(_CONSOLES)}")
    return f"console={_CONSOLES[architecture]} {_LINUX}"
