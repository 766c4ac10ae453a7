"""The guest's kernel, asked for what its first process needs. Standard library only, and Linux only."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import resource
import select
import signal
import socket
import struct
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NoReturn

from adyton.errors import LaunchError

MODULES: Final = Path("/lib/modules/adyton")
SETTINGS: Final = Path("/enclave/bundle/enclave.toml")
#: Where the enclave's process may write. Half of the memory at most.
DATA: Final = "/enclave/data"
#: Where the disk is that outlives the machine, if it has one.
STATE: Final = "/enclave/state"
#: The user that the enclave's process runs as.
ENCLAVE_UID: Final = 1000

_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT = 1, 2, 4, 8, 32
_LOCKED_DOWN: Final = _NOSUID | _NODEV | _NOEXEC
_MOUNTS: Final = (
    ("proc", "/proc", _LOCKED_DOWN, "hidepid=2"),
    ("sysfs", "/sys", _LOCKED_DOWN, ""),
    ("devtmpfs", "/dev", _NOSUID | _NOEXEC, ""),
    ("tmpfs", "/run", _LOCKED_DOWN, "mode=0755,size=8m"),
    ("tmpfs", DATA, _LOCKED_DOWN, f"mode=0700,uid={ENCLAVE_UID},gid={ENCLAVE_UID},size=50%"),
)
#: Those that a kernel may lack.
_OPTIONAL_MOUNTS: Final = (
    ("securityfs", "/sys/kernel/security", _LOCKED_DOWN, ""),
    ("configfs", "/sys/kernel/config", _LOCKED_DOWN, ""),
)
_FINIT_MODULE: Final = {"x86_64": 313, "aarch64": 273}
_POWER_OFF: Final = 0x4321FEDC
_EXT4_IOC_RESIZE_FS: Final = 0x40086610
_MNT_DETACH: Final = 2
_DESCRIPTORS: Final = 16384

#: Settings of the kernel's, after its modules are loaded.
_CLOSED: Final = (
    ("kernel/modules_disabled", "1"),
    ("kernel/kexec_load_disabled", "1"),
    ("kernel/unprivileged_bpf_disabled", "1"),
    ("kernel/io_uring_disabled", "2"),
    ("kernel/perf_event_paranoid", "3"),
    ("kernel/dmesg_restrict", "1"),
    ("kernel/kptr_restrict", "2"),
    ("kernel/yama/ptrace_scope", "2"),
    ("user/max_user_namespaces", "0"),
    ("vm/unprivileged_userfaultfd", "0"),
)

#: Virtio's number of a device, and the module that drives it (Virtual I/O Device specification 1.2, section 5).
_VIRTIO_MODULES: Final = {
    1: "virtio_net",
    2: "virtio_blk",
    4: "virtio_rng",
    19: "vmw_vsock_virtio_transport",
    33: "nsm",
}
_VIRTIO_NETWORK, _VIRTIO_DISK = 1, 2
_DISK: Final = "vda"
_SECTOR_BYTES, _BLOCK_BYTES = 512, 4096
#: A flag in /proc/cpuinfo that only a guest has, and the module that speaks to the processor's firmware.
_PROCESSOR_MODULES: Final = {"tdx_guest": "tdx_guest"}
#: SEV-SNP's flag says what the processor can; this device, which the kernel makes, that it runs as such a guest.
_SEV_GUEST: Final = Path("/sys/bus/platform/devices/sev-guest")
#: A TPM that is no PC's; its driver is a module on AArch64, and built in elsewhere.
_PLATFORM_TPM: Final = "*.tpm_tis"

#: A PC's, by its name in ACPI, and its driver.
_PC_TPM: Final = Path("/sys/bus/acpi/devices/MSFT0101:00")
_PC_TPM_DRIVER: Final = Path("/sys/bus/acpi/drivers/tpm_crb/bind")
_TPM_ATTEMPTS: Final = 3

# ioctl numbers of <linux/sockios.h>
_SIOCADDRT, _SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK = 0x890B, 0x8914, 0x8916, 0x891C
_IFF_UP, _RTF_UP, _RTF_GATEWAY = 1, 1, 2
_ANSWER_MS: Final = 20

_libc = ctypes.CDLL(None, use_errno=True)


def mount_file_systems() -> None:
    """What a Linux program expects to find, each with as few rights as it needs."""
    for kind, target, flags, options in _MOUNTS:
        Path(target).mkdir(parents=True, exist_ok=True)
        _mount(kind, target, flags, options)
    for kind, target, flags, options in _OPTIONAL_MOUNTS:
        with contextlib.suppress(OSError):
            _mount(kind, target, flags, options)


def _mount(kind: str, target: str, flags: int, options: str, *, source: str = "") -> None:
    what = (source or kind).encode()
    if _libc.mount(what, target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode()):
        number = ctypes.get_errno()
        raise OSError(number, f"mount {kind}: {os.strerror(number)}", target)


def load_modules() -> None:
    """Load the drivers of the devices that are here, as far as the image has them and the kernel has not built them in.

    The kernel itself loads nothing: there is no modprobe in the image.
    """
    order = _module_order()
    for name in _wanted_modules():
        for each in order.get(name, ()):
            _load_module(each)
    if Path("/sys/kernel/config").is_dir():
        with contextlib.suppress(OSError):  # configfs may have come as a module just now
            _mount("configfs", "/sys/kernel/config", _LOCKED_DOWN, "")


def _wanted_modules() -> Iterator[str]:
    for device in sorted(Path("/sys/bus/virtio/devices").glob("*/device")):
        number = int(device.read_text(), 16)
        if number in _VIRTIO_MODULES and _wants(number):
            yield _VIRTIO_MODULES[number]
    if _SEV_GUEST.exists():
        yield "sev_guest"
    if any(_SEV_GUEST.parent.glob(_PLATFORM_TPM)):
        yield "tpm_tis"
    flags = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].split()
    yield from (module for flag, module in _PROCESSOR_MODULES.items() if flag in flags)


def _wants(number: int) -> bool:
    """Whether enclave.toml, which is measured, asks for such a device; one that the host put in is no such word."""
    if number == _VIRTIO_NETWORK:
        return wants_network()
    return number != _VIRTIO_DISK or _settings("vm").get("state_mb") != 0


def _settings(table: str) -> dict[str, object]:
    found = tomllib.loads(SETTINGS.read_text()).get(table, {})
    assert isinstance(found, dict)
    return found


def _module_order() -> dict[str, tuple[str, ...]]:
    """Each module of the image → what to load for it, itself last."""
    file = MODULES / "order"
    if not file.is_file():
        return {}
    lines = (line.partition(":") for line in file.read_text().splitlines())
    return {name: (*needed.split(), name) for name, _, needed in lines}


def _load_module(name: str) -> None:
    descriptor = os.open(MODULES / f"{name}.ko", os.O_RDONLY | os.O_CLOEXEC)
    try:
        number = _FINIT_MODULE[os.uname().machine]
        if _libc.syscall(number, descriptor, b"", 0) and ctypes.get_errno() != errno.EEXIST:
            raise OSError(ctypes.get_errno(), f"module {name}: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(descriptor)


def mount_state() -> None:
    """Give the enclave the disk that outlives it, if there is one. Raises LaunchError for one that can't be used.

    The disk is the host's to change. What the file system finds wrong with it later ends the machine: nothing may be
    served from it.
    """
    if not Path("/dev", _DISK).exists():
        return
    Path(STATE).mkdir()
    try:
        _mount("ext4", STATE, _LOCKED_DOWN, "errors=panic", source=f"/dev/{_DISK}")
        _fill_disk()
        with contextlib.suppress(FileNotFoundError):
            Path(STATE, "lost+found").rmdir()  # e2fsck makes it anew when it needs it
        os.chown(STATE, ENCLAVE_UID, ENCLAVE_UID)
        Path(STATE).chmod(0o700)
    except OSError as problem:
        mend = "e2fsck -f repairs disk.img in the state folder, or put back a copy"
        raise LaunchError(f"the state folder's disk can't be used: {problem.strerror}", mend=mend) from problem


def _fill_disk() -> None:
    """Make the file system as large as its disk, which the host may have made larger."""
    sectors = int(Path("/sys/class/block", _DISK, "size").read_text())
    folder = os.open(STATE, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(folder, _EXT4_IOC_RESIZE_FS, struct.pack("=Q", sectors * _SECTOR_BYTES // _BLOCK_BYTES))
    finally:
        os.close(folder)


def bring_up_loopback() -> None:
    """Let the enclave's process and this one speak to each other over TCP."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        _set_up(any_socket, "lo")


