"""What QEMU is told for SEV-SNP and TDX, and what a host must have, on hosts that are folders."""

from __future__ import annotations

import base64
import inspect
import json
import os
import platform
import subprocess
from pathlib import Path

import pytest

from adyton.enclave.guest import machine as machine_of_guest
from adyton.errors import ExitCode, UnsupportedError
from adyton.host.image import modules
from adyton.host.image.reference.snp import snp_measurement
from adyton.host.launch.launcher import LaunchRequest
from adyton.host.launch.namespaces import why_no_namespaces
from adyton.host.launch.qemu import confidential
from adyton.host.launch.qemu.confidential import (
    SEV_MODEL,
    SEV_SNP,
    TDX,
    Confidential,
    MemoryBits,
    ask_memory_bits,
    parse_sev_capabilities,
    sev_snp_protection,
    tdx_protection,
)
from adyton.host.launch.qemu.machine import Machine, Protection
from adyton.host.launch.qemu.sandbox import new_uid, sandboxed, why_closed
from adyton.host.launch.registry import launcher
from adyton.testing.probes import probe_bundle

BUNDLE = bytes(range(32))
BOARD = "q35,smm=off,i8042=off,sata=off,smbus=off,vmport=off,graphics=off,usb=off"
#: What a QEMU that has SEV answers, shortened where it is long.
ANSWERS = (
    '{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}}, "capabilities": ["oob"]}}\n'
    '{"return": {}}\n'
    '{"return": {"reduced-phys-bits": 1, "pdh": "AQAA", "cert-chain": "AQAA", "cpu0-id": "AA==", "cbitpos": 51}}\n'
    '{"return": {}}\n'
)


def machine(protection: Protection) -> Machine:
    return Machine(
        architecture="x86_64",
        accelerator="kvm",
        memory_mb=768,
        cpus=2,
        firmware="/boot/firmware",
        kernel="/boot/kernel",
        initrd="/boot/initrd",
        command_line="console=ttyS0 panic=-1",
        trunk_fd=7,
        monitor_fd=8,
        tpm_fd=None,
        network=False,
        protection=protection,
    )


def the_rest() -> list[str]:
    sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
    return [
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-sandbox", sandbox),
        *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
        *("-m", "768", "-smp", "2", "-bios", "/boot/firmware"),
        *("-chardev", "socket,id=monitor,fd=8", "-mon", "chardev=monitor,mode=control"),
        *("-device", "virtio-serial-pci", "-chardev", "socket,id=trunk,fd=7"),
        *("-device", "virtserialport,chardev=trunk,name=adyton.trunk"),
        *("-kernel", "/boot/kernel", "-initrd", "/boot/initrd", "-append", "console=ttyS0 panic=-1"),
    ]


# --- what QEMU is told


def test_an_sev_snp_guest_has_its_kernel_measured_and_the_bundle_as_its_host_data() -> None:
    protection = sev_snp_protection(BUNDLE, memory_mb=768, bits=MemoryBits(c_bit=51, reduced=1))
    host_data = base64.b64encode(BUNDLE).decode()
    assert machine(protection).arguments() == [
        "qemu-system-x86_64",
        "-M",
        f"{BOARD},kernel-irqchip=split,confidential-guest-support=sev0,memory-backend=ram1",
        *("-accel", "kvm", "-cpu", "EPYC-v4"),
        *("-object", "memory-backend-memfd,id=ram1,size=768M,share=true"),
        "-object",
        f"sev-snp-guest,id=sev0,cbitpos=51,reduced-phys-bits=1,policy=0x30000,kernel-hashes=on,host-data={host_data}",
        *the_rest(),
    ]
    assert machine(protection).devices == ("/dev/kvm", "/dev/sev")


