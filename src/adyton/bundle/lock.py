"""requirements.lock: which distributions an enclave runs with, each by version and by digest.

The format is pip's own (`name==version ; marker --hash=sha256:…`), as `uv pip compile --generate-hashes` and
`pip-compile --generate-hashes` write it, so that `pip install --require-hashes -r requirements.lock` installs it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from adyton.errors import ConfigurationError

_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
MAX_LOCK_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedDistribution:
    """One line of the lock. `wanted_here`: whether its environment marker holds for the running interpreter."""

    name: str
    version: str
    wanted_here: bool
    sha256: tuple[str, ...]


def parse_lock(text: bytes) -> tuple[LockedDistribution, ...]:
    """Read a lock. Raises ConfigurationError for a line without an exact version or without a digest."""
    if len(text) > MAX_LOCK_BYTES:
        raise ConfigurationError(f"requirements.lock is larger than {MAX_LOCK_BYTES} bytes")
    try:
        lines = tuple(_logical_lines(text.decode()))
    except UnicodeDecodeError as problem:
        raise ConfigurationError("requirements.lock is not UTF-8") from problem
    return tuple(_parse_line(line) for raw in lines if (line := raw.partition("#")[0].strip()))


def _logical_lines(text: str) -> Iterator[str]:
    """Lines as pip joins them: a backslash at its end continues a line, unless all of that line is a comment."""
    begun = ""
    for line in text.splitlines():
        if line.endswith("\\") and not line.lstrip().startswith("#"):
            begun += line[:-1] + " "
        else:
            yield begun + " " + line
            begun = ""
    yield begun


def _parse_line(line: str) -> LockedDistribution:
    digests = tuple(_HASH.findall(line))
    try:
        requirement = Requirement(_HASH.sub("", line).strip())
        wanted_here = requirement.marker is None or requirement.marker.evaluate()
    except (ValueError, LookupError, RecursionError) as problem:  # a marker that has no meaning raises any of them
        raise ConfigurationError(f"requirements.lock: can't read {line[:80]!r}") from problem
    pins = [pin for pin in requirement.specifier if pin.operator == "==" and not pin.version.endswith(".*")]
    if len(pins) != 1 or len(requirement.specifier) != 1:
        raise ConfigurationError(f"requirements.lock: {requirement.name} needs one exact version (name==1.2.3)")
    if not digests:
        raise ConfigurationError(
            f"requirements.lock: {requirement.name} has no digest",
            mend="write the lock with `uv pip compile --universal --generate-hashes`",
        )
    return LockedDistribution(
        name=canonicalize_name(requirement.name),
        version=pins[0].version,
        wanted_here=wanted_here,
        sha256=digests,
    )


def find_mismatches(lock: tuple[LockedDistribution, ...], installed: Callable[[str], str | None]) -> list[str]:
    """What of the lock is not there in the locked version; an empty list if all is. `installed`: name → version."""
    findings = []
    for locked in lock:
        if not locked.wanted_here:
            continue
        version = installed(locked.name)
        if version is None or Version(version) != Version(locked.version):
            findings.append(f"{locked.name} {version or 'is not installed'}, locked is {locked.version}")
    return findings
