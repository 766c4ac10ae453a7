"""Debian's archive, asked through the machine's own apt: its sources, its keys, but a state of our own and no root."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from adyton.errors import ConfigurationError, UnsupportedError
from adyton.host.image.architecture import Architecture
from adyton.host.image.cache import Cache
from adyton.host.image.lock import FILE_NAME, RELOCK, LockedPackage

PACKAGES = (
    "libbz2-1.0",
    "libc6",
    "libexpat1",
    "libffi8",
    "libgcc-s1",
    "liblzma5",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libsqlite3-0",
    "libssl3",
    "libstdc++6",
    "libuuid1",
    "python3.11-minimal",
    "zlib1g",
)
"""What an image takes its interpreter and libraries from. One more is the kernel's, whose name has a revision."""
KERNEL_PREFIX = "linux-image-"

STALL_SECONDS = 30
"""How long an archive may say nothing; apt asks it once more."""

_TIMEOUT_SECONDS = 600
_UNREACHED = re.compile(r"^E: Failed to fetch (.*)$", re.MULTILINE)
_FIELD = re.compile(r"^(Package|Version|SHA256|Size|Depends): (.*)$", re.MULTILINE)


def resolve(architecture: Architecture, cache: Cache) -> tuple[LockedPackage, ...]:
    """The packages of an image as the index has them now. Raises UnsupportedError where there are none."""
    with _index(architecture, cache) as index:
        (newest,) = index.show([architecture.kernel]) or ({},)
        kernel = newest.get("Depends", architecture.kernel).split(" ")[0]
        found = {each["Package"]: each for each in index.show([*PACKAGES, kernel])}
    if missing := sorted({*PACKAGES, kernel} - found.keys()):
        raise UnsupportedError(
            f"apt knows no {missing[0]} for {architecture.debian}; images are made of Debian 12's packages",
            mend="build on Debian 12, with its security updates among apt's sources",
        )
    return tuple(sorted(_locked(facts) for facts in found.values()))


def _locked(facts: dict[str, str]) -> LockedPackage:
    return LockedPackage(
        name=facts["Package"], version=facts["Version"], sha256=facts["SHA256"], size=int(facts["Size"])
    )


def fetch(
    packages: Sequence[LockedPackage], architecture: Architecture, cache: Cache, say: Callable[[str], None]
) -> dict[str, Path]:
    """The packages' files in the cache, by name. Those that are not there are fetched; for none, no client is called.

    Raises UnsupportedError for a version that the index no longer has, and if that can't be reached.
    """
    missing = [each for each in packages if cache.find(each.sha256) is None]
    if missing:
        size = round(sum(each.size for each in missing) / 1e6)
        say(f"fetching {len(missing)} Debian packages for {architecture.debian}, {size} MB")
        with _index(architecture, cache) as index:
            index.check(missing)
            for content in index.download(missing):
                cache.add(content)
    return {each.name: cache.path(each.sha256) for each in packages}


class _Index:
    """Apt with a state of its own, below `state`."""

    def __init__(self, state: Path, architecture: Architecture) -> None:
        self._debian = architecture.debian
        self._downloads = state / "downloads"
        for folder in ("downloads", "lists/partial", "cache/archives/partial"):
            (state / folder).mkdir(parents=True)
        (state / "status").touch()
        settings = {
            "Dir::State": state,
            "Dir::State::lists": state / "lists",
            "Dir::State::status": state / "status",
            "Dir::Cache": state / "cache",
            "APT::Architecture": self._debian,
            "APT::Architectures": self._debian,
            "Acquire::Languages": "none",
            "Acquire::Retries": "1",
            "Acquire::http::Timeout": STALL_SECONDS,
            "Acquire::https::Timeout": STALL_SECONDS,
            "APT::Update::Error-Mode": "any",  # or an index that was not reached is one without packages
            "Debug::NoLocking": "1",
        }
        self._options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        self._run("apt-get", "update")

    def show(self, packages: Iterable[str]) -> list[dict[str, str]]:
        """What the index says of each of `packages` ("name", the newest, or "name=version") that it has."""
        text = self._run("apt-cache", "show", "--no-all-versions", *packages, may_fail=True)
        return [dict(_FIELD.findall(paragraph)) for paragraph in text.split("\n\n") if paragraph.strip()]

    def check(self, packages: Sequence[LockedPackage]) -> None:
        """Whether the index has exactly these. Raises UnsupportedError or ConfigurationError."""
        shown = self.show(f"{each.name}={each.version}" for each in packages)
        here = {(each["Package"], each["Version"]): each["SHA256"] for each in shown}
        for each in packages:
            digest = here.get((each.name, each.version))
            what = f"{each.name} {each.version} for {self._debian}"
            if digest is None:
                raise UnsupportedError(f"the archive no longer has {what}", mend=RELOCK)
            if digest != each.sha256:
                raise ConfigurationError(f"{FILE_NAME} has another digest of {what} than the archive", mend=RELOCK)

    def download(self, packages: Sequence[LockedPackage]) -> Iterator[bytes]:
        """The packages' files, their digests checked. Raises UnsupportedError."""
        self._run("apt-get", "download", *(f"{each.name}={each.version}" for each in packages))
        wanted = {each.sha256: each for each in packages}
        for path in sorted(self._downloads.iterdir()):
            content = path.read_bytes()
            if wanted.pop(hashlib.sha256(content).hexdigest(), None) is not None:
                yield content
        if wanted:
            names = ", ".join(sorted(each.name for each in wanted.values()))
            raise UnsupportedError(f"apt brought something else than the locked {names}: the SHA-256 differs")

    def _run(self, program: str, *arguments: str, may_fail: bool = False) -> str:
        try:
            done = subprocess.run(
                [program, *self._options, *arguments],
                cwd=self._downloads,
                env={**os.environ, "LC_ALL": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_SECONDS,
                check=False,
            )
        except FileNotFoundError as problem:
            raise UnsupportedError(f"there is no {program} here", mend="build images on Debian 12") from problem
        except OSError as problem:
            raise UnsupportedError(f"{program} can't be run: {problem.strerror}") from problem
        except subprocess.TimeoutExpired as problem:
            raise UnsupportedError(
                f"{program} {arguments[0]} took longer than {_TIMEOUT_SECONDS} s", mend="is there a network?"
            ) from problem
        if done.returncode and not may_fail:
            raise _failure(f"{program} {arguments[0]}", done.stderr)
        return done.stdout


def _failure(command: str, stderr: str) -> UnsupportedError:
    unreached = _UNREACHED.search(stderr)
    if command == "apt-get update" and unreached:
        return UnsupportedError(f"the package index can't be reached: {unreached[1]}", mend="is there a network?")
    first = next((line for line in stderr.splitlines() if line.startswith("E: ")), "it does not say why")
    return UnsupportedError(f"{command} failed: {first}")


@contextlib.contextmanager
def _index(architecture: Architecture, cache: Cache) -> Iterator[_Index]:
    with cache.scratch() as state:
        yield _Index(state, architecture)
