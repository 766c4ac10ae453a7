"""What packages and images hold: files and links by their paths, which are relative to the root and safe."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from adyton.errors import ConfigurationError

_MOST_LINKS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A regular file."""

    content: bytes
    executable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A symbolic link, as it is written in a package. An image has none."""

    target: str


Tree: TypeAlias = Mapping[str, File | Link]
Files: TypeAlias = Mapping[str, File]


def check_path(path: str, origin: str) -> str:
    """`path`, if it is one below a root. Raises ConfigurationError, which names `origin`."""
    if any(part in ("", ".", "..") for part in path.split("/")) or not path.isprintable():
        raise ConfigurationError(f"{origin} has {path[:80]!r}, which is no path below its root")
    return path


def find_file(tree: Tree, path: str) -> File | None:
    """The file at `path` or where the links at `path` lead; None if there is none."""
    for _ in range(_MOST_LINKS):
        entry = tree.get(path)
        if not isinstance(entry, Link):
            return entry
        path = posixpath.normpath(posixpath.join("/", posixpath.dirname(path), entry.target)).lstrip("/")
    return None
