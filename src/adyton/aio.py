"""Adyton for asyncio: the attested channel, and the host's side of an enclave, as coroutines.

Each name is imported when it is first used; the host's are not there inside an enclave.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adyton.atls.aio_channel import AttestedAioChannel
    from adyton.atls.connect import aio_connect as connect
    from adyton.host.aio import EnclaveClient, EnclaveManager

#: Public name → where it is.
_HOMES = {
    "AttestedAioChannel": ("adyton.atls.aio_channel", "AttestedAioChannel"),
    "EnclaveClient": ("adyton.host.aio", "EnclaveClient"),
    "EnclaveManager": ("adyton.host.aio", "EnclaveManager"),
    "connect": ("adyton.atls.connect", "aio_connect"),
}

__all__ = ["AttestedAioChannel", "EnclaveClient", "EnclaveManager", "connect"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'adyton.aio' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    globals()[name] = found = getattr(importlib.import_module(module), attribute)
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
