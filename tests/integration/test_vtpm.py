"""The virtual machine's TPM: real swtpm, as QEMU speaks to it, and evidence as the guest's device collects it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from observing import status_of

from adyton.errors import EvidenceError, LaunchError, UnsupportedError
from adyton.host.image.reference.hcrtm import EV_EFI_HCRTM_EVENT, launch_document
from adyton.host.launch.namespaces import why_no_namespaces
from adyton.host.launch.qemu import sandbox
from adyton.host.launch.qemu.sandbox import new_uid
from adyton.host.launch.qemu.swtpm_control import Command, SwtpmControl, pass_on
from adyton.host.launch.qemu.vtpm import Vtpm
from adyton.host.launch.qemu.vtpm_authority import LEAF_LIFETIME, ROOT_COMMON_NAME, VtpmAuthority
from adyton.tee._event_log import authenticated
from adyton.tee._tpm_quote import EVENT_LOG
from adyton.tee.tpm.device import TpmDevice
from adyton.tee.tpm.launch import parse_launch, pcr0
from adyton.tee.tpm.verify import VerifiedTpm, verify_tpm
from adyton.testing.kernels.emulated import EmulatedKernel, Files
from adyton.testing.kernels.tpm import TpmNode
from adyton.testing.tpm_quotes import agile_log

needs_swtpm = pytest.mark.skipif(shutil.which("swtpm") is None, reason="swtpm is not installed: apt install swtpm")

SECONDS = 20.0
REPORT_DATA = bytes(range(64))
DIGESTS = {name: hashlib.sha256(name.encode()).digest() for name in ("application", "kernel", "system")}
DOCUMENT = launch_document(DIGESTS, "panic=-1")
PASSWORD = bytes.fromhex("00000009 40000009 0000 00 0000")
STARTUP, PCR_EXTEND, PCR_RESET = 0x144, 0x182, 0x13D
STORE_VOLATILE = 10
OK, TPM_FAIL = bytes(4), struct.pack(">I", 9)


class Qemu:
    """What QEMU says to its TPM's emulator, in that order; and what the guest's driver has of it."""

    def __init__(self, vtpm: Vtpm) -> None:
        self.control = socket.socket(fileno=os.dup(vtpm.qemu_fd))
        vtpm.release()
        self.control.settimeout(SECONDS)
        self.data, theirs = socket.socketpair()
        self.data.settimeout(SECONDS)
        with theirs:
            assert self.command(Command.SET_DATAFD, descriptors=[theirs.fileno()]) == OK

    def command(self, command: int, body: bytes = b"", *, descriptors: Sequence[int] = ()) -> bytes:
        socket.send_fds(self.control, [struct.pack(">I", command) + body], list(descriptors))
        return self.control.recv(4096)

    def reset(self) -> None:
        """The machine starts, or starts again, and so does whoever drives the TPM in it."""
        assert self.command(Command.STOP) == OK
        assert self.command(Command.SET_BUFFERSIZE, struct.pack(">I", 4096))[:4] == OK
        assert self.command(Command.INIT, bytes(4)) == OK
        assert self.transmit(struct.pack(">HIIH", 0x8001, 12, STARTUP, 0))[6:10] == OK

    def transmit(self, command: bytes) -> bytes:
        self.data.sendall(command)
        response = b""
        while len(response) < 10 or len(response) < struct.unpack_from(">I", response, 2)[0]:
            part = self.data.recv(4096)
            assert part
            response += part
        return response

    def on_pcr(self, code: int, index: int, parameters: bytes = b"") -> bytes:
        """The response code of a command about a PCR, with an empty password."""
        body = struct.pack(">I", index) + PASSWORD + parameters
        return self.transmit(struct.pack(">HII", 0x8002, 10 + len(body), code) + body)[6:10]

    def extend(self, index: int, data: bytes) -> None:
        digest = struct.pack(">IH", 1, 0x000B) + hashlib.sha256(data).digest()
        assert self.on_pcr(PCR_EXTEND, index, digest) == OK

    def close(self) -> None:
        self.control.close()
        self.data.close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> VtpmAuthority:
    return VtpmAuthority.open(tmp_path_factory.mktemp("authority"))


@contextmanager
def running(
    directory: Path, authority: VtpmAuthority, document: bytes | None = DOCUMENT
) -> Iterator[tuple[Vtpm, Qemu]]:
    """A TPM, and a machine on it that has started."""
    directory.mkdir(exist_ok=True)
    vtpm = Vtpm.start(directory, document=document, authority=authority, uid=new_uid())
    with contextlib.closing(vtpm), contextlib.closing(Qemu(vtpm)) as qemu:
        qemu.reset()
        yield vtpm, qemu


def quoted(
    qemu: Qemu, authority: VtpmAuthority, certificates: Sequence[bytes], event_log: bytes | None, *files: Files
) -> VerifiedTpm:
    """What the guest's evidence proves to a client that trusts the authority."""
    with EmulatedKernel(TpmNode(qemu.transmit), *files) as kernel:
        device = TpmDevice(certificates=certificates, event_log=event_log, kernel=kernel)
        evidence = device.collect_evidence(REPORT_DATA)
    anchor = hashlib.sha256(authority.root.public_bytes(Encoding.DER)).digest()
    return verify_tpm(evidence, anchors={anchor}, now=datetime.now(UTC))


