"""Refused system calls, each time in a real child process, and compared with what they answered before."""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from confined import PROLOGUE, SECONDS, child

from adyton.host.launch import hardening

needs_seccomp = pytest.mark.skipif(
    not hardening.seccomp_is_possible(), reason="this kernel filters no system calls, or this CPU's are unknown here"
)

#: Calls that do no harm and that anybody may make: the arguments, and what they answer without a filter.
HARMLESS = {
    "unshare": ((0,), "ok"),
    "mount": ((0, 0, 0, 0, 0), "EFAULT"),
    "chroot": ((0,), "EFAULT"),
    "swapon": ((0, -1), "EINVAL"),
    "setns": ((-1, 0), "EBADF"),
    "open_tree": ((-1, 0, 0), "EFAULT"),
    "process_vm_readv": ((0, 0, -1, 0, -1, 0), "EINVAL"),
}


@needs_seccomp
def test_ptrace_is_not_permitted_though_it_was_before() -> None:
    code = """
def trace_me():  # in a process of its own, for it can't be undone
    pid = os.fork()
    if not pid:
        os._exit(outcome(lambda: system_call(hardening.REFUSED_CALLS["ptrace"][is_arm], 0, 0, 0, 0)) == "EPERM")
    return os.waitpid(pid, 0)[1] >> 8
print(trace_me())
hardening.give_up_privileges()
hardening.refuse_system_calls(outbound=False)
print(trace_me())
"""
    assert child(code) == ["0", "1"]


@needs_seccomp
@pytest.mark.parametrize("name", HARMLESS)
def test_a_call_is_not_permitted_though_it_was_before(name: str) -> None:
    arguments, answer = HARMLESS[name]
    code = """
name, *arguments = sys.argv[1:]
attempt = lambda: system_call(hardening.REFUSED_CALLS[name][is_arm], *map(int, arguments))
print(outcome(attempt))
hardening.give_up_privileges()
hardening.refuse_system_calls(outbound=False)
print(outcome(attempt))
"""
    before, after = child(code, name, *arguments)
    assert after == "EPERM"
    assert before == answer or (os.geteuid() != 0 and before == "EPERM")


@needs_seccomp
def test_every_call_of_the_table_is_not_permitted() -> None:
    code = """
hardening.give_up_privileges()
hardening.refuse_system_calls(outbound=False)
for numbers in hardening.REFUSED_CALLS.values():
    print(outcome(lambda: system_call(numbers[is_arm], -1, -1, -1, -1, -1)))
"""
    assert child(code) == ["EPERM"] * len(hardening.REFUSED_CALLS)


@needs_seccomp
@pytest.mark.parametrize("filtered", [True, False])
def test_clone_makes_no_namespaces(filtered: bool) -> None:
    code = """
new_user_namespace, child_stack_signal = 0x10000000, 17
clone, clone3 = hardening.REFUSED_NAMESPACES["clone"].numbers[is_arm], hardening._CLONE3
if sys.argv[1] == "True":
    hardening.give_up_privileges()
    hardening.refuse_system_calls(outbound=False)
pid = libc.syscall(ctypes.c_long(clone), ctypes.c_ulong(new_user_namespace | child_stack_signal), 0, 0, 0, 0)
if pid == 0:
    os._exit(0)
print(pid > 0 and os.waitpid(pid, 0)[1] == 0 or errno.errorcode[ctypes.get_errno()])
print(outcome(lambda: system_call(clone3, 0, 0)))
"""
    namespace, flags_out_of_sight = child(code, filtered)
    assert flags_out_of_sight == ("ENOSYS" if filtered else "EINVAL")
    assert namespace == "EPERM" if filtered else namespace in ("True", "EPERM", "ENOSPC")


@needs_seccomp
@pytest.mark.parametrize("outbound", [True, False])
def test_ways_to_connect_that_landlock_does_not_see(outbound: bool) -> None:
    code = """
hardening.give_up_privileges()
hardening.refuse_system_calls(outbound=sys.argv[1] == "True")
print(outcome(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).close()))
with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
    print(outcome(lambda: client.sendto(b"x", 0x20000000, server.getsockname())))
with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
    print(outcome(lambda: client.sendmsg([b"x"], [], 0x20000000, server.getsockname())))
"""
    outcomes = child(code, outbound)
    if outbound:
        assert "EPERM" not in outcomes
    else:
        assert outcomes == ["EPERM"] * 3


@needs_seccomp
def test_ordinary_code_goes_on() -> None:
    code = """
hardening.give_up_privileges()
hardening.refuse_system_calls(outbound=False)
thread = threading.Thread(target=print, args=("thread",))
thread.start()
thread.join()
print(subprocess.run([sys.executable, "-c", "print('subprocess')"], capture_output=True, text=True, check=True).stdout)
with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
    server.accept()[0].close()
    print("socket" + client.recv(1).decode())
pid = os.fork()
if not pid:
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert child(code) == ["thread", "subprocess", "socket", "7"]


@needs_seccomp
@pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the calls of another architecture are x86-64's x32 and i386"
)
def test_calls_of_another_architecture_are_no_way_around() -> None:
    code = """
import mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex("b814000000 cd80 c3"))  # mov eax, 20 (getpid on i386); int 0x80; ret
get_pid = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
if sys.argv[1] == "True":
    hardening.give_up_privileges()
    hardening.refuse_system_calls(outbound=False)
print(outcome(lambda: system_call(0x40000000 | 39)), flush=True)
assert get_pid() == os.getpid()
"""
    for filtered, word in ((False, "ENOSYS"), (True, "EPERM")):
        command = [sys.executable, "-c", PROLOGUE + code, str(filtered)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        if not filtered and done.returncode == -signal.SIGSEGV:
            pytest.skip("this kernel runs no i386 code")
        assert done.returncode == (-signal.SIGSYS if filtered else 0)
        assert done.stdout.strip() == word


HEADERS = (Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm-generic/unistd.h"))


@pytest.mark.parametrize("column", [0, 1], ids=["x86_64", "aarch64"])
def test_the_numbers_are_the_kernels(column: int) -> None:
    if not HEADERS[column].exists():
        pytest.skip(f"{HEADERS[column]} is not installed (Debian, Ubuntu: apt install linux-libc-dev)")
    known = dict(re.findall(r"#define __NR_(\w+)\s+(\d+)", HEADERS[column].read_text()))
    for name, argument in (hardening.REFUSED_NAMESPACES | hardening.REFUSED_CONNECTIONS).items():
        assert int(known[name]) == argument.numbers[column]
    assert int(known["clone3"]) == hardening._CLONE3
    ours = {name: numbers[column] for name, numbers in hardening.REFUSED_CALLS.items()}
    assert {name: int(known[name]) for name in ours} == ours
