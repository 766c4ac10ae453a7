"""A virtual machine's TPM: swtpm, in a process of its own, with a thread of ours between its control channel and QEMU.

Whoever controls the host controls it all: it gives evidence of a TPM's shape, and protects from nobody there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import threading
from pathlib import Path
from typing import Final, Self

from adyton.errors import AdytonError, LaunchError, UnsupportedError
from adyton.host.image.reference.hcrtm import event_log
from adyton.host.launch.child import kill_group
from adyton.host.launch.descriptors import socket_pair
from adyton.host.launch.log_pump import LogPump
from adyton.host.launch.qemu.sandbox import sandboxed
from adyton.host.launch.qemu.swtpm_control import SECONDS, Command, SwtpmControl, pass_on
from adyton.host.launch.qemu.vtpm_authority import VtpmAuthority
from adyton.host.launch.spawner import spawn
from adyton.tee._kernel import LinuxKernel
from adyton.tee._tpm_commands import Tpm
from adyton.tee._tpm_structures import parse_public
from adyton.tee._tpm_transport import TpmTransport, check_response_code
from adyton.tee.tpm.launch import MAX_BYTES

END_SECONDS: Final = 2.0
"""How long a process that was killed, and the threads that read from it, may take to end."""
STATE_BYTES: Final = 16 * 1024
"""A new TPM's state takes less; where there is no room for that, a failure needs no other reason."""

_STARTUP, _SHUTDOWN = 0x144, 0x145
_CLEAR: Final = struct.pack(">H", 0)


