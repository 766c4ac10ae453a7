"""The thread that starts every child: it stays, so that "die with your parent" means the process."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from adyton.host.launch.spawner import spawn

SECONDS = 20.0
#: A child that asks to be killed when the thread that started it ends, says so, and lives until its input ends.
TIED = [
    sys.executable,
    "-c",
    "import sys; from adyton.host.launch.hardening import die_with_parent; die_with_parent(None); "
    "print('tied', flush=True); sys.stdin.read(); print('lived')",
]
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
Start = Callable[..., "subprocess.Popen[bytes]"]


def start_from_a_thread_that_ends(start: Start) -> subprocess.Popen[bytes]:
    made: list[subprocess.Popen[bytes]] = []

    def short() -> None:
        process = start(TIED, **PIPES)
        assert process.stdout is not None
        assert process.stdout.readline() == b"tied\n"
        made.append(process)

    thread = threading.Thread(target=short)
    thread.start()
    thread.join(SECONDS)
    (process,) = made
    return process


def test_a_tied_child_outlives_the_thread_that_asked_for_it() -> None:
    with start_from_a_thread_that_ends(spawn) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        assert process.communicate(timeout=SECONDS)[0] == b"lived\n"
    assert process.returncode == 0


def test_without_the_spawner_it_would_not() -> None:
    with start_from_a_thread_that_ends(subprocess.Popen) as process:
        assert process.wait(SECONDS) == -signal.SIGKILL


def test_options_are_passed_on() -> None:
    code = "import os; print(os.getcwd(), os.environ['A'])"
    process = spawn([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd="/", env={"A": "b"})
    assert process.communicate(timeout=SECONDS)[0] == b"/ b\n"


def test_what_popen_raises_reaches_the_caller_and_the_thread_goes_on() -> None:
    with pytest.raises(FileNotFoundError, match="/nonexistent/program"):
        spawn(["/nonexistent/program"])
    with pytest.raises(TypeError, match="no_such_option"):
        spawn(["true"], no_such_option=1)
    assert spawn(["true"]).wait(SECONDS) == 0


def test_many_threads_each_get_their_own_child() -> None:
    def word(number: int) -> bytes:
        return spawn(["echo", str(number)], stdout=subprocess.PIPE).communicate(timeout=SECONDS)[0]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(word, range(40))) == [b"%d\n" % number for number in range(40)]


def test_one_thread_does_it_and_does_not_keep_the_process() -> None:
    for _ in range(3):
        spawn(["true"]).wait(SECONDS)
    (thread,) = (each for each in threading.enumerate() if each.name == "adyton-spawner")
    assert thread.daemon


FORK = """
import os, signal, sys, warnings
warnings.simplefilter("ignore")  # forking a process with threads is what this is about
from adyton.host.launch.spawner import spawn
assert spawn(["true"]).wait() == 0
pid = os.fork()
if not pid:
    signal.alarm(10)
    os._exit(spawn(["sh", "-c", "exit 7"]).wait())
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), spawn(["true"]).wait())
"""
FORK_WHILE_BUSY = """
import os, signal, sys, threading, warnings
warnings.simplefilter("ignore")
from adyton.host.launch import spawner
spawner._guard.acquire()  # as if another thread were just in spawn()
pid = os.fork()
if not pid:
    signal.alarm(10)
    os._exit(spawner.spawn(["sh", "-c", "exit 7"]).wait())
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.parametrize(("code", "expected"), [(FORK, "7 0"), (FORK_WHILE_BUSY, "7")])
def test_it_works_in_a_forked_process_too(code: str, expected: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, expected, "")


def test_children_of_a_process_that_is_killed_die_with_it() -> None:
    code = (
        "import os, sys\nfrom adyton.host.launch.spawner import spawn\n"
        f"spawn({TIED!r}, stdin=0)\nimport signal; signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", code], **PIPES) as process:  # type: ignore[call-overload]
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"tied\n"
        finally:
            process.kill()
        assert process.stdout.read() == b""  # ends when the child is gone too