def pcr_0(qemu: Qemu, vtpm: Vtpm, authority: VtpmAuthority) -> bytes:
    return quoted(qemu, authority, vtpm.certificates, vtpm.event_log).quote.pcrs["sha256"][0]


def ends(process: subprocess.Popen[bytes]) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(SECONDS)
    return process.returncode is not None


def children(pid: int) -> list[int]:
    """The process and all that it started."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in found for each in children(int(child)))]


def open_descriptors() -> list[str]:
    return sorted(each.name for each in Path("/proc/self/fd").iterdir())


# --- the launch in the evidence


@needs_swtpm
def test_a_guest_proves_what_was_launched(tmp_path: Path, authority: VtpmAuthority) -> None:
    with running(tmp_path, authority) as (vtpm, qemu):
        verified = quoted(qemu, authority, vtpm.certificates, vtpm.event_log)
    assert verified.report_data == hashlib.sha256(REPORT_DATA).digest()
    assert verified.ak_provenance == "certificate"
    assert verified.quote.clock_safe  # so its maker left it in order
    assert verified.quote.pcrs["sha256"][0] == pcr0(DOCUMENT)
    (event,) = verified.quote.events[0]
    assert (event.event_type, authenticated(event)) == (EV_EFI_HCRTM_EVENT, True)
    assert dict(parse_launch(event.data)) == {**DIGESTS, "command-line": hashlib.sha256(b"panic=-1").digest()}


@needs_swtpm
def test_without_a_document_nothing_is_measured(tmp_path: Path, authority: VtpmAuthority) -> None:
    with running(tmp_path, authority, document=None) as (vtpm, qemu):
        assert vtpm.event_log == b""
        assert pcr_0(qemu, vtpm, authority) == bytes(32)


@needs_swtpm
def test_the_log_that_a_device_is_given_goes_before_the_kernels(tmp_path: Path, authority: VtpmAuthority) -> None:
    log = agile_log([(4, 5, b"boot loader")], banks=["sha256"])
    kernels = Files(**{EVENT_LOG: log})
    with running(tmp_path, authority) as (vtpm, qemu):
        qemu.extend(4, b"boot loader")
        own = quoted(qemu, authority, vtpm.certificates, None, kernels).quote.events
        given = quoted(qemu, authority, vtpm.certificates, vtpm.event_log, kernels).quote.events
        none = quoted(qemu, authority, vtpm.certificates, b"", kernels).quote.events
    assert (set(own), set(given), set(none)) == ({4}, {0}, set())


@needs_swtpm
def test_another_byte_is_another_pcr_0(tmp_path: Path, authority: VtpmAuthority) -> None:
    changed = launch_document(DIGESTS, "panic=-2")
    with running(tmp_path, authority, changed) as (vtpm, qemu):
        value = pcr_0(qemu, vtpm, authority)
        proven = quoted(qemu, authority, vtpm.certificates, b"").quote.pcrs["sha256"][0]
    assert value == proven == pcr0(changed) != pcr0(DOCUMENT)


@needs_swtpm
def test_the_log_of_another_launch_proves_nothing(tmp_path: Path, authority: VtpmAuthority) -> None:
    with running(tmp_path / "a", authority) as (expected, _):
        log = expected.event_log
    with running(tmp_path / "b", authority, launch_document(DIGESTS, "panic=-2")) as (vtpm, qemu):
        assert quoted(qemu, authority, vtpm.certificates, log).quote.events == {}


@needs_swtpm
def test_a_reset_machine_is_measured_again_and_keeps_nothing(tmp_path: Path, authority: VtpmAuthority) -> None:
    with running(tmp_path, authority) as (vtpm, qemu):
        qemu.extend(0, b"from the guest")
        qemu.extend(8, b"from the guest")
        before = quoted(qemu, authority, vtpm.certificates, vtpm.event_log).quote.pcrs["sha256"]
        qemu.reset()
        after = quoted(qemu, authority, vtpm.certificates, vtpm.event_log).quote.pcrs["sha256"]
    assert before[0] != pcr0(DOCUMENT)
    assert before[8] != bytes(32)
    assert (after[0], after[8]) == (pcr0(DOCUMENT), bytes(32))


@needs_swtpm
@pytest.mark.parametrize("locality", range(5))
def test_a_guest_can_not_reset_what_the_boot_measured(tmp_path: Path, authority: VtpmAuthority, locality: int) -> None:
    with running(tmp_path, authority) as (vtpm, qemu):
        qemu.extend(0, b"from the guest")
        extended = pcr_0(qemu, vtpm, authority)
        assert qemu.command(Command.SET_LOCALITY, bytes([locality, 0, 0, 0])) == OK  # QEMU pads it
        reset = {index for index in range(24) if qemu.on_pcr(PCR_RESET, index) == OK}
        assert reset.isdisjoint(range(16))
        assert 16 in reset or locality == 4  # the debugging PCR: so the commands were in order
        assert pcr_0(qemu, vtpm, authority) == extended


@needs_swtpm
def test_a_guest_that_starts_the_tpm_again_changes_nothing(tmp_path: Path, authority: VtpmAuthority) -> None:
    with running(tmp_path, authority) as (vtpm, qemu):
        qemu.extend(0, b"from the guest")
        extended = pcr_0(qemu, vtpm, authority)
        assert qemu.transmit(struct.pack(">HIIH", 0x8001, 12, STARTUP, 0))[6:10] != OK
        assert pcr_0(qemu, vtpm, authority) == extended


# --- the proxy


@needs_swtpm
@pytest.mark.parametrize("command", [Command.HASH_START, Command.HASH_DATA, Command.HASH_END, STORE_VOLATILE, 99])
def test_qemu_can_not_measure_nor_carry_the_tpm_away(tmp_path: Path, authority: VtpmAuthority, command: int) -> None:
    with running(tmp_path, authority) as (vtpm, qemu):
        assert qemu.command(command) == b""
        assert ends(vtpm.process)
        assert vtpm.explain().startswith(
            f"QEMU gave the virtual TPM the command {int(command)}, which is not passed on"
        )


@needs_swtpm
def test_qemu_gets_the_whole_of_each_answer(tmp_path: Path, authority: VtpmAuthority) -> None:
    bodies = {Command.SET_BUFFERSIZE: bytes(4), Command.SET_LOCALITY: b"\0", Command.RESET_TPMESTABLISHED: bytes(4)}
    sizes = {Command.GET_CAPABILITY: 8, Command.GET_TPMESTABLISHED: 8, Command.GET_CONFIG: 8}
    sizes |= {Command.SET_BUFFERSIZE: 16, Command.SET_LOCALITY: 4, Command.CANCEL_TPM_CMD: 4}
    sizes |= {Command.RESET_TPMESTABLISHED: 4, Command.STOP: 4}
    with running(tmp_path, authority) as (_, qemu):
        answers = {command: qemu.command(command, bodies.get(command, b"")) for command in sizes}
        assert {command: len(answer) for command, answer in answers.items()} == sizes
        not_running = qemu.command(Command.GET_TPMESTABLISHED)
    assert not_running == struct.pack(">I", 10)  # no more than the error


@needs_swtpm
def test_commands_may_come_in_pieces(tmp_path: Path, authority: VtpmAuthority) -> None:
    with running(tmp_path, authority) as (vtpm, qemu):
        for byte in struct.pack(">II", Command.INIT, 0):
            qemu.control.sendall(bytes([byte]))
            time.sleep(0.01)
        assert qemu.control.recv(16) == OK
        assert qemu.transmit(struct.pack(">HIIH", 0x8001, 12, STARTUP, 0))[6:10] == OK
        assert pcr_0(qemu, vtpm, authority) == pcr0(DOCUMENT)


@pytest.mark.parametrize("refused", [Command.HASH_START, Command.HASH_DATA, Command.HASH_END])
def test_a_tpm_that_does_not_measure_does_not_start(refused: Command) -> None:
    seen: list[int] = []

    def swtpm(connection: socket.socket) -> None:
        while request := connection.recv(8192):
            (command,) = struct.unpack_from(">I", request)
            seen.append(command)
            connection.sendall(TPM_FAIL if command == refused else OK)

    with proxied(swtpm) as qemu:
        qemu.sendall(struct.pack(">II", Command.INIT, 0))
        assert qemu.recv(16) == TPM_FAIL
    assert seen[0] == Command.INIT
    assert seen[-2:] == [refused, Command.STOP]


def test_a_tpm_that_neither_measures_nor_stops_is_hung_up_on() -> None:
    def swtpm(connection: socket.socket) -> None:
        while request := connection.recv(8192):
            (command,) = struct.unpack_from(">I", request)
            connection.sendall(OK if command == Command.INIT else TPM_FAIL)

    with proxied(swtpm) as qemu:
        qemu.sendall(struct.pack(">II", Command.INIT, 0))
        assert qemu.recv(16) == b""


def test_the_answer_of_a_tpm_that_shuts_down_arrives() -> None:
    def swtpm(connection: socket.socket) -> None:
        connection.recv(8192)
        connection.sendall(OK)

    for _ in range(100):  # a second write, even an empty one, would sometimes come after swtpm's end
        with proxied(swtpm) as qemu:
            qemu.sendall(struct.pack(">I", Command.SHUTDOWN))
            assert qemu.recv(16) == OK


@contextmanager
def proxied(swtpm: Callable[[socket.socket], None]) -> Iterator[socket.socket]:
    """QEMU's end of a proxy in front of a control channel that does what `swtpm` does."""
    qemu, proxy = socket.socketpair()
    ours, theirs = socket.socketpair()
    qemu.settimeout(SECONDS)

    def run_proxy() -> None:
        with proxy, ours, contextlib.suppress(OSError, LaunchError):
            pass_on(proxy, SwtpmControl(ours), DOCUMENT)

    def run_swtpm() -> None:
        with theirs:
            swtpm(theirs)

    threads = [threading.Thread(target=run) for run in (run_proxy, run_swtpm)]
    for thread in threads:
        thread.start()
    try:
        yield qemu
    finally:
        qemu.close()
        for thread in threads:
            thread.join(SECONDS)
            assert not thread.is_alive()


