"""What a process can give up for ever: descriptors of its memory, privileges, files, system calls.

Plain calls of the C library, standard library only: this runs before the bundle is verified. None of it protects from
root or from the kernel; it keeps an enclave's process from what it does not need, and its neighbours from it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2

_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_CREATE_RULESET_VERSION = 1
_LANDLOCK_RULE_PATH_BENEATH = 1
_FS_EXECUTE, _FS_WRITE_FILE, _FS_READ_FILE, _FS_READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_FS_TRUNCATE, _FS_IOCTL_DEV = 1 << 14, 1 << 15
#: The rights that exist from an ABI on: linux/landlock.h.
_FS_RIGHTS_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_FS_OF_A_FILE = _FS_EXECUTE | _FS_WRITE_FILE | _FS_READ_FILE | _FS_TRUNCATE | _FS_IOCTL_DEV
_NET_CONNECT_TCP = 1 << 1
_SCOPE_ABSTRACT_UNIX_SOCKET, _SCOPE_SIGNAL = 1 << 0, 1 << 1

READ = _FS_READ_FILE | _FS_READ_DIR
READ_AND_EXECUTE = READ | _FS_EXECUTE
WRITE, EXECUTE = _FS_WRITE_FILE, _FS_EXECUTE
EVERYTHING = (1 << 16) - 1

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _prctl(option: int, argument: int, what: str) -> None:
    _checked(_libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0), what)


def die_with_parent(parent_pid: int | None) -> None:
    """Be killed when the thread that started this process ends. `parent_pid` closes the race with its death."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, "PR_SET_PDEATHSIG")
    if parent_pid is not None and os.getppid() != parent_pid:
        os._exit(80)


def give_up_privileges() -> None:
    """No core files, no debugger of the same user, nothing gained by executing a set-uid file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0, "PR_SET_DUMPABLE")
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, "PR_SET_NO_NEW_PRIVS")


def landlock_abi() -> int:
    """The kernel's Landlock ABI; 0 where there is none."""
    version: int = _libc.syscall(
        ctypes.c_long(_LANDLOCK_CREATE_RULESET),
        None,
        ctypes.c_size_t(0),
        ctypes.c_uint32(_LANDLOCK_CREATE_RULESET_VERSION),
    )
    return max(version, 0)


def restrict_files(allowed: Iterable[tuple[str, int]], *, outbound: bool) -> None:
    """Landlock: from now on only `allowed` (path, rights), no outgoing TCP unless `outbound`, no signals outwards.

    What the kernel's ABI doesn't know is left out: `landlock_abi` says what that is. A path that does not exist gives
    no right. Raises OSError where there is no Landlock.
    """
    abi = landlock_abi()
    handled_fs = max(rights for since, rights in _FS_RIGHTS_BY_ABI.items() if since <= max(abi, 1))
    handled_net = _NET_CONNECT_TCP if abi >= 4 and not outbound else 0
    scoped = _SCOPE_SIGNAL | _SCOPE_ABSTRACT_UNIX_SOCKET if abi >= 6 else 0
    attributes = struct.pack("=QQQ", handled_fs, handled_net, scoped)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = _checked(
        _libc.syscall(ctypes.c_long(_LANDLOCK_CREATE_RULESET), attributes, ctypes.c_size_t(size), ctypes.c_uint32(0)),
        "landlock_create_ruleset",
    )
    try:
        for path, rights in allowed:
            _allow(ruleset, path, rights & handled_fs)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1, "PR_SET_NO_NEW_PRIVS")
        _checked(
            _libc.syscall(ctypes.c_long(_LANDLOCK_RESTRICT_SELF), ctypes.c_int(ruleset), ctypes.c_uint32(0)),
            "landlock_restrict_self",
        )
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _FS_OF_A_FILE
        rule = struct.pack("=Qi", rights, descriptor)
        call = _libc.syscall(
            ctypes.c_long(_LANDLOCK_ADD_RULE),
            ctypes.c_int(ruleset),
            ctypes.c_int(_LANDLOCK_RULE_PATH_BENEATH),
            rule,
            ctypes.c_uint32(0),
        )
        _checked(call, f"landlock_add_rule {path}")
    finally:
        os.close(descriptor)


