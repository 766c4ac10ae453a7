"""The folders of enclaves: private while their host lives, gone afterwards, whoever was killed."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from adyton.errors import LaunchError
from adyton.host.launch import private_directory
from adyton.host.launch.private_directory import PrivateDirectory

SECONDS = 20.0
HOLDER = """
import sys
from adyton.host.launch.private_directory import PrivateDirectory
held = [PrivateDirectory() for _ in range(int(sys.argv[1]))]
for each in held:
    (each.path / "data").mkdir()
    (each.path / "data" / "secret").write_text("x")
    print(each.path, flush=True)
print("all", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the folders are: below a runtime directory whose name has a space."""
    runtime = tmp_path / "run time"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    return runtime / "adyton"


@contextmanager
def holder(count: int = 1) -> Iterator[tuple[subprocess.Popen[str], list[Path]]]:
    """Another process that holds `count` folders until it is killed."""
    command = [sys.executable, "-c", HOLDER, str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [line.strip() for line in iter(process.stdout.readline, "all\n")]
        assert process.poll() is None
        yield process, [Path(line) for line in lines]
        process.kill()


def open_descriptors() -> set[str]:
    return {each.name for each in Path("/proc/self/fd").iterdir()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- a folder


def test_a_folder_is_new_empty_and_nobody_elses(root: Path) -> None:
    one, other = PrivateDirectory(), PrivateDirectory()
    assert one.path != other.path
    assert one.path.parent == other.path.parent == root
    assert (mode(root), mode(one.path)) == (0o700, 0o700)
    assert list(one.path.iterdir()) == []
    one.close()
    other.close()


def test_the_mask_of_the_host_makes_a_folder_no_more_open() -> None:
    before = os.umask(0)
    try:
        directory = PrivateDirectory()
    finally:
        os.umask(before)
    assert (mode(directory.path.parent), mode(directory.path)) == (0o700, 0o700)
    directory.close()


def test_a_closed_folder_is_gone_with_all_that_is_in_it(root: Path) -> None:
    directory = PrivateDirectory()
    (directory.path / "data" / "tmp").mkdir(parents=True)
    (directory.path / "data" / "link").symlink_to("/etc/passwd")
    (directory.path / "data" / "secret").write_text("x")
    directory.close()
    directory.close()
    assert list(root.iterdir()) == []
    assert Path("/etc/passwd").exists()


def test_no_descriptor_is_left() -> None:
    PrivateDirectory().close()
    before = open_descriptors()
    for _ in range(5):
        PrivateDirectory().close()
    assert open_descriptors() == before


def test_the_lock_is_not_given_to_children() -> None:
    directory = PrivateDirectory()
    listing = "from pathlib import Path; print(*(each.resolve() for each in Path('/proc/self/fd').iterdir()))"
    command = [sys.executable, "-c", listing]
    done = subprocess.run(command, close_fds=False, stdout=subprocess.PIPE, text=True, check=True)
    assert str(directory.path) not in done.stdout
    directory.close()


# --- what a killed host left


def test_a_killed_hosts_folder_is_removed_by_the_next_one() -> None:
    with holder() as (process, [left]):
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (left / "data" / "secret").exists()
        PrivateDirectory().close()
        assert not left.exists()


def test_a_living_hosts_folder_is_left_alone(root: Path) -> None:
    with holder(2) as (_, held):
        own = PrivateDirectory()
        PrivateDirectory().close()
        assert all((each / "data" / "secret").exists() for each in held)
        assert own.path.exists()
        assert {each.name for each in root.iterdir()} == {own.path.name, *(each.name for each in held)}
        own.close()


def test_a_folder_that_nobody_holds_is_what_a_killed_host_left(root: Path) -> None:
    PrivateDirectory().close()
    (root / "enclave-abc" / "data").mkdir(parents=True)
    (root / "something else").mkdir()
    PrivateDirectory().close()
    assert {each.name for each in root.iterdir()} == {"something else"}


def test_what_is_not_a_hosts_folder_stays_and_harms_nobody(root: Path) -> None:
    PrivateDirectory().close()
    (root / "enclave-file").touch()
    (root / "enclave-link").symlink_to(Path.home())
    PrivateDirectory().close()
    assert {each.name for each in root.iterdir()} == {"enclave-file", "enclave-link"}


def test_a_lock_that_is_never_given_back_is_an_error_in_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PrivateDirectory().close()
    monkeypatch.setattr(private_directory, "LOCK_SECONDS", 0.2)
    holding = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(holding, fcntl.LOCK_EX)
    with pytest.raises(LaunchError, match="is locked by another process"):
        PrivateDirectory()
    os.close(holding)
    PrivateDirectory().close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folders_that_nobody_may_write_to_are_removed_too(root: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir(mode=0o500)
    directory = PrivateDirectory()
    (directory.path / "a" / "b").mkdir(parents=True)
    (directory.path / "a" / "b" / "file").touch()
    (directory.path / "a" / "link").symlink_to(tmp_path / "kept")
    (directory.path / "a" / "b").chmod(0o000)
    (directory.path / "a").chmod(0o500)
    directory.close()
    assert not directory.path.exists()
    assert mode(tmp_path / "kept") == 0o500


def test_several_processes_and_threads_at_once_each_keep_theirs() -> None:
    with holder(20) as (_, one), holder(20) as (_, two), ThreadPoolExecutor(8) as pool:
        own = list(pool.map(lambda _: PrivateDirectory(), range(40)))
        paths = [*one, *two, *(each.path for each in own)]
        assert len(set(paths)) == 80
        assert all(path.is_dir() for path in paths)
        list(pool.map(PrivateDirectory.close, own))
        assert all(path.is_dir() for path in (*one, *two))
        assert not any(each.path.exists() for each in own)


# --- where the folders are


@pytest.mark.parametrize("runtime", ["", "relative", "/nonexistent/run"])
def test_without_a_runtime_directory_they_are_in_the_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "relative").mkdir()
    directory = PrivateDirectory()
    assert directory.path.parent == tmp_path / f"adyton-{os.getuid()}"
    directory.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_runtime_directory_that_can_not_be_written_is_passed_over(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.parent.chmod(0o500)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    directory = PrivateDirectory()
    assert directory.path.parent == tmp_path / f"adyton-{os.getuid()}"
    directory.close()


@pytest.mark.parametrize("bits", [0o750, 0o705, 0o701, 0o770, 0o777])
def test_a_root_that_others_can_enter_is_refused(root: Path, bits: int) -> None:
    root.mkdir()
    root.chmod(bits)
    with pytest.raises(LaunchError, match="should be a folder of this user's that no one else can enter") as caught:
        PrivateDirectory()
    assert caught.value.mend == f"remove {root}"
    assert list(root.iterdir()) == []


def test_a_root_that_is_a_symbolic_link_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    root.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LaunchError, match="should be a folder of this user's"):
        PrivateDirectory()
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("target", ["file", "dangling"])
def test_a_root_that_is_no_folder_is_refused(root: Path, tmp_path: Path, target: str) -> None:
    if target == "file":
        root.write_text("")
    else:
        root.symlink_to(tmp_path / "nowhere")
    with pytest.raises(LaunchError, match=r"no folder for the enclave can be made: .*File exists"):
        PrivateDirectory()
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_root_that_is_another_users_is_refused(root: Path) -> None:
    root.mkdir(mode=0o700)
    os.chown(root, 65534, 65534)
    with pytest.raises(LaunchError, match="should be a folder of this user's"):
        PrivateDirectory()
    assert list(root.iterdir()) == []
