"""The README that `adyton init` writes, and docs/model.md on packages: their commands, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from newcomer import DEVELOPMENT, Newcomer, console_commands, indented_commands, newcomer_with_a_clone

#: How a command of the README begins, and what it prints.
PRINTS = {
    "python -m": ["OK"],
    "adyton build": ["wrote dist/my-service.adyton"],
    "adyton policy": [],
    "adyton run": ["Server started on port 50053"],
    "adyton call": ['"greeting": "Hello, Ada!"'],
}


def begin_project(newcomer: Newcomer) -> str:
    """Make one, and go there; its README."""
    newcomer.type("adyton init ../my-service", ["made ../my-service"])
    newcomer.type("cd ../my-service", [])
    return (newcomer.cwd / "README.md").read_text()


def test_the_readme_of_a_new_project(tmp_path: Path) -> None:
    newcomer = newcomer_with_a_clone(tmp_path, activated=DEVELOPMENT)
    page = begin_project(newcomer)
    commands = indented_commands(page)
    assert [" ".join(each.split()[:2]) for each in commands] == list(PRINTS)
    try:
        for line, printed in zip(commands, PRINTS.values(), strict=True):
            newcomer.type(line, printed)
    finally:
        newcomer.end_serving()
    (generate,) = re.findall(r"`(python -m grpc_tools.*?)`", page)
    generated = newcomer.cwd / "my_service" / "my_service_pb2.py"
    before = generated.read_bytes()
    generated.unlink()
    newcomer.type(generate, [])
    assert generated.read_bytes() == before


def test_its_comments_stand_in_a_column(tmp_path: Path) -> None:
    page = begin_project(newcomer_with_a_clone(tmp_path, activated=DEVELOPMENT))
    assert len({line.index(" # ") for line in indented_commands(page) if " # " in line}) == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_more_package(tmp_path: Path) -> None:
    """In an environment of its own, as the tutorial makes it: uv and the package come from the index."""
    newcomer = newcomer_with_a_clone(tmp_path)
    newcomer.type("python3 -m venv ../env", [])
    newcomer.type(". ../env/bin/activate", [])
    newcomer.type("pip install --no-deps --no-build-isolation .", [])
    page = begin_project(newcomer)
    newcomer.type("sed -i '1a import yaml' my_service/service.py", [])
    newcomer.type("adyton run . || echo refused", ["refused", "No module named 'yaml'"])
    newcomer.go_online()
    try:
        newcomer.type("pip install uv && echo pyyaml | uv pip compile -q -", [])
    except AssertionError as problem:
        pytest.skip(f"uv reaches no package index here: {str(problem)[-200:]}")
    add, install_uv, lock, install, build = console_commands("docs/model.md")
    assert {f"`{each[0]}`" for each in (install_uv, lock, install)} <= set(re.findall(r"`[^`]+`", page))
    for line, printed in (add, install_uv, lock):
        newcomer.type(line, printed)
    newcomer.type("adyton run . || echo refused", ["refused", "other packages than locked: pyyaml"])
    newcomer.type(*install)
    newcomer.type(*build)
    newcomer.type("python -m unittest", ["OK"])


def test_what_is_installed_beside_the_locked_packages_is_found_unlocked(tmp_path: Path) -> None:
    """In a process only; the page says so."""
    newcomer = newcomer_with_a_clone(tmp_path, activated=DEVELOPMENT)
    begin_project(newcomer)
    assert "pluggy" not in (newcomer.cwd / "requirements.lock").read_text()
    newcomer.type("sed -i '1a import pluggy' my_service/service.py", [])
    newcomer.type("python -m unittest", ["OK"])
