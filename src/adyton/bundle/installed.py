"""What is installed beside the running interpreter: the one look at the machine in this room."""

from __future__ import annotations

import importlib.metadata


def installed_version(name: str) -> str | None:
    """The version of a distribution that can be imported here, or None. For `find_mismatches`."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