# --- the process


@needs_swtpm
def test_a_killed_tpm_is_seen_by_its_process_and_by_qemu(tmp_path: Path, authority: VtpmAuthority) -> None:
    with running(tmp_path, authority) as (vtpm, qemu):
        os.kill(children(vtpm.process.pid)[-1], signal.SIGKILL)
        assert ends(vtpm.process)
        assert qemu.control.recv(16) == b""
        assert qemu.data.recv(16) == b""
        assert "swtpm ended with status" in vtpm.explain()


@needs_swtpm
def test_a_tpm_that_qemu_shuts_down_ends_in_peace(tmp_path: Path, authority: VtpmAuthority) -> None:
    with running(tmp_path, authority) as (vtpm, qemu):
        assert qemu.command(Command.SHUTDOWN) == OK
        assert qemu.control.recv(16) == b""
        assert ends(vtpm.process)
        assert vtpm.process.returncode == 0


@needs_swtpm
def test_a_tpm_ends_with_its_qemu(tmp_path: Path, authority: VtpmAuthority) -> None:
    with running(tmp_path, authority) as (vtpm, qemu):
        qemu.close()
        assert ends(vtpm.process)
        assert vtpm.process.returncode == 0


@needs_swtpm
@pytest.mark.parametrize("namespaces", [True, False])
def test_a_tpm_ends_with_its_host(tmp_path: Path, namespaces: bool) -> None:
    if namespaces and why_no_namespaces():
        pytest.skip(why_no_namespaces())
    script = """
import sys
from pathlib import Path
from adyton.host.launch.qemu import sandbox
from adyton.host.launch.qemu.vtpm import Vtpm
from adyton.host.launch.qemu.vtpm_authority import VtpmAuthority
if sys.argv[2] == "False":
    sandbox.why_no_namespaces = lambda: "for the test"
directory, authority = Path(sys.argv[1]), VtpmAuthority.open(Path(sys.argv[1]))
running = Vtpm.start(directory, document=None, authority=authority, uid=sandbox.new_uid())
print(running.process.pid, flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", script, str(tmp_path), str(namespaces)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as host:
        assert host.stdout
        pids = children(int(host.stdout.readline()))
        host.kill()
    until = time.monotonic() + SECONDS
    while any(Path(f"/proc/{pid}/exe").exists() for pid in pids) and time.monotonic() < until:
        time.sleep(0.01)
    assert len(pids) == (3 if namespaces else 1)
    assert not [pid for pid in pids if Path(f"/proc/{pid}/exe").exists()]


@needs_swtpm
def test_a_tpm_has_neither_rights_nor_a_network_nor_the_hosts_files(tmp_path: Path, authority: VtpmAuthority) -> None:
    if why_no_namespaces():
        pytest.skip(why_no_namespaces())
    with running(tmp_path / "tpm", authority) as (vtpm, _):
        pid = children(vtpm.process.pid)[-1]
        proc, status = Path(f"/proc/{pid}"), status_of(pid)
        assert (proc / "exe").readlink().name == "swtpm"
        assert (status["NoNewPrivs"], status["Seccomp"], int(status["CapEff"], 16)) == ("1", "2", 0)
        assert (proc / "net/dev").read_text().count(":") == 1  # the loopback interface
        assert {each.name for each in (proc / "root/state").iterdir()} >= {"tpm2-00.permall"}
        assert not list((proc / "root/boot").iterdir())
        for hidden in (tmp_path, Path(os.environ["XDG_DATA_HOME"]), Path("/etc/shadow"), Path("/var"), Path(__file__)):
            assert hidden.exists()
            assert not (proc / "root" / hidden.relative_to("/")).exists()


@needs_swtpm
@pytest.mark.skipif(new_uid() is None, reason="only root has other users to give")
def test_two_tpms_are_two_users(tmp_path: Path, authority: VtpmAuthority) -> None:
    uids = new_uid(), new_uid()
    for name, uid in zip("ab", uids, strict=True):
        (tmp_path / name).mkdir()
        vtpm = Vtpm.start(tmp_path / name, document=DOCUMENT, authority=authority, uid=uid)
        with contextlib.closing(vtpm):
            status = status_of(children(vtpm.process.pid)[-1])
        assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(uid)}
        assert status["Groups"] == ""
        assert (tmp_path / name).stat().st_uid == uid
    assert len({0, 65534, *uids}) == 4


@needs_swtpm
def test_a_root_of_few_users_starts_a_tpm_without_rights(tmp_path: Path) -> None:
    """As in a container that has no other users to give: there it stays what it is, in a user namespace."""
    if why_no_namespaces():
        pytest.skip(why_no_namespaces())
    script = """
