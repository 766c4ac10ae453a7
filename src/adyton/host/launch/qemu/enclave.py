"""A running virtual machine, seen by the manager; a LaunchedEnclave."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import IO, Final

from adyton.errors import AdytonError, ControlProtocolError, EnclaveDiedError, LaunchError
from adyton.host.launch.child import Child, describe_end
from adyton.host.launch.log_pump import LogPump
from adyton.host.launch.namespaces import why_no_namespaces
from adyton.host.launch.private_directory import PrivateDirectory
from adyton.host.launch.qemu.monitor import Monitor
from adyton.host.launch.qemu.ports import HostPorts
from adyton.host.launch.qemu.vtpm import Vtpm
from adyton.host.launch.state import StateDirectory
from adyton.proto.frames import Stream
from adyton.proto.guest import MAX_REPORT_BYTES, BootDocument, Ended, Started, parse_report
from adyton.proto.trunk_loop import TrunkLoop

#: How long a machine whose control connection ended may take to power off before it is killed.
END_SECONDS: Final = 10.0
UNSTARTED_END_SECONDS: Final = 1.0
#: How long the log may take when the machine has ended.
LOG_SECONDS: Final = 4.0
#: A guest that has not answered for so long hangs. Longer than a minute, for which a laptop may be closed.
HANG_SECONDS: Final = 90.0
PING_SECONDS: Final = 5.0
WATCH_SECONDS: Final = 0.5
CONSOLE_LINES: Final = 5
_PANIC: Final = re.compile(r"Kernel panic - not syncing: (.{1,200})")
#: How a traceback ends that the guest's first process prints when it refuses to go on.
_REFUSAL: Final = re.compile(r"adyton\.errors\.LaunchError: (.{1,500})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachments:
    """What a machine has on the host. The sockets are the host's ends, and all of it is the machine's to close."""

    trunk: socket.socket
    monitor: socket.socket
    tpm: Vtpm | None
    ports: HostPorts
    directory: PrivateDirectory
    state: StateDirectory | None


class VmEnclave:
    """A started machine and everything on the host that belongs to it.

    `boot` is for the guest, with the time at which it asks. `sinks` are descriptors for stdout, for stderr, for all.
    """

    control: Stream

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        *,
        memory_mb: int,
        boot: BootDocument,
        attached: Attachments,
        sinks: tuple[int | None, int | None, int | None],
    ) -> None:
        """Raises OSError; then `process` and `attached` are the caller's to end, for as much as is left of them."""
        self._memory_mb = memory_mb
        self._boot = boot
        self._tpm = attached.tpm
        self._ports = attached.ports
        self._started: Started | None = None
        self._ended: Ended | None = None
        self._why_killed = ""
        self._closing = threading.Event()
        self._offered: dict[str, socket.socket] = {}
        self._resources = contextlib.ExitStack()
        assert process.stdout is not None
        assert process.stderr is not None
        self._console = LogPump({process.stdout: None, process.stderr: None}, sinks[2])
        self._child = Child(process, in_namespaces=not why_no_namespaces())
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.close)
            self._adopt(attached)
            self._open_streams(sinks)
            self._open_trunk(attached.trunk)
            self._begin()
            on_failure.pop_all()

    def _adopt(self, attached: Attachments) -> None:
        for each in (attached.state, attached.directory, attached.ports, attached.tpm, self._child):
            if each is not None:
                self._resources.callback(each.close)
        self._resources.callback(self._console.join, LOG_SECONDS)
        self._monitor = Monitor(attached.monitor)
        self._resources.callback(self._monitor.close)

    def _open_streams(self, sinks: tuple[int | None, int | None, int | None]) -> None:
        """Those that the guest opens: their ends for the trunk, and who reads them."""
        to_stdout, to_stderr, to_file = sinks
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._close_offered)
            stdout, stderr, report = [
                on_failure.enter_context(self._offer(kind)) for kind in ("stdout", "stderr", "report")
            ]
            self._pump = LogPump({_reader(stdout): to_stdout, _reader(stderr): to_stderr}, to_file)
            on_failure.pop_all()
        self._resources.callback(self._pump.join, LOG_SECONDS)
        self._resources.callback(self._close_offered)  # so that nobody waits for what the guest never opened
        self._resources.callback(report.close)
        self._listening = threading.Thread(target=self._listen, args=(report,), name="adyton-report", daemon=True)

    def _open_trunk(self, trunk: socket.socket) -> None:
        self._resources.callback(trunk.close)
        self._loop = TrunkLoop(trunk.fileno(), side="host", accept=self._accept)
        self._carrying = threading.Thread(target=self._carry, name="adyton-trunk", daemon=True)
        self._resources.callback(self._stop_carrying)
        self.control, control_outside = socket.socketpair()
        self._resources.callback(self.control.close)
        self._loop.open("control", control_outside)

    def _begin(self) -> None:
        self._ports.start(lambda listener, port: self._loop.listen(listener, f"tcp:{port}"))
        self._carrying.start()
        self._listening.start()
        threading.Thread(target=self._watch, name="adyton-watch", daemon=True).start()

    @property
    def pid(self) -> int:
        """QEMU's process id; bubblewrap's where there are namespaces."""
        return self._child.pid

    @property
    def started(self) -> Started | None:
        """How long the guest's kernel had run at some moments, by its own clock; None until the guest said so."""
        return self._started

    def wait_started(self, timeout_seconds: float) -> Started:
        """What the guest reports when its enclave's process has been started. Raises what `explain` says, if not."""
        until = time.monotonic() + timeout_seconds
        while self._started is None:
            if self.wait(0.05) or time.monotonic() > until:
                raise self.explain(started=False)
        return self._started

    def address_of(self, port: int) -> str:
        """A listener of this process carries each connection into the guest."""
        return self._ports.address_of(port)

    def log_tail(self) -> tuple[str, ...]:
        """As LaunchedEnclave says; of a machine that is not up yet, the last that its kernel and QEMU printed too."""
        return self._pump.tail() if self._started else self._whole_tail()

    def wait(self, timeout_seconds: float) -> bool:
        """As LaunchedEnclave says."""
        return self._child.wait(timeout_seconds)

    def explain(self, *, started: bool) -> AdytonError:
        """As LaunchedEnclave says: whether the machine was killed, could not start, panicked, or its enclave ended."""
        self._pump.hurry(LOG_SECONDS / 2)  # an enclave whose log nobody reads can't end
        # One that was not up yet has not ended its control connection: the host did.
        if not self.wait(END_SECONDS if self._started else UNSTARTED_END_SECONDS):
            self._kill("the virtual machine did not power off")
            self.wait(END_SECONDS)
        self._pump.join(LOG_SECONDS)
        self._console.join(LOG_SECONDS)
        self._listening.join(END_SECONDS)
        status = self._child.status
        if self._ended is not None:  # the machine was well, so what its kernel said is of no interest
            how, status = self._how_it_ended(self._ended), self._ended.status
            return EnclaveDiedError(how, exit_status=status, log_tail=self._pump.tail())
        if self._why_killed or self._monitor.stopped_for:
            why = self._why_killed or f"the virtual machine stopped: {self._monitor.stopped_for}"
            return self._died(why, status)
        if panics := [found for line in self._console.tail(100) if (found := _PANIC.search(line))]:
            panic = panics[-1][1].strip()
            why = self._out_of_memory() if "memory" in panic else f"the guest's kernel panicked: {panic}"
            return self._died(why, status)
        refusals = [found[1] for line in self._console.tail(100) if (found := _REFUSAL.match(line))]
        if refusals and self._started is None:
            return LaunchError(f"the virtual machine could not be set up: {refusals[-1]}")
        if status > 0 and not started:
            said = self._console.tail(1)
            return LaunchError(f"QEMU can't start the virtual machine: {said[-1] if said else 'it said nothing'}")
        how = "it powered off" if status == 0 else f"QEMU ended: {describe_end(status)}"
        return self._died(f"the virtual machine is gone: {how}", status)

    def close(self) -> None:
        """As LaunchedEnclave says."""
        self._closing.set()
        self._child.kill()
        self._child.wait(END_SECONDS)
        self._resources.close()

    def _stop_carrying(self) -> None:
        self._loop.close()
        if self._carrying.ident is not None:
            self._carrying.join(END_SECONDS)

    def _close_offered(self) -> None:
        for each in list(self._offered.values()):
            each.close()

    def _whole_tail(self) -> tuple[str, ...]:
        return self._console.tail(CONSOLE_LINES) + self._pump.tail()

    def _died(self, why: str, status: int) -> EnclaveDiedError:
        console = self._console.tail(CONSOLE_LINES)
        return EnclaveDiedError(why, exit_status=status, log_tail=self._pump.tail(), console=console)

    def _offer(self, kind: str) -> socket.socket:
        mine, self._offered[kind] = socket.socketpair()
        return mine

    def _how_it_ended(self, ended: Ended) -> str:
        if ended.out_of_memory and ended.status < 0:
            return self._out_of_memory()
        return f"the enclave's process ended: {describe_end(ended.status)}"

    def _out_of_memory(self) -> str:
        return f"the guest ran out of memory ({self._memory_mb} MB: enclave.toml, vm.memory_mb)"

    def _accept(self, kind: str) -> socket.socket | None:
        if kind == "report" and kind in self._offered:  # the guest has come so far that it asks what time it is
            document, document_outside = socket.socketpair()
            self._loop.open("boot", document_outside)
            data = dataclasses.replace(self._boot, time_ns=time.time_ns()).encode()
            threading.Thread(target=_send, args=(document, data), name="adyton-boot", daemon=True).start()
        return self._offered.pop(kind, None)

    def _carry(self) -> None:
        try:
            self._loop.run()
        except ControlProtocolError as problem:
            self._kill(f"the guest broke the trunk's protocol: {problem.message}")
        self._close_offered()

    def _listen(self, report: socket.socket) -> None:
        """Take the guest's reports."""
        with report, contextlib.suppress(OSError), report.makefile("rb") as lines:
            while line := lines.readline(MAX_REPORT_BYTES):
                try:
                    said = parse_report(line)
                except ControlProtocolError as problem:
                    self._kill(problem.message)
                    return
                if isinstance(said, Started):
                    self._started = said
                else:
                    self._ended = said

    def _watch(self) -> None:
        """Until the end, see that the TPM lives, that the machine goes on, and that the guest answers."""
        asked = 0.0
        while not self._closing.wait(WATCH_SECONDS) and not self._child.wait(0):
            if self._tpm is not None and self._tpm.process.poll() is not None:
                self._kill(f"the virtual machine's TPM is gone: {self._tpm.explain()}")
            elif self._monitor.stuck.is_set():
                self._child.kill()
            elif self._started is not None:
                asked = self._ask(asked)

    def _ask(self, asked: float) -> float:
        """Ask the guest whether it goes on; `asked` and the result are when the last question was put, 0 for never."""
        now, answered = time.monotonic(), self._loop.last_pong or 0.0
        if answered >= asked and now - asked >= PING_SECONDS:
            self._loop.ping()
            return now
        if answered < asked and now - asked > HANG_SECONDS:
            self._kill(f"the guest hangs: it has not answered for {HANG_SECONDS:.0f} s")
        return asked

    def _kill(self, why: str) -> None:
        self._why_killed = self._why_killed or why
        self._child.kill()


def _send(connection: socket.socket, data: bytes) -> None:
    with connection, contextlib.suppress(OSError):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)  # until it is taken


def _reader(connection: socket.socket) -> IO[bytes]:
    """What the log's pump reads, in place of the socket."""
    return os.fdopen(connection.detach(), "rb", buffering=0)
