"""Machines that their host can't look into, AMD's SEV-SNP and Intel's TDX: what a host needs, and what QEMU is told.

The options are those of QEMU's documentation and source. Nobody has started such a machine with them yet.
"""

from __future__ import annotations

import base64
import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adyton.errors import UnsupportedError
from adyton.host.launch.launcher import Capability
from adyton.host.launch.qemu.machine import Protection
from adyton.host.launch.qemu.sandbox import why_closed

PROGRAM: Final = "qemu-system-x86_64"
SEV_MODEL: Final = "EPYC-v4"
"""A model and not the host's own processor: SEV-SNP measures what each CPU starts with, its signature among it."""
_QEMU_SECONDS: Final = 10.0
_TDX_CONFIG_BYTES: Final = 48
#: SEV-SNP's guest policy (Firmware ABI, table 9): bit 17 is always one, bit 16 lets the host run two threads a core.
#: Bit 19, which would let the host debug the guest, is not among them.
_SEV_POLICY: Final = 0x30000
_SEV_DEVICES: Final = ("/dev/kvm", "/dev/sev")
_TDX_DEVICES: Final = ("/dev/kvm",)
#: The host's own CID, and the port of Intel's Quote Generation Service, which signs for the guest.
_QUOTING: Final = {"type": "vsock", "cid": "2", "port": "4050"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBits:
    """What the processor takes from a physical address: the bit that says "encrypted", and how many bits in all."""

    c_bit: int
    reduced: int


def sev_snp_protection(bundle_sha256: bytes, *, memory_mb: int, bits: MemoryBits) -> Protection:
    """For a machine whose report has the kernel, initrd and command line measured, and the bundle as its host_data."""
    guest = {
        "cbitpos": bits.c_bit,
        "reduced-phys-bits": bits.reduced,
        "policy": f"{_SEV_POLICY:#x}",
        "kernel-hashes": "on",
        "host-data": base64.b64encode(bundle_sha256).decode(),
    }
    options = "".join(f",{name}={value}" for name, value in guest.items())
    return Protection(
        board="kernel-irqchip=split,confidential-guest-support=sev0,memory-backend=ram1",
        processor=SEV_MODEL,
        objects=(f"memory-backend-memfd,id=ram1,size={memory_mb}M,share=true", f"sev-snp-guest,id=sev0{options}"),
        devices=_SEV_DEVICES,
    )


def tdx_protection(bundle_sha256: bytes) -> Protection:
    """For a machine whose quote has the bundle as its MRCONFIGID: 32 bytes, then zeros. It takes no named CPU model."""
    guest = {
        "qom-type": "tdx-guest",
        "id": "tdx0",
        "mrconfigid": base64.b64encode(bundle_sha256.ljust(_TDX_CONFIG_BYTES, b"\0")).decode(),
        "quote-generation-socket": _QUOTING,
    }
    return Protection(
        board="kernel-irqchip=split,confidential-guest-support=tdx0,hpet=off",
        processor="host",
        objects=(json.dumps(guest),),
        devices=_TDX_DEVICES,
    )


def ask_memory_bits(program: str = PROGRAM) -> MemoryBits:
    """The host's, by QEMU, which refuses to start a machine with any others.

    CPUID says the same (0x8000001F, EBX), but Python has it only from /dev/cpu, which needs root and a module. Raises
    UnsupportedError with what QEMU says against it.
    """
    commands = ({"execute": name} for name in ("qmp_capabilities", "query-sev-capabilities", "quit"))
    arguments = ("-machine", "none,accel=kvm", "-nodefaults", "-no-user-config", "-display", "none", "-qmp", "stdio")
    return parse_sev_capabilities(_ask(program, *arguments, said="\n".join(map(json.dumps, commands))))


def parse_sev_capabilities(answers: str) -> MemoryBits:
    """What QEMU answered, a JSON object a line. Raises UnsupportedError where no line has the answer."""
    for line in answers.splitlines():
        match json.loads(line):
            case {"return": {"cbitpos": int(c_bit), "reduced-phys-bits": int(reduced)}}:
                return MemoryBits(c_bit=c_bit, reduced=reduced)
            case {"error": {"desc": str(why)}}:
                raise UnsupportedError(f"QEMU can't use SEV: {why}")
    raise UnsupportedError("QEMU can't use SEV: it did not say why")


@dataclass(frozen=True, slots=True, kw_only=True)
class Confidential:
    """A technology, and what a host needs for it.

    `switch` is the parameter by which KVM says that it is on; `guest` QEMU's object, and `qemu` the first version that
    has it; `firmware` the files of distributions, and `variable` the environment's, which goes before them.
    """

    technology: str
    title: str
    switch: str
    switch_mend: str
    devices: tuple[str, ...]
    guest: str
    qemu: str
    variable: str
    firmware: tuple[str, ...]
    firmware_title: str
    protect: Callable[[bytes, int], Protection]

    def capabilities(self, host: Path = Path("/")) -> list[Capability]:
        """Whether a machine can be started, and each thing that this needs. `host` is where the host's files are."""
        needs = [Capability(name=name, available=not why, detail=why or "here") for name, why in self._needs(host)]
        lacking = ", ".join(each.name for each in needs if not each.available)
        launch = Capability(name="launch", available=not lacking, detail=f"lacks {lacking}" if lacking else self.title)
        return [launch, *needs]

    def check(self, host: Path = Path("/")) -> None:
        """Raises UnsupportedError with everything that is missing, each with its mend."""
        if missing := [why for _, why in self._needs(host) if why]:
            raise UnsupportedError("\n  ".join((f"this machine can't start {self.title} guests:", *missing)))

    def find_firmware(self, host: Path = Path("/")) -> Path:
        """The firmware's file. Raises UnsupportedError where there is none."""
        named = os.environ.get(self.variable)
        for path in (Path(named),) if named else (host / each.lstrip("/") for each in self.firmware):
            if path.is_file():
                return path
        what = f"{self.variable} names no file: {named}" if named else f"there is no {Path(self.firmware[0]).name}"
        raise UnsupportedError(what, mend=f"install {self.firmware_title}, or name its file in {self.variable}")

    def _needs(self, host: Path) -> Iterator[tuple[str, str]]:
        """Each thing by name, and in words what is wrong with it; empty if nothing is."""
        machine = platform.machine()
        yield "x86_64", "" if machine == "x86_64" else f"{self.title} is x86_64's, and this is {machine}"
        on = _read(host / self.switch.lstrip("/")) in ("Y", "1")
        yield "kvm", "" if on else f"KVM has no {self.title}: {self.switch} is not Y ({self.switch_mend})"
        for device in self.devices:
            why = why_closed(host / device.lstrip("/"))
            yield device.rpartition("/")[2] + " device", f"{device} {why}" if why else ""
        known = self.guest in _ask(PROGRAM, "-object", "help").split()
        yield "qemu", "" if known else f"{PROGRAM} here has no {self.guest} (QEMU {self.qemu} or later)"
        try:
            self.find_firmware(host)
        except UnsupportedError as problem:
            yield "firmware", str(problem)
        else:
            yield "firmware", ""


SEV_SNP: Final = Confidential(
    technology="sev-snp",
    title="SEV-SNP",
    switch="/sys/module/kvm_amd/parameters/sev_snp",
    switch_mend="EPYC 7003 or later, SEV-SNP on in the BIOS, Linux 6.11 or later",
    devices=_SEV_DEVICES,
    guest="sev-snp-guest",
    qemu="9.1",
    variable="ADYTON_SEV_FIRMWARE",
    firmware=(
        "/usr/share/ovmf/OVMF.amdsev.fd",
        "/usr/share/OVMF/OVMF.amdsev.fd",
        "/usr/share/edk2/ovmf/OVMF.amdsev.fd",
        "/usr/share/edk2/x64/OVMF.amdsev.fd",
    ),
    firmware_title="edk2's AmdSev build of OVMF",
    protect=lambda bundle, memory_mb: sev_snp_protection(bundle, memory_mb=memory_mb, bits=ask_memory_bits()),
)

TDX: Final = Confidential(
    technology="tdx",
    title="TDX",
    switch="/sys/module/kvm_intel/parameters/tdx",
    switch_mend="a Xeon with TDX, on in the BIOS; Linux 6.16 or later, with kvm_intel.tdx=1",
    devices=_TDX_DEVICES,
    guest="tdx-guest",
    qemu="10.1",
    variable="ADYTON_TDX_FIRMWARE",
    firmware=(
        "/usr/share/ovmf/OVMF.inteltdx.fd",
        "/usr/share/OVMF/OVMF.inteltdx.fd",
        "/usr/share/edk2/ovmf/OVMF.inteltdx.fd",
        "/usr/share/edk2/x64/OVMF.inteltdx.fd",
    ),
    firmware_title="edk2's IntelTdx build of OVMF",
    protect=lambda bundle, _: tdx_protection(bundle),
)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _ask(program: str, *arguments: str, said: str = "") -> str:
    """What QEMU prints; nothing where there is none, or it does not end."""
    try:
        done = subprocess.run(
            (program, *arguments), input=said, capture_output=True, text=True, timeout=_QEMU_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
