"""requirements.lock: which distributions an enclave runs with, each by version and by digest.

The format is pip's own (`name==version ; marker --hash=sha256:…`), as `uv pip compile --generate-hashes` and
`pip-compile --generate-hashes` write it, so that `pip install --require-hashes -r requirements.lock` installs it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from adyton.errors import ConfigurationError

_COMMENT = re.compile(r"(?:^|\s)#")
_HASH = re.compile(r"\s--hash=")
_SHA256 = re.compile(r"sha256:([0-9a-f]{64})")
MAX_LOCK_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedDistribution:
    """One line of the lock. `wanted`: whether its environment marker holds where the lock is read for.

    `sha256`: the digests of the files that it may be, in lower-case hexadecimal; there is one at least.
    """

    name: str
    version: str
    wanted: bool
    sha256: tuple[str, ...]


def parse_lock(text: bytes, environment: Mapping[str, str] | None = None) -> tuple[LockedDistribution, ...]:
    """Read a lock. No line is left out: what pip would read otherwise is refused.

    `environment`: PEP 508's variables where the distributions will run, instead of the running interpreter's. Raises
    ConfigurationError for a line without an exact version or without a digest.
    """
    if len(text) > MAX_LOCK_BYTES:
        raise ConfigurationError(f"requirements.lock is larger than {MAX_LOCK_BYTES} bytes")
    try:
        lines = tuple(_logical_lines(text.decode()))
    except UnicodeDecodeError as problem:
        raise ConfigurationError("requirements.lock is not UTF-8") from problem
    texts = (_COMMENT.split(line, maxsplit=1)[0].strip() for line in lines)
    return tuple(_parse_line(each, environment) for each in texts if each)


def _logical_lines(text: str) -> Iterator[str]:
    """Lines as pip joins them: a backslash at its end continues a line, unless all of that line is a comment.

    A comment after something else would take in the next line: nobody means that.
    """
    begun = ""
    for line in text.splitlines():
        if line.endswith("\\") and not line.lstrip().startswith("#"):
            if _COMMENT.search(line):
                raise _unreadable(line)
            begun += line[:-1] + " "
        else:
            yield begun + " " + line
            begun = ""
    yield begun


def _parse_line(line: str, environment: Mapping[str, str] | None) -> LockedDistribution:
    text, *options = _HASH.split(line)
    digests = [_SHA256.fullmatch(each.strip()) for each in options]
    try:
        requirement = Requirement(text.strip())
        wanted = requirement.marker is None or requirement.marker.evaluate(dict(environment or {}))
    except (ValueError, LookupError, RecursionError) as problem:  # a marker that has no meaning raises any of them
        raise _unreadable(line) from problem
    if None in digests:
        raise _unreadable(line)
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
        wanted=wanted,
        sha256=tuple(digest[1] for digest in digests if digest),
    )


def _unreadable(line: str) -> ConfigurationError:
    return ConfigurationError(f"requirements.lock: can't read {line[:80]!r}")


def find_mismatches(lock: tuple[LockedDistribution, ...], installed: Callable[[str], str | None]) -> list[str]:
    """What of the lock is not there in the locked version; an empty list if all is. `installed`: name → version."""
    findings = []
    for locked in lock:
        if not locked.wanted:
            continue
        version = installed(locked.name)
        if version is None or Version(version) != Version(locked.version):
            findings.append(f"{locked.name} {version or 'is not installed'}, locked is {locked.version}")
    return findings
