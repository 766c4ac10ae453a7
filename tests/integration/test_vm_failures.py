"""Whatever happens to a virtual machine, the host learns what it was, and nothing of the machine stays behind."""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from machines import LOAD_SECONDS, QEMU, boots, nothing_left, process_of
from observing import eventually

from adyton.errors import (
    ApplicationError,
    ConfigurationError,
    DeadlineError,
    EnclaveDiedError,
    LaunchError,
    UnsupportedError,
)
from adyton.host.bundles import Bundle
from adyton.host.image.cpio import encode_cpio
from adyton.host.image.image import Image
from adyton.host.image.tree import File, Files
from adyton.host.launch.namespaces import why_no_namespaces
from adyton.host.launch.private_directory import PrivateDirectory
from adyton.host.launch.qemu import enclave as enclave_module
from adyton.host.launch.qemu import firmware as firmware_module
from adyton.host.launch.qemu.launcher import QemuLauncher
from adyton.host.manager import EnclaveClient, EnclaveManager
from adyton.proto.enclave_pb2 import EnclaveConfig
from adyton.testing.probes import SERVER, command, config, probe_bundle, server_config

Ask = Callable[[EnclaveClient, str], str]
Build = Callable[..., Image]

pytestmark = boots

INIT = b"""#!/usr/bin/python3.11 -ISBXutf8
import sys

sys.path += ["/enclave/bundle/runtime", "/enclave/bundle/app", "/usr/lib/python3.11/site-packages"]
from adyton.enclave.guest import machine, pid1

"""


@pytest.fixture(autouse=True)
def _nothing_stays(runtime_directory: Path) -> Iterator[None]:
    with nothing_left(runtime_directory):
        yield


def load(
    manager: EnclaveManager, bundle: Bundle | None = None, configuration: EnclaveConfig | None = None
) -> EnclaveClient:
    chosen = probe_bundle() if bundle is None else bundle
    return manager.load("probe", chosen, configuration, on="vm", timeout_seconds=LOAD_SECONDS)


def death(enclave: EnclaveClient) -> EnclaveDiedError:
    """What a call that waits is told."""
    with pytest.raises(EnclaveDiedError) as caught:
        enclave.enter_and_run(command("sleep 100"), timeout_seconds=60)
    return caught.value


# --- what a machine needs on the host


@pytest.mark.parametrize(
    ("present", "message"),
    [
        ([], rf"{QEMU} is not installed \(Debian, Ubuntu: apt install qemu-system-(x86|arm)\)"),
        ([QEMU], r"swtpm is not installed \(Debian, Ubuntu: apt install swtpm\)"),
    ],
    ids=["no QEMU", "no swtpm"],
)
def test_what_is_not_installed_is_named(
    manager: EnclaveManager, present: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    QemuLauncher().prepare(probe_bundle())
    for name in present:
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnsupportedError, match=message):
        load(manager)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other machines have no such firmware at all")
def test_firmware_that_is_not_installed_is_named(manager: EnclaveManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firmware_module, "_OVMF", ())
    with pytest.raises(UnsupportedError, match=r'firmware = "ovmf" needs OVMF.fd \(.*apt install ovmf'):
        load(manager, probe_bundle(settings='[vm]\nfirmware = "ovmf"\n'))


