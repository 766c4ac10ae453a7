"""What is computed of a measured boot, against measured boots: Debian's OVMF, kernel and QEMU, and a software TPM."""

from __future__ import annotations

import base64
import hashlib
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from adyton.host.image.reference.ovmf import ovmf_events, ovmf_pcrs, patched_kernel
from adyton.host.image.reference.pe import authenticode_sha256
from adyton.host.image.reference.tdx import mrtd
from adyton.tee._event_log import Event, parse_event_log, replay

FIRMWARE = Path("/usr/share/ovmf/OVMF.fd")
PROGRAMS = ("qemu-system-x86_64", "swtpm", "swtpm_setup", "apt-get", "dpkg-deb")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None] + ([] if FIRMWARE.is_file() else [str(FIRMWARE)])
MACHINE = "q35,smm=off,i8042=off,sata=off,smbus=off,vmport=off,graphics=off,usb=off"
COMMAND_LINE = "console=ttyS0 panic=-1 no_timer_check cryptomgr.notests=1 loglevel=3"
KERNEL = "linux-image-6.12-cloud-amd64"
BOOT_SECONDS = 100
APPLICATION, TAGGED = 0x8000_0003, 0x0000_0006
SHA256_DIGEST_INFO = bytes.fromhex("3031300d060960864801650304020105000420")
"""What precedes the image's digest in an Authenticode signature: a DigestInfo of SHA-256."""
MEMORY_AND_CPUS = [(512, 1), (512, 2), (2560, 1), (3072, 2)]
"""Low memory ends where memory does up to 2815 MB, and at 2 GiB from there on."""

INIT = b"""#!/bin/busybox sh
for each in proc sysfs securityfs; do /bin/busybox mount -t $each $each /$each; done
for i in 0 1 2 3 4 5 6 7 8 9; do echo "PCR $i $(/bin/busybox cat /sysfs/class/tpm/tpm0/pcr-sha256/$i)"; done
echo LOG
/bin/busybox base64 /securityfs/tpm0/binary_bios_measurements
echo END
/bin/busybox poweroff -f
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not here: {', '.join(MISSING)}; Debian: ovmf, swtpm, swtpm-tools"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="apt brings kernels of this machine's own kind only"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """What is booted."""

    kernel: Path
    initrd: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """What a guest has said of its boot."""

    memory_mb: int
    pcrs: Mapping[int, bytes]
    log: bytes


def download(package: str, directory: Path) -> Path:
    """A package's files, unpacked."""
    subprocess.run(("apt-get", "download", package), cwd=directory, check=True, capture_output=True, timeout=60)
    (archive,) = directory.glob(f"{package}_*.deb")
    unpacked = directory / package
    subprocess.run(("dpkg-deb", "-x", str(archive), str(unpacked)), check=True, timeout=60)
    return unpacked


def kernel_package() -> str:
    """The package that is this kernel in its present revision."""
    shown = subprocess.run(("apt-cache", "show", KERNEL), check=True, capture_output=True, text=True).stdout
    found = re.search(r"^Depends: (\S+)", shown, re.MULTILINE)
    assert found
    return found[1]


def cpio(entries: list[tuple[str, int, bytes]]) -> bytes:
    """An archive in cpio's newc format; the entries' modes are whole, with their types."""
    archive = b""
    for inode, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        numbers = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 5, 1, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % number for number in numbers) + name.encode() + b"\0"
        archive += head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
    return archive


@pytest.fixture(scope="module")
def guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    """Fetched once; pytest's own cache keeps it for the next time."""
    cache: Path = request.config.cache.mkdir("ovmf")
    kernel, busybox = cache / "vmlinuz", cache / "busybox"
    if not (kernel.is_file() and busybox.is_file()):
        with tempfile.TemporaryDirectory(dir=cache) as directory:
            try:
                found = download(kernel_package(), Path(directory)), download("busybox-static", Path(directory))
            except (subprocess.SubprocessError, AssertionError) as problem:
                pytest.skip(f"apt does not bring {KERNEL} and busybox-static: {problem}")
            next(found[0].glob("boot/vmlinuz-*")).replace(kernel)
            next(found[1].glob("bin/busybox")).replace(busybox)
    folders = [(name, 0o40755, b"") for name in ("bin", "dev", "proc", "securityfs", "sysfs")]
    files = [("dev/console", 0o20600, b""), ("bin/busybox", 0o100755, busybox.read_bytes()), ("init", 0o100755, INIT)]
    initrd = tmp_path_factory.mktemp("guest") / "initrd"
    initrd.write_bytes(cpio([*folders, *files]))
    return Guest(kernel=kernel, initrd=initrd)