import sys
from pathlib import Path
from adyton.host.launch.qemu.sandbox import new_uid
from adyton.host.launch.qemu.vtpm import Vtpm
from adyton.host.launch.qemu.vtpm_authority import VtpmAuthority
from observing import children_of, status_of
authority, directory = VtpmAuthority.open(Path(sys.argv[1])), Path(sys.argv[2])
assert new_uid() is None
vtpm = Vtpm.start(directory, document=None, authority=authority, uid=None)
print(status_of(max(children_of(vtpm.process.pid)))["CapEff"])
vtpm.close()
"""
    directory = tmp_path / "tpm"
    directory.mkdir()
    in_container = ["bwrap", "--unshare-user", "--uid", "0", "--gid", "0", "--cap-add", "ALL", "--dev-bind", "/", "/"]
    command = [*in_container, sys.executable, "-c", script, str(tmp_path), str(directory)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment)
    assert int(done.stdout, 16) == 0


@needs_swtpm
@pytest.mark.parametrize("namespaces", [True, False])
@pytest.mark.parametrize("name", ["with spaces", "with,comma=and", "n" * 200])
def test_a_folder_may_have_any_name(
    tmp_path: Path, authority: VtpmAuthority, name: str, namespaces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not namespaces:
        monkeypatch.setattr(sandbox, "why_no_namespaces", lambda: "for the test")
    with running(tmp_path / name, authority) as (vtpm, qemu):
        assert pcr_0(qemu, vtpm, authority) == pcr0(DOCUMENT)
        assert list((tmp_path / name).glob("tpm2-00.permall"))


@needs_swtpm
def test_closing_twice_leaves_nothing_behind(tmp_path: Path, authority: VtpmAuthority) -> None:
    with running(tmp_path / "before", authority):
        pass  # starts the thread that starts children
    descriptors, threads = open_descriptors(), threading.active_count()
    vtpm = Vtpm.start(tmp_path, document=DOCUMENT, authority=authority, uid=new_uid())
    pids = children(vtpm.process.pid)
    vtpm.close()
    vtpm.close()
    assert vtpm.qemu_fd == -1
    assert (open_descriptors(), threading.active_count()) == (descriptors, threads)
    assert not [pid for pid in pids if Path(f"/proc/{pid}/exe").exists()]


@needs_swtpm
def test_each_machine_has_a_tpm_of_its_own(tmp_path: Path, authority: VtpmAuthority) -> None:
    with running(tmp_path / "a", authority) as (first, _), running(tmp_path / "b", authority) as (second, qemu):
        assert first.certificates[0] != second.certificates[0]
        with pytest.raises(EvidenceError, match="none of the certificates is its own"):
            quoted(qemu, authority, first.certificates, second.event_log)


@needs_swtpm
def test_a_folder_that_can_not_hold_the_state_is_refused(tmp_path: Path, authority: VtpmAuthority) -> None:
    (tmp_path / "file").touch()
    descriptors = open_descriptors()
    with pytest.raises(LaunchError, match=r"swtpm can't be started: .*Not a directory"):
        Vtpm.start(tmp_path / "file", document=DOCUMENT, authority=authority, uid=new_uid())
    assert open_descriptors() == descriptors


@needs_swtpm
def test_a_tpm_that_can_not_be_made_leaves_nothing_behind(tmp_path: Path, authority: VtpmAuthority) -> None:
    bad = tmp_path / "bad"
    with running(tmp_path / "good", authority):
        pass  # starts the thread that starts children
    (bad / "tpm2-00.permall").mkdir(parents=True)  # where the state's file should be
    descriptors, threads = open_descriptors(), threading.active_count()
    with pytest.raises(LaunchError, match=r"the virtual TPM could not be made: .*; swtpm logged: swtpm: .*Error"):
        Vtpm.start(bad, document=None, authority=authority, uid=new_uid())
    assert (open_descriptors(), threading.active_count()) == (descriptors, threads)


@needs_swtpm
def test_a_full_disk_is_said(tmp_path: Path) -> None:
    if why_no_namespaces():
        pytest.skip(why_no_namespaces())
    script = """
