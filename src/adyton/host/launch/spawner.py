"""One thread that starts every child process, and lives as long as this process.

The kernel's "die with your parent" means the parent's *thread*: a child started by a thread of a pool would be killed
when the pool shrinks.
"""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import threading
from concurrent.futures import Future
from typing import Any, cast

from adyton.errors import UnsupportedError

_Order = tuple[list[str], dict[str, Any], "Future[subprocess.Popen[bytes]]"]

_PROGRAMS = "/usr/bin:/bin:/usr/local/bin"
SETPRIV_MEND = "apt install util-linux"

_guard = threading.Lock()
_orders: queue.SimpleQueue[_Order] | None = None


def find_setpriv() -> str | None:
    """The path of the program that gives up rights, whatever PATH is; None where it is not installed."""
    return shutil.which("setpriv", path=_PROGRAMS)


def setpriv() -> str:
    """As `find_setpriv`. Raises UnsupportedError where it is not installed."""
    if (found := find_setpriv()) is None:
        raise UnsupportedError("setpriv is not installed", mend=f"Debian, Ubuntu: {SETPRIV_MEND}")
    return found


def tied(command: list[str]) -> list[str]:
    """`command`, killed with the thread that starts it, which is the spawner's: for what no namespace ties to us.

    The test closes the race with a host that ends meanwhile. Raises UnsupportedError where setpriv is not installed.
    """
    check = ["/bin/sh", "-c", 'test "$PPID" = "$0" && exec "$@"', str(os.getpid())]
    return [setpriv(), "--pdeathsig", "KILL", "--", *check, *command]


def spawn(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """subprocess.Popen(command, **options), from the thread that stays. Raises what Popen raises."""
    global _orders  # noqa: PLW0603
    with _guard:
        if _orders is None:
            _orders = queue.SimpleQueue()
            threading.Thread(target=_serve, args=(_orders,), name="adyton-spawner", daemon=True).start()
        orders = _orders
    made: Future[subprocess.Popen[bytes]] = Future()
    orders.put((command, options, made))
    return made.result()


def _serve(orders: queue.SimpleQueue[_Order]) -> None:
    while True:
        command, options, made = orders.get()
        try:
            made.set_result(cast("subprocess.Popen[bytes]", subprocess.Popen(command, **options)))
        except BaseException as problem:  # noqa: BLE001  whatever it is, it is the caller's
            made.set_exception(problem)
        del made


def _after_fork() -> None:
    global _guard, _orders
    _guard, _orders = threading.Lock(), None


os.register_at_fork(after_in_child=_after_fork)
