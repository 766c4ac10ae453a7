"""The folder that outlives an enclave: whose it may be, who has it, and that it is all that an enclave can write to."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import adyton as adyton_command
from command_line import running
from observing import eventually, processes_that_mention

from adyton import aio
from adyton.errors import ApplicationError, EnclaveDiedError, ExitCode, InUseError, LaunchError
from adyton.host.launch import hardening, registry
from adyton.host.launch.namespaces import why_no_namespaces
from adyton.host.launch.process import ProcessLauncher
from adyton.host.launch.state import StateDirectory
from adyton.host.manager import EnclaveClient, EnclaveManager
from adyton.testing.probes import SERVER, probe_bundle, server_config, write_probe_project

Ask = Callable[[EnclaveClient, str], str]

needs_namespaces = pytest.mark.skipif(bool(why_no_namespaces()), reason=why_no_namespaces())
HOST = """
import sys, time
from pathlib import Path
from adyton.host.manager import EnclaveManager
from adyton.testing.probes import command, probe_bundle
manager = EnclaveManager()
enclave = manager.load("probe", probe_bundle(), state=Path(sys.argv[1]))
enclave.enter_and_run(command(f"keep kept {sys.argv[1]}/file"))
print("kept", flush=True)
time.sleep(600)
"""
WORKERS = """
import adyton

class Writing(adyton.GrpcApplication):
    def add_servicers(self, server):
        (self.context.state_directory / f"by {self.context.worker}").touch()
