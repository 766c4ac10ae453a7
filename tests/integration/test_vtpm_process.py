"""The virtual machine's TPM as a process: what it may do, when it ends, and what it leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from observing import status_of
from vtpms import (
    DOCUMENT,
    OK,
    SECONDS,
    ends,
    needs_swtpm,
    pcr_0,
    quoted,
    running,
)

from adyton.errors import EvidenceError, LaunchError, UnsupportedError
from adyton.host.launch.namespaces import why_no_namespaces
from adyton.host.launch.qemu import sandbox
from adyton.host.launch.qemu.sandbox import new_uid
from adyton.host.launch.qemu.swtpm_control import Command
from adyton.host.launch.qemu.vtpm import Vtpm
from adyton.host.launch.qemu.vtpm_authority import VtpmAuthority
from adyton.tee.tpm.launch import pcr0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> VtpmAuthority:
    return VtpmAuthority.open(tmp_path_factory.mktemp("authority"))


def children(pid: int) -> list[int]:
    """The process and all that it started."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in found for each in children(int(child)))]


def open_descriptors() -> list[str]:
    return sorted(each.name for each in Path("/proc/self/fd").iterdir())


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
