"""The process launcher: a *simulation* of an enclave, an ordinary process, shut off as far as that goes.

Nothing here protects from root or from the kernel. It runs the same runtime as every other launcher, from the same
bundle, and gives evidence of the same shape, under a root that this machine made for itself (adyton.tee.simulated).
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes

import adyton
from adyton.errors import AdytonError, BundleError, EnclaveDiedError, LaunchError, UnsupportedError
from adyton.host.bundles import Bundle
from adyton.host.launch import firmware, hardening
from adyton.host.launch.child import Child, describe_end, kill_group
from adyton.host.launch.descriptors import request_log, socket_pair
from adyton.host.launch.launcher import Capability, LaunchRequest, say_nothing
from adyton.host.launch.log_pump import LogPump
from adyton.host.launch.namespaces import bubblewrap_command, why_no_namespaces
from adyton.host.launch.private_directory import PrivateDirectory
from adyton.host.launch.spawner import spawn
from adyton.host.launch.state import StateDirectory, hold_state
from adyton.proto.frames import Stream
from adyton.tee.simulated.format import simulated_measurement
from adyton.tee.simulated.platform import SimulatedPlatform, serve
from adyton.tee.simulated.sealing_platform import serve_sealing

_START = (
    "import json, sys; sys.path.append(json.loads(sys.argv[1])['firmware_path']); "
    "from adyton.host.launch.firmware import main; main()"
)
#: A service manager may signal every process of a service at once. Only the host ends an enclave, by finalizing it.
_DEAF_TO_SIGNALS = ("/bin/sh", "-c", "trap '' INT TERM HUP; exec \"$@\"", "sh")
#: How long an enclave whose control connection ended may take to end before it is killed.
END_SECONDS = 2.0
#: How long the log may take when the enclave has ended.
LOG_SECONDS = 2.0


class ProcessLauncher:
    """Starts enclaves as processes. `namespaces`: None takes them where they work, True insists, False does without."""

    technology = "process"
    warning = "simulation: an ordinary process; whoever controls this machine can read and change everything in it"

    def __init__(self, *, namespaces: bool | None = None) -> None:
        self._why_no_namespaces = "not asked for" if namespaces is False else why_no_namespaces()
        if namespaces and self._why_no_namespaces:
            raise UnsupportedError(self._why_no_namespaces)

    def capabilities(self) -> list[Capability]:
        """What keeps an enclave's process apart on this machine."""
        abi, possible = hardening.landlock_abi(), hardening.seccomp_is_possible()
        network = "and outgoing TCP" if abi >= 4 else "but not outgoing TCP (needs ABI 4)"
        return [
            Capability(name="launch", available=sys.platform == "linux", detail=self.warning),
            Capability(
                name="landlock",
                available=abi > 0,
                detail=f"ABI {abi}: files {network}"
                if abi
                else "the kernel has none: the process can read its user's files",
            ),
            Capability(
                name="seccomp",
                available=possible,
                detail=f"{len(hardening.REFUSED_CALLS)} system calls refused"
                if possible
                else "not on this kernel or CPU",
            ),
            Capability(
                name="namespaces",
                available=not self._why_no_namespaces,
                detail=self._why_no_namespaces or "bubblewrap: user, pid, ipc, uts, mount",
            ),
        ]

    def prepare(self, bundle: Bundle, say: Callable[[str], None] = say_nothing) -> None:
        """Nothing: a process starts from the bundle itself."""

    def measurements(self, bundle: Bundle) -> dict[str, object]:
        """As `Launcher` says."""
        return bundle.measurements()

    def anchors(self) -> dict[str, bytes]:
        """The simulation's root."""
        return {"simulated": SimulatedPlatform.open().root.fingerprint(hashes.SHA256())}

    def launch(self, request: LaunchRequest) -> ProcessEnclave:
        """As `Launcher` says. The root of its evidence is made on first use."""
        if request.host_name and self._why_no_namespaces:
            raise UnsupportedError(f"host_name needs namespaces: {self._why_no_namespaces}")
        try:
            return self._launch(request)
        except OSError as problem:
            raise LaunchError(f"the enclave can't be started: {problem}") from problem

    def _launch(self, request: LaunchRequest) -> ProcessEnclave:
        platform, measurement = SimulatedPlatform.open(), simulated_measurement(request.bundle.sha256)
        hardware = platform.enclave(measurement)
        keys = platform.sealing(measurement, signed=request.bundle.signed_code())
        with contextlib.ExitStack() as always, contextlib.ExitStack() as on_failure:
            state = hold_state(request, on_failure)
            directory = PrivateDirectory()
            on_failure.callback(directory.close)
            control, control_inside = socket_pair(on_failure, always)
            device, device_inside = socket_pair(on_failure, always)
            sealing, sealing_inside = socket_pair(on_failure, always)
            bundle_fd = _sealed_memory(request.bundle.data)
            always.callback(os.close, bundle_fd)
            log_file = request_log(request, always)
            inside = {
                "control_fd": control_inside.fileno(),
                "device_fd": device_inside.fileno(),
                "sealing_fd": sealing_inside.fileno(),
                "bundle_fd": bundle_fd,
            }
            process = self._spawn(request, directory.path, None if state is None else state.path, inside)
            on_failure.callback(kill_group, process)
            assert process.stdout is not None
            assert process.stderr is not None
            pump = LogPump({process.stdout: request.stdout_fd, process.stderr: request.stderr_fd}, log_file)
            on_failure.callback(pump.join, LOG_SECONDS)
            on_failure.callback(kill_group, process)  # before the log is waited for
            enclave = ProcessEnclave(
                process,
                control=control,
                hardware=(device, sealing),
                pump=pump,
                directory=directory,
                state=state,
                in_namespaces=not self._why_no_namespaces,
            )
            threading.Thread(target=serve, args=(hardware, device), name="adyton-device", daemon=True).start()
            threading.Thread(target=serve_sealing, args=(keys, sealing), name="adyton-keys", daemon=True).start()
            on_failure.pop_all()
        return enclave

    def _spawn(
        self, request: LaunchRequest, directory: Path, state: Path | None, inside: dict[str, int]
    ) -> subprocess.Popen[bytes]:
        executable = os.path.realpath(sys.executable)
        spec = self._spec(request.bundle, directory, executable, inside)
        spec["state"] = None if state is None else str(state)
        if state is not None:
            _refuse_to_hand_out(state, [str(directory), executable, spec["firmware_path"], *spec["dependency_paths"]])
        command = [executable, "-I", "-S", "-B", "-X", "utf8", "-c", _START, json.dumps(spec)]
        if not self._why_no_namespaces:
            readable = [spec["firmware_path"], *spec["interpreter_paths"], *spec["dependency_paths"]]
            readable.append(os.path.realpath("/etc/resolv.conf"))  # below /run on many systems
            writable = [directory, *(() if state is None else (state,))]
            command = bubblewrap_command(
                writable=writable, readable=readable, host_name=request.host_name, command=command
            )
        try:
            return spawn(
                [*_DEAF_TO_SIGNALS, *command],
                stdin=subprocess.DEVNULL if request.stdin_fd is None else request.stdin_fd,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=tuple(inside.values()),
                env={},
                cwd=directory,
                start_new_session=True,
            )
        except OSError as problem:
            raise LaunchError(f"the enclave's process can't be started: {problem}") from problem

    def _spec(self, bundle: Bundle, directory: Path, executable: str, inside: dict[str, int]) -> dict[str, Any]:
        return inside | {
            "bundle_sha256": bundle.sha256.hex(),
            "directory": str(directory),
            "firmware_path": str(Path(adyton.__file__).parent.parent),
            "interpreter_paths": [executable, f"{sys.base_prefix}/lib", f"{sys.base_prefix}/lib64"],
            "dependency_paths": _dependency_paths(bundle),
            "outbound": bundle.settings.network.outbound,
            "landlock": hardening.landlock_abi() > 0,
            "seccomp": hardening.seccomp_is_possible(),
            "parent_pid": os.getpid() if self._why_no_namespaces else None,
        }


