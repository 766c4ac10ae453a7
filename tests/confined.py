"""Children that give something up and say what they still can."""

from __future__ import annotations

import subprocess
import sys

SECONDS = 20.0

#: What every child begins with: `outcome(f)` is "ok" or the name of the errno that f() failed with.
PROLOGUE = """
import ctypes, errno, os, resource, signal, socket, subprocess, sys, threading
from adyton.host.launch import hardening
libc = ctypes.CDLL(None, use_errno=True)
is_arm = os.uname().machine == "aarch64"

def outcome(action):
    try:
        action()
    except OSError as problem:
        return errno.errorcode[problem.errno]
    return "ok"

def system_call(number, *arguments):
    if libc.syscall(ctypes.c_long(number), *(ctypes.c_long(each) for each in arguments)) < 0:
        raise OSError(ctypes.get_errno(), "")
"""


def child(code: str, *arguments: object) -> list[str]:
    """What a child that runs `code` prints, word by word."""
    done = subprocess.run(
        [sys.executable, "-c", PROLOGUE + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()
