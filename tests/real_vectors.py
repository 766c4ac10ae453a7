"""Real evidence of real hardware. It is not part of this repository: tests that want it are skipped where it is not."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import pytest

_BESIDE_THE_CHECKOUT = Path(__file__).resolve().parents[2] / "shared" / "vectors"
DIRECTORY = Path(os.environ.get("ADYTON_VECTORS", _BESIDE_THE_CHECKOUT))
MANIFEST = DIRECTORY / "MANIFEST.json"

needs_vectors = pytest.mark.skipif(
    not MANIFEST.is_file(), reason="no real vectors here; ADYTON_VECTORS can name their directory"
)
"""For a module's `pytestmark`."""


@functools.cache
def manifest() -> dict[str, dict[str, Any]]:
    """The manifest's entries by id; empty where there are no vectors, so that it can parametrise a skipped test."""
    if not MANIFEST.is_file():
        return {}
    return {entry["id"]: entry for entry in json.loads(MANIFEST.read_text())["vectors"]}


def ids(format_: str, *kinds: str) -> list[str]:
    """The ids of one format, of these kinds, or of all kinds if none is named."""
    return [
        name
        for name, entry in manifest().items()
        if entry["format"] == format_ and (not kinds or entry["kind"] in kinds)
    ]


def content(name: str) -> bytes:
    """The bytes of the vector with that id."""
    return (DIRECTORY / name).read_bytes()
