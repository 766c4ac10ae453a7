"""docs/vm.md: its commands, as they stand there, on a copy of the translator."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import adyton, running
from machines import boots

from adyton.bundle.settings import parse_settings
from adyton.host.bundles import Bundle
from adyton.host.image.image import build_image

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "vm.md").read_text()
pytestmark = [*boots, pytest.mark.timeout(400)]
COMMANDS = re.findall(r"^    (adyton .*|ADYTON_.*)$", PAGE, re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a copy of the translator where the page has it."""
    project = tmp_path / "examples" / "translator"
    shutil.copytree(ROOT / "examples" / "translator", project, ignore=shutil.ignore_patterns("dist", "image.lock"))
    return tmp_path


def words(beginning: str, **replaced: str) -> list[str]:
    """The one command of the page that begins so, without the program's name, a comment, and a redirection."""
    (line,) = [each for each in COMMANDS if each.startswith(f"adyton {beginning}")]
    line = line.partition("  #")[0].partition(" > ")[0]
    for old, new in replaced.items():
        line = line.replace(old, shlex.quote(new))
    return shlex.split(line)[1:]


def test_the_page_has_no_other_commands() -> None:
    assert len(COMMANDS) == 9, "a command that no test below runs"


def test_build_run_policy_and_call(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    built = adyton(*words("build examples/translator --for vm"))
    assert built.returncode == 0, built.stderr
    dist = folder / "examples" / "translator" / "dist"
    assert {path.name for path in next(dist.glob("translator.*/")).iterdir()} == {"kernel", "initrd", "command-line"}
    assert (folder / "examples" / "translator" / "image.lock").exists()
    with running(*words("run examples/translator --on vm", **{"50157": "0"})[1:]) as server:
        assert re.fullmatch(r"Server started on port \d+", server.first_line)
        policy = adyton(*words("policy"))
        assert "[[tpm]]" in policy.stdout, policy.stderr
        (folder / "p.toml").write_text(policy.stdout)
        called = adyton(*words("call", **{"50157": str(server.port)}))
        assert json.loads(called.stdout) == {"translated_word": "sanctuary"}, called.stderr
        code, _ = server.end()
    assert code == 0


def test_a_nitro_image_and_what_the_others_lack(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    kernel = build_image(Bundle.build(folder / "examples" / "translator"), architecture="x86_64").kernel
    built = adyton(*words("build examples/translator --for nitro", bzImage=str(kernel)), "--arch", "x86_64")
    assert built.returncode == 0, built.stderr
    dist = folder / "examples" / "translator" / "dist"
    assert (dist / "translator.eif").read_bytes()[:4] == b".eif"
    values = json.loads((dist / "measurements.json").read_text())["reference_values"]
    assert set(values) == {"simulated", "nitro"}
    assert set(values["nitro"]["pcrs"]) == {"0", "1", "2"}
    for technology in ("sev-snp", "tdx"):
        refused = adyton(*words(f"build examples/translator --for {technology}"))
        assert refused.returncode == 2, refused.stderr
        assert "--firmware: OVMF" in refused.stderr
        started = adyton("run", "examples/translator", "--on", technology)
        assert started.returncode == 6, started.stderr
    assert parse_settings((folder / "examples/translator/enclave.toml").read_bytes()).vm.firmware == "none"


def test_the_demonstration_from_nothing(tmp_path: Path) -> None:
    """With an empty cache: what the image is made of comes from the distribution and the package index."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "dev.py", "demo", "--on", "vm"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=380)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fetching" in done.stdout
    assert "asylo → sanctuary" in done.stdout
    assert "PolicyError, PERMISSION_DENIED: the policy accepts no such evidence of tpm" in done.stdout
    assert re.search(r"launch is application=[0-9a-f]{31}", done.stdout)
