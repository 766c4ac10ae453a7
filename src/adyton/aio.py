"""Adyton for asyncio: the host's side of an enclave, as coroutines."""

from adyton.host.aio import EnclaveClient, EnclaveManager

__all__ = ["EnclaveClient", "EnclaveManager"]
