"""Who follows a page word for word: its commands are typed in order, in an empty home and a fresh copy of the clone."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

from aio_one_shot_servers import free_port

ROOT = Path(__file__).resolve().parent.parent

_WAYS = re.compile(r"(PIP|UV|SSL)_|.*_proxy$", re.IGNORECASE)

#: The pages' ports.
_PORT = re.compile(r"\b50[01]\d\d\b")

DEVELOPMENT = Path(sys.executable).parent / "activate"
"""Activates the environment that runs the tests, for pages that begin where there is one."""

SERVING = ("adyton run", "adyton proxy")
"""These go on, as in a terminal of their own, until the next `adyton run`; unless they are to fail."""


def goes_on(line: str) -> bool:
    """Whether the command serves."""
    return line.startswith(SERVING) and " || " not in line


class Newcomer:
    """Types a page's commands into a shell, one after the other, in an empty home.

    Only the ports are others, for the page's may be taken: by another newcomer, or by this machine's user.
    """

    def __init__(self, home: Path) -> None:
        self.cwd = home / "adyton"
        self.activated: Path | None = None
        self.serving: list[subprocess.Popen[str]] = []
        self._ports: dict[str, str] = {}
        self.environment = {
            "HOME": str(home),
            "PATH": f"{Path(sys._base_executable).parent}:/usr/bin:/bin",  # type: ignore[attr-defined]
            "PIP_NO_INDEX": "1",  # what is to be installed is there already: see _lend_packages
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }

    def type(self, line: str, expected: list[str]) -> None:
        """Type one command; what `expected` has it print is printed, in whatever order unless it serves."""
        line, expected = self._with_free_ports(line), [self._with_free_ports(each) for each in expected]
        if line.startswith("cd "):
            self.cwd = (self.cwd / line[3:]).resolve()
        elif line.startswith(". "):
            self.activated = (self.cwd / line[2:]).resolve()
        elif goes_on(line):
            self._serve(line, expected)
        else:
            if line.startswith("adyton run"):
                self.end_serving()
            done = self._run(line)
            output = done.stdout + done.stderr
            assert done.returncode == (1 if "FAIL" in "".join(expected) else 0), f"{line}\n{output}"
            for each in expected:
                assert each in output, f"{line}\n{output}"
        if "-m venv" in line:
            _lend_packages((self.cwd / line.rpartition(" ")[2]).resolve())

    def go_online(self) -> None:
        """From now on pip and uv may fetch what is not lent, the way that this machine does."""
        del self.environment["PIP_NO_INDEX"]
        ways = {name: value for name, value in os.environ.items() if _WAYS.match(name)}
        self.environment |= ways

    def end_serving(self) -> None:
        """Press Ctrl-C in every other terminal, the last one first."""
        codes = []
        while self.serving:
            with self.serving.pop() as process:
                process.send_signal(signal.SIGINT)
                codes.append(process.wait(30))
        assert not any(codes)

    def _with_free_ports(self, text: str) -> str:
        return _PORT.sub(lambda found: self._ports.setdefault(found[0], str(free_port())), text)

    def _shell(self, line: str) -> list[str]:
        activate = f". '{self.activated}' && " if self.activated else ""
        return ["bash", "-c", f"{activate}exec {line}" if goes_on(line) else f"{activate}{line}"]

    def _run(self, line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._shell(line),
            cwd=self.cwd,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )

    def _serve(self, line: str, expected: list[str]) -> None:
        if line.startswith("adyton run"):
            self.end_serving()
        process = subprocess.Popen(
            self._shell(line),
            cwd=self.cwd,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.serving.append(process)
        assert process.stdout is not None
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        for each in expected:
            assert process.stdout.readline().strip() == each
        watchdog.cancel()


def _lend_packages(environment: Path) -> None:
    """The tests have no network, so the new environment may use the packages of the one that runs them."""
    site = next(environment.glob("lib/python3*/site-packages"))
    for own in (*site.glob("setuptools*"), site / "_distutils_hack"):  # Python 3.11 puts an old one there
        shutil.rmtree(own, ignore_errors=True)
    (site / "distutils-precedence.pth").unlink(missing_ok=True)
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")


def split_command(text: str) -> tuple[str, list[str]]:
    """What is typed, a here document included, and the lines that it should print."""
    typed, end, printed = text.partition("\nEOF\n")
    if end:
        return typed + end, printed.strip().splitlines()
    line, *printed_lines = text.strip().splitlines()
    return line, printed_lines


def console_commands(page: str) -> list[tuple[str, list[str]]]:
    """The commands of the page's consoles, in order, each with the lines that it should print."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    commands = [command for block in blocks for command in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return [split_command(each) for each in commands]


def indented_commands(text: str) -> list[str]:
    """The commands that stand as blocks of four spaces, in order; one goes on where its line ends with a backslash."""
    block = "".join(re.findall(r"^    (.*\n)", text, re.MULTILINE))
    return block.replace("\\\n", " ").splitlines()


def type_commands(page: str, newcomer: Newcomer) -> int:
    """Every command of the page's consoles, in order; how many there are."""
    commands = console_commands(page)
    try:
        for line, expected in commands:
            newcomer.type(line, expected)
    finally:
        newcomer.end_serving()
    return len(commands)


def newcomer_with_a_clone(home: Path, *, activated: Path | None = None) -> Newcomer:
    """In the folder of a fresh clone, below an empty home."""
    shutil.copytree(ROOT, home / "adyton", ignore=shutil.ignore_patterns(".*", "__pycache__", "build", "dist"))
    made = Newcomer(home)
    made.activated = activated
    return made
