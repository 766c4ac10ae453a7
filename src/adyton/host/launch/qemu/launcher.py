"""The virtual machine's launcher: QEMU outside, a measured image inside, one trunk between them.

Another kernel than the host's, and evidence by a TPM of what was booted. The TPM is a program on the host, so the
host's owner is trusted: this *emulates* what a cloud's machine with a measured boot does, and what SEV-SNP and TDX
protect from the host itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import hashes

from adyton.bundle.settings import VmSettings
from adyton.errors import ConfigurationError, LaunchError, UnsupportedError
from adyton.host.bundles import Bundle
from adyton.host.image.cache import Cache, default_cache
from adyton.host.image.image import Image, build_image
from adyton.host.image.measurements import Measured, measure_ovmf_vm, measure_vm, with_measured
from adyton.host.image.reference.hcrtm import launch_document
from adyton.host.launch.child import kill_group
from adyton.host.launch.descriptors import request_log, socket_pair
from adyton.host.launch.launcher import Capability, LaunchRequest, say_nothing
from adyton.host.launch.namespaces import why_no_namespaces
from adyton.host.launch.private_directory import PrivateDirectory
from adyton.host.launch.qemu.accelerator import choose_accelerator, known_accelerator
from adyton.host.launch.qemu.disk import MEND, find_mkfs, open_disk
from adyton.host.launch.qemu.enclave import Attachments, VmEnclave
from adyton.host.launch.qemu.firmware import find_firmware, find_ovmf
from adyton.host.launch.qemu.kept_tpm import start_kept
from adyton.host.launch.qemu.machine import PACKAGES, Machine, Protection, linux_command_line
from adyton.host.launch.qemu.ports import HostPorts
from adyton.host.launch.qemu.sandbox import lacks_setpriv, new_uid, sandboxed
from adyton.host.launch.qemu.vtpm import Vtpm
from adyton.host.launch.qemu.vtpm_authority import VtpmAuthority
from adyton.host.launch.spawner import SETPRIV_MEND, spawn
from adyton.host.launch.state import StateDirectory, hold_state
from adyton.proto.guest import BootDocument

#: How long a machine with firmware may take to boot. Emulated, OVMF reads and hashes the image slowly.
REFERENCE_SECONDS = 180.0
KERNEL, INITRD, FIRMWARE = "/boot/kernel", "/boot/initrd", "/boot/firmware"


class QemuLauncher:
    """Starts enclaves in virtual machines. `architecture`: None is the host's; `accelerator`: None is what works."""

    technology = "vm"
    warning = "emulated: whoever controls this machine can read the virtual machine's memory and make its TPM sign"

    def __init__(self, *, architecture: str | None = None, accelerator: str | None = None) -> None:
        self._architecture = architecture or platform.machine()
        self._accelerator = accelerator

    def capabilities(self) -> list[Capability]:
        """What this machine has of what a virtual machine needs."""
        program = f"qemu-system-{self._architecture}"
        return [
            _program("launch", program, f"apt install {PACKAGES.get(self._architecture, program)}"),
            _program("tpm", "swtpm", "apt install swtpm"),
            Capability(name="kvm", available=known_accelerator().startswith("KVM boots a"), detail=known_accelerator()),
            _firmware(),
            _state(),
            *_missing_setpriv(),
            Capability(
                name="sandbox",
                available=not why_no_namespaces(),
                detail=why_no_namespaces() or "bubblewrap: QEMU sees its own files, and no network",
            ),
        ]

    def prepare(self, bundle: Bundle, say: Callable[[str], None] = say_nothing) -> None:
        """Build the image, which fetches its parts the first time. Raises what `build_image` raises."""
        self._check_programs()
        self._build(bundle, say)
        say("starting a virtual machine")

    def measurements(self, bundle: Bundle) -> dict[str, object]:
        """As `Launcher` says; of the image that this machine builds."""
        return with_measured(bundle.measurements(), self.measure(bundle))

    def measure(self, bundle: Bundle, say: Callable[[str], None] = say_nothing) -> Measured:
        """The reference values of the machine. Where firmware measures, this boots it once for each bundle."""
        image, settings = self._build(bundle, say), bundle.settings.vm
        command_line = linux_command_line(image.architecture)
        if settings.firmware == "none":
            return measure_vm(image, command_line=command_line)
        firmware, pcr0 = find_ovmf(), self._firmware_pcr0(bundle, say)
        return measure_ovmf_vm(image, settings, command_line=command_line, firmware=firmware, firmware_pcr0=pcr0)

    def _firmware_pcr0(self, bundle: Bundle, say: Callable[[str], None]) -> str:
        """PCR 0 of a boot here. It is kept for this bundle alone: another's first process might not say the truth."""
        cache = Cache(default_cache())
        key = {"register": "PCR 0", "bundle": bundle.sha256.hex(), "firmware": _sha256(find_ovmf())}
        known = cache.noted(key).get("value", "")
        if not re.fullmatch("[0-9a-f]{64}", known):
            say("booting once, for the firmware's own register")
            with contextlib.closing(self.launch(LaunchRequest(name="reference", bundle=bundle))) as machine:
                known = machine.wait_started(REFERENCE_SECONDS).pcr0
            cache.note(key, {"value": known})
        return known

    def anchors(self) -> dict[str, bytes]:
        """The root of this machine's virtual TPMs."""
        return {"tpm": VtpmAuthority.open().root.fingerprint(hashes.SHA256())}

    def launch(self, request: LaunchRequest) -> VmEnclave:
        """Start one. Raises LaunchError, UnsupportedError, BundleError, or ConfigurationError."""
        try:
            return self._launch(request)
        except OSError as problem:
            raise LaunchError(f"the virtual machine can't be started: {problem}") from problem

    def _launch(self, request: LaunchRequest) -> VmEnclave:
        self._check(request)
        image = self._build(request.bundle)
        with contextlib.ExitStack() as always, contextlib.ExitStack() as on_failure:
            log_file = request_log(request, always)
            state = hold_state(request, on_failure)
            directory = PrivateDirectory()
            on_failure.callback(directory.close)
            booted = _booted(image, directory.path)
            uid = new_uid()
            disk_fd = _open_disk(state, request.bundle.settings.vm, always)
            tpm = self._start_tpm(request.bundle.settings.vm, directory.path, state, booted.digests, uid)
            if tpm is not None:
                on_failure.callback(tpm.close)
            ports = HostPorts(request.address)
            on_failure.callback(ports.close)
            for port in request.ports:
                ports.reserve(port)
            trunk, trunk_inside = socket_pair(on_failure, always)
            monitor, monitor_inside = socket_pair(on_failure, always)
            inside = _Inside(
                trunk_fd=trunk_inside.fileno(),
                monitor_fd=monitor_inside.fileno(),
                tpm_fd=tpm.qemu_fd if tpm else None,
                disk_fd=disk_fd,
            )
            process = self._spawn(image, booted, request.bundle, inside, uid)
            on_failure.callback(kill_group, process)
            if tpm is not None:
                tpm.release()
            enclave = VmEnclave(
                process,
                memory_mb=request.bundle.settings.vm.memory_mb,
                boot=_boot_document(request, tpm),
                attached=Attachments(
                    trunk=trunk, monitor=monitor, tpm=tpm, ports=ports, directory=directory, state=state
                ),
                sinks=(request.stdout_fd, request.stderr_fd, log_file),
            )
            on_failure.pop_all()
        return enclave

    def _spawn(
        self, image: Image, booted: _Booted, bundle: Bundle, inside: _Inside, uid: int | None
    ) -> subprocess.Popen[bytes]:
        """Start QEMU with its descriptors, as the TPM's user."""
        settings = bundle.settings
        firmware = self._find_firmware(settings.vm)
        files = {KERNEL: image.kernel, INITRD: booted.initrd}
        if isinstance(firmware, Path):
            files[FIRMWARE] = firmware
        machine = Machine(
            architecture=image.architecture,
            accelerator=self._accelerator or choose_accelerator(image),
            memory_mb=settings.vm.memory_mb,
            cpus=settings.vm.cpus,
            firmware=FIRMWARE if isinstance(firmware, Path) else firmware,
            kernel=KERNEL,
            initrd=INITRD,
            command_line=linux_command_line(image.architecture),
            network=settings.network.outbound,
            trunk_fd=inside.trunk_fd,
            monitor_fd=inside.monitor_fd,
            tpm_fd=inside.tpm_fd,
            disk_fd=inside.disk_fd,
            protection=self._protection(bundle),
        )
        return _spawn(machine, files, uid)

    def _check_programs(self) -> None:
        program = f"qemu-system-{self._architecture}"
        if not shutil.which(program):
            mend = f"Debian, Ubuntu: apt install {PACKAGES.get(self._architecture, program)}"
            raise UnsupportedError(f"{program} is not installed", mend=mend)

    def _check(self, request: LaunchRequest) -> None:
        self._check_programs()
        if request.stdin_fd is not None:
            raise UnsupportedError("stdin_fd: a virtual machine has no standard input of its host's")
        request.bundle.tpm_approvals()  # says what is wrong with a signature before anything is started
        if request.state is not None and not request.bundle.settings.vm.state_mb:
            raise ConfigurationError("enclave.toml says vm.state_mb = 0: in a machine this enclave takes no state")

    def _find_firmware(self, settings: VmSettings) -> Path | str | None:
        return find_firmware(self._architecture, settings.firmware)

    def _start_tpm(
        self,
        settings: VmSettings,
        directory: Path,
        state: StateDirectory | None,
        digests: dict[str, bytes],
        uid: int | None,
    ) -> Vtpm | None:
        """A TPM that has measured what is booted, unless the firmware is to do so; with `state` the one in there."""
        document = None
        if settings.firmware == "none":
            document = launch_document(digests, linux_command_line(self._architecture))
        authority = VtpmAuthority.open()
        if state is not None:
            return start_kept(state.path, document=document, authority=authority, uid=uid)
        return Vtpm.start(_folder(directory / "tpm"), document=document, authority=authority, uid=uid)

    def _protection(self, _: Bundle) -> Protection | None:
        return None

    def _build(self, bundle: Bundle, say: Callable[[str], None] = say_nothing) -> Image:
        return build_image(bundle, architecture=self._architecture, say=say)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inside:
    """The descriptors that QEMU gets."""

    trunk_fd: int
    monitor_fd: int
    tpm_fd: int | None
    disk_fd: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Booted:
    """What the machine boots, as it lies in the enclave's own folder; measured there."""

    initrd: Path
    digests: dict[str, bytes]


