"""A vault for tests in one process: by default of an enclave whose hardware has no sealing key."""

from __future__ import annotations

from pathlib import Path

from adyton.bundle.settings import Settings
from adyton.enclave.vault import Vault
from adyton.errors import UnsupportedError
from adyton.tee.sealing import KeySource

SETTINGS = Settings(name="e", application="e:E", include=("e.py",))


def make_vault(
    source: KeySource | None = None, *, state_directory: Path | None = None, settings: Settings = SETTINGS
) -> Vault:
    """With that source of keys and that state folder."""

    def find_source() -> KeySource:
        if source is None:
            raise UnsupportedError("this test has no sealing key")
        return source

    return Vault(settings, instance="e", state_directory=state_directory, find_source=find_source)
