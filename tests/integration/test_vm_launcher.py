"""What the virtual machine's launcher promises beyond the conformance kit, seen from inside and from outside."""

from __future__ import annotations

import ast
import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from machines import LOAD_SECONDS, QEMU, boots, needs_ovmf, nothing_left, process_of, quoted
from observing import status_of
from probe import probe_pb2, probe_pb2_grpc

import adyton
from adyton.errors import ApplicationError, StatusCode
from adyton.host.bundles import Bundle
from adyton.host.launch import registry
from adyton.host.launch.namespaces import why_no_namespaces
from adyton.host.launch.qemu import enclave as enclave_module
from adyton.host.launch.qemu import launcher as launcher_module
from adyton.host.launch.qemu import sandbox as sandbox_module
from adyton.host.launch.qemu.launcher import QemuLauncher
from adyton.host.launch.qemu.sandbox import new_uid
from adyton.host.manager import EnclaveClient, EnclaveManager
from adyton.proto import grpc_application_pb2 as extensions
from adyton.proto.enclave_pb2 import EnclaveConfig
from adyton.testing.policies import launcher_policy
from adyton.testing.probes import SERVER, config, probe_bundle, server_config

Ask = Callable[[EnclaveClient, str], str]

pytestmark = boots
needs_namespaces = pytest.mark.skipif(bool(why_no_namespaces()), reason=why_no_namespaces())
TEXT = probe_pb2.Text(text="inside")


class Arm(QemuLauncher):
    """For AArch64, whatever this machine is."""

    def __init__(self) -> None:
        super().__init__(architecture="aarch64")


def load(
    manager: EnclaveManager, bundle: Bundle | None = None, configuration: EnclaveConfig | None = None
) -> EnclaveClient:
    chosen = probe_bundle() if bundle is None else bundle
    return manager.load("probe", chosen, configuration, on="vm", timeout_seconds=LOAD_SECONDS)


def port_of(enclave: EnclaveClient) -> int:
    return enclave.enter_and_run().Extensions[extensions.actual_server_port]


def run_as(uid: str, command: list[str]) -> int:
    words = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--", *command]
    return subprocess.run(words, capture_output=True, timeout=30, check=False).returncode


# --- what is measured is what is quoted


@pytest.mark.parametrize("cpus", [1, 2])
@pytest.mark.parametrize("memory_mb", [256, 512, 1024])
def test_the_computed_pcr_is_the_quoted_one_for_every_size(
    manager: EnclaveManager, memory_mb: int, cpus: int, ask: Ask
) -> None:
    bundle = probe_bundle(settings=f"[vm]\nmemory_mb = {memory_mb}\ncpus = {cpus}\n")
    enclave = load(manager, bundle)
    assert computed(QemuLauncher(), bundle) == {0: quoted(enclave).quote.pcrs["sha256"][0].hex()}
    assert len(ast.literal_eval(ask(enclave, "list /sys/bus/cpu/devices"))) == cpus
    (total,) = (line for line in ask(enclave, "show /proc/meminfo").splitlines() if line.startswith("MemTotal"))
    assert memory_mb * 0.7 < int(total.split()[1]) / 1024 < memory_mb


@needs_ovmf
def test_the_computed_pcrs_are_the_quoted_ones_with_firmware(manager: EnclaveManager) -> None:
    bundle = probe_bundle(settings='[vm]\nfirmware = "ovmf"\n')
    wanted = computed(QemuLauncher(), bundle)
    pcrs = quoted(load(manager, bundle)).quote.pcrs["sha256"]
    assert set(wanted) >= {4, 9}
    assert wanted == {index: pcrs[index].hex() for index in wanted}


@pytest.mark.skipif(shutil.which("qemu-system-aarch64") is None, reason="needs qemu-system-aarch64")
@pytest.mark.timeout(300)
def test_another_architecture_is_emulated_and_measured(
    manager: EnclaveManager, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.LAUNCHERS, "vm", f"{__name__}:Arm")
    enclave = load(manager)
    assert "CPU architecture: 8" in ask(enclave, "show /proc/cpuinfo")
    assert computed(Arm(), probe_bundle()) == {0: quoted(enclave).quote.pcrs["sha256"][0].hex()}


def computed(launcher: QemuLauncher, bundle: Bundle) -> dict[int, str]:
    """The PCRs that reference values name, without those of which anything is accepted."""
    values = launcher.measurements(bundle)["reference_values"]
    assert isinstance(values, dict)
    return {int(index): value for index, value in values["tpm"]["pcrs"].items() if value != "any"}