@contextmanager
def software_tpm(directory: Path) -> Iterator[Path]:
    """The control socket of a fresh TPM that has one bank."""
    state, control = f"dir={directory}", directory / "control"
    setup = ("swtpm_setup", "--tpm2", "--tpmstate", str(directory), "--pcr-banks", "sha256")
    subprocess.run(setup, check=True, capture_output=True, timeout=30)
    server = ("swtpm", "socket", "--tpm2", "--tpmstate", state, "--ctrl", f"type=unixio,path={control}", "--terminate")
    with subprocess.Popen(server, stdin=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 10
            while not control.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            yield control
        finally:
            process.kill()


def run(guest: Guest, directory: Path, memory_mb: int, cpus: int) -> Boot:
    with software_tpm(directory) as tpm:
        command = ["qemu-system-x86_64", "-M", MACHINE, "-accel", "tcg,thread=multi", "-cpu", "max,-la57"]
        command += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]
        command += ["-bios", str(FIRMWARE), "-m", str(memory_mb), "-smp", str(cpus)]
        command += ["-chardev", f"socket,id=tpm,path={tpm}", "-tpmdev", "emulator,id=t0,chardev=tpm"]
        command += ["-device", "tpm-crb,tpmdev=t0", "-device", "virtio-serial-pci"]
        command += ["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile=", "-append", COMMAND_LINE]
        command += ["-kernel", str(guest.kernel), "-initrd", str(guest.initrd)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=BOOT_SECONDS, check=True)
    console = done.stdout.decode(errors="replace")
    pcrs = {int(number): bytes.fromhex(value) for number, value in re.findall(r"PCR (\d) ([0-9A-F]{64})", console)}
    log = re.search(r"LOG\s(.*)END", console, re.DOTALL)
    assert log, console
    return Boot(memory_mb=memory_mb, pcrs=pcrs, log=base64.b64decode(log[1]))


@pytest.fixture(scope="module", params=MEMORY_AND_CPUS, ids=lambda each: f"{each[0]}MB-{each[1]}CPU")
def boot(request: pytest.FixtureRequest, guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Boot:
    memory_mb, cpus = request.param
    return run(guest, tmp_path_factory.mktemp("tpm"), memory_mb, cpus)


def test_every_register_from_1_to_9_is_as_computed_from_the_files(boot: Boot, guest: Guest) -> None:
    computed = ovmf_pcrs(
        firmware=FIRMWARE.read_bytes(),
        kernel=guest.kernel.read_bytes(),
        initrd=guest.initrd.read_bytes(),
        command_line=COMMAND_LINE,
        memory_mb=boot.memory_mb,
    )
    assert computed == {register: boot.pcrs[register] for register in range(1, 10)}


def test_the_log_that_gives_the_registers_has_the_computed_events(boot: Boot, guest: Guest) -> None:
    log = parse_event_log(boot.log)
    replayed = replay(log, "sha256")
    assert replayed == {register: boot.pcrs[register] for register in replayed}
    assert {0, 1, 4, 9} <= replayed.keys()
    (kernel,) = [event for event in log.events if event.event_type == APPLICATION]
    labelled: dict[bytes, Event] = {event.data[8:]: event for event in log.events if event.event_type == TAGGED}
    found = {
        "kernel": kernel.digests["sha256"],
        "command-line": labelled[b"LOADED_IMAGE::LoadOptions\0"].digests["sha256"],
        "initrd": labelled[b"Linux initrd\0"].digests["sha256"],
    }
    assert found == ovmf_events(
        kernel=guest.kernel.read_bytes(),
        initrd=guest.initrd.read_bytes(),
        command_line=COMMAND_LINE,
        memory_mb=boot.memory_mb,
    )


def test_the_digest_of_the_kernels_file_is_the_one_that_debian_signed(guest: Guest) -> None:
    kernel = guest.kernel.read_bytes()
    signed = kernel.rindex(SHA256_DIGEST_INFO) + len(SHA256_DIGEST_INFO)
    assert authenticode_sha256(kernel) == kernel[signed : signed + hashlib.sha256().digest_size]


def test_the_kernel_that_qemu_hands_over_is_another_for_another_size_of_memory(guest: Guest) -> None:
    kernel = guest.kernel.read_bytes()
    digests = {
        authenticode_sha256(patched_kernel(kernel, memory_mb=size, initrd_bytes=1 << 20, command_line=COMMAND_LINE))
        for size, _ in MEMORY_AND_CPUS
    }
    assert len(digests) == 3


def test_the_firmware_has_the_metadata_that_mrtd_is_computed_from() -> None:
    firmware = FIRMWARE.read_bytes()
    changed = firmware[:-1] + bytes((firmware[-1] ^ 1,))
    assert len(mrtd(firmware)) == 48
    assert mrtd(changed) != mrtd(firmware)
