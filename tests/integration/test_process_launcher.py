"""What the process launcher promises beyond the conformance kit, seen from inside and from outside."""

from __future__ import annotations

import ast
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path

import pytest
from descriptors import failures_for_want_of_descriptors, python_leaves_none
from observing import eventually, processes_that_mention

from adyton.errors import (
    ApplicationError,
    ConfigurationError,
    EnclaveDiedError,
    LaunchError,
    UnsupportedError,
)
from adyton.host.bundles import LOCK, Bundle
from adyton.host.launch import hardening, registry
from adyton.host.launch.launcher import LaunchRequest
from adyton.host.launch.namespaces import why_no_namespaces
from adyton.host.launch.process import LOG_SECONDS, ProcessEnclave, ProcessLauncher
from adyton.host.manager import END_SECONDS, EnclaveClient, EnclaveManager
from adyton.testing.probes import command, config, probe_bundle, write_probe_project

Ask = Callable[[EnclaveClient, str], str]

needs_landlock = pytest.mark.skipif(hardening.landlock_abi() == 0, reason="the kernel has no Landlock")
needs_namespaces = pytest.mark.skipif(bool(why_no_namespaces()), reason=why_no_namespaces())


class WithoutNamespaces(ProcessLauncher):
    def __init__(self) -> None:
        super().__init__(namespaces=False)


