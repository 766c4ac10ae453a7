"""The simulation's firmware: the first code of an enclave's process. Standard library only.

1. tie this process to its host, give up privileges;
2. read the bundle from the descriptor that the host gave, compare its SHA-256 with the one that was asked for;
3. unpack it into the enclave's private folder;
4. give up files and system calls;
5. replace this interpreter by a fresh one that sees the standard library, the bundle and the locked packages' folders.

Each failure has an exit code of its own and one line on standard error.
"""

from __future__ import annotations

import hmac
import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from adyton.bundle.archive import bundle_sha256, parse_archive
from adyton.errors import BundleError
from adyton.host.launch import hardening

EXIT_NOT_THE_BUNDLE = 81
EXIT_NO_ROOM = 82
EXIT_NOT_HARDENED = 83

#: prctl(PR_SET_DUMPABLE, 0) again, and first of all: the exec has undone it.
_START = (
    "import ctypes; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0); "
    "import json, sys; sys.path += json.loads(sys.argv[1])['path']; "
    "from adyton.enclave.process_entry import main; main(sys.argv[1])"
)
#: What any Python program reads of a system: the loader's libraries, names and zones, entropy, its own process.
_SYSTEM_READ = (
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/etc/nsswitch.conf",
    "/etc/ssl",
)
_SYSTEM_RUN = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo")
_SYSTEM_SOURCES = ("/dev/zero", "/dev/urandom", "/dev/random", "/proc", "/sys/fs/cgroup")


def main() -> NoReturn:
    """Become the enclave that the JSON object in the first argument describes (see process.py, `_spec`)."""
    spec = json.loads(sys.argv[1])
    directory = Path(spec["directory"])
    _attempt(EXIT_NOT_HARDENED, lambda: _tie(spec))
    _attempt(EXIT_NO_ROOM, lambda: _unpack(_measured_files(spec), directory))
    _attempt(EXIT_NOT_HARDENED, lambda: _confine(spec, directory))
    _become_the_enclave(spec, directory)


def _attempt(code: int, action: Any) -> None:
    try:
        action()
    except BundleError as problem:
        _leave(EXIT_NOT_THE_BUNDLE, str(problem))
    except OSError as problem:
        _leave(code, str(problem))


def _leave(code: int, why: str) -> NoReturn:
    print(f"firmware: {why}", file=sys.stderr, flush=True)  # noqa: T201
    os._exit(code)


def _tie(spec: dict[str, Any]) -> None:
    hardening.die_with_parent(spec["parent_pid"])
    hardening.give_up_privileges()


def _measured_files(spec: dict[str, Any]) -> dict[str, bytes]:
    with os.fdopen(spec["bundle_fd"], "rb") as source:
        data = source.read()
    if not hmac.compare_digest(bundle_sha256(data), bytes.fromhex(spec["bundle_sha256"])):
        raise BundleError("the bundle is not the one that was asked for: its SHA-256 differs")
    return parse_archive(data)


def _unpack(files: dict[str, bytes], directory: Path) -> None:
    for name, content in files.items():
        target = directory / "bundle" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    (directory / "data" / "tmp").mkdir(parents=True)


def _confine(spec: dict[str, Any], directory: Path) -> None:
    if spec["landlock"]:
        runnable = (*_SYSTEM_RUN, *spec["interpreter_paths"], *spec["dependency_paths"])
        allowed = [(path, hardening.READ_AND_EXECUTE) for path in runnable]
        allowed += [(path, hardening.READ) for path in (*_SYSTEM_READ, *_SYSTEM_SOURCES, str(directory / "bundle"))]
        allowed.append(("/dev/null", hardening.READ | hardening.WRITE))
        writable = [str(directory / "data"), *([spec["state"]] if spec["state"] else [])]
        allowed += [(path, hardening.EVERYTHING & ~hardening.EXECUTE) for path in writable]
        hardening.restrict_files(allowed, outbound=spec["outbound"])
    if spec["seccomp"]:
        hardening.refuse_system_calls(outbound=spec["outbound"])


def _become_the_enclave(spec: dict[str, Any], directory: Path) -> NoReturn:
    bundle, data = directory / "bundle", directory / "data"
    entry = {
        "path": [str(bundle / "runtime"), str(bundle / "app"), *spec["dependency_paths"]],
        "bundle": str(bundle),
        "data": str(data),
        "state": spec["state"],
        "control_fd": spec["control_fd"],
        "device_fd": spec["device_fd"],
        "sealing_fd": spec["sealing_fd"],
        "hardware": None,
        "keeper_fd": None,
        "parent_pid": spec["parent_pid"],
        "worker": None,
        "cpu": None,
    }
    environment = {
        "LANG": "C.UTF-8",
        "HOME": str(data),
        "TMPDIR": str(data / "tmp"),
        "PATH": "/usr/bin:/bin",
        "GRPC_VERBOSITY": "NONE",  # its core quotes clients: a server name with line feeds would be lines of the log
    }
    command = [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-W", "default", "-c", _START, json.dumps(entry)]
    os.chdir(data)
    os.execve(sys.executable, command, environment)  # noqa: S606  no shell, on purpose