#: System calls that an enclave's process has no use for: name → number on (x86_64, aarch64).
REFUSED_CALLS: dict[str, tuple[int, int]] = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "setns": (308, 268),
    "unshare": (272, 97),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "open_by_handle_at": (304, 265),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
}
_CLONE3 = 435


@dataclass(frozen=True, slots=True)
class _RefusedArgument:
    """A call that is refused for what one of its arguments is: any of `bits`, or exactly `value`."""

    numbers: tuple[int, int]
    index: int
    bits: int = 0
    value: int = 0


#: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET: linux/sched.h.
REFUSED_NAMESPACES = {"clone": _RefusedArgument((56, 220), 0, bits=0x7E020000)}
#: Ways to open a TCP connection that Landlock does not see: IPPROTO_MPTCP, and MSG_FASTOPEN.
REFUSED_CONNECTIONS = {
    "socket": _RefusedArgument((41, 198), 2, value=262),
    "sendto": _RefusedArgument((44, 206), 3, bits=0x20000000),
    "sendmsg": _RefusedArgument((46, 211), 2, bits=0x20000000),
    "sendmmsg": _RefusedArgument((307, 269), 3, bits=0x20000000),
}
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_CALLS = 0x40000000


def seccomp_is_possible() -> bool:
    """Whether the kernel filters system calls and this machine's numbers are known here."""
    if platform.machine() not in _AUDIT_ARCH:
        return False
    _libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), None, 0, 0)
    return ctypes.get_errno() == errno.EFAULT  # a kernel without filters says EINVAL


def refuse_system_calls(*, outbound: bool) -> None:
    """seccomp: REFUSED_CALLS, new namespaces, and unless `outbound` REFUSED_CONNECTIONS, answer EPERM from now on.

    Another architecture's calls end the process. clone3 has its flags where a filter can't look: it answers ENOSYS, and
    the C library takes clone instead.
    """
    column = int(platform.machine() == "aarch64")
    refused = [numbers[column] for numbers in REFUSED_CALLS.values()]
    arguments = [*REFUSED_NAMESPACES.values(), *(() if outbound else REFUSED_CONNECTIONS.values())]
    program = _filter(_AUDIT_ARCH[platform.machine()], refused, [(each.numbers[column], each) for each in arguments])
    buffer = ctypes.create_string_buffer(program, len(program))
    descriptor = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    _checked(_libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), descriptor, 0, 0), "PR_SET_SECCOMP")


def _filter(architecture: int, refused: list[int], arguments: list[tuple[int, _RefusedArgument]]) -> bytes:
    """A BPF program (linux/filter.h, linux/seccomp.h) over struct seccomp_data: number, architecture, …, arguments."""
    load, jump_equal, jump_at_least, jump_any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    number_at, architecture_at, arguments_at = 0, 4, 16
    kill, allow, error = 0x80000000, 0x7FFF0000, 0x00050000

    def step(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
        return struct.pack("=HBBI", code, then, otherwise, value)

    def refuse_if(code: int, value: int, number: int = errno.EPERM) -> list[bytes]:
        return [step(code, value, otherwise=1), step(give, error | number)]

    program = [step(load, architecture_at), step(jump_equal, architecture, then=1), step(give, kill)]
    program += [step(load, number_at), *refuse_if(jump_at_least, _X32_CALLS)]
    program += refuse_if(jump_equal, _CLONE3, errno.ENOSYS)
    for number in refused:
        program += refuse_if(jump_equal, number)
    for number, argument in arguments:
        test = refuse_if(jump_any_bit, argument.bits) if argument.bits else refuse_if(jump_equal, argument.value)
        body = [step(load, arguments_at + 8 * argument.index), *test, step(give, allow)]
        program += [step(jump_equal, number, otherwise=len(body)), *body]
    return b"".join([*program, step(give, allow)])
