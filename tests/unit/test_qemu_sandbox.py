"""What a program sees in QEMU's sandbox: real bubblewrap, and a program that looks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from adyton.errors import UnsupportedError
from adyton.host.launch import spawner
from adyton.host.launch.namespaces import why_no_namespaces
from adyton.host.launch.qemu import sandbox
from adyton.host.launch.qemu.launcher import QemuLauncher
from adyton.host.launch.qemu.sandbox import lacks_setpriv, new_uid, sandboxed
from adyton.host.launch.spawner import tied

needs_namespaces = pytest.mark.skipif(bool(why_no_namespaces()), reason=why_no_namespaces())
needs_python = pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="the system has no Python of its own")

LOOK = """
import json, os, socket, sys
path = sys.argv[1]
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
def allowed(action):
    try:
        action()
    except OSError:
        return False
    return True
print(json.dumps({
    "content": open(path).read(),
    "writes": allowed(lambda: open(path, "a")),
    "root": sorted(os.listdir("/")),
    "etc": sorted(os.listdir("/etc")),
    "processes": len([each for each in os.listdir("/proc") if each.isdigit()]),
    "interfaces": sorted(name for _, name in socket.if_nameindex()),
    "uid": os.getuid(),
    "gid": os.getgid(),
    "groups": os.getgroups(),
    "capabilities": int(status["CapEff"], 16),
    "mounts": allowed(lambda: os.mkdir("/usr/adyton")),
}))
"""


def look(path: Path, *, network: bool, uid: int | None) -> dict[str, object]:
    """What a Python in the sandbox sees, to which the file at `path` is /boot/file."""
    command = ["/usr/bin/python3", "-I", "-S", "-c", LOOK, "/boot/file"]
    words = sandboxed(command, files={"/boot/file": path}, network=network, devices=(), uid=uid)
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True, cwd="/")
    seen: dict[str, object] = json.loads(done.stdout)
    return seen


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a file, with a comma"
    path.write_text("content")
    return path


@needs_namespaces
@needs_python
def test_it_sees_its_files_read_only_and_no_other(file: Path) -> None:
    seen = look(file, network=False, uid=new_uid())
    assert (seen["content"], seen["writes"], seen["mounts"]) == ("content", False, False)
    assert isinstance(seen["root"], list)
    assert set(seen["root"]) <= {"bin", "boot", "dev", "etc", "lib", "lib64", "proc", "sbin", "usr"}
    assert isinstance(seen["etc"], list)
    assert set(seen["etc"]) <= {"alternatives", "ld.so.cache"}


@needs_namespaces
@needs_python
@pytest.mark.parametrize("uid", dict.fromkeys([new_uid() and 0x7812_3456, None]))
def test_it_has_no_network_no_neighbours_and_no_rights(file: Path, uid: int | None) -> None:
    seen = look(file, network=False, uid=uid)
    assert seen["interfaces"] == ["lo"]
    assert isinstance(seen["processes"], int)
    assert seen["processes"] <= 3
    assert seen["capabilities"] == 0
    assert seen["uid"] == (os.getuid() if uid is None else uid)
    if uid is not None:
        assert (seen["gid"], seen["groups"]) == (uid, [])


@needs_namespaces
@needs_python
def test_with_a_network_it_has_the_hosts_and_what_names_are_resolved_by(file: Path) -> None:
    seen = look(file, network=True, uid=new_uid())
    assert seen["interfaces"] == sorted(name for _, name in socket.if_nameindex())
    assert isinstance(seen["etc"], list)
    assert "resolv.conf" in seen["etc"]


def test_without_bubblewrap_paths_are_the_hosts_and_it_ends_with_its_starter(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "why_no_namespaces", lambda: "for the test")
    command = ["qemu", "-kernel", "/boot/file"]
    assert new_uid() is None
    words = sandboxed(command, files={"/boot/file": file}, network=False, devices=(), uid=None)
    assert words == tied(["qemu", "-kernel", str(file)])


@needs_namespaces
def test_only_the_folder_that_it_may_write_to_keeps_what_it_writes(tmp_path: Path) -> None:
    if (uid := new_uid()) is not None:
        os.chown(tmp_path, uid, uid)
    script = "echo kept >here; echo lost >/boot/there; echo lost >/usr/there; pwd"
    command = ["sh", "-c", script]
    words = sandboxed(command, files={}, network=False, devices=(), uid=uid, writable=tmp_path)
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path)
    assert (tmp_path / "here").read_text() == "kept\n"
    assert done.stdout == "/state\n"  # nor does it learn where that is
    assert not Path("/boot/there").exists()
    assert "/usr/there" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has other users to give")
@needs_namespaces
def test_users_are_given_only_where_this_root_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_UIDS", range(0xFFFF_FFF0, 0x1_0000_0010))  # no map has the last one
    assert new_uid() is None


@needs_namespaces
def test_devices_are_shown_one_by_one(file: Path) -> None:
    words = sandboxed(["qemu"], files={}, network=False, devices=("/dev/null",), uid=None)
    at = words.index("--dev-bind")
    assert words[at : at + 3] == ["--dev-bind", "/dev/null", "/dev/null"]
    assert words.count("--dev-bind") == 1
    assert words[-1] == "qemu"


@pytest.mark.parametrize("namespaces", [pytest.param(True, marks=needs_namespaces), False])
def test_without_setpriv_it_is_said_how_to_get_it(
    namespaces: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not namespaces:
        monkeypatch.setattr(sandbox, "why_no_namespaces", lambda: "for the test")
    assert not lacks_setpriv()
    monkeypatch.setattr(spawner, "_PROGRAMS", str(tmp_path))
    with pytest.raises(UnsupportedError, match=r"setpriv is not installed .*apt install util-linux"):
        sandboxed(["qemu"], files={}, network=False, devices=(), uid=0x7812_3456)
    assert lacks_setpriv() == (not namespaces or new_uid() is not None)
    missing = [each for each in QemuLauncher().capabilities() if each.name == "setpriv"]
    assert bool(missing) == lacks_setpriv()