import sys
from pathlib import Path
from adyton.errors import LaunchError
from adyton.host.launch.qemu.sandbox import new_uid
from adyton.host.launch.qemu.vtpm import Vtpm
from adyton.host.launch.qemu.vtpm_authority import VtpmAuthority
authority, directory = VtpmAuthority.open(Path(sys.argv[1])), Path(sys.argv[2])
try:
    with (directory / "full").open("wb", 0) as file:
        while file.write(bytes(4096)):
            pass
except OSError:
    pass
try:
    Vtpm.start(directory, document=None, authority=authority, uid=new_uid())
except LaunchError as problem:
    print(problem)
"""
    disk = tmp_path / "disk"
    disk.mkdir()
    sandbox = ["bwrap", "--unshare-user", "--dev-bind", "/", "/", "--size", "65536", "--tmpfs", str(disk)]
    command = [*sandbox, sys.executable, "-c", script, str(tmp_path), str(disk)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("the virtual TPM could not be made: ")
    assert f"(make room in {disk}: its file system is full)" in done.stdout


def test_without_swtpm_it_is_said_how_to_get_it(
    tmp_path: Path, authority: VtpmAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnsupportedError, match=r"swtpm is not installed .*apt install swtpm"):
        Vtpm.start(tmp_path, document=None, authority=authority, uid=new_uid())


def test_a_document_that_is_too_large_is_refused(tmp_path: Path, authority: VtpmAuthority) -> None:
    with pytest.raises(ValueError, match="4096 bytes at most, not 4097"):
        Vtpm.start(tmp_path, document=bytes(4097), authority=authority, uid=new_uid())


# --- the authority


def test_the_root_is_made_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    root = VtpmAuthority.open().root
    assert VtpmAuthority.open().root == root
    assert root.subject.rfc4514_string() == f"CN={ROOT_COMMON_NAME}"
    path = tmp_path / "adyton/vtpm/root.pem"
    assert (path.stat().st_mode & 0o777, [each.name for each in path.parent.iterdir()]) == (0o600, ["root.pem"])
    path.chmod(0o644)
    with pytest.raises(LaunchError, match=r"the virtual TPM's root .* can be read by others"):
        VtpmAuthority.open()


def test_a_root_without_a_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", "relative")
    with pytest.raises(LaunchError, match="there is no place for the virtual TPM's root"):
        VtpmAuthority.open()


def test_a_certificate_is_for_attestation_only_and_ends_with_its_root(tmp_path: Path) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    early = VtpmAuthority.open(tmp_path, clock=lambda: now)
    late = VtpmAuthority.open(tmp_path, clock=lambda: now + timedelta(days=3640))
    leaf, root = map(x509.load_der_x509_certificate, early.certify(spki))
    assert (leaf.public_key(), root) == (key, early.root)
    assert leaf.not_valid_after_utc == now + LEAF_LIFETIME
    assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [usage.dotted_string for usage in usages] == ["2.23.133.8.3"]
    last = x509.load_der_x509_certificate(late.certify(spki)[0])
    assert last.not_valid_after_utc == root.not_valid_after_utc


def test_only_keys_of_elliptic_curves_are_certified(authority: VtpmAuthority) -> None:
    key = rsa.generate_private_key(65537, 2048).public_key()
    with pytest.raises(EvidenceError, match="not one of an elliptic curve"):
        authority.certify(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(EvidenceError, match="the attestation key does not parse"):
        authority.certify(b"no key")
