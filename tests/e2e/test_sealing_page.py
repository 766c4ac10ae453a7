"""docs/sealing.md: its commands, as they stand there, on a copy of the translator."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from command_line import adyton, running

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "sealing.md").read_text()
COMMANDS = re.findall(r"^\$ adyton (.*)$", PAGE, re.MULTILINE)


def command(beginning: str, port: str = "") -> list[str]:
    """The one command of the page that begins so, at that port, and agreeing to the simulation as the page says."""
    (line,) = [each for each in COMMANDS if each.startswith(beginning)]
    words = shlex.split(line.replace("localhost:50051", f"localhost:{port}"))
    return [*words, "--allow-insecure", "simulated"] if beginning.startswith("secrets") else words


def test_the_page_has_no_other_commands() -> None:
    assert len(COMMANDS) == 8, "a command that the test below does not run"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the page's reader is: with a project, an owner's key, and two passwords."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples" / "translator", tmp_path / "translator", ignore=shutil.ignore_patterns("dist"))
    (tmp_path / "password.txt").write_bytes(b"first")
    (tmp_path / "new.txt").write_bytes(b"second")
    return tmp_path


def test_sign_run_and_send_secrets(folder: Path) -> None:
    signer, owner = (adyton(*command("new-key")[:1], name).stdout.strip() for name in ("signer.pem", "owner.pem"))
    with (folder / "translator" / "enclave.toml").open("a") as settings:
        settings.write(f'[sealing]\npolicy = "signer"\nsigners = ["{signer}"]\n[secrets]\nowners = ["{owner}"]\n')
    for each in ("build", "sign"):
        done = adyton(*command(each))
        assert done.returncode == 0, done.stderr
    with running(*command("run")[1:]) as server:
        port = server.first_line.rpartition(" ")[2]
        policy = adyton("policy", "built/measurements.json")
        (folder / "translator.policy.toml").write_text(policy.stdout)
        for each in ("secrets put", "secrets list", "secrets rotate localhost", "secrets rotate-identity"):
            done = adyton(*command(each, port))
            assert done.returncode == 0, done.stderr
        assert "db-password" in adyton(*command("secrets list", port)).stdout
    assert list((folder / "state").glob("adyton-secrets-*.store"))