def wants_network() -> bool:
    """Whether enclave.toml asks for a way out."""
    return _settings("network").get("outbound") is True


def bring_up_network() -> None:
    """Give the card, if there is one, the addresses of QEMU's user network, which are always the same."""
    if not Path("/sys/class/net/eth0").exists():
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for request, address in ((_SIOCSIFADDR, "10.0.2.15"), (_SIOCSIFNETMASK, "255.255.255.0")):
            fcntl.ioctl(any_socket, request, struct.pack("16s16s8x", b"eth0", _inet(address)))
        _set_up(any_socket, "eth0")
        anywhere, gateway = _inet("0.0.0.0"), _inet("10.0.2.2")  # noqa: S104  not an address to listen on
        route = struct.pack("Q16s16s16sH", 0, anywhere, gateway, anywhere, _RTF_UP | _RTF_GATEWAY)
        fcntl.ioctl(any_socket, _SIOCADDRT, route.ljust(120, b"\0"))
    Path("/etc").mkdir(exist_ok=True)
    Path("/etc/resolv.conf").write_text("nameserver 10.0.2.3\n")


def _set_up(any_socket: socket.socket, interface: str) -> None:
    fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH22x", interface.encode(), _IFF_UP))


def _inet(address: str) -> bytes:
    """A sockaddr_in without port."""
    return struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))