"""


class WithoutNamespaces(ProcessLauncher):
    def __init__(self) -> None:
        super().__init__(namespaces=False)


@pytest.fixture(params=["bare", pytest.param("namespaces", marks=needs_namespaces)])
def technology(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "bare":
        monkeypatch.setitem(registry.LAUNCHERS, "process", f"{__name__}:WithoutNamespaces")
    return "process"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "a state folder"


@pytest.fixture
def killed_host(state: Path) -> None:
    """Another process, that has an enclave with the folder and is killed when the test begins."""
    with subprocess.Popen([sys.executable, "-c", HOST, str(state)], stdout=subprocess.PIPE) as host:
        assert host.stdout is not None
        assert host.stdout.readline() == b"kept\n"
        with pytest.raises(InUseError, match="another enclave has the state folder"):
            StateDirectory(state)
        host.kill()
    eventually(lambda: not processes_that_mention(str(state)))


def open_descriptors() -> set[str]:
    return {each.name for each in Path("/proc/self/fd").iterdir()}


# --- what it is for


@pytest.mark.usefixtures("killed_host")
def test_what_was_synced_outlives_the_host(manager: EnclaveManager, ask: Ask, technology: str, state: Path) -> None:
    enclave = manager.load("probe", probe_bundle(), on=technology, state=state)
    assert ask(enclave, "state") == str(state)
    assert ask(enclave, f"show {state}/file") == "kept"


def test_each_server_process_has_it(manager: EnclaveManager, state: Path, tmp_path: Path) -> None:
    project = write_probe_project(tmp_path / "project", "probe.writing:Writing", "[server]\nworkers = 2\n")
    (project / "probe" / "writing.py").write_text(WORKERS)
    manager.load("probe", project, server_config(), state=state)
    assert sorted(each.name for each in state.glob("by *")) == ["by 0", "by 1"]


def test_a_manager_on_asyncio_takes_it(state: Path) -> None:
    async def load_twice() -> None:
        async with aio.EnclaveManager() as manager:
            await manager.load("first", probe_bundle(), state=state)
            with pytest.raises(InUseError):
                await manager.load("second", probe_bundle(), state=state)

    asyncio.run(load_twice())


def test_the_command_takes_it(state: Path, tmp_path: Path) -> None:
    project = write_probe_project(tmp_path / "project", SERVER)
    with running(project, "--state", state) as first:
        assert first.port, first.end()
        second = adyton_command("run", project, "--state", state)
        assert (second.returncode, second.stdout) == (ExitCode.FAILED, "")
        assert f"another enclave has the state folder {state} (end that one first)" in second.stderr
        assert first.end()[0] == 0


# --- who has it


def test_two_enclaves_at_once_are_refused(manager: EnclaveManager, ask: Ask, state: Path) -> None:
    first = manager.load("first", probe_bundle(), state=state)
    with pytest.raises(InUseError, match="another enclave has the state folder"):
        manager.load("second", probe_bundle(), state=state)
    assert ask(first, "answer still") == "still"
    first.destroy()
    manager.load("second", probe_bundle(), state=state)


def test_an_enclave_that_died_does_not_keep_it(manager: EnclaveManager, ask: Ask, state: Path) -> None:
    enclave = manager.load("probe", probe_bundle(), state=state)
    with pytest.raises(EnclaveDiedError):
        ask(enclave, "kill")
    manager.load("probe", probe_bundle(), state=state)


def test_an_enclave_that_did_not_start_does_not_keep_it(manager: EnclaveManager, state: Path) -> None:
    with pytest.raises(ApplicationError):
        manager.load("probe", probe_bundle("probe.plain:NotAnApplication"), state=state)
    manager.load("probe", probe_bundle(), state=state)


def test_it_is_let_go_once(state: Path) -> None:
    held = StateDirectory(state)
    held.close()
    held.close()
    StateDirectory(state).close()


# --- whose it may be


def test_it_is_made_for_this_user_alone(state: Path) -> None:
    StateDirectory(state).close()
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


def test_it_is_known_by_its_own_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    held = StateDirectory(Path("link/state"))
    assert held.path == tmp_path / "real" / "state"
    held.close()


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_one_that_others_can_write_to_is_refused(state: Path, mode: int) -> None:
    state.mkdir()
    state.chmod(mode)
    with pytest.raises(LaunchError, match=r"can be written to by other users \(chmod go-w "):
        StateDirectory(state)


def test_one_of_another_user_is_refused(state: Path) -> None:
    if os.geteuid():
        foreign = Path("/usr")
    else:
        foreign = state
        state.mkdir()
        os.chown(state, 12345, 12345)
    with pytest.raises(LaunchError, match="belongs to another user"):
        StateDirectory(foreign)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("file", "Not a directory"),
        ("link", "Not a directory"),
        ("none/state", "No such file"),
        ("nul\0", "embedded null"),
    ],
)
def test_what_is_no_folder_is_refused(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "file").touch()
    before = open_descriptors()
    with pytest.raises(LaunchError, match=f"the state folder .* can't be used: {message}"):
        StateDirectory(tmp_path / path)
    assert open_descriptors() == before


def test_one_that_holds_what_the_enclave_runs_from_is_refused(
    manager: EnclaveManager, technology: str, home: Path
) -> None:
    with pytest.raises(LaunchError, match=r"the state folder .* holds what the enclave runs from: .*enclave-"):
        manager.load("probe", probe_bundle(), on=technology, state=home)


# --- what else it can write to


@pytest.mark.skipif(hardening.landlock_abi() == 0, reason="the kernel has no Landlock")
def test_nothing_beside_it_can_be_written_or_read(
    manager: EnclaveManager, ask: Ask, technology: str, state: Path
) -> None:
    beside = state.parent / "beside"
    beside.write_text("the host's")
    enclave = manager.load("probe", probe_bundle(), on=technology, state=state)
    ask(enclave, f"write {state}/file")
    for words in (f"write {beside}", f"write {state.parent}/new", f"read {beside}", f"list {state.parent}"):
        with pytest.raises(ApplicationError, match=r"uncaught (PermissionError|FileNotFoundError|OSError)"):
            ask(enclave, words)
    assert beside.read_text() == "the host's"
    assert (state / "file").read_text() == "written"


def test_it_stays_when_the_enclave_is_gone_and_nothing_else_does(
    manager: EnclaveManager, ask: Ask, technology: str, state: Path, runtime_directory: Path
) -> None:
    enclave = manager.load("probe", probe_bundle(), on=technology, state=state)
    ask(enclave, f"write {state}/file")
    enclave.destroy()
    assert [each.name for each in state.iterdir()] == ["file"]
    assert not list(runtime_directory.glob("enclave-*"))
