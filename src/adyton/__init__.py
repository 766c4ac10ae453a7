"""Run an ordinary gRPC servicer inside an enclave; reach it by a channel that exists only if it proved itself.

The names that a user needs are here; each is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adyton import aio as aio
    from adyton import errors as errors
    from adyton.atls.attestation import Attestation as Attestation
    from adyton.atls.channel import AttestedChannel as AttestedChannel
    from adyton.atls.connect import connect as connect
    from adyton.atls.enrolling import CallerIdentity as CallerIdentity
    from adyton.atls.membership import Membership as Membership
    from adyton.atls.membership import join as join
    from adyton.atls.peer import Peer as Peer
    from adyton.atls.peer import peer as peer
    from adyton.enclave.application import EnclaveContext as EnclaveContext
    from adyton.enclave.application import TrustedApplication as TrustedApplication
    from adyton.enclave.grpc_application import AioGrpcApplication as AioGrpcApplication
    from adyton.enclave.grpc_application import GrpcApplication as GrpcApplication
    from adyton.enclave.key_release import KeyReleaseApplication as KeyReleaseApplication
    from adyton.enclave.vault import reseal as reseal
    from adyton.enclave.vault import seal as seal
    from adyton.enclave.vault import unseal as unseal
    from adyton.errors import AdytonError as AdytonError
    from adyton.errors import ApplicationError as ApplicationError
    from adyton.errors import ConfigurationError as ConfigurationError
    from adyton.errors import DeadlineError as DeadlineError
    from adyton.errors import EvidenceError as EvidenceError
    from adyton.errors import PolicyError as PolicyError
    from adyton.errors import StatusCode as StatusCode
    from adyton.errors import UnreachableError as UnreachableError
    from adyton.host.bundles import Bundle as Bundle
    from adyton.host.manager import EnclaveClient as EnclaveClient
    from adyton.host.manager import EnclaveManager as EnclaveManager
    from adyton.policy.document import Policy as Policy
    from adyton.proto.enclave_pb2 import EnclaveConfig as EnclaveConfig
    from adyton.proto.enclave_pb2 import EnclaveFinal as EnclaveFinal
    from adyton.proto.enclave_pb2 import EnclaveInput as EnclaveInput
    from adyton.proto.enclave_pb2 import EnclaveOutput as EnclaveOutput
    from adyton.sealing.file import SealedFile as SealedFile
    from adyton.sealing.store import SealedStore as SealedStore

__version__ = "0.1.0"

#: Public name → module that has it; None: it is a module itself.
_HOMES: dict[str, str | None] = {
    "AdytonError": "adyton.errors",
    "AioGrpcApplication": "adyton.enclave.grpc_application",
    "ApplicationError": "adyton.errors",
    "Attestation": "adyton.atls.attestation",
    "AttestedChannel": "adyton.atls.channel",
    "Bundle": "adyton.host.bundles",
    "CallerIdentity": "adyton.atls.enrolling",
    "ConfigurationError": "adyton.errors",
    "DeadlineError": "adyton.errors",
    "EvidenceError": "adyton.errors",
    "PolicyError": "adyton.errors",
    "UnreachableError": "adyton.errors",
    "EnclaveClient": "adyton.host.manager",
    "EnclaveConfig": "adyton.proto.enclave_pb2",
    "EnclaveContext": "adyton.enclave.application",
    "EnclaveFinal": "adyton.proto.enclave_pb2",
    "EnclaveInput": "adyton.proto.enclave_pb2",
    "EnclaveManager": "adyton.host.manager",
    "EnclaveOutput": "adyton.proto.enclave_pb2",
    "GrpcApplication": "adyton.enclave.grpc_application",
    "KeyReleaseApplication": "adyton.enclave.key_release",
    "Membership": "adyton.atls.membership",
    "Peer": "adyton.atls.peer",
    "Policy": "adyton.policy.document",
    "SealedFile": "adyton.sealing.file",
    "SealedStore": "adyton.sealing.store",
    "StatusCode": "adyton.errors",
    "TrustedApplication": "adyton.enclave.application",
    "aio": None,
    "connect": "adyton.atls.connect",
    "errors": None,
    "join": "adyton.atls.membership",
    "peer": "adyton.atls.peer",
    "reseal": "adyton.enclave.vault",
    "seal": "adyton.enclave.vault",
    "unseal": "adyton.enclave.vault",
}

__all__ = [*_HOMES, "__version__"]  # noqa: PLE0604  names, all of them


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'adyton' has no attribute {name!r}")
    home = _HOMES[name]
    found = importlib.import_module(f"adyton.{name}") if home is None else getattr(importlib.import_module(home), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
