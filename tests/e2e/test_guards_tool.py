"""The tool that takes out each guard: it finds all of them noticed, and says so where one is not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adyton.tee.registry import TEES

ROOT = Path(__file__).resolve().parent.parent.parent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def guards(source: Path, *labels: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "tools" / "guards.py", *labels],
        env=os.environ | {"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
    )


def counted(output: str) -> dict[str, tuple[int, int]]:
    """Guards and noticed guards, by module."""
    found = re.findall(r"^(adyton\.\S+) +(\d+) +(\d+) +\d+$", output, re.MULTILINE)
    return {module: (int(guards), int(noticed)) for module, guards, noticed in found}


def test_every_guard_of_every_verifier_is_noticed() -> None:
    done = guards(ROOT / "src")
    assert done.stderr == ""
    assert done.returncode == 0, done.stdout
    found = counted(done.stdout)
    assert all(guards == noticed for guards, noticed in found.values())
    assert {f"adyton.tee.{label}.verify" for label in TEES} <= set(found)
    assert sum(guards for guards, _ in found.values()) > 250


def test_a_forgery_that_is_missing_or_believed_is_found(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    forgeries = tmp_path / "src" / "adyton" / "testing" / "simulated.py"
    text, removed = re.subn(r'^    "flags": .*\n', "", forgeries.read_text(), flags=re.MULTILINE)
    text, changed = re.subn("canonical form", "canonical shape", text)
    assert (removed, changed) == (1, 1)
    forgeries.write_text(text)
    done = guards(tmp_path / "src", "simulated")
    assert done.returncode == 1
    problems = [line for line in done.stdout.splitlines() if "/simulated/" in line]
    assert re.fullmatch(
        r"no forgery notices .*/simulated/format\.py:\d+: raise EvidenceError\(.*unknown flags.*", problems[0]
    )
    assert re.fullmatch(
        r"no forgery notices .*/simulated/signature\.py:\d+: raise EvidenceError\(.*\(high s\).*", problems[1]
    )
    assert problems[2:] == []
    assert "left out, for it is not refused as it says: 'signature with high s' of simulated\n" in done.stderr