def _booted(image: Image, directory: Path) -> _Booted:
    """Put the initramfs together, and measure what is put together; the kernel is measured where it lies."""
    initrd, digests = directory / "initrd", {}
    try:
        with initrd.open("wb") as target:
            for name, part in (("system", image.system), ("application", image.application)):
                data = part.read_bytes()
                digests[name] = hashlib.sha256(data).digest()
                target.write(data)
        initrd.chmod(0o444)
        digests["kernel"] = hashlib.sha256(image.kernel.read_bytes()).digest()
    except OSError as problem:
        raise LaunchError(f"the machine's image can't be put into {directory}: {problem.strerror}") from problem
    return _Booted(initrd=initrd, digests=digests)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _open_disk(state: StateDirectory | None, settings: VmSettings, always: contextlib.ExitStack) -> int | None:
    if state is None:
        return None
    descriptor = open_disk(state.path, settings.state_mb)
    always.callback(os.close, descriptor)
    return descriptor


def _folder(path: Path) -> Path:
    path.mkdir(mode=0o700)
    return path


def _spawn(machine: Machine, files: dict[str, Path], uid: int | None) -> subprocess.Popen[bytes]:
    command = sandboxed(machine.arguments(), files=files, network=machine.network, devices=machine.devices, uid=uid)
    optional = [each for each in (machine.tpm_fd, machine.disk_fd) if each is not None]
    try:
        return spawn(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(machine.trunk_fd, machine.monitor_fd, *optional),
            env={"PATH": "/usr/bin:/bin:/usr/local/bin"},
            cwd="/",
            start_new_session=True,
        )
    except OSError as problem:
        raise LaunchError(f"QEMU can't be started: {problem}") from problem


def _boot_document(request: LaunchRequest, tpm: Vtpm | None) -> BootDocument:
    """What the guest is told; the time is filled in when it asks."""
    return BootDocument(
        time_ns=0,
        host_name=request.host_name or "enclave",
        event_log=tpm.event_log if tpm else b"",
        certificates=tpm.certificates if tpm else (),
        approvals=request.bundle.tpm_approvals() if tpm else (),
    )


def _firmware() -> Capability:
    try:
        return Capability(name="ovmf", available=True, detail=str(find_ovmf()))
    except UnsupportedError as problem:
        return Capability(name="ovmf", available=False, detail=f"{problem.message}: {problem.mend}")


def _state() -> Capability:
    found = find_mkfs()
    return Capability(name="state", available=found is not None, detail=found or f"mkfs.ext4 is not installed: {MEND}")


def _missing_setpriv() -> list[Capability]:
    if not lacks_setpriv():
        return []
    return [Capability(name="setpriv", available=False, detail=f"setpriv is not installed: {SETPRIV_MEND}")]


def _program(name: str, program: str, mend: str) -> Capability:
    found = shutil.which(program)
    return Capability(name=name, available=found is not None, detail=found or f"{program} is not installed: {mend}")