@pytest.fixture(params=["bare", pytest.param("namespaces", marks=needs_namespaces)])
def technology(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "bare":
        monkeypatch.setitem(registry.LAUNCHERS, "process", f"{__name__}:WithoutNamespaces")
    return "process"


def test_no_descriptor_of_the_hosts_is_inside(
    manager: EnclaveManager, ask: Ask, technology: str, tmp_path: Path
) -> None:
    with (tmp_path / "host's file").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        enclave = manager.load("probe", probe_bundle(), on=technology)
        inside = ast.literal_eval(ask(enclave, "fds"))
    assert not [each for each in inside if "host's file" in each]
    kinds = {each.partition(":")[0] for each in inside}
    assert kinds <= {"/dev/null", "pipe", "socket", "anon_inode"} | {
        each for each in kinds if each.startswith("/proc/")
    }


def test_the_process_has_given_up_what_it_can(
    manager: EnclaveManager, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.LAUNCHERS, "process", f"{__name__}:WithoutNamespaces")
    pid = int(ask(manager.load("probe", probe_bundle()), "pid"))
    status = Path(f"/proc/{pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status or not hardening.seccomp_is_possible()
    assert os.getsid(pid) == pid
    cores = next(line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if line.startswith("Max core"))
    assert cores.split()[4:6] == ["0", "0"]


@needs_landlock
def test_it_reads_no_file_of_the_host(manager: EnclaveManager, ask: Ask, technology: str, home: Path) -> None:
    (home / "private").write_text("secret")
    enclave = manager.load("probe", probe_bundle(), on=technology)
    for path in (home / "private", Path("/etc/passwd"), Path(__file__)):
        with pytest.raises(ApplicationError, match=r"uncaught (PermissionError|FileNotFoundError)"):
            ask(enclave, f"read {path}")
    with pytest.raises(ApplicationError, match="uncaught PermissionError"):
        ask(enclave, f"write {ask(enclave, 'origin probe.plain')}")


@pytest.mark.skipif(hardening.landlock_abi() < 4, reason="the kernel's Landlock does not know TCP")
def test_it_opens_no_connection_unless_enclave_toml_says_so(manager: EnclaveManager, ask: Ask, technology: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ApplicationError, match="uncaught PermissionError"):
            ask(manager.load("closed", probe_bundle(), on=technology), f"connect {port}")
        opened = manager.load("open", probe_bundle(settings="[network]\noutbound = true\n"), on=technology)
        assert ask(opened, f"connect {port}") == "None"


def test_only_the_bundles_adyton_and_no_host_code_is_inside(manager: EnclaveManager, ask: Ask, technology: str) -> None:
    enclave = manager.load("probe", probe_bundle(), on=technology)
    origin = ask(enclave, "origin adyton.errors")
    assert origin.endswith("/bundle/runtime/adyton/errors.py")
    assert not any(
        "/adyton/host/" in each or "/adyton/cli/" in each for each in ast.literal_eval(ask(enclave, "bundle"))
    )
    assert "isolated=1" in ask(enclave, "flags")
    assert "grpc" not in ast.literal_eval(ask(enclave, "modules"))


def test_an_application_may_start_processes_and_they_are_as_confined(
    manager: EnclaveManager, ask: Ask, technology: str
) -> None:
    assert ask(manager.load("probe", probe_bundle(), on=technology), "spawn") == "0"


@needs_namespaces
def test_host_name_is_the_enclaves_own(manager: EnclaveManager, ask: Ask) -> None:
    configuration = config()
    configuration.host_name = "inner-room"
    assert ask(manager.load("probe", probe_bundle(), configuration), "hostname") == "inner-room"


def test_host_name_is_refused_where_it_could_not_be_kept(
    manager: EnclaveManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.LAUNCHERS, "process", f"{__name__}:WithoutNamespaces")
    configuration = config()
    configuration.host_name = "inner-room"
    with pytest.raises(UnsupportedError, match="host_name needs namespaces"):
        manager.load("probe", probe_bundle(), configuration)


def test_working_directory(manager: EnclaveManager, ask: Ask, technology: str) -> None:
    configuration = config()
    configuration.current_working_directory = "tmp"
    enclave = manager.load("probe", probe_bundle(), configuration, on=technology)
    assert ask(enclave, "cwd") == ask(enclave, "data") + "/tmp"
    configuration.current_working_directory = "nowhere"
    with pytest.raises(ApplicationError, match="current_working_directory"):
        manager.load("other", probe_bundle(), configuration, on=technology)


def test_standard_streams_go_where_the_host_says(manager: EnclaveManager, ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("first line\n")
    with (tmp_path / "in").open() as given, (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        configuration = config()
        configuration.stdin_fd, configuration.stdout_fd, configuration.stderr_fd = (
            given.fileno(),
            out.fileno(),
            err.fileno(),
        )
        configuration.logging_config.log_directory = str(tmp_path / "logs")
        enclave = manager.load("probe", probe_bundle(), configuration)
        assert ask(enclave, "stdin") == "first line\n"
        ask(enclave, "print to standard output")
        with pytest.raises(ApplicationError):
            ask(enclave, "raise to the log")
        enclave.destroy()
    assert (tmp_path / "out").read_text() == "to standard output\n"
    assert "to the log" in (tmp_path / "err").read_text()
    log = tmp_path / "logs" / "probe.log"
    assert "to standard output" in log.read_text()
    assert "to the log" in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_log_that_cannot_be_written_is_an_error_before_the_start(manager: EnclaveManager, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    configuration = config()
    configuration.logging_config.log_directory = str(tmp_path / "file")
    with pytest.raises(LaunchError, match="the log can't be written"):
        manager.load("probe", probe_bundle(), configuration)


def test_other_packages_than_locked_are_refused(manager: EnclaveManager, tmp_path: Path) -> None:
    project = write_probe_project(tmp_path)
    lock = (project / LOCK).read_text()
    (project / LOCK).write_text(f"{lock}no-such-thing==1 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(
        LaunchError, match=r"refused to start: other packages than locked: no-such-thing is not installed"
    ):
        manager.load("probe", project)
    (project / LOCK).write_text(lock.replace("protobuf==7", "protobuf==6"))
    with pytest.raises(LaunchError, match=r"protobuf 7\.[0-9.]+, locked is 6\."):
        manager.load("probe", project)


def test_a_lock_without_what_the_runtime_needs(manager: EnclaveManager, tmp_path: Path) -> None:
    project = write_probe_project(tmp_path)
    (project / LOCK).write_text(f"six==1 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(ConfigurationError, match=r"requirements.lock lacks what Adyton's runtime needs: .*grpcio"):
        manager.load("probe", project)


def test_an_application_that_is_none(manager: EnclaveManager) -> None:
    with pytest.raises(ApplicationError, match="is not a TrustedApplication"):
        manager.load("probe", probe_bundle("probe.plain:NotAnApplication"))
    with pytest.raises(
        ApplicationError, match=r"can't be imported: ModuleNotFoundError: No module named 'probe\.nowhere'"
    ):
        manager.load("probe", probe_bundle("probe.nowhere:Plain"))
    with pytest.raises(
        ApplicationError, match=r"can't be imported: ImportError: module 'probe\.plain' has no attribute 'Nobody'"
    ):
        manager.load("probe", probe_bundle("probe.plain:Nobody"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_is_a_clear_error_and_leaves_nothing(
    manager: EnclaveManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", tmp_path], check=False)
    if mounted.returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        with pytest.raises(LaunchError, match=r"could not be set up: .*No space left on device"):
            manager.load("probe", probe_bundle())
        assert not list(tmp_path.glob("adyton/enclave-*"))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def launched(name: str = "probe") -> ProcessEnclave:
    return ProcessLauncher().launch(LaunchRequest(name=name, bundle=probe_bundle()))


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\xff\xff\xff\xff",  # a frame of 4 GiB
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\0\0\2\xff\xff",  # not a message
        b"\0\0\0\0",  # a request of no kind
        b"\0\0\0\4\x08\x00\x1a\x00",  # the id 0
        b"\0\0\0\4\x08\x05\x1a\x00" * 2,  # an id used twice
        b"\0\0\0\x10half",
    ],
)
def test_a_host_that_breaks_the_control_protocol_is_not_heard_any_more(rubbish: bytes) -> None:
    enclave = launched()
    try:
        enclave.control.sendall(rubbish)
        if rubbish.endswith(b"half"):
            enclave.control.shutdown(socket.SHUT_WR)
        error = enclave.explain(started=True) if enclave.wait(20) else None
    finally:
        enclave.close()
    assert isinstance(error, EnclaveDiedError)
    assert error.exit_status == 85
    assert "the host broke the control protocol" in error.log_tail[-1]


def test_an_enclave_whose_host_hangs_up_ends() -> None:
    enclave = launched()
    enclave.control.shutdown(socket.SHUT_RDWR)
    assert enclave.wait(20)
    error = enclave.explain(started=True)
    enclave.close()
    assert isinstance(error, EnclaveDiedError)
    assert error.exit_status == 80


HOST = """
import sys, time
from adyton.host.manager import EnclaveManager
from adyton.testing.probes import *
manager = EnclaveManager()
enclave = manager.load("probe", probe_bundle(), on="process")
enclave.run_future(command("sleep 600"))
print(answer(enclave.enter_and_run(command("data"))), flush=True)
time.sleep(600)
"""


def test_the_enclave_dies_with_its_host_and_the_next_host_cleans_up(manager: EnclaveManager) -> None:
    host = subprocess.Popen([sys.executable, "-c", HOST], stdout=subprocess.PIPE, text=True)
    assert host.stdout is not None
    data = host.stdout.readline().strip()
    folder = Path(data).parent
    assert folder.is_dir()
    assert processes_that_mention(str(folder))
    host.send_signal(signal.SIGKILL)
    host.wait()
    host.stdout.close()
    eventually(lambda: not processes_that_mention(str(folder)))
    manager.load("probe", probe_bundle())
    assert not folder.exists()


def test_a_bundle_file_is_as_good_as_a_project(manager: EnclaveManager, ask: Ask, tmp_path: Path) -> None:
    path, _ = probe_bundle().save(tmp_path)
    assert ask(manager.load("file", path), "answer yes") == "yes"
    assert Bundle.load(path).sha256 == probe_bundle().sha256


def test_nothing_that_the_application_started_outlives_it(
    manager: EnclaveManager, ask: Ask, technology: str, runtime_directory: Path
) -> None:
    enclave = manager.load("probe", probe_bundle(), on=technology)
    seconds = f"600.{os.getpid()}"  # nobody else's
    ask(enclave, f"leave {seconds}")
    assert processes_that_mention(f"time.sleep({seconds})")
    enclave.destroy()
    eventually(lambda: not processes_that_mention(f"time.sleep({seconds})"))


def test_the_applications_own_children_hear_signals(manager: EnclaveManager, ask: Ask) -> None:
    assert ask(manager.load("probe", probe_bundle()), "terminate") == "-15"


@pytest.mark.parametrize("code", [81, 82])
def test_an_application_does_not_choose_which_error_its_host_sees(
    manager: EnclaveManager, ask: Ask, code: int, technology: str
) -> None:
    enclave = manager.load("probe", probe_bundle(), on=technology)
    with pytest.raises(EnclaveDiedError, match=f"exit code {code}"):
        ask(enclave, f"exit {code}")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("host_name", "x" * 100, "is no host name"),
        ("host_name", "a\0b", "is no host name"),
        ("stdin_fd", -1, "stdin_fd is -1, which is not an open descriptor"),
        ("stderr_fd", 9999, "stderr_fd is 9999"),
    ],
)
def test_what_a_host_can_get_wrong(manager: EnclaveManager, field: str, value: object, message: str) -> None:
    configuration = config()
    setattr(configuration, field, value)
    with pytest.raises(ConfigurationError, match=message):
        manager.load("probe", probe_bundle(), configuration)


@python_leaves_none
def test_without_descriptors_left_it_is_a_launch_error_and_nothing_stays() -> None:
    assert failures_for_want_of_descriptors("process") > 5


def test_a_sink_that_does_not_read_does_not_hold_up_the_end(manager: EnclaveManager) -> None:
    read, write = os.pipe()
    configuration = config()
    configuration.stdout_fd = write
    enclave = manager.load("probe", probe_bundle(), configuration)
    threads = threading.active_count()
    printing = enclave.run_future(command("print " + "y" * 300_000))
    with pytest.raises(FutureTimeoutError):
        printing.result(1)
    begun = time.monotonic()
    enclave.destroy(timeout_seconds=1)
    assert time.monotonic() - begun < 1 + END_SECONDS + LOG_SECONDS
    eventually(lambda: threading.active_count() < threads)
    os.close(read)
    os.close(write)