def test_a_port_that_is_taken_is_named(manager: EnclaveManager) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LaunchError, match=rf"port {port} of 127\.0\.0\.1 can't be used: Address already in use"):
            load(manager, probe_bundle(SERVER), server_config(port=port))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("192.0.2.1", r"port 65000 of 192\.0\.2\.1 can't be used: Cannot assign requested address"),
        ("no.such.host.invalid", "'no.such.host.invalid' is no address of this machine"),
        ("\u0130" * 70, "is no address of this machine"),
    ],
    ids=["another's", "a name of nobody", "no name"],
)
def test_an_address_that_is_not_the_hosts_is_refused(manager: EnclaveManager, address: str, message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        load(manager, probe_bundle(SERVER), server_config(address=address, port=65000))


def test_a_standard_input_is_refused(manager: EnclaveManager) -> None:
    configuration = config()
    configuration.stdin_fd = 0
    with pytest.raises(UnsupportedError, match="stdin_fd: a virtual machine has no standard input"):
        load(manager, configuration=configuration)


def test_a_log_that_can_not_be_written_is_said(manager: EnclaveManager, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    configuration = config()
    configuration.logging_config.log_directory = str(tmp_path / "file")
    with pytest.raises(LaunchError, match=r"the log can't be written to .*/file/probe\.log: File exists"):
        load(manager, configuration=configuration)


@pytest.mark.skipif(bool(why_no_namespaces()), reason=why_no_namespaces())
def test_a_full_disk_is_said(tmp_path: Path) -> None:
    QemuLauncher().prepare(probe_bundle())
    script = """
import os, sys
from pathlib import Path
from adyton.errors import LaunchError
from adyton.host.manager import EnclaveManager
from adyton.testing.probes import probe_bundle
with EnclaveManager() as manager:
    try:
        manager.load("probe", probe_bundle(), on="vm")
    except LaunchError as problem:
        print(problem)
print(os.listdir(Path(os.environ["XDG_RUNTIME_DIR"], "adyton")))
"""
    disk = tmp_path / "disk"
    disk.mkdir()
    sandbox = ["bwrap", "--unshare-user", "--dev-bind", "/", "/", "--size", "8000000", "--tmpfs", str(disk)]
    sandbox += ["--setenv", "XDG_RUNTIME_DIR", str(disk)]
    command = [*sandbox, sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    problem, left = done.stdout.splitlines()
    assert problem.startswith(f"the machine's image can't be put into {disk}/adyton/enclave-")
    assert problem.endswith("No space left on device")
    assert left == "[]"


# --- what ends a machine


def test_a_killed_qemu_is_noticed_at_once(manager: EnclaveManager) -> None:
    enclave = load(manager)
    waiting = enclave.run_future(command("sleep 60"))
    os.kill(process_of(QEMU), signal.SIGKILL)
    begun = time.monotonic()
    with pytest.raises(EnclaveDiedError, match="the virtual machine is gone: QEMU ended: killed by SIGKILL") as caught:
        waiting.result(30)
    assert time.monotonic() - begun < 10
    assert caught.value.exit_status == -signal.SIGKILL
    with pytest.raises(EnclaveDiedError):
        enclave.destroy()


def test_a_killed_tpm_ends_the_machine(manager: EnclaveManager) -> None:
    enclave = load(manager)
    os.kill(process_of("swtpm"), signal.SIGKILL)
    assert "the virtual machine's TPM is gone: swtpm ended with status" in death(enclave).message


def test_an_application_that_exits_is_told_from_a_machine_that_ends(manager: EnclaveManager) -> None:
    enclave = load(manager)
    with pytest.raises(EnclaveDiedError, match="the enclave's process ended: exit code 3") as caught:
        enclave.enter_and_run(command("exit 3"), timeout_seconds=60)
    assert caught.value.exit_status == 3
    assert caught.value.console == ()


def test_a_guest_without_memory_says_so(manager: EnclaveManager) -> None:
    enclave = load(manager, probe_bundle(settings="[vm]\nmemory_mb = 256\n"))
    with pytest.raises(EnclaveDiedError, match=r"the guest ran out of memory \(256 MB: enclave.toml, vm.memory_mb\)"):
        enclave.enter_and_run(command("exhaust"), timeout_seconds=60)


def test_an_image_that_memory_can_not_hold_says_so(manager: EnclaveManager, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"model": File(content=bytes(60_000_000))}
    monkeypatch.setattr(QemuLauncher, "_build", building_with(files, QemuLauncher._build))
    with pytest.raises(EnclaveDiedError, match=r"the guest ran out of memory \(256 MB: enclave.toml, vm.memory_mb\)"):
        load(manager, probe_bundle(settings="[vm]\nmemory_mb = 256\n"))


@pytest.mark.parametrize(
    ("init", "message", "logged"),
    [
        (b"raise SystemExit(3)\n", "the guest's kernel panicked: Attempted to kill init!", ""),
        (
            b"def fail():\n    raise OSError('no driver')\nmachine.load_modules = fail\npid1.main(0.0)\n",
            "the virtual machine is gone: it powered off",
            "OSError: no driver",
        ),
    ],
    ids=["ends", "raises"],
)
def test_a_first_process_that_fails_is_explained(
    manager: EnclaveManager, monkeypatch: pytest.MonkeyPatch, init: bytes, message: str, logged: str
) -> None:
    files = {"init": File(content=INIT + init, executable=True)}
    monkeypatch.setattr(QemuLauncher, "_build", building_with(files, QemuLauncher._build))
    with pytest.raises(EnclaveDiedError, match=message) as caught:
        load(manager)
    assert caught.value.console
    assert logged in "\n".join(caught.value.console)
    assert caught.value.log_tail == caught.value.console  # the enclave itself said nothing


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the driver is the PC's")
def test_a_tpm_that_the_kernel_gave_up_is_asked_again(manager: EnclaveManager, monkeypatch: pytest.MonkeyPatch) -> None:
    given_up = b"""
load = machine.load_modules
def give_up():
    load()
    open("/sys/bus/acpi/drivers/tpm_crb/unbind", "w").write("MSFT0101:00")
machine.load_modules = give_up
pid1.main(0.0)
"""
    files = {"init": File(content=INIT + given_up, executable=True)}
    monkeypatch.setattr(QemuLauncher, "_build", building_with(files, QemuLauncher._build))
    assert load(manager).collect_evidence(bytes(64), timeout_seconds=60).tee == "tpm"


def building_with(files: Files, build: Build) -> Build:
    """An image whose last part has more files, which are unpacked over the first."""

    def building(launcher: QemuLauncher, bundle: Bundle, *rest: Any) -> Image:
        image = build(launcher, bundle, *rest)
        changed = Path(os.environ["HOME"], "application")
        changed.write_bytes(image.application.read_bytes() + encode_cpio(files))
        return dataclasses.replace(image, application=changed)

    return building


def test_a_guest_that_hangs_is_ended(manager: EnclaveManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enclave_module, "HANG_SECONDS", 3.0)
    monkeypatch.setattr(enclave_module, "PING_SECONDS", 0.5)
    enclave = load(manager)
    os.kill(process_of(QEMU), signal.SIGSTOP)
    begun = time.monotonic()
    assert death(enclave).message == "the guest hangs: it has not answered for 3 s"
    assert time.monotonic() - begun < 15


@pytest.mark.timeout(240)
def test_a_host_that_was_suspended_for_a_minute_goes_on(manager: EnclaveManager, ask: Ask) -> None:
    enclave = load(manager)
    stopped = [process_of(QEMU), process_of("swtpm")]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    begun = time.monotonic()
    with pytest.raises(DeadlineError, match=r"run was not answered in 2\.0 s"):
        enclave.enter_and_run(command("answer now"), timeout_seconds=2)
    time.sleep(60 - (time.monotonic() - begun))
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    assert ask(enclave, "answer again") == "again"
    assert enclave.collect_evidence(bytes(64)).tee == "tpm"
    enclave.destroy()


def test_nothing_survives_a_killed_host(runtime_directory: Path) -> None:
    script = """
import os, sys, time
from machines import QEMU, process_of
from adyton.host.manager import EnclaveManager
from adyton.testing.probes import probe_bundle
manager = EnclaveManager()
manager.load("probe", probe_bundle(), on="vm")
print(process_of(QEMU), process_of("swtpm"), flush=True)
time.sleep(600)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as host:
        assert host.stdout is not None
        pids = host.stdout.readline().split()
        assert len(pids) == 2
        assert len(list(runtime_directory.glob("enclave-*"))) == 1
        host.kill()
    eventually(lambda: not [pid for pid in pids if Path("/proc", pid.decode(), "exe").exists()])
    PrivateDirectory().close()  # which sweeps


# --- what does not


def test_two_machines_at_once_have_nothing_in_common(manager: EnclaveManager, ask: Ask) -> None:
    names = ("first", "second")
    loaded: dict[str, EnclaveClient] = {}

    def start(name: str) -> None:
        loaded[name] = manager.load(name, probe_bundle(), on="vm", timeout_seconds=LOAD_SECONDS)

    threads = [threading.Thread(target=start, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [ask(loaded[name], f"answer {name}") for name in names] == list(names)
    loaded["first"].destroy()
    assert ask(loaded["second"], "answer still") == "still"


def test_more_than_the_memory_at_once_is_an_applications_own_problem(manager: EnclaveManager, ask: Ask) -> None:
    enclave = load(manager)
    with pytest.raises(ApplicationError, match="uncaught MemoryError in run"):
        ask(enclave, "large 4000000000")
    assert ask(enclave, "answer fine") == "fine"


def test_a_machine_that_qemu_does_not_start_is_a_launch_error(
    manager: EnclaveManager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    build = QemuLauncher._build
    (tmp_path / "kernel").write_bytes(b"no kernel" * 1000)

    def building(launcher: QemuLauncher, bundle: Bundle, *rest: Any) -> Image:
        return dataclasses.replace(build(launcher, bundle, *rest), kernel=tmp_path / "kernel")

    monkeypatch.setattr(QemuLauncher, "_build", building)
    with pytest.raises(LaunchError, match=r"QEMU can't start the virtual machine: qemu.*kernel"):
        load(manager)


def test_a_bundle_of_no_memory_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigurationError, match=r"'vm\.memory_mb' is out of bounds; it may be 256 to 1048576"):
        probe_bundle(settings="[vm]\nmemory_mb = 128\n")
