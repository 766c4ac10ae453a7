"""The benchmark of evidence: a row for each TEE, and an exit code that says whether the goals are met."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from real_vectors import manifest

from adyton.tee.registry import TEES

ROOT = Path(__file__).resolve().parent.parent.parent
GOALS = {"GOALS": "{{}}", "GOAL_OF_OTHERS": "{}", "IMPORT_GOAL_MS": "{}"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def bench(folder: Path, goal: float, **environment: str) -> subprocess.CompletedProcess[str]:
    """Two rounds of the benchmark, with that for every goal."""
    text = (ROOT / "benchmarks" / "evidence.py").read_text()
    for name, value in GOALS.items():
        text, changed = re.subn(f"^{name} = .*$", f"{name} = {value.format(goal)}", text, flags=re.MULTILINE)
        assert changed == 1
    script = folder / "evidence.py"
    script.write_text(text)
    environment |= {"PYTHONPATH": str(ROOT / "tests")}
    return subprocess.run(
        [sys.executable, script, "--rounds", "2"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def rows(output: str) -> dict[str, list[str]]:
    """The cells of each row, by its title."""
    lines = (line.strip("| ").split(" | ") for line in output.splitlines() if line.startswith("| "))
    return {title: cells for title, *cells in lines}


def test_there_is_a_row_for_each_tee_and_a_goal_that_is_met_is_no_failure(tmp_path: Path) -> None:
    done = bench(tmp_path, 1e6, ADYTON_VECTORS=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("every goal is met\n")
    found = rows(done.stdout)
    for label in TEES:
        assert all(float(cell.split()[0]) > 0 for cell in found[label][:4])
    assert not any("real" in title for title in found)


def test_every_goal_that_is_missed_is_named(tmp_path: Path) -> None:
    done = bench(tmp_path, 0.0)
    assert (done.returncode, done.stderr) == (1, "")
    missed = re.findall(r"^missed: (.*) takes? ", done.stdout, flags=re.MULTILINE)
    assert set(TEES) < set(missed)
    assert "the import" in missed
    real = {title for title in missed if ", real" in title}
    assert {title.partition(",")[0] for title in real} == (
        {"sgx", "tdx", "snp", "nitro", "azure"} if manifest() else set()
    )
