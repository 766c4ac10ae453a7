"""The enclave's process in a guest: forked from the first process, without its rights, and never exec'd.

A fresh interpreter would cost a third of a second under emulation; this one has loaded the standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, Self

from adyton.enclave.guest import hardware
from adyton.enclave.guest.machine import DATA, ENCLAVE_UID, STATE
from adyton.proto.guest import BootDocument

BUNDLE: Final = "/enclave/bundle"
PACKAGES: Final = "/usr/lib/python3.11/site-packages"
_FLAGS: Final = ("-I", "-S", "-B", "-X", "utf8", "-W", "default")
#: How a server process of `workers = N` starts: as in the simulation, with a JSON object as its argument.
_START: Final = (
    "import json, sys; sys.path += json.loads(sys.argv[1])['path']; "
    "from adyton.enclave.process_entry import main; main(sys.argv[1])"
)
_PR_SET_NO_NEW_PRIVS: Final = 38


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """What the process gets, and what stays outside: sockets for its output, and root's process for the hardware."""

    control: socket.socket
    streams: dict[str, tuple[socket.socket, socket.socket]]
    certificates: tuple[bytes, ...]
    approvals: tuple[bytes, ...]
    broker: tuple[socket.socket, socket.socket] | None

    @classmethod
    def prepare(cls, document: BootDocument, *, control: socket.socket) -> Self:
        """Make them, and give the hardware to the enclave's user."""
        hardware.hand_over(ENCLAVE_UID, document.event_log)
        return cls(
            control=control,
            streams={kind: socket.socketpair() for kind in ("stdout", "stderr")},
            certificates=document.certificates,
            approvals=document.approvals,
            broker=socket.socketpair() if hardware.needs_root() else None,
        )

    def given_away(self) -> Iterator[tuple[str, socket.socket]]:
        """The outer ends of the process's output, for the trunk; the inner ones are closed here."""
        for kind, (inner, outer) in self.streams.items():
            inner.close()
            yield kind, outer

    def spec(self) -> dict[str, Any]:
        """What process_entry.py is told."""
        return {
            "path": [f"{BUNDLE}/runtime", f"{BUNDLE}/app", PACKAGES],
            "bundle": BUNDLE,
            "data": DATA,
            "state": STATE if Path(STATE).is_mount() else None,
            "control_fd": self.control.fileno(),
            "device_fd": None,
            "sealing_fd": None,
            "hardware": {
                "certificates": [each.hex() for each in self.certificates],
                "broker_fd": self.broker[0].fileno() if self.broker else None,
                "approvals": [each.hex() for each in self.approvals],
            },
            "keeper_fd": None,
            "parent_pid": None,
            "worker": None,
            "cpu": None,
        }


def become_the_enclave(inside: Inside) -> NoReturn:
    """In the forked child: give up every right, and serve the control protocol."""
    try:
        _take_streams(inside)
        if inside.broker:
            _start_broker(inside.broker)
        _close_all_but({inside.control.fileno(), inside.broker[0].fileno() if inside.broker else -1})
        _give_up_rights()
        scratch = Path(DATA, "tmp")
        scratch.mkdir()
        os.environ.clear()
        os.environ.update(LANG="C.UTF-8", HOME=DATA, TMPDIR=str(scratch), PATH="/usr/bin:/bin", GRPC_VERBOSITY="NONE")
        os.chdir(DATA)
        sys.path.insert(sys.path.index(f"{BUNDLE}/runtime") + 1, f"{BUNDLE}/app")  # not before, and not for root
        argument = json.dumps(inside.spec())
        # As if this had been exec'd: the server processes of `workers = N` are started with the same command line.
        sys.executable = str(Path("/proc/self/exe").readlink())
        sys.orig_argv = [sys.executable, *_FLAGS, "-c", _START, argument]
        from adyton.enclave.process_entry import main

        main(argument)
    except BaseException:  # noqa: BLE001  the last frame of the process
        traceback.print_exc()
    os._exit(70)


def _take_streams(inside: Inside) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(inside.streams["stdout"][0].fileno(), 1)
    os.dup2(inside.streams["stderr"][0].fileno(), 2)


def _start_broker(broker: tuple[socket.socket, socket.socket]) -> None:
    """Fork root's process before the rights are given up; it ends with the last end of its socket."""
    if os.fork():
        return
    try:
        _close_all_but({broker[1].fileno()})
        hardware.serve_hardware(broker[1])
    except BaseException:  # noqa: BLE001  the last frame of the process
        traceback.print_exc()
    os._exit(0)


def _close_all_but(kept: set[int]) -> None:
    for number in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if number > 2 and number not in kept:
            with contextlib.suppress(OSError):  # the listing's own
                os.close(number)


def _give_up_rights() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")
    os.setgroups([])
    os.setresgid(ENCLAVE_UID, ENCLAVE_UID, ENCLAVE_UID)
    os.setresuid(ENCLAVE_UID, ENCLAVE_UID, ENCLAVE_UID)
