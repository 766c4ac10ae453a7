"""The guest's first process: prepares the machine, starts the enclave as an unprivileged process, carries its bytes.

/init calls `main` in a fresh interpreter; until the fork only the standard library is imported. What the host sends is
not trusted: the boot document sets the clock and the host's name, and hands on what a verifier checks anyway.

1. mount the kernel's file systems, load the modules that this machine's devices need, mount the disk if there is one;
2. take the boot document from the trunk, the one way in and out;
3. fork the enclave's process (enclave.py), which serves the control protocol as in every other kind of enclave;
4. carry its streams until it ends; tell the host how it ended; power off.
"""

from __future__ import annotations

import os
import signal
import socket
import time
import traceback
from pathlib import Path
from typing import Final, NoReturn

from adyton.enclave.guest import machine, nitro
from adyton.enclave.guest.enclave import Inside, become_the_enclave
from adyton.errors import ControlProtocolError
from adyton.proto.guest import (
    MAX_BOOT_DOCUMENT_BYTES,
    BootDocument,
    Ended,
    Started,
    encode_report,
    parse_boot_document,
)
from adyton.proto.trunk_loop import TrunkLoop

TRUNK: Final = "/dev/vport0p1"
#: How long the last words of an enclave may take to reach the host.
FLUSH_SECONDS: Final = 5.0


def main(began: float) -> NoReturn:
    """Run the machine from its start to its end. Never returns; whatever happens, the machine is powered off.

    `began` is what the clock since the kernel's start, CLOCK_BOOTTIME, showed when this process had an interpreter.
    """
    try:
        machine.mount_file_systems()
        machine.load_modules()
        machine.mount_state()
        machine.revive_tpm()
        machine.harden()
        machine.spare_this_process()
        machine.raise_limits()
        machine.bring_up_loopback()
        _Guest(began).run()
    except BaseException:  # noqa: BLE001  the last frame of the machine
        traceback.print_exc()
    machine.power_off()


def _open_trunk() -> int:
    """The one way in and out: a virtio port, or on Nitro, which has none, a connection to the parent's vsock."""
    if Path(TRUNK).exists():
        return os.open(TRUNK, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    nitro.beat()
    return nitro.open_trunk()


class _Guest:
    """The machine while it runs."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._loop = TrunkLoop(_open_trunk(), side="guest", accept=self._accept)
        self._boot, boot_outside = socket.socketpair()
        self._control, control_outside = socket.socketpair()
        self._offered = {"boot": boot_outside, "control": control_outside}
        self._report, report_outside = socket.socketpair()
        self._loop.open("report", report_outside)
        self._received = b""
        self._child: int | None = None

    def run(self) -> None:
        """Until the enclave's process has ended, or the host has hung up."""
        self._loop.watch(self._boot.fileno(), self._read_boot_document)
        wakeup, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        self._loop.watch(wakeup, lambda: self._reap(wakeup))
        self._loop.run()

    def _accept(self, kind: str) -> socket.socket | None:
        if kind.startswith("tcp:"):
            return machine.connect_inside(kind.removeprefix("tcp:"))
        return self._offered.pop(kind, None)

    def _read_boot_document(self) -> bool:
        part = self._boot.recv(65536)
        self._received += part
        if len(self._received) > MAX_BOOT_DOCUMENT_BYTES:
            raise ControlProtocolError("the boot document is too long")
        if not part:
            self._start(parse_boot_document(self._received))
        return bool(part)

    def _start(self, document: BootDocument) -> None:
        machine.set_clock(document.time_ns)
        machine.name_it(document.host_name)
        if machine.wants_network():
            machine.bring_up_network()
        inside = Inside.prepare(document, control=self._control)
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        started = Started(seconds_to_pid1=self._began, seconds_to_fork=now, pcr0=machine.pcr0())
        self._child = os.fork()
        if self._child == 0:
            become_the_enclave(inside)
        self._control.close()
        for kind, outer in inside.given_away():
            self._loop.open(kind, outer)
        self._report.sendall(encode_report(started))

    def _reap(self, wakeup: int) -> bool:
        os.read(wakeup, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return True
            if pid == self._child:
                self._take_leave(os.waitstatus_to_exitcode(status))

    def _take_leave(self, status: int) -> None:
        report = Ended(status=status, out_of_memory=machine.has_run_out_of_memory())
        self._report.sendall(encode_report(report))
        self._report.shutdown(socket.SHUT_WR)
        self._loop.close(drain_seconds=FLUSH_SECONDS)
