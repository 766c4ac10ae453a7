"""image.lock: which Debian packages an image is made of, each by version and by digest.

TOML, of one form: equal locks are equal bytes. Beside enclave.toml it is the project's; without one, the machine that
builds has its own.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields

from adyton.errors import ConfigurationError
from adyton.host.bundles import IMAGE_LOCK
from adyton.host.image.architecture import ARCHITECTURES

FILE_NAME = IMAGE_LOCK
RELOCK = "`adyton build --for vm --relock` writes one anew"
"""What mends a lock that does not fit any more."""
MAX_BYTES = 64 * 1024
MAX_PACKAGES = 64
MAX_PACKAGE_BYTES = 256 * 1024 * 1024

_VERSION = 1
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]{1,99}")
_DEBIAN_VERSION = re.compile(r"[0-9][A-Za-z0-9.+:~-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class LockedPackage:
    """One package. `sha256` is of its file, in lower-case hexadecimal; `size` is its file's, in bytes."""

    name: str
    version: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLock:
    """The packages of each architecture that is locked, sorted by name."""

    packages: Mapping[str, tuple[LockedPackage, ...]]

    def encode(self) -> bytes:
        """The lock's file."""
        lines = [f"version = {_VERSION}"]
        for architecture, packages in sorted(self.packages.items()):
            for each in sorted(packages):
                lines += ["", f"[[{architecture}]]", f'name = "{each.name}"', f'version = "{each.version}"']
                lines += [f'sha256 = "{each.sha256}"', f"size = {each.size}"]
        return ("\n".join(lines) + "\n").encode()


def parse_image_lock(data: bytes) -> ImageLock:
    """Read a lock. Raises ConfigurationError for anything but a complete one, and for keys that it does not know."""
    if len(data) > MAX_BYTES:
        raise _wrong(f"it is larger than {MAX_BYTES} bytes")
    try:
        raw = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as problem:
        raise _wrong("it is not TOML") from problem
    if raw.pop("version", None) != _VERSION:
        raise _wrong(f"it is not of version {_VERSION}")
    if unknown := sorted(raw.keys() - ARCHITECTURES.keys()):
        raise _wrong(f"it has the unknown key {unknown[0][:80]!r}")
    return ImageLock(packages={name: _parse_packages(name, tables) for name, tables in sorted(raw.items())})


def _parse_packages(architecture: str, tables: object) -> tuple[LockedPackage, ...]:
    if not isinstance(tables, list) or not 1 <= len(tables) <= MAX_PACKAGES:
        raise _wrong(f"{architecture!r} should be 1 to {MAX_PACKAGES} tables")
    packages = tuple(sorted(_parse_package(architecture, table) for table in tables))
    if len({each.name for each in packages}) != len(packages):
        raise _wrong(f"{architecture!r} names a package twice")
    return packages


def _parse_package(architecture: str, table: object) -> LockedPackage:
    wanted = [each.name for each in fields(LockedPackage)]
    if not isinstance(table, dict) or sorted(table) != sorted(wanted):
        raise _wrong(f"a package of {architecture!r} should have {', '.join(wanted)}, and nothing else")
    for key, form in (("name", _NAME), ("version", _DEBIAN_VERSION), ("sha256", _SHA256)):
        if not isinstance(table[key], str) or not form.fullmatch(table[key]):
            raise _wrong(f"a package of {architecture!r} has a {key!r} that is none")
    if type(table["size"]) is not int or not 1 <= table["size"] <= MAX_PACKAGE_BYTES:
        raise _wrong(f"a package of {architecture!r} has a 'size' that is none")
    return LockedPackage(**table)


def _wrong(what: str) -> ConfigurationError:
    return ConfigurationError(f"{FILE_NAME}: {what}", mend=RELOCK)