class ProcessEnclave:
    """A started process; a LaunchedEnclave."""

    control: Stream

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        *,
        control: socket.socket,
        hardware: tuple[socket.socket, ...],
        pump: LogPump,
        directory: PrivateDirectory,
        state: StateDirectory | None,
        in_namespaces: bool,
    ) -> None:
        self.control = control
        self._child = Child(process, in_namespaces=in_namespaces)
        self._hardware = hardware
        self._pump = pump
        self._directory = directory
        self._state = state

    @property
    def pid(self) -> int:
        """The child's process id; bubblewrap's where there are namespaces."""
        return self._child.pid

    def address_of(self, port: int) -> str:
        """The network is the host's."""
        return f"localhost:{port}"

    def log_tail(self) -> tuple[str, ...]:
        """As LaunchedEnclave says."""
        return self._pump.tail()

    def wait(self, timeout_seconds: float) -> bool:
        """As LaunchedEnclave says. What the enclave started and left behind ends with it."""
        return self._child.wait(timeout_seconds)

    def explain(self, *, started: bool) -> AdytonError:
        """As LaunchedEnclave says. The firmware's exit codes become the errors that they stand for."""
        self._pump.hurry(END_SECONDS / 2)  # an enclave whose log nobody reads can't end
        if not self.wait(END_SECONDS):
            self._child.kill()
            self.wait(END_SECONDS)
        self._pump.join(LOG_SECONDS)
        status, tail = self._child.status, self.log_tail()
        last = tail[-1].removeprefix("firmware: ") if tail else "nothing was logged"
        if not started and status == firmware.EXIT_NOT_THE_BUNDLE:
            return BundleError(last)
        if not started and status in (firmware.EXIT_NO_ROOM, firmware.EXIT_NOT_HARDENED):
            return LaunchError(f"the enclave could not be set up: {last}")
        return EnclaveDiedError(
            f"the enclave's process ended: {describe_end(status)}", exit_status=status, log_tail=tail
        )

    def close(self) -> None:
        """As LaunchedEnclave says."""
        self._child.kill()
        self.wait(END_SECONDS)
        self._pump.join(LOG_SECONDS)
        self._child.close()
        for each in self._hardware:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self.control.close()
        self._directory.close()
        if self._state is not None:
            self._state.close()


def _sealed_memory(data: bytes) -> int:
    """The bundle in memory that nobody can change any more, at its beginning."""
    descriptor = os.memfd_create("adyton-bundle", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as target:
            target.write(data)
        fcntl.fcntl(
            descriptor,
            fcntl.F_ADD_SEALS,
            fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL,
        )
        os.lseek(descriptor, 0, os.SEEK_SET)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _refuse_to_hand_out(state: Path, paths: Iterable[str]) -> None:
    """Whoever names a home folder or the root by mistake would let the enclave change what enclaves run from."""
    for path in paths:
        if Path(path).is_relative_to(state):
            mend = "give the enclave a folder of its own"
            raise LaunchError(f"the state folder {state} holds what the enclave runs from: {path}", mend=mend)


def _dependency_paths(bundle: Bundle) -> list[str]:
    """The folders that hold the locked distributions; what is missing there is the runtime's to refuse."""
    found: dict[str, None] = {}
    for locked in bundle.lock:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[str(Path(str(importlib.metadata.distribution(locked.name).locate_file(""))).resolve())] = None
    return list(found)
