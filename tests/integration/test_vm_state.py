"""The state folder of a virtual machine: a disk that outlives it, and a TPM that stays the same."""

from __future__ import annotations

import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from machines import LOAD_SECONDS, QEMU, boots, needs_ovmf, nothing_left, process_of, quoted

from adyton.errors import (
    ApplicationError,
    ConfigurationError,
    EnclaveDiedError,
    InUseError,
    LaunchError,
    UnsupportedError,
)
from adyton.host.launch.launcher import LaunchRequest
from adyton.host.launch.namespaces import why_no_namespaces
from adyton.host.launch.qemu import disk as disk_module
from adyton.host.launch.qemu.disk import open_disk
from adyton.host.launch.qemu.launcher import QemuLauncher
from adyton.host.manager import EnclaveClient, EnclaveManager
from adyton.testing.probes import command, probe_bundle

Ask = Callable[[EnclaveClient, str], str]

pytestmark = [*boots, pytest.mark.timeout(240)]

INSIDE = "/enclave/state"
BLOCK_BYTES, INODE_BYTES = 4096, 256
FIRST_FILE = 12
"""The inode of the first file that is made; the folder "lost+found" had 11."""


@pytest.fixture(autouse=True)
def _nothing_stays(runtime_directory: Path) -> Iterator[None]:
    with nothing_left(runtime_directory):
        yield


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "a state folder, with a comma"


def load(manager: EnclaveManager, state: Path | None, *, size_mb: int = 16, more: str = "") -> EnclaveClient:
    bundle = probe_bundle(settings=f"[vm]\nstate_mb = {size_mb}\n{more}")
    return manager.load("probe", bundle, on="vm", state=state, timeout_seconds=LOAD_SECONDS)


def end(enclave: EnclaveClient) -> None:
    """Kill QEMU, as a power cut would end a machine."""
    os.kill(process_of(QEMU), signal.SIGKILL)
    with pytest.raises(EnclaveDiedError):
        enclave.enter_and_run(command("sleep 60"), timeout_seconds=60)
    with pytest.raises(EnclaveDiedError):
        enclave.destroy()


