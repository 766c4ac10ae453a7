"""Adyton for asyncio: the attested channel, and the host's side of an enclave, as coroutines."""

from adyton.atls.connect import aio_connect as connect
from adyton.host.aio import EnclaveClient, EnclaveManager

__all__ = ["EnclaveClient", "EnclaveManager", "connect"]
