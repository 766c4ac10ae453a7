"""The protected machines' options, read by the QEMU that is installed, as far as it knows them.

An older QEMU knows neither sev-snp-guest nor tdx-guest, and no host without the hardware starts one; so this shows that
the options are well-formed, and that those which such a QEMU knows mean what they should. It shows no more.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from command_line import adyton

from adyton.errors import ExitCode, UnsupportedError
from adyton.host.launch.qemu.confidential import (
    PROGRAM,
    SEV_MODEL,
    SEV_SNP,
    TDX,
    MemoryBits,
    ask_memory_bits,
    sev_snp_protection,
    tdx_protection,
)
from adyton.host.launch.qemu.machine import Machine, Protection
from adyton.testing.probes import write_probe_project

pytestmark = pytest.mark.skipif(not shutil.which(PROGRAM), reason=f"{PROGRAM} is not installed")

BUNDLE = bytes(range(32))
SEV = sev_snp_protection(BUNDLE, memory_mb=256, bits=MemoryBits(c_bit=51, reduced=1))
#: Why a host without the hardware can't start a guest whose options are in order, newer QEMU's words and older ones'.
NO_HARDWARE = (
    "cbitpos check failed",
    "Could not access KVM",
    "failed to initialize kvm",
    "SEV is not enabled",
    "failed to open /dev/sev",
    "vm-type tdx not supported",
)


def _refusal(*options: str) -> str:
    """What QEMU says before it gives up, which it must."""
    command = [PROGRAM, "-display", "none", "-nodefaults", "-S", *options]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    return done.stderr


def _starts(*options: str, asked: str) -> Any:
    """What a machine that is not run answers to one question of the monitor."""
    words = "".join(json.dumps({"execute": each}) + "\n" for each in ("qmp_capabilities", asked, "quit"))
    command = [PROGRAM, "-display", "none", "-nodefaults", "-S", "-qmp", "stdio", *options]
    done = subprocess.run(command, input=words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[2])["return"]


def _full_refusal(protection: Protection) -> str:
    """What QEMU says to the launcher's own command line."""
    trunk, monitor = socket.socketpair(), socket.socketpair()
    machine = Machine(
        architecture="x86_64",
        accelerator="kvm",
        memory_mb=256,
        cpus=1,
        firmware="/boot/firmware",
        kernel="/boot/kernel",
        initrd="/boot/initrd",
        command_line="console=ttyS0",
        trunk_fd=trunk[1].fileno(),
        monitor_fd=monitor[1].fileno(),
        tpm_fd=None,
        network=False,
        protection=protection,
    )
    with trunk[0], trunk[1], monitor[0], monitor[1]:
        done = subprocess.run(
            machine.arguments(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            pass_fds=(machine.trunk_fd, machine.monitor_fd),
        )
    assert done.returncode == 1, done.stderr
    return done.stderr


def _objects() -> list[str]:
    return subprocess.run([PROGRAM, "-object", "help"], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize(("technology", "protection"), [(SEV_SNP, SEV), (TDX, tdx_protection(BUNDLE))])
def test_nothing_is_wrong_with_the_command_line_but_that_this_host_has_no_such_hardware(
    technology: Any, protection: Protection
) -> None:
    if all(Path(each).exists() for each in ("/dev/sev", "/dev/kvm")):
        pytest.skip("this host may have the hardware")
    said = _full_refusal(protection)
    if technology.guest in _objects():
        assert any(each in said for each in NO_HARDWARE), said
    else:
        assert f"Parameter 'qom-type' does not accept value '{technology.guest}'" in said


def _as_sev(**changes: str) -> list[str]:
    """The SEV-SNP machine's options with the older object, which has all of its options but one."""
    options = dict(each.partition("=")[::2] for each in SEV.objects[1].split(","))
    assert options.pop("host-data")
    assert "sev-snp-guest" in options
    del options["sev-snp-guest"]
    words = "".join(f",{name}={value}" for name, value in (options | changes).items())
    board = ["-M", f"q35,smm=off,vmport=off,{SEV.board}", "-accel", "kvm", "-cpu", SEV.processor, "-m", "256"]
    return [*board, "-object", SEV.objects[0], "-object", f"sev-guest{words}"]


def test_the_older_sev_guest_takes_the_options_and_misses_only_the_hardware() -> None:
    if Path("/dev/sev").exists():
        pytest.skip("this host may have the hardware")
    said = _refusal(*_as_sev())
    assert any(each in said for each in NO_HARDWARE), said


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"cbitpos": "many"}, "Parameter 'cbitpos' expects"),
        ({"policy": "none"}, "Parameter 'policy' expects"),
        ({"kernel-hashes": "perhaps"}, "Parameter 'kernel-hashes' expects"),
        ({"host-date": "AA=="}, "nvalid parameter 'host-date'"),
    ],
)
def test_an_option_that_is_wrong_would_have_been_noticed(change: dict[str, str], refusal: str) -> None:
    assert refusal in _refusal(*_as_sev(**change))


def test_the_memory_of_an_sev_snp_guest_is_one_shared_file() -> None:
    board = SEV.board.replace("confidential-guest-support=sev0,", "")
    options = ("-M", f"q35,smm=off,vmport=off,{board}", "-accel", "tcg", "-m", "256", "-object", SEV.objects[0])
    (memory,) = _starts(*options, asked="query-memdev")
    assert (memory["id"], memory["size"], memory["share"]) == ("ram1", 256 << 20, True)


def test_the_board_of_a_tdx_guest_exists() -> None:
    board = tdx_protection(BUNDLE).board.replace("confidential-guest-support=tdx0,", "")
    assert _starts("-M", f"q35,smm=off,{board}", "-accel", "tcg", asked="query-status")["running"] is False


def test_the_cpu_model_that_is_measured_is_one_that_qemu_has() -> None:
    models = subprocess.run([PROGRAM, "-cpu", "help"], capture_output=True, text=True, check=True).stdout.split()
    if SEV_MODEL not in models and SEV_SNP.guest not in _objects():
        pytest.skip(f"this QEMU is too old for {SEV_MODEL}, and for SEV-SNP")
    assert SEV_MODEL in models


@pytest.mark.parametrize("name", ["sev-snp", "tdx"])
def test_a_host_without_the_hardware_exits_6_with_the_reasons(name: str, tmp_path: Path) -> None:
    technology = {"sev-snp": SEV_SNP, "tdx": TDX}[name]
    if technology.capabilities()[0].available:
        pytest.skip("this host has the hardware")
    done = adyton("run", str(write_probe_project(tmp_path)), "--on", name)
    assert (done.returncode, done.stdout) == (ExitCode.UNSUPPORTED_HERE, "")
    assert f"this machine can't start {technology.title} guests:\n" in done.stderr
    assert technology.switch in done.stderr


def test_qemu_says_what_memory_bits_this_host_has_or_why_it_has_none() -> None:
    if Path("/dev/sev").exists():
        bits = ask_memory_bits()
        assert 32 <= bits.c_bit < 64
        assert 1 <= bits.reduced < 64
    else:
        with pytest.raises(UnsupportedError, match=r"QEMU can't use SEV: (SEV is not enabled|KVM|it did not say)"):
            ask_memory_bits()
