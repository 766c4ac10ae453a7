"""README.md: its commands and its programs, as they stand there, and the asyncio client of docs/model.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from newcomer import DEVELOPMENT, ROOT, Newcomer, indented_commands, newcomer_with_a_clone

TRANSLATED = ['"translated_word": "sanctuary"']
#: How a command begins, and what it prints.
PRINTS = {
    "adyton build": ["wrote "],
    "adyton run": ["Server started on port 50051"],
    "adyton policy": [],
    "adyton call": TRANSLATED,
    "adyton verify-server": ["tee                   simulated"],
    "adyton proxy": ["127.0.0.1:50052"],
    "adyton doctor": ["launch on 'process'"],
}
COMMANDS = [each for each in indented_commands((ROOT / "README.md").read_text()) if each.startswith("adyton ")]


def programs(page: str) -> list[str]:
    """The page's blocks of Python that are whole programs."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    return [each for each in blocks if re.search(r"^import adyton$", each, re.MULTILINE)]


def run(newcomer: Newcomer, program: str) -> str:
    """What a program of the page prints, in the folder of the clone."""
    newcomer.type(f"cat > program.py <<'EOF'\n{program}EOF", [])
    newcomer.type("PYTHONPATH=examples/translator python program.py > printed.txt", [])
    return (newcomer.cwd / "printed.txt").read_text()


@pytest.mark.slow
def test_its_commands_and_programs(tmp_path: Path) -> None:
    newcomer = newcomer_with_a_clone(tmp_path, activated=DEVELOPMENT)
    connect, load = programs("README.md")
    (connect_on_asyncio,) = programs("docs/model.md")
    assert [" ".join(each.split()[:2]) for each in COMMANDS] == list(PRINTS)
    try:
        for line, printed in zip(COMMANDS, PRINTS.values(), strict=True):
            newcomer.type(line, printed)
        newcomer.type(
            "adyton call localhost:50052 examples.grpc_server.Translator/GetTranslation "
            '\'{"input_word": "asylo"}\' --plaintext',
            TRANSLATED,
        )
        word, record = run(newcomer, connect).split("\n", 1)
        assert word == "sanctuary"
        assert "'tee': 'simulated'" in record
        assert run(newcomer, connect_on_asyncio) == "sanctuary\n"
        assert int(run(newcomer, load)) > 0
    finally:
        newcomer.end_serving()