def connect_inside(port: str) -> socket.socket | None:
    """A connection to what listens on that port in here; None if nothing does, or it is no port."""
    if not port.isdecimal() or len(port) > 5 or not 0 < int(port) < 65536:
        return None
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        connection = socket.socket(family, socket.SOCK_STREAM)
        connection.setblocking(False)
        if connection.connect_ex((address, int(port))) in (0, errno.EINPROGRESS) and not _is_refused(connection):
            return connection
        connection.close()
    return None


def _is_refused(connection: socket.socket) -> bool:
    """Loopback answers at once, but for a listener whose queue is full: that one is waited for elsewhere."""
    poll = select.poll()
    poll.register(connection, select.POLLOUT)
    poll.poll(_ANSWER_MS)
    return connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


def pcr0() -> str:
    """PCR 0 of the SHA-256 bank in hexadecimal; empty without a TPM."""
    try:
        return Path("/sys/class/tpm", _tpm(), "pcr-sha256", "0").read_text().strip().lower()
    except OSError:
        return ""


def set_clock(time_ns: int) -> None:
    """The host's time. It could as well turn the machine's own clock."""
    time.clock_settime_ns(time.CLOCK_REALTIME, time_ns)


def name_it(host_name: str) -> None:
    """The host's name for the machine, and what a resolver needs to find itself."""
    socket.sethostname(host_name)
    Path("/etc").mkdir(exist_ok=True)
    Path("/etc/hosts").write_text(f"127.0.0.1 localhost {host_name}\n::1 localhost\n")
    Path("/etc/passwd").write_text(f"root:x:0:0::/:\nenclave:x:{ENCLAVE_UID}:{ENCLAVE_UID}::{DATA}:\n")


def has_run_out_of_memory() -> bool:
    """Whether the kernel has killed a process for want of memory since the machine started."""
    counters = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(counters.get("oom_kill", "0")) > 0


def revive_tpm() -> None:
    """Have the kernel try again where it gave the TPM up: it waits 750 ms, and this may be a program of a busy host's.

    A TPM that comes later can have another number; then it is found by the first one's name as well.
    """
    if not _PC_TPM.exists():
        return
    for _ in range(_TPM_ATTEMPTS):
        if _tpm():
            break
        with contextlib.suppress(OSError):
            _PC_TPM_DRIVER.write_text(_PC_TPM.name)
    found = _tpm()
    if found and found != "tpm0":
        Path("/dev/tpmrm0").symlink_to(found.replace("tpm", "tpmrm"))


def _tpm() -> str:
    """The kernel's name for the TPM; empty if it has none."""
    return next((path.name for path in sorted(Path("/sys/class/tpm").glob("tpm*"))), "")


def harden() -> None:
    """Close what an ordinary user of this kernel could attack it by; nothing here is needed by any enclave."""
    _mount("sysfs", "/sys", _LOCKED_DOWN | _RDONLY | _REMOUNT, "")
    for name, value in _CLOSED:
        with contextlib.suppress(FileNotFoundError):  # a kernel may lack it
            Path("/proc/sys", name).write_text(value)


def raise_limits() -> None:
    """Enough descriptors for every stream of the trunk, here and in the enclave's process."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (_DESCRIPTORS, _DESCRIPTORS))


def spare_this_process() -> None:
    """Without memory, another process is killed and not this one, which tells the host of it."""
    Path("/proc/self/oom_score_adj").write_text("-1000")


def power_off() -> NoReturn:
    """The end of the machine, and of every process in it."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)  # the first process itself is not among them
    _libc.umount2(STATE.encode(), _MNT_DETACH)
    os.sync()
    _libc.reboot(_POWER_OFF)
    raise LaunchError("the machine can't be powered off")