def test_the_host_may_not_debug_an_sev_snp_guest() -> None:
    protection = sev_snp_protection(BUNDLE, memory_mb=256, bits=MemoryBits(c_bit=47, reduced=5))
    options = dict(each.partition("=")[::2] for each in protection.objects[1].split(","))
    policy = int(options["policy"], 16)
    assert policy >> 17 & 1, "reserved, and always one"
    assert not policy >> 19 & 1, "DEBUG"
    assert not policy >> 18 & 1, "MIGRATE_MA"
    assert (options["cbitpos"], options["reduced-phys-bits"]) == ("47", "5")


def test_the_reference_value_is_that_of_the_cpu_model_that_is_started() -> None:
    assert inspect.signature(snp_measurement).parameters["cpu_model"].default == SEV_MODEL


def test_a_tdx_guest_has_the_bundle_as_its_mrconfigid() -> None:
    protection = tdx_protection(BUNDLE)
    words = machine(protection).arguments()
    assert words == [
        "qemu-system-x86_64",
        "-M",
        f"{BOARD},kernel-irqchip=split,confidential-guest-support=tdx0,hpet=off",
        *("-accel", "kvm", "-cpu", "host", "-object", protection.objects[0]),
        *the_rest(),
    ]
    assert json.loads(protection.objects[0]) == {
        "qom-type": "tdx-guest",
        "id": "tdx0",
        "mrconfigid": base64.b64encode(BUNDLE + bytes(16)).decode(),
        "quote-generation-socket": {"type": "vsock", "cid": "2", "port": "4050"},
    }
    assert machine(protection).devices == ("/dev/kvm",)


# --- the host's memory


def test_the_memory_bits_are_what_qemu_says() -> None:
    assert parse_sev_capabilities(ANSWERS) == MemoryBits(c_bit=51, reduced=1)


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ('{"return": {}}\n{"error": {"class": "GenericError", "desc": "KVM not enabled"}}', "KVM not enabled"),
        ('{"return": {}}', "it did not say why"),
        ("", "it did not say why"),
    ],
)
def test_a_qemu_that_can_not_use_sev_says_why(answers: str, why: str) -> None:
    with pytest.raises(UnsupportedError, match=f"QEMU can't use SEV: {why}"):
        parse_sev_capabilities(answers)


def test_without_qemu_there_are_no_memory_bits() -> None:
    with pytest.raises(UnsupportedError, match="QEMU can't use SEV"):
        ask_memory_bits("no-such-program")