class Vtpm:
    """A running TPM 2.0 that its maker has certified. Safe in threads."""

    process: subprocess.Popen[bytes]
    """Has ended when the TPM is gone. It is bubblewrap's where there are namespaces."""
    attestation_key: bytes
    """SubjectPublicKeyInfo of the key that `TpmDevice` has on this TPM; as old as the TPM itself."""
    certificates: tuple[bytes, ...]
    """DER: the certificate of the attestation key, then the root's."""
    event_log: bytes
    """That PCR 0 has the document; empty if there is none."""

    def __init__(self, directory: Path, document: bytes | None, uid: int | None) -> None:
        """Start the process; `start` makes a TPM of it. Raises OSError too, and leaves nothing behind then."""
        self.event_log = b"" if document is None else event_log(document)
        self._fault = ""
        with contextlib.ExitStack() as always, contextlib.ExitStack() as on_failure:
            self._ours, theirs = socket_pair(on_failure, always)
            self._qemu, self._proxy = map(on_failure.enter_context, socket.socketpair())
            self.process = _start(directory, theirs.fileno(), uid)
            on_failure.callback(kill_group, self.process)
            assert self.process.stdout is not None
            self._pump = LogPump({self.process.stdout: None}, None)
            on_failure.pop_all()
        self._control = SwtpmControl(self._ours)
        self._thread = threading.Thread(target=self._pass_on, args=(document,), name="adyton-vtpm", daemon=True)

    @classmethod
    def start(cls, directory: Path, *, document: bytes | None, authority: VtpmAuthority, uid: int | None) -> Self:
        """The TPM whose state is in `directory`, which is private and its caller's to remove; a new one if it is empty.

        `document` is what each start and reset of the machine measures into PCR 0 before anything else (4096 bytes at
        most, else ValueError); None leaves measuring to the firmware. `uid` is the machine's, of `sandbox.new_uid`;
        `directory` becomes its, with what is in it. Raises UnsupportedError or LaunchError.
        """
        if document is not None and len(document) > MAX_BYTES:
            raise ValueError(f"a launch document has {MAX_BYTES} bytes at most, not {len(document)}")
        try:
            vtpm = cls(directory, document, uid)
        except OSError as problem:
            raise LaunchError(f"swtpm can't be started: {problem}") from problem
        try:
            vtpm.attestation_key = _take_attestation_key(vtpm._control)
            vtpm.certificates = authority.certify(vtpm.attestation_key)
            vtpm._thread.start()
        except BaseException as problem:
            vtpm.close()
            if not isinstance(problem, (AdytonError, OSError)):
                raise
            raise vtpm._failure(problem, directory) from problem
        return vtpm

    def _failure(self, problem: Exception, directory: Path) -> LaunchError:
        """swtpm itself does not say why it could not write."""
        full = shutil.disk_usage(directory).free < STATE_BYTES
        mend = f"make room in {directory}: its file system is full" if full else ""
        message = (
            f"the virtual TPM could not be made: {problem}; swtpm logged: {'; '.join(self.log_tail()) or 'nothing'}"
        )
        return LaunchError(message, mend=mend)

    @property
    def qemu_fd(self) -> int:
        """For QEMU alone: `-chardev socket,id=tpm,fd=N -tpmdev emulator,id=t0,chardev=tpm`. After `release`, -1."""
        return self._qemu.fileno()

    def release(self) -> None:
        """QEMU has been started and has `qemu_fd`: give up ours, so that the TPM ends when QEMU does."""
        self._qemu.close()

    def log_tail(self) -> tuple[str, ...]:
        """The last lines that swtpm logged, oldest first."""
        return self._pump.tail()

    def explain(self) -> str:
        """In one line, how the TPM is, or why it is gone: swtpm's status and the last that it said."""
        status = self.process.poll()
        how = self._fault or ("swtpm runs" if status is None else f"swtpm ended with status {status}")
        return ": ".join((how, *self.log_tail()[-1:]))

    def close(self) -> None:
        """End it, and leave nothing behind. Safe to call twice."""
        self.process.kill()
        self._wait()
        with contextlib.suppress(OSError):
            self._proxy.shutdown(socket.SHUT_RDWR)
        if self._thread.ident is not None:
            self._thread.join(END_SECONDS)
        self._pump.join(END_SECONDS)
        for each in (self._qemu, self._proxy, self._ours):
            each.close()

    def _wait(self) -> None:
        """Until the process has ended, but not for ever."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_SECONDS)

    def _pass_on(self, document: bytes | None) -> None:
        try:
            pass_on(self._proxy, self._control, document)
            self._control.require(Command.SHUTDOWN)
            self._wait()
        except LaunchError as problem:
            self._fault = str(problem)
        except TimeoutError:
            self._fault = f"swtpm did not answer within {SECONDS:g} s"
        except OSError:
            self._wait()  # its status says what happened
        finally:
            self.process.kill()  # no TPM without us between
            self._proxy.close()


def _start(directory: Path, control_fd: int, uid: int | None) -> subprocess.Popen[bytes]:
    """swtpm on that control channel, in QEMU's sandbox, without a network and with no file but its state.

    It names no path: folders may have spaces, commas and long names. It ends with this process, whatever ends that.
    """
    swtpm = shutil.which("swtpm")
    if swtpm is None:
        raise UnsupportedError("swtpm is not installed", mend="Debian, Ubuntu: apt install swtpm")
    command = [swtpm, "socket", "--tpm2", "--tpmstate", "dir=.", "--ctrl", f"type=unixio,clientfd={control_fd}"]
    try:
        if uid is not None:
            for path in (directory, *directory.iterdir()):  # after another start it was another user's
                os.chown(path, uid, uid, follow_symlinks=False)
        return spawn(
            sandboxed(command, files={}, network=False, devices=(), uid=uid, writable=directory),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(control_fd,),
            env={},
            cwd=directory,
            start_new_session=True,
        )
    except OSError as problem:
        raise LaunchError(f"swtpm can't be started: {problem}") from problem


def _take_attestation_key(control: SwtpmControl) -> bytes:
    """The SubjectPublicKeyInfo of the TPM's attestation key. QEMU finds the TPM as if it had not been started."""
    control.require(Command.INIT, bytes(4))
    ours, theirs = socket.socketpair()
    with ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(SECONDS), 0))
        with theirs:
            control.require(Command.SET_DATAFD, descriptors=[theirs.fileno()])
        kernel = LinuxKernel()
        transport = TpmTransport(kernel, ours.fileno())
        _carry_out(transport, "STARTUP", _STARTUP)
        with Tpm(kernel, ours.fileno()).attestation_key() as (_, public):
            spki = parse_public(public).spki
        _carry_out(transport, "SHUTDOWN", _SHUTDOWN)
    control.require(Command.STOP)  # swtpm sees that `ours` has ended before it sees this
    return spki


def _carry_out(transport: TpmTransport, name: str, code: int) -> None:
    response_code, _ = transport.attempt(code, (), _CLEAR, password=False)
    check_response_code(name, response_code)
