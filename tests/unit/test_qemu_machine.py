"""QEMU's command line, word by word, and that QEMU itself takes it."""

from __future__ import annotations

import itertools
import shutil
import socket
import subprocess
from dataclasses import replace

import pytest

from adyton.errors import UnsupportedError
from adyton.host.launch.qemu.machine import PACKAGES, Machine, linux_command_line

MACHINE = Machine(
    architecture="x86_64",
    accelerator="tcg",
    memory_mb=512,
    cpus=2,
    firmware="qboot.rom",
    kernel="/boot/kernel",
    initrd="/boot/initrd",
    command_line="console=ttyS0 a=b",
    trunk_fd=7,
    monitor_fd=8,
    tpm_fd=9,
    network=False,
)


def after(words: list[str], option: str) -> list[str]:
    """What follows each `option`."""
    return [value for word, value in itertools.pairwise(words) if word == option]


def test_what_is_booted_is_said_once() -> None:
    words = MACHINE.arguments()
    assert words[0] == "qemu-system-x86_64"
    assert after(words, "-m") == ["512"]
    assert after(words, "-smp") == ["2"]
    assert after(words, "-bios") == ["qboot.rom"]
    assert after(words, "-kernel") == ["/boot/kernel"]
    assert after(words, "-initrd") == ["/boot/initrd"]
    assert after(words, "-append") == ["console=ttyS0 a=b"]


def test_it_has_no_device_that_it_was_not_given() -> None:
    words = MACHINE.arguments()
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} < set(words)
    assert after(words, "-display") == ["none"]
    assert after(words, "-device") == [
        "virtio-serial-pci",
        "virtserialport,chardev=trunk,name=adyton.trunk",
        "tpm-crb,tpmdev=tpm0",
    ]
    assert after(words, "-netdev") == []
    assert not {"-drive", "-fsdev", "-virtfs", "-vnc", "-gdb", "-s"} & set(words)


def test_its_filter_lets_it_start_no_program() -> None:
    (sandbox,) = after(MACHINE.arguments(), "-sandbox")
    assert set(sandbox.split(",")) == {
        "on",
        "obsolete=deny",
        "elevateprivileges=deny",
        "spawn=deny",
        "resourcecontrol=deny",
    }


def test_descriptors_are_handed_over_by_number() -> None:
    sockets = [each for each in after(MACHINE.arguments(), "-chardev") if each.startswith("socket")]
    assert sockets == ["socket,id=monitor,fd=8", "socket,id=trunk,fd=7", "socket,id=tpm,fd=9"]


def test_a_card_and_a_tpm_are_there_only_if_they_were_asked_for() -> None:
    words = replace(MACHINE, tpm_fd=None, network=True).arguments()
    assert after(words, "-tpmdev") == []
    assert after(words, "-netdev") == ["user,id=net0"]
    assert after(words, "-device")[-1] == "virtio-net-pci,netdev=net0,romfile="


def test_aarch64_has_a_board_of_its_own() -> None:
    words = replace(MACHINE, architecture="aarch64", firmware=None).arguments()
    assert words[0] == "qemu-system-aarch64"
    assert after(words, "-M") == ["virt,gic-version=3"]
    assert after(words, "-cpu") == ["cortex-a72"]
    assert after(words, "-bios") == []
    assert after(words, "-device")[-1] == "tpm-tis-device,tpmdev=tpm0"


@pytest.mark.parametrize("architecture", PACKAGES)
def test_kvm_uses_the_hosts_processor_and_device(architecture: str) -> None:
    machine = replace(MACHINE, architecture=architecture, accelerator="kvm")
    assert after(machine.arguments(), "-accel") == ["kvm"]
    assert after(machine.arguments(), "-cpu") == ["host"]
    assert machine.devices == ("/dev/kvm",)
    assert replace(machine, accelerator="tcg").devices == ()


@pytest.mark.parametrize("architecture", PACKAGES)
@pytest.mark.parametrize("network", [True, False])
def test_qemu_takes_it(architecture: str, network: bool) -> None:
    """Stopped before the first instruction (-S) and told to quit by the monitor."""
    program = f"qemu-system-{architecture}"
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed: apt install {PACKAGES[architecture]}")
    ours, theirs = socket.socketpair()
    trunk, trunk_inside = socket.socketpair()
    with ours, theirs, trunk, trunk_inside:
        machine = replace(
            MACHINE,
            architecture=architecture,
            firmware="qboot.rom" if architecture == "x86_64" else None,
            kernel="/dev/null",
            initrd="/dev/null",
            trunk_fd=trunk_inside.fileno(),
            monitor_fd=theirs.fileno(),
            tpm_fd=None,
            network=network,
        )
        words = machine.arguments()
        kernel = words.index("-kernel")  # the files need not be what they are called
        command = [*words[:kernel], "-S"]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=[theirs.fileno(), trunk_inside.fileno()]
        ) as process:
            ours.sendall(b'{"execute":"qmp_capabilities"}{"execute":"quit"}')
            _, problem = process.communicate(timeout=60)
    assert (process.returncode, problem) == (0, b"")


@pytest.mark.parametrize(("architecture", "console"), [("x86_64", "ttyS0"), ("aarch64", "ttyAMA0")])
def test_linux_is_told_where_its_console_is_and_to_stop_when_it_panics(architecture: str, console: str) -> None:
    words = linux_command_line(architecture).split()
    assert words[0] == f"console={console}"
    assert {"panic=-1", "rootfstype=ramfs"} < set(words)


def test_another_architecture_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"no virtual machine for 'riscv64' \(known: x86_64, aarch64\)"):
        linux_command_line("riscv64")
