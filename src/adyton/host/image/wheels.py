"""The locked distributions as wheels for the guest: Linux, CPython 3.11, the image's architecture."""

from __future__ import annotations

import importlib.util
import io
import lzma
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from adyton.bundle.lock import LockedDistribution, parse_lock
from adyton.errors import ConfigurationError, UnsupportedError
from adyton.host.image.architecture import Architecture
from adyton.host.image.cache import Cache
from adyton.host.image.tree import File, check_path

MAX_BYTES = 1024 * 1024 * 1024
"""What a wheel may unpack to."""

STALL_SECONDS = 60
"""How long an index may say nothing; pip asks it twice more."""

_TIMEOUT_SECONDS = 1800
#: What pip says of a request that it gives up, and the end of its traceback if that fails half-way.
_UNREACHED = re.compile(
    r"Retry\(total=0,.* after connection broken by '(.*)': |^(?:pip\._vendor\.)?urllib3\.exceptions\.(.*)$",
    re.MULTILINE,
)
_OBJECT = re.compile(r"<[^>]*>[:,] ")
_GLIBC_MINOR = 36
#: What zipfile and the decompressors raise for what is no wheel.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    RuntimeError,
    ValueError,
    OverflowError,
    OSError,
    EOFError,
)
#: PEP 508's variables as they are in the guest.
_ENVIRONMENT = {
    "implementation_name": "cpython",
    "implementation_version": "3.11.2",
    "os_name": "posix",
    "platform_python_implementation": "CPython",
    "platform_release": "",
    "platform_system": "Linux",
    "platform_version": "",
    "python_full_version": "3.11.2",
    "python_version": "3.11",
    "sys_platform": "linux",
}


def fetch_wheels(
    lock: bytes, architecture: Architecture, cache: Cache, say: Callable[[str], None]
) -> tuple[tuple[str, Path], ...]:
    """The wheels' names and files in the cache, sorted; `lock` is requirements.lock. No pip is called if all are there.

    Raises ConfigurationError for a lock that can't be read, UnsupportedError where pip can't bring a wheel.
    """
    environment = {**_ENVIRONMENT, "platform_machine": architecture.name}
    wanted = [each for each in parse_lock(lock, environment) if each.wanted]
    if not wanted:
        return ()
    requirements = "\n".join(map(_requirement, wanted))
    key = {"wheels": requirements, "architecture": architecture.name}
    if found := _cached(cache, cache.noted(key), wanted):
        return found
    with cache.scratch() as folder:
        say(f"fetching wheels for {architecture.name}")
        _download(requirements, architecture, folder)
        noted = {path.name: cache.add(path.read_bytes()) for path in sorted(folder.glob("*.whl"))}
    found = _cached(cache, noted, wanted)
    if not found:
        raise UnsupportedError("pip brought something else than the locked wheels")
    cache.note(key, noted)
    return found


def _requirement(locked: LockedDistribution) -> str:
    """Its line for pip, without a marker: pip would ask the interpreter that runs it."""
    return " ".join((f"{locked.name}=={locked.version}", *(f"--hash=sha256:{each}" for each in locked.sha256)))


def _cached(cache: Cache, noted: dict[str, str], wanted: Sequence[LockedDistribution]) -> tuple[tuple[str, Path], ...]:
    """What is noted, if all of it is here and locked, and it is as many files as are wanted; else nothing."""
    allowed = {digest for each in wanted for digest in each.sha256}
    found = [(name, cache.find(digest)) for name, digest in sorted(noted.items()) if digest in allowed]
    whole = tuple((name, path) for name, path in found if path is not None)
    return whole if len(whole) == len(noted) == len(wanted) else ()


def _download(requirements: str, architecture: Architecture, folder: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise UnsupportedError(
            "this Python has no pip, which fetches the wheels of an image", mend="`python -m ensurepip` adds it"
        )
    (folder / "requirements.txt").write_text(requirements)
    try:
        done = subprocess.run(
            _pip_command(architecture),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except OSError as problem:
        raise UnsupportedError(f"pip can't be run: {problem.strerror}") from problem
    except subprocess.TimeoutExpired as problem:
        raise UnsupportedError(f"pip took longer than {_TIMEOUT_SECONDS} s", mend="is there a network?") from problem
    if done.returncode:
        raise _failure(done.stderr, architecture)


def _failure(stderr: str, architecture: Architecture) -> UnsupportedError:
    if unreached := _UNREACHED.search(stderr):
        reason = _OBJECT.sub("", unreached[1] or unreached[2])
        return UnsupportedError(f"the index of wheels can't be reached: {reason}", mend="is there a network?")
    errors = [line for line in stderr.splitlines() if line.startswith("ERROR")]
    return UnsupportedError(
        f"pip can't bring the wheels: {(errors or ['it does not say why'])[-1]}",
        mend=f"is there a network? And each needs a wheel for {architecture.name}, CPython 3.11",
    )


def _pip_command(architecture: Architecture) -> list[str]:
    """What fetches the wheels of requirements.txt, in the folder where it is run."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--retries", "2", "--timeout", str(STALL_SECONDS)]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "--requirement", "requirements.txt"]
    command += [
        "--python-version",
        "3.11",
        "--implementation",
        "cp",
        "--abi",
        "cp311",
        "--abi",
        "abi3",
        "--abi",
        "none",
    ]
    return command + [word for tag in _platforms(architecture) for word in ("--platform", tag)]


def _platforms(architecture: Architecture) -> tuple[str, ...]:
    """The platform tags that Debian 12's C library fits, the newest first."""
    numbered = (f"manylinux_2_{minor}" for minor in range(_GLIBC_MINOR, 4, -1))
    return tuple(f"{each}_{architecture.name}" for each in (*numbered, "manylinux2014", "manylinux2010", "manylinux1"))


def read_wheel(name: str, data: bytes) -> dict[str, File]:
    """A wheel's files as they lie in the folder of packages. Raises ConfigurationError, also if a path leaves it."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            if sum(entry.file_size for entry in entries) > MAX_BYTES:
                raise ConfigurationError(f"{name} unpacks to more than {MAX_BYTES} bytes")
            return {
                place: File(content=archive.read(entry))
                for entry in entries
                if (place := _place(check_path(entry.filename, name)))
            }
    except _DAMAGED as problem:
        raise ConfigurationError(f"{name} can't be read: {type(problem).__name__}") from problem


def _place(path: str) -> str:
    """Where a file of a wheel lies once it is installed; empty for what is not installed beside the packages."""
    folder, _, rest = path.partition("/")
    if not folder.endswith(".data"):
        return path
    scheme, _, inner = rest.partition("/")
    return inner if scheme in ("purelib", "platlib") else ""