# --- a server in it


def test_workers_serve_an_attested_channel_each_on_its_own_cpu(manager: EnclaveManager) -> None:
    bundle = probe_bundle(SERVER, "[server]\nworkers = 2\n[vm]\ncpus = 2\n")
    enclave = load(manager, bundle, server_config())
    target, policy = enclave.address_of(port_of(enclave)), launcher_policy(bundle, on="vm")
    found = set()
    for _ in range(40):
        with adyton.connect(target, policy) as channel:
            found.add(probe_pb2_grpc.ProbeStub(channel).Who(TEXT, timeout=60).text)
        if len(found) == 2:
            break
    assert {each.partition(" ")[2] for each in found} == {"[0]", "[1]"}


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1", "0.0.0.0", "::1"])
def test_a_server_is_reached_where_its_configuration_says(manager: EnclaveManager, address: str) -> None:
    bundle = probe_bundle(SERVER)
    with socket.create_server(("", 0)) as chosen:
        port = chosen.getsockname()[1]
    enclave = load(manager, bundle, server_config(address=address, port=port))
    target = enclave.address_of(port)
    shown = {"0.0.0.0": "localhost", "::1": "[::1]"}.get(address, address)
    assert target == f"{shown}:{port}"
    with adyton.connect(target, launcher_policy(bundle, on="vm")) as channel:
        assert probe_pb2_grpc.ProbeStub(channel).Echo(TEXT, timeout=60).text == "inside"
    enclave.destroy()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("::1" if address == "::1" else "127.0.0.1", port), 5)


def test_a_port_that_the_enclave_chose_is_another_on_the_host_if_it_is_taken_there(manager: EnclaveManager) -> None:
    enclave = load(manager, probe_bundle(SERVER), server_config())
    port = port_of(enclave)
    with socket.create_server(("127.0.0.1", port)):
        other = enclave.address_of(port)
    assert other.startswith("127.0.0.1:")
    assert other != f"127.0.0.1:{port}"
    assert enclave.address_of(port) == other
    with grpc.insecure_channel(other) as channel, pytest.raises(grpc.RpcError):
        probe_pb2_grpc.ProbeStub(channel).Echo(TEXT, timeout=10)  # not attested, so not answered


def test_an_address_that_the_guest_does_not_have_is_its_servers_own_problem(manager: EnclaveManager) -> None:
    with pytest.raises(ApplicationError, match=r"can't listen on 192\.0\.2\.1:0: Cannot assign requested") as caught:
        load(manager, probe_bundle(SERVER), server_config(address="192.0.2.1"))
    assert caught.value.status is StatusCode.INTERNAL


# --- what it can't reach


def test_without_outbound_there_is_no_way_out(manager: EnclaveManager, ask: Ask) -> None:
    enclave = load(manager)
    assert ask(enclave, "list /sys/class/net") == "['lo']"
    with pytest.raises(ApplicationError, match="uncaught OSError"):
        ask(enclave, "reach 10.0.2.2:80")


def test_with_outbound_it_reaches_the_host_and_knows_where_names_are_resolved(
    manager: EnclaveManager, ask: Ask
) -> None:
    enclave = load(manager, probe_bundle(settings="[network]\noutbound = true\n"))
    assert ask(enclave, "list /sys/class/net") == "['eth0', 'lo']"
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert ask(enclave, f"reach 10.0.2.2:{server.getsockname()[1]}") == "None"
    assert ask(enclave, "show /etc/resolv.conf") == "nameserver 10.0.2.3\n"