def write_at(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


# --- what it is for


def test_what_was_synced_and_the_tpm_outlive_a_killed_machine(manager: EnclaveManager, ask: Ask, state: Path) -> None:
    first = load(manager, state)
    key = quoted(first).ak_sha256
    assert ask(first, "state") == INSIDE
    assert ask(first, f"list {INSIDE}") == "[]"
    assert ask(first, "show /sys/block/vda/queue/write_cache") == "write back\n"
    ask(first, f"keep kept {INSIDE}/file")
    end(first)
    second = load(manager, state)
    assert ask(second, f"show {INSIDE}/file") == "kept"
    assert quoted(second).ak_sha256 == key


def test_what_was_written_outlives_a_machine_that_is_powered_off(
    manager: EnclaveManager, ask: Ask, state: Path
) -> None:
    first = load(manager, state)
    ask(first, f"write {INSIDE}/file")
    ask(first, "leave 600")
    first.destroy()
    assert is_clean(state / disk_module.NAME)
    assert ask(load(manager, state), f"show {INSIDE}/file") == "written"


def is_clean(disk: Path) -> bool:
    """Whether the file system was unmounted: its journal holds nothing (ext4's superblock, s_feature_incompat)."""
    superblock = disk.read_bytes()[1024:2048]
    assert superblock[56:58] == b"\x53\xef"
    (incompatible,) = struct.unpack_from("<I", superblock, 96)
    return not incompatible & 4


@pytest.mark.skipif(subprocess.call(["which", "strace"], stdout=subprocess.DEVNULL) != 0, reason="needs strace")
def test_a_sync_inside_is_one_of_the_hosts_disk(manager: EnclaveManager, ask: Ask, state: Path, tmp_path: Path) -> None:
    enclave = load(manager, state)
    trace = tmp_path / "trace"
    words = ["strace", "-f", "-e", "trace=fdatasync,fsync", "-o", str(trace), "-p", str(process_of(QEMU))]
    with subprocess.Popen(words, stderr=subprocess.PIPE) as strace:
        assert strace.stderr is not None
        if b"attached" not in (said := strace.stderr.readline()):
            pytest.skip(f"a process can't be traced here: {said!r}")
        ask(enclave, f"write {INSIDE}/file")
        assert "sync" not in trace.read_text()
        ask(enclave, f"keep kept {INSIDE}/file")
        strace.terminate()
    assert trace.read_text().count("fdatasync(") >= 2  # the journal's blocks, then the one that makes them count


@needs_ovmf
def test_firmware_measures_no_disk_and_keeps_the_tpm(manager: EnclaveManager, state: Path) -> None:
    more = 'firmware = "ovmf"\n'
    first = load(manager, None, more=more)
    without = quoted(first)
    first.destroy()
    keys = set()
    for _ in range(2):
        enclave = load(manager, state, more=more)
        found = quoted(enclave)
        assert found.quote.pcrs == without.quote.pcrs
        keys.add(found.ak_sha256)
        enclave.destroy()
    assert len(keys) == 1
    assert without.ak_sha256 not in keys


def test_a_machine_without_one_has_no_disk_and_no_driver(manager: EnclaveManager, ask: Ask) -> None:
    enclave = load(manager, None)
    assert ask(enclave, "state") == "None"
    assert "virtio_blk" not in ask(enclave, "show /proc/modules")


# --- what can be full, damaged, or not there


def test_a_full_disk_is_the_applications_own_problem(manager: EnclaveManager, ask: Ask, state: Path) -> None:
    enclave = load(manager, state)
    ask(enclave, f"keep kept {INSIDE}/file")
    assert ask(enclave, f"fill {INSIDE}/large") == "ENOSPC"
    with pytest.raises(ApplicationError, match="uncaught OSError"):
        ask(enclave, f"keep more {INSIDE}/another")
    assert ask(enclave, f"show {INSIDE}/file") == "kept"
    enclave.destroy()
    larger = load(manager, state, size_mb=64)
    assert ask(larger, f"show {INSIDE}/file") == "kept"
    assert ask(larger, f"fill {INSIDE}/large") == "ENOSPC"
    assert int(ask(larger, f"read {INSIDE}/large")) > 40 << 20


@pytest.mark.parametrize("where", ["superblock", "journal"])
def test_a_disk_that_can_not_be_mounted_is_said(manager: EnclaveManager, state: Path, where: str) -> None:
    state.mkdir(mode=0o700)
    os.close(open_disk(state, 16))
    disk = state / disk_module.NAME
    offsets = {"superblock": 0, "journal": journal_of(disk)}
    write_at(disk, offsets[where], b"\xaa" * BLOCK_BYTES)
    with pytest.raises(LaunchError, match=r"could not be set up: the state folder's disk can't be used: .*e2fsck"):
        load(manager, state)


def journal_of(disk: Path) -> int:
    """Where the journal begins: its superblock's magic number."""
    return disk.read_bytes().index(bytes.fromhex("c03b3998 00000004"))


def test_damage_that_shows_later_ends_the_machine(manager: EnclaveManager, ask: Ask, state: Path) -> None:
    first = load(manager, state)
    ask(first, f"write {INSIDE}/file")
    first.destroy()
    disk = state / disk_module.NAME
    (table,) = struct.unpack_from("<I", disk.read_bytes(), BLOCK_BYTES + 8)
    write_at(disk, table * BLOCK_BYTES + (FIRST_FILE - 2) * INODE_BYTES + 40, b"\xaa" * 60)
    second = load(manager, state)
    with pytest.raises(EnclaveDiedError, match=r"the guest's kernel panicked: EXT4-fs \(device vda\): panic forced"):
        ask(second, f"show {INSIDE}/file")


@pytest.mark.parametrize("damage", ["empty", "short", "another's", "none"])
def test_a_damaged_tpm_is_said_and_one_that_is_put_back_is_the_same(
    manager: EnclaveManager, state: Path, tmp_path: Path, damage: str
) -> None:
    launcher, bundle = QemuLauncher(), probe_bundle()
    other = tmp_path / "other"
    for folder in (state, other):
        launcher.launch(LaunchRequest(name="probe", bundle=bundle, state=folder)).close()
    file = state / "tpm" / "tpm2-00.permall"
    kept = file.read_bytes()
    foreign = (other / "tpm" / "tpm2-00.permall").read_bytes()
    assert foreign != kept
    file.write_bytes({"empty": b"", "short": kept[:100], "another's": foreign, "none": b""}[damage])
    if damage == "none":
        file.unlink()
    with pytest.raises(LaunchError, match=r"the TPM in .*(can't be used|is not the one that was made there).*put back"):
        manager.load("probe", bundle, on="vm", state=state)
    file.write_bytes(kept)
    launcher.launch(LaunchRequest(name="probe", bundle=bundle, state=state)).close()


def test_without_mkfs_it_is_said(manager: EnclaveManager, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_module, "_PROGRAMS", "/nowhere")
    with pytest.raises(UnsupportedError, match=r"mkfs\.ext4, which is not installed .*apt install e2fsprogs"):
        load(manager, state)
    assert not list(state.iterdir())


@pytest.mark.skipif(bool(why_no_namespaces()), reason=why_no_namespaces())
def test_a_full_disk_of_the_hosts_is_an_error_inside_and_no_hang(tmp_path: Path) -> None:
    QemuLauncher().prepare(probe_bundle())
    script = """
import sys
from pathlib import Path
from adyton.errors import AdytonError
from adyton.host.manager import EnclaveManager
from adyton.testing.probes import command, probe_bundle
with EnclaveManager() as manager:
    enclave = manager.load("probe", probe_bundle(), on="vm", state=Path(sys.argv[1], "state"), timeout_seconds=90)
    try:
        for number in range(16):
            enclave.enter_and_run(command(f"keep {'x' * 1_000_000} /enclave/state/{number}"))
    except AdytonError as problem:
        print(number, problem.message)
"""
    full = tmp_path / "full"
    full.mkdir()
    sandbox = ["bwrap", "--unshare-user", "--dev-bind", "/", "/", "--size", "4000000", "--tmpfs", str(full)]
    done = subprocess.run(
        [*sandbox, sys.executable, "-c", script, str(full)], capture_output=True, text=True, check=False, timeout=120
    )
    # The file system's own journal may be the first that finds no room; then the kernel does not go on.
    assert re.fullmatch(r"\d+ (uncaught OSError in run|the guest's kernel panicked: EXT4-fs.*)\n", done.stdout), done


# --- who has it


def test_two_machines_at_once_are_refused(manager: EnclaveManager, state: Path) -> None:
    load(manager, state)
    with pytest.raises(InUseError, match="another enclave has the state folder"):
        manager.load("second", probe_bundle(), on="vm", state=state)


# --- what enclave.toml says, which is measured


def test_an_enclave_that_takes_no_state_is_not_started_with_one(manager: EnclaveManager, state: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"vm\.state_mb = 0: in a machine this enclave takes no state"):
        load(manager, state, size_mb=0)


def test_a_disk_that_enclave_toml_does_not_ask_for_is_not_touched(
    manager: EnclaveManager, ask: Ask, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.mkdir(mode=0o700)
    os.close(open_disk(state, 16))
    before = (state / disk_module.NAME).read_bytes()
    monkeypatch.setattr(QemuLauncher, "_check", lambda *_: None)
    enclave = load(manager, state, size_mb=0)
    assert ask(enclave, "state") == "None"
    assert "virtio_blk" not in ask(enclave, "show /proc/modules")
    enclave.destroy()
    assert (state / disk_module.NAME).read_bytes() == before
