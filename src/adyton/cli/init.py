"""`adyton init`: a new project that works as it is."""

from __future__ import annotations

import argparse
import importlib.util
import keyword
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

from adyton.bundle.installed import installed_version
from adyton.bundle.lock import find_mismatches, parse_lock
from adyton.cli.main import say
from adyton.errors import ConfigurationError, UnsupportedError
from adyton.host.bundles import LOCK, runtime_lock

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
#: Names of modules that an enclave has already.
_TAKEN = {
    *("adyton", "cffi", "cryptography", "google", "grpc", "grpc_health", "grpc_reflection", "grpc_tools", "packaging"),
    *("pycparser", "typing_extensions", "tests", "dist"),
}

#: Template → path in the project.
_FILES = {
    "enclave.toml": "enclave.toml",
    "requirements.in": "requirements.in",
    "README.md.in": "README.md",
    "gitignore.in": ".gitignore",
    "service.proto.in": "@module@/@module@.proto",
    "service.py.in": "@module@/service.py",
    "application.py.in": "@module@/application.py",
    "test_service.py.in": "tests/test_service.py",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    parser.add_argument("directory", type=Path, help="folder to make; its name is the enclave's name")


def run(arguments: argparse.Namespace) -> int:
    """Write the project and generate its protobuf code."""
    directory: Path = arguments.directory
    name = directory.resolve().name
    module = name.replace("-", "_")
    _check(directory, name, module)
    words = {"@name@": name, "@module@": module, "@service@": "".join(part.capitalize() for part in name.split("-"))}
    try:
        _write(directory, words)
    except OSError as problem:
        raise ConfigurationError(f"can't write {directory}: {problem.strerror}") from problem
    _generate(directory, module)
    _warn_of_other_packages()
    print(f"made {directory}; next: adyton run {directory}")
    return 0


def _check(directory: Path, name: str, module: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > 63:
        raise ConfigurationError(
            f"{name!r} can't be an enclave's name: it begins with a small letter; small letters, digits and '-' follow"
        )
    if keyword.iskeyword(module):
        raise ConfigurationError(f"{name!r} is a keyword of Python")
    if module in _TAKEN or module in sys.stdlib_module_names:
        raise ConfigurationError(f"{name!r} is the name of a module that every enclave has already")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigurationError(f"{directory} exists and is not empty")
    if importlib.util.find_spec("grpc_tools") is None:
        raise UnsupportedError("grpcio-tools is needed to generate code", mend="pip install grpcio-tools")


def _write(directory: Path, words: dict[str, str]) -> None:
    template = files("adyton.cli") / "template"
    for source, target in _FILES.items():
        path = directory / _fill(target, words)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_fill((template / source).read_text(encoding="utf-8"), words), encoding="utf-8")
    (directory / LOCK).write_bytes(runtime_lock())
    for package in (words["@module@"], "tests"):
        (directory / package / "__init__.py").touch()


def _fill(text: str, words: dict[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(word, value)
    return text


def _generate(directory: Path, module: str) -> None:
    options = ["-I.", "--python_out=.", "--grpc_python_out=.", "--pyi_out=."]
    command = [sys.executable, "-m", "grpc_tools.protoc", *options, f"{module}/{module}.proto"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnsupportedError(f"the protobuf compiler failed: {done.stderr.strip()[:500]}")


def _warn_of_other_packages() -> None:
    if mismatches := find_mismatches(parse_lock(runtime_lock()), installed_version):
        say(f"note: this environment has other packages than requirements.lock: {'; '.join(mismatches)}")
        say("      before `adyton run`: pip install --require-hashes -r requirements.lock")