def test_the_enclave_has_no_rights_in_its_guest(manager: EnclaveManager, ask: Ask) -> None:
    configuration = config()
    configuration.host_name = "inner-room"
    enclave = load(manager, configuration=configuration)
    assert ask(enclave, "hostname") == "inner-room"
    status = dict(line.split(":\t", 1) for line in ask(enclave, "show /proc/self/status").splitlines())
    assert status["Uid"].split() == status["Gid"].split() == ["1000"] * 4
    assert status["Groups"].strip() == ""
    assert {int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Amb")} == {0}
    assert status["NoNewPrivs"] == "1"
    for path in ("/dev/vport0p1", "/dev/mem", "/dev/kmsg", "/dev/port"):
        with pytest.raises(ApplicationError, match=r"uncaught (PermissionError|FileNotFoundError)"):
            ask(enclave, f"read {path}")
    for path in ("/proc/1/status", "/proc/1/environ", "/proc/kcore", "/proc/1/fd/3"):
        with pytest.raises(ApplicationError, match=r"uncaught (PermissionError|FileNotFoundError)"):
            ask(enclave, f"read {path}")
    for path in ("/init", "/enclave/bundle/app/probe/plain.py", "/tmp/new", "/run/event-log", "/etc/passwd", "/new"):
        with pytest.raises(ApplicationError, match="uncaught PermissionError"):
            ask(enclave, f"write {path}")


def test_the_enclave_holds_no_descriptor_of_the_first_process(manager: EnclaveManager, ask: Ask) -> None:
    inside = ast.literal_eval(ask(load(manager), "fds"))
    kinds = {each.partition(":")[0] for each in inside}
    assert kinds <= {"/dev/null", "pipe", "socket", "anon_inode"} | {each for each in kinds if "/proc/" in each}


# --- where QEMU runs


@needs_namespaces
def test_qemu_has_neither_rights_nor_a_network_nor_the_hosts_files(manager: EnclaveManager, home: Path) -> None:
    (home / "private").write_text("secret")
    load(manager)
    pid = process_of(QEMU)
    status = status_of(pid)
    assert (status["NoNewPrivs"], status["Seccomp"], int(status["CapEff"], 16)) == ("1", "2", 0)
    assert Path(f"/proc/{pid}/net/dev").read_text().count(":") == 1  # the loopback interface
    for namespace in ("net", "pid", "ipc", "uts", "mnt"):
        assert Path(f"/proc/{pid}/ns/{namespace}").readlink() != Path(f"/proc/self/ns/{namespace}").readlink()
    root = Path(f"/proc/{pid}/root")
    assert sorted(each.name for each in (root / "boot").iterdir()) == ["initrd", "kernel"]
    data = Path(os.environ["XDG_DATA_HOME"])
    for hidden in (home / "private", data, Path(__file__), Path("/etc/shadow"), Path("/etc/passwd"), Path("/root")):
        assert hidden.exists()
        assert not (root / hidden.relative_to("/")).exists()


@pytest.mark.skipif(new_uid() is None, reason="only root has other users to give")
def test_a_machine_and_its_tpm_are_a_user_that_no_other_process_is(manager: EnclaveManager) -> None:
    load(manager)
    pid = process_of(QEMU)
    (uid,) = {number for each in (pid, process_of("swtpm")) for number in status_of(each)["Uid"].split()}
    assert status_of(pid)["Gid"].split() == [uid] * 4
    assert status_of(pid)["Groups"] == ""
    assert uid not in {"0", "65534", str(new_uid())}
    with pytest.raises(KeyError):
        pwd.getpwuid(int(uid))
    read = ["cat", f"/proc/{pid}/maps"]
    assert run_as("65534", read) != 0
    assert run_as(uid, read) == 0  # so it is the user that keeps others out


def test_without_bubblewrap_it_starts_with_qemus_own_filter(
    manager: EnclaveManager, ask: Ask, monkeypatch: pytest.MonkeyPatch, runtime_directory: Path
) -> None:
    for module in (enclave_module, launcher_module, sandbox_module):
        monkeypatch.setattr(module, "why_no_namespaces", lambda: "for the test")
    with nothing_left(runtime_directory):
        enclave = load(manager)
        assert ask(enclave, "answer hello") == "hello"
        assert status_of(process_of(QEMU))["Seccomp"] == "2"
        enclave.destroy()


# --- what it says


def test_the_log_has_the_guests_kernel_and_what_the_enclave_prints(
    manager: EnclaveManager, ask: Ask, tmp_path: Path
) -> None:
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        configuration = config()
        configuration.logging_config.log_directory = str(tmp_path / "logs")
        configuration.stdout_fd, configuration.stderr_fd = out.fileno(), err.fileno()
        enclave = load(manager, configuration=configuration)
        ask(enclave, "print to standard output")
        with pytest.raises(ApplicationError):
            ask(enclave, "raise to the log")
        enclave.destroy()
    log = tmp_path / "logs" / "probe.log"
    text = log.read_text()
    assert (tmp_path / "out").read_text() == "to standard output\n"
    assert "to the log" in (tmp_path / "err").read_text()
    assert "to standard output" in text
    assert "to the log" in text
    assert "tpm tpm0: " in text  # the kernel's
    assert "tpm tpm0: " not in (tmp_path / "err").read_text()
    assert log.stat().st_mode & 0o777 == 0o600