# --- what a host needs


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that has everything for both; no host does. Its QEMU lists its objects, and no more."""
    for technology in (SEV_SNP, TDX):
        monkeypatch.delenv(technology.variable, raising=False)
        _put(tmp_path / technology.switch[1:], "Y\n")
        _put(tmp_path / technology.firmware[-1][1:], "firmware")
        for device in technology.devices:
            _put(tmp_path / device[1:], "", mode=0o666)
    listing = "".join(f"  {each.guest}\\n" for each in (SEV_SNP, TDX))
    _put(tmp_path / "bin/qemu-system-x86_64", f"#!/bin/sh\nprintf '{listing}'\n", mode=0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    return tmp_path


def _put(path: Path, text: str, *, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


BOTH = pytest.mark.parametrize("technology", [SEV_SNP, TDX], ids=lambda each: each.technology)


@BOTH
def test_a_host_that_has_everything_can_start_one(technology: Confidential, host: Path) -> None:
    technology.check(host)
    capabilities = technology.capabilities(host)
    assert capabilities[0].name == "launch"
    assert all(each.available for each in capabilities)


@BOTH
@pytest.mark.parametrize("needed", ["kvm", "kvm device", "qemu", "firmware"])
def test_each_thing_that_is_missing_is_named_alone(technology: Confidential, host: Path, needed: str) -> None:
    match needed:
        case "kvm":
            _put(host / technology.switch[1:], "N\n")
        case "kvm device":
            (host / "dev/kvm").unlink()
        case "qemu":
            _put(host / "bin/qemu-system-x86_64", "#!/bin/sh\necho sev-guest\n", mode=0o755)
        case "firmware":
            (host / technology.firmware[-1][1:]).unlink()
    launch, *needs = technology.capabilities(host)
    assert [each.name for each in needs if not each.available] == [needed]
    assert (launch.available, launch.detail) == (False, f"lacks {needed}")
    with pytest.raises(UnsupportedError, match=f"can't start {technology.title} guests:\n  [^\n]*$"):
        technology.check(host)


@BOTH
def test_an_empty_host_is_told_everything_at_once(
    technology: Confidential, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(technology.variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnsupportedError) as caught:
        technology.check(tmp_path)
    for expected in (technology.switch, *technology.devices, technology.guest, technology.variable):
        assert expected in caught.value.message
    assert caught.value.exit_code is ExitCode.UNSUPPORTED_HERE


@BOTH
def test_another_processor_is_named(technology: Confidential, host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(UnsupportedError, match=f"{technology.title} is x86_64's, and this is aarch64"):
        technology.check(host)


@BOTH
def test_the_firmware_that_the_environment_names_goes_first(
    technology: Confidential, host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert technology.find_firmware(host) == host / technology.firmware[-1][1:]
    _put(tmp_path / "mine.fd", "firmware")
    monkeypatch.setenv(technology.variable, str(tmp_path / "mine.fd"))
    assert technology.find_firmware(host) == tmp_path / "mine.fd"
    monkeypatch.setenv(technology.variable, str(tmp_path / "theirs.fd"))
    with pytest.raises(UnsupportedError, match=f"{technology.variable} names no file: .*theirs.fd"):
        technology.find_firmware(host)


# --- the guest's drivers


def test_every_driver_that_a_guest_may_load_is_one_that_images_have() -> None:
    wanted = {*machine_of_guest._VIRTIO_MODULES.values(), *machine_of_guest._PROCESSOR_MODULES.values(), "sev_guest"}
    assert wanted <= set(modules._WANTED)


# --- the host's devices


def test_a_device_that_is_roots_alone_is_closed_to_qemu(tmp_path: Path) -> None:
    device = tmp_path / "device"
    assert why_closed(device) == "is not there"
    _put(device, "", mode=0o000)
    if os.geteuid() == 0 and not why_no_namespaces():
        assert "give it to a group" in why_closed(device)
        os.chown(device, 0, 12345)
        device.chmod(0o660)
        assert why_closed(device) == ""
    elif os.geteuid() != 0:
        assert "join its group" in why_closed(device)
    device.chmod(0o666)
    assert why_closed(device) == ""


@pytest.mark.skipif(bool(why_no_namespaces()), reason=why_no_namespaces())
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to any group")
@pytest.mark.parametrize(("group", "status"), [(12345, 0), (0, 1)])
def test_the_sandboxed_qemu_is_in_its_devices_groups_and_never_in_roots(group: int, status: int) -> None:
    device = Path("/dev/shm/adyton-test-device")
    _put(device, "", mode=0o660)
    try:
        os.chown(device, 0, group)
        command = sandboxed(
            ["sh", "-c", f": >>{device}"], files={}, network=False, devices=[str(device)], uid=new_uid()
        )
        done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    finally:
        device.unlink()
    assert bool(done.returncode) == bool(status), done.stderr


# --- the launchers


@pytest.mark.parametrize(("name", "technology"), [("sev-snp", SEV_SNP), ("tdx", TDX)])
def test_the_launcher_refuses_a_machine_that_can_not_before_it_builds_anything(
    name: str, technology: Confidential, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(confidential, "_read", lambda _: "N")
    made = launcher(name)
    assert made.technology == name
    assert made.anchors() == {}
    assert "never run on the hardware" in made.warning
    assert not made.capabilities()[0].available
    for action in (made.prepare, lambda bundle: made.launch(LaunchRequest(name="probe", bundle=bundle))):
        with pytest.raises(UnsupportedError, match=f"can't start {technology.title} guests"):
            action(probe_bundle())
    assert list(tmp_path.iterdir()) == []
