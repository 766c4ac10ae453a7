"""What a process gave up is gone: each time in a real child process, and each time compared with one that kept it."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
from confined import PROLOGUE, SECONDS, child

from adyton.host.launch import hardening

ABI = hardening.landlock_abi()


def needs_landlock(abi: int) -> pytest.MarkDecorator:
    reason = "this kernel has no Landlock" if ABI == 0 else f"needs Landlock ABI {abi}; this kernel has {ABI}"
    return pytest.mark.skipif(abi > ABI, reason=reason)


@contextmanager
def started(command: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """A child and what it prints; killed in the end if it still lives."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout
        finally:
            process.kill()


# --- privileges


@pytest.mark.parametrize("given_up", [True, False])
def test_privileges_are_given_up(given_up: bool) -> None:
    code = """
if sys.argv[1] == "True":
    hardening.give_up_privileges()
get_dumpable, get_no_new_privs = 3, 39
print(libc.prctl(get_dumpable, 0, 0, 0, 0), libc.prctl(get_no_new_privs, 0, 0, 0, 0))
print(*resource.getrlimit(resource.RLIMIT_CORE))
"""
    kept = [1, hardening._libc.prctl(39, 0, 0, 0, 0), *resource.getrlimit(resource.RLIMIT_CORE)]
    assert child(code, given_up) == [str(each) for each in ([0, 1, 0, 0] if given_up else kept)]


# --- the parent's death

ORPHAN = """
code = "import os, sys, time; from adyton.host.launch import hardening; TIE; print('tied', flush=True); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", code.replace("TIE", sys.argv[1])])
signal.pause()
"""


@pytest.fixture
def reaper() -> Iterator[None]:
    """Be who inherits orphans, so that none is left."""
    set_child_subreaper = 36
    hardening._libc.prctl(set_child_subreaper, 1, 0, 0, 0)
    yield
    hardening._libc.prctl(set_child_subreaper, 0, 0, 0, 0)


@pytest.mark.parametrize(("tie", "dies"), [("hardening.die_with_parent(os.getppid())", True), ("pass", False)])
def test_a_tied_process_dies_with_its_parent_though_that_is_killed(reaper: None, tie: str, dies: bool) -> None:
    with started([sys.executable, "-c", PROLOGUE + ORPHAN, tie]) as (parent, output):
        assert output.readline() == b"tied\n"
        (orphan,) = map(int, Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split())
        parent.kill()
        parent.wait()
        if not dies:
            os.kill(orphan, signal.SIGTERM)
        assert output.read() == b""  # ends when nobody holds the pipe any more
    _, status = os.waitpid(orphan, 0)
    assert os.WTERMSIG(status) == (signal.SIGKILL if dies else signal.SIGTERM)


def test_a_process_whose_parent_is_gone_already_leaves() -> None:
    code = "from adyton.host.launch import hardening; hardening.die_with_parent(PID); print('still here')"
    for pid, expected in ((os.getpid(), (0, b"still here\n")), (1 << 22, (80, b""))):
        done = subprocess.run(
            [sys.executable, "-c", code.replace("PID", str(pid))], stdout=subprocess.PIPE, check=False
        )
        assert (done.returncode, done.stdout) == expected


# --- Landlock


@needs_landlock(1)
def test_only_allowed_files_can_be_reached(tmp_path: Path) -> None:
    for name in ("inside", "outside", "read only"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    (tmp_path / "single").write_text("x")
    code = """
from pathlib import Path
root = Path(sys.argv[1])
hardening.restrict_files([
    (str(root / "inside"), hardening.EVERYTHING),
    (str(root / "read only"), hardening.READ),
    (str(root / "single"), hardening.READ),
    (str(root / "missing"), hardening.EVERYTHING),
    (str(root / "single" / "impossible"), hardening.EVERYTHING),
], outbound=True)
for place in ("inside", "read only", "outside"):
    file = root / place / "file"
    print(outcome(file.read_text), outcome(lambda: file.write_text("y")), outcome(lambda: os.listdir(root / place)))
    print(outcome((root / place / "new").touch), outcome(file.unlink))
print(outcome((root / "single").read_text), outcome(lambda: (root / "single").write_text("y")))
print(outcome((root / "missing").mkdir), outcome(lambda: os.stat(root / "outside")))
"""
    inside, read_only, outside = ["ok"] * 5, ["ok", "EACCES", "ok", "EACCES", "EACCES"], ["EACCES"] * 5
    assert child(code, tmp_path) == [*inside, *read_only, *outside, "ok", "EACCES", "EACCES", "ok"]


@needs_landlock(1)
def test_what_may_be_read_may_not_be_executed_unless_it_is_said() -> None:
    true = os.path.realpath("/bin/true")
    code = """
libraries = [(path, hardening.READ_AND_EXECUTE) for path in ("/lib", "/lib64", "/usr/lib", "/etc/ld.so.cache")]
hardening.restrict_files([*libraries, (sys.argv[1], int(sys.argv[2])), ("/dev/null", hardening.READ)], outbound=False)
print(outcome(lambda: os.posix_spawn(sys.argv[1], ["true"], {})))
"""
    assert child(code, true, hardening.READ) == ["EACCES"]
    assert child(code, true, hardening.READ_AND_EXECUTE) == ["ok"]


@needs_landlock(4)
@pytest.mark.parametrize(("outbound", "expected"), [(False, "EACCES"), (True, "ok")])
def test_an_enclave_is_called_but_calls_nobody_unless_it_may(outbound: bool, expected: str) -> None:
    code = """
hardening.restrict_files([], outbound=sys.argv[1] == "True")
with socket.socket() as client:
    print(outcome(lambda: client.connect(("127.0.0.1", int(sys.argv[2])))))
with socket.socket() as server:
    server.bind(("127.0.0.1", 0))
    server.listen()
    print(server.getsockname()[1], flush=True)
    connection, _ = server.accept()
    connection.sendall(b"hello")
    connection.close()
"""
    with socket.create_server(("127.0.0.1", 0)) as host:
        command = [sys.executable, "-c", PROLOGUE + code, str(outbound), str(host.getsockname()[1])]
        with started(command) as (process, output):
            assert output.readline().decode().strip() == expected
            address = ("127.0.0.1", int(output.readline()))
            with socket.create_connection(address, timeout=SECONDS) as client:
                assert client.recv(5) == b"hello"
            assert process.wait(SECONDS) == 0


@needs_landlock(6)
def test_nobody_outside_can_be_signalled() -> None:
    code = """
print(outcome(lambda: os.kill(os.getppid(), 0)))
hardening.restrict_files([], outbound=False)
own = os.fork()
if not own:
    signal.pause()
print(outcome(lambda: os.kill(os.getppid(), 0)), outcome(lambda: os.kill(own, signal.SIGKILL)))
os.waitpid(own, 0)
"""
    assert child(code) == ["ok", "EPERM", "ok"]


@needs_landlock(6)
def test_abstract_sockets_outside_can_not_be_reached() -> None:
    code = """
hardening.restrict_files([], outbound=True)
with socket.socket(socket.AF_UNIX) as client:
    print(outcome(lambda: client.connect("\\0" + sys.argv[1])))
"""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0adyton-test-{os.getpid()}")
        server.listen()
        assert child(code, f"adyton-test-{os.getpid()}") == ["EPERM"]
