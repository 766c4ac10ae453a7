"""`adyton build --for`: what it looks at before it begins, and what it says where it can't go on."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from command_line import adyton

from adyton.host.image.apt import PACKAGES

TRANSLATOR = Path(__file__).resolve().parents[2] / "examples" / "translator"
needs_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="this machine has no apt")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "translator"
    shutil.copytree(TRANSLATOR, folder, ignore=shutil.ignore_patterns("dist", "image.lock"))
    return folder


@pytest.fixture
def offline(tmp_path: Path) -> dict[str, str]:
    """An environment with an empty cache, in which nobody answers apt and there is no firmware for SEV-SNP."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
    (tmp_path / "sources.list").write_text(f"deb [trusted=yes] {uri} ./\n")
    (tmp_path / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{tmp_path}/sources.list";\nDir::Etc::sourceparts "/dev/null";\n'
        'Acquire::http::Proxy "DIRECT";\n'
    )
    return {
        **os.environ,
        "APT_CONFIG": str(tmp_path / "apt.conf"),
        "XDG_CACHE_HOME": str(tmp_path / "caches"),
        "ADYTON_SEV_FIRMWARE": "/nowhere",
    }


def files_of(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def refused_before_it_began(done: subprocess.CompletedProcess[str], code: int, why: str) -> None:
    assert done.returncode == code, done.stderr
    assert why in done.stderr
    assert "Traceback" not in done.stderr
    assert "reading Debian" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("--relock", "--relock does nothing without --for"),
        ("--arch aarch64", "--arch does nothing"),
        ("--kernel README", "--kernel does nothing without --for (one of: nitro)"),
        ("--kernel README --for vm", "--kernel does nothing"),
        ("--firmware README", "--firmware does nothing"),
        ("--firmware README --for vm --for nitro", "--firmware does nothing without --for (one of: sev-snp, tdx)"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    project: Path, offline: dict[str, str], options: str, why: str
) -> None:
    before = files_of(project)
    refused_before_it_began(adyton("build", project, *options.split(), env=offline), 2, why)
    assert files_of(project) == before


@pytest.mark.parametrize(
    ("options", "code", "why"),
    [
        ("--for nitro", 6, "--kernel FILE"),
        ("--for vm --for nitro --kernel nowhere", 2, "--kernel: nowhere is no file"),
        ("--for vm --for tdx --arch x86_64 --firmware nowhere", 2, "--firmware: nowhere is no file"),
        ("--for vm --for sev-snp --arch x86_64 --firmware .", 2, "--firmware: . is no file"),
        ("--for vm --for sev-snp --arch x86_64", 6, "ADYTON_SEV_FIRMWARE names no file: /nowhere"),
        ("--for vm --for tdx --arch aarch64", 2, "TDX is x86_64's, not aarch64's (add --arch x86_64)"),
        ("--for vm -o /dev/null", 2, "can't write to /dev/null: it is no folder"),
    ],
)
def test_what_is_given_is_looked_at_first(
    project: Path, offline: dict[str, str], options: str, code: int, why: str
) -> None:
    before = files_of(project)
    refused_before_it_began(adyton("build", project, *options.split(), env=offline), code, why)
    assert files_of(project) == before


def test_a_project_that_is_not_there_is_not_made(tmp_path: Path, offline: dict[str, str]) -> None:
    refused_before_it_began(adyton("build", tmp_path / "typo", "--for", "vm", env=offline), 2, "typo/enclave.toml")
    assert not (tmp_path / "typo").exists()


@needs_apt
def test_without_a_network_it_says_so_and_locks_nothing(project: Path, offline: dict[str, str]) -> None:
    before = files_of(project)
    done = adyton("build", project, "--for", "vm", env=offline)
    assert done.returncode == 6, done.stderr
    assert "the package index can't be reached: http://127.0.0.1" in done.stderr
    assert "relock" not in done.stderr
    assert files_of(project) == before


@needs_apt
def test_a_locked_project_without_a_network_is_not_told_to_lock_anew(project: Path, offline: dict[str, str]) -> None:
    packages = "".join(locked(architecture) for architecture in ("aarch64", "x86_64"))
    (project / "image.lock").write_text("version = 1\n" + packages)
    done = adyton("build", project, "--for", "vm", env=offline)
    assert done.returncode == 6, done.stderr
    assert "the package index can't be reached: http://127.0.0.1" in done.stderr
    assert "relock" not in done.stderr


def test_a_lock_that_lacks_the_architecture_is_told_how_to_lock_anew(project: Path, offline: dict[str, str]) -> None:
    (project / "image.lock").write_text("version = 1\n" + locked("x86_64"))
    done = adyton("build", project, "--for", "vm", "--arch", "aarch64", env=offline)
    assert done.returncode == 2, done.stderr
    assert "image.lock has no packages for aarch64 (`adyton build --for vm --relock`" in done.stderr


@needs_apt
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_one_lock_serves_both_architectures(project: Path, tmp_path: Path) -> None:
    for architecture in ("x86_64", "aarch64"):
        done = adyton("build", project, "--for", "vm", "--arch", architecture, "--json", "-o", tmp_path / "out")
        assert done.returncode == 0, done.stderr
        assert set(json.loads(done.stdout)["reference_values"]) == {"simulated", "tpm"}
        assert ("image.lock is part of the bundle" in done.stderr) == (architecture == "x86_64")
        folder = tmp_path / "out" / f"translator.{architecture}"
        assert {path.name for path in folder.iterdir()} == {"kernel", "initrd", "command-line"}
    below_a_file = adyton("build", project, "--for", "vm", "-o", project / "enclave.toml" / "below")
    assert below_a_file.returncode == 2, below_a_file.stderr
    assert "can't write" in below_a_file.stderr


def locked(architecture: str) -> str:
    """All packages of an image as a lock has them that no archive knows."""
    names = (*PACKAGES, "linux-image-6.12.7+deb12-cloud")
    return "".join(
        f'[[{architecture}]]\nname = "{name}"\nversion = "1"\nsha256 = "{"0" * 64}"\nsize = 1\n' for name in names
    )
