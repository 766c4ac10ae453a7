"""The disk of a state folder on the host: made whole, opened for one machine at a time, and never another's file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from adyton.bundle.settings import parse_settings
from adyton.errors import ConfigurationError, InUseError, LaunchError
from adyton.host.launch.qemu import disk as disk_module
from adyton.host.launch.qemu.disk import find_mkfs, open_disk
from adyton.host.launch.qemu.machine import Machine

pytestmark = pytest.mark.skipif(find_mkfs() is None, reason=f"mkfs.ext4 is not installed: {disk_module.MEND}")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "a state folder"
    folder.mkdir(mode=0o700)
    return folder


def test_a_new_disk_is_a_whole_and_sparse_file_of_this_user_alone(state: Path) -> None:
    os.close(open_disk(state, 256))
    status = (state / disk_module.NAME).stat()
    assert (status.st_size, status.st_mode & 0o777) == (256 << 20, 0o600)
    assert status.st_blocks * 512 < 1 << 20
    checker = shutil.which("e2fsck", path="/usr/sbin:/sbin")
    assert checker is not None
    subprocess.run([checker, "-fn", state / disk_module.NAME], capture_output=True, check=True, timeout=60)


def test_a_disk_grows_and_never_shrinks(state: Path) -> None:
    sizes = []
    for size_mb in (32, 64, 16):
        os.close(open_disk(state, size_mb))
        sizes.append((state / disk_module.NAME).stat().st_size >> 20)
    assert sizes == [32, 64, 64]


def test_a_disk_that_can_not_be_made_leaves_nothing(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_module, "_OPTIONS", ("-b", "7"))
    with pytest.raises(LaunchError, match=r"mkfs\.ext4 can't make a file system in .*a state folder: .*block size"):
        open_disk(state, 16)
    assert not list(state.iterdir())


@pytest.mark.parametrize("what", ["a link", "a pipe", "a second name"])
def test_a_disk_that_is_no_file_of_its_own_is_refused(state: Path, tmp_path: Path, what: str) -> None:
    (tmp_path / "foreign").write_bytes(b"x")
    disk = state / disk_module.NAME
    if what == "a link":
        disk.symlink_to(tmp_path / "foreign")
    elif what == "a pipe":
        os.mkfifo(disk)
    else:
        disk.hardlink_to(tmp_path / "foreign")
    with pytest.raises(LaunchError, match=r"the machine's disk .* (can't be opened|is no file of its own)"):
        open_disk(state, 16)
    assert (tmp_path / "foreign").read_bytes() == b"x"


def test_a_machine_whose_host_is_gone_keeps_its_disk_until_it_ends(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_module, "LOCK_SECONDS", 0.1)
    hosts = open_disk(state, 16)
    machines = os.dup(hosts)
    os.close(hosts)
    with pytest.raises(InUseError, match="another machine has the disk"):
        open_disk(state, 16)
    os.close(machines)
    os.close(open_disk(state, 16))


def test_a_host_that_was_killed_while_it_made_the_disk_makes_it_again(state: Path) -> None:
    (state / "disk.new").write_bytes(b"half")
    os.close(open_disk(state, 16))
    assert [each.name for each in state.iterdir()] == [disk_module.NAME]


def test_the_guest_decides_what_is_synced_and_gets_the_errors() -> None:
    machine = Machine(
        architecture="x86_64",
        accelerator="tcg",
        memory_mb=512,
        cpus=1,
        firmware=None,
        kernel="/boot/kernel",
        initrd="/boot/initrd",
        command_line="",
        trunk_fd=7,
        monitor_fd=8,
        tpm_fd=None,
        disk_fd=9,
        network=False,
    )
    words = machine.arguments()
    assert words[words.index("-add-fd") + 1] == "fd=9,set=1"
    node = json.loads(words[words.index("-blockdev") + 1])
    assert node["cache"]["no-flush"] is False
    assert node["file"]["filename"] == "/dev/fdset/1"
    assert [word for word in words if word.startswith("virtio-blk")] == [
        "virtio-blk-pci,drive=state,write-cache=on,werror=report,rerror=report"
    ]


@pytest.mark.parametrize(("size_mb", "accepted"), [(0, True), (1, False), (15, False), (16, True)])
def test_a_disk_has_room_for_its_journal(size_mb: int, accepted: bool) -> None:
    text = f'name = "a"\napplication = "a:A"\ninclude = ["a.py"]\n[vm]\nstate_mb = {size_mb}\n'.encode()
    if accepted:
        assert parse_settings(text).vm.state_mb == size_mb
    else:
        with pytest.raises(ConfigurationError, match=r"'vm\.state_mb' is 16 or more, or 0 for no state"):
            parse_settings(text)
