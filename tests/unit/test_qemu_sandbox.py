"""What a program sees in QEMU's sandbox: real bubblewrap, and a program that looks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from adyton.host.launch.namespaces import why_no_namespaces
from adyton.host.launch.qemu import sandbox
from adyton.host.launch.qemu.sandbox import sandboxed

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
    "groups": os.getgroups(),
    "capabilities": int(status["CapEff"], 16),
    "mounts": allowed(lambda: os.mkdir("/usr/adyton")),
}))
"""


def look(path: Path, *, network: bool) -> dict[str, object]:
    """What a Python in the sandbox sees, to which the file at `path` is /boot/file."""
    command = ["/usr/bin/python3", "-I", "-S", "-c", LOOK, "/boot/file"]
    words = sandboxed(command, files={"/boot/file": path}, network=network, devices=())
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
    seen = look(file, network=False)
    assert (seen["content"], seen["writes"], seen["mounts"]) == ("content", False, False)
    assert isinstance(seen["root"], list)
    assert set(seen["root"]) <= {"bin", "boot", "dev", "etc", "lib", "lib64", "proc", "sbin", "usr"}
    assert isinstance(seen["etc"], list)
    assert set(seen["etc"]) <= {"alternatives", "ld.so.cache"}


@needs_namespaces
@needs_python
def test_it_has_no_network_no_neighbours_and_no_rights(file: Path) -> None:
    seen = look(file, network=False)
    assert seen["interfaces"] == ["lo"]
    assert isinstance(seen["processes"], int)
    assert seen["processes"] <= 3
    assert seen["capabilities"] == 0
    if os.geteuid() == 0:
        assert (seen["uid"], seen["groups"]) == (65534, [])


@needs_namespaces
@needs_python
def test_with_a_network_it_has_the_hosts_and_what_names_are_resolved_by(file: Path) -> None:
    seen = look(file, network=True)
    assert seen["interfaces"] == sorted(name for _, name in socket.if_nameindex())
    assert isinstance(seen["etc"], list)
    assert "resolv.conf" in seen["etc"]


def test_without_bubblewrap_paths_are_the_hosts_and_it_ends_with_its_starter(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "why_no_namespaces", lambda: "for the test")
    words = sandboxed(["qemu", "-kernel", "/boot/file"], files={"/boot/file": file}, network=False, devices=())
    assert words == ["setpriv", "--pdeathsig=KILL", "--", "qemu", "-kernel", str(file)]


@needs_namespaces
def test_devices_are_shown_one_by_one(file: Path) -> None:
    words = sandboxed(["qemu"], files={}, network=False, devices=("/dev/null",))
    at = words.index("--dev-bind")
    assert words[at : at + 3] == ["--dev-bind", "/dev/null", "/dev/null"]
    assert words.count("--dev-bind") == 1
    assert words[-1] == "qemu"
