"""Bytecode for the guest, compiled by the guest's own CPython: its packages, of this machine's architecture.

It is run from a scratch folder by the dynamic loader of its own C library, so that it needs no root, no Debian, and
not the interpreter that builds. The bytecode is of the unchecked kind (PEP 552): it has no dates in it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from adyton.errors import ConfigurationError, UnsupportedError
from adyton.host.image.architecture import Architecture
from adyton.host.image.cache import Cache
from adyton.host.image.elf import parse_elf
from adyton.host.image.selection import INTERPRETER, STANDARD_LIBRARY, select_libraries
from adyton.host.image.tree import File, Files, Tree

_TIMEOUT_SECONDS = 300
_FAILED_FOR_SOME = 1
#: Nothing of the user's, and equal bytes each time: marshal writes what the order of hashing changes.
_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "TZ": "UTC"}


class Compiler:
    """The guest's CPython on this machine. `python`: the files of its packages for `architecture`, this machine's."""

    def __init__(self, python: Tree, architecture: Architecture, cache: Cache) -> None:
        self._cache, self._architecture = cache, architecture
        interpreter = python.get(INTERPRETER)
        if not isinstance(interpreter, File):
            raise UnsupportedError(f"the packages have no {INTERPRETER}")
        self._loader = parse_elf(interpreter.content, INTERPRETER).interpreter() or ""
        library = {
            path: entry
            for path, entry in python.items()
            if path.startswith(f"{STANDARD_LIBRARY}/") and path.endswith(".py") and isinstance(entry, File)
        }
        program = {INTERPRETER: interpreter}
        self._files = program | library | select_libraries(program, python, architecture)

    def compile(self, sources: Files, *, beside: bool, optimised: bool = False) -> dict[str, File]:
        """The bytecode of `sources`, by where an import looks for it; a file that does not compile has none.

        `beside`: module.pyc where module.py was, for an import without the source; else below __pycache__.
        `optimised`: without assertions and docstrings.
        """
        with self._cache.scratch() as folder:
            _write(folder / "python", self._files)
            _write(folder / "sources", sources)
            self._run(folder, (["-b"] if beside else []) + (["-o", "2"] if optimised else []))
            return {
                path.relative_to(folder / "sources").as_posix(): File(content=path.read_bytes())
                for path in sorted((folder / "sources").rglob("*.pyc"))
            }

    def _run(self, folder: Path, options: list[str]) -> None:
        root = folder / "python"
        libraries = ":".join(str(root / each) for each in self._architecture.library_folders)
        command = [str(root / self._loader), "--library-path", libraries, str(root / INTERPRETER), "-S", "-s", "-P"]
        command += ["-X", "utf8", "-W", "ignore", "-m", "compileall", "-qq", "--invalidation-mode", "unchecked-hash"]
        command += [*options, "-s", str(folder / "sources"), "-p", "/", str(folder / "sources")]
        try:
            done = subprocess.run(
                command,
                env=_ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_SECONDS,
                check=False,
            )
        except OSError as problem:
            raise UnsupportedError(f"the guest's CPython can't be run here: {problem.strerror}") from problem
        except subprocess.TimeoutExpired as problem:
            raise UnsupportedError(f"compiling took longer than {_TIMEOUT_SECONDS} s") from problem
        if done.returncode not in (0, _FAILED_FOR_SOME) or done.stderr:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise UnsupportedError(f"the guest's CPython fails here: {last}")


def _write(folder: Path, files: Mapping[str, File]) -> None:
    try:
        folder.mkdir()
        for name, file in files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.content)
            if file.executable:
                target.chmod(0o755)
    except OSError as problem:
        raise ConfigurationError(f"can't unpack {problem.filename}: {problem.strerror}") from problem
