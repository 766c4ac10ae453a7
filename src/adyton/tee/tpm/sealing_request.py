"""What asks a TPM for a key again: bytes ↔ dataclass; total, bounded, no I/O; nothing is trusted.

Version 1 of the format, big endian:

    01 | policy (1) | SHA-256 of the storage key's public area (32)
    | for MEASUREMENT: PCRs, a bit each (2), their values when it was made (32 each)
    | unique part of the key's public area (32) | private area's length (2), private area, encrypted by the TPM

The PCRs' values are here so that a refusal can say which of them differ; what lets in is the binding's subject.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from adyton.errors import EvidenceError, SealedDataError
from adyton.tee._binary import Reader
from adyton.tee._tpm_commands import SHA256_BYTES, sized
from adyton.tee._tpm_policies import digest_of, pcr_policy
from adyton.tee._tpm_sealing import MAX_PRIVATE_BYTES, KeptKey
from adyton.tee.sealing import Binding, SealPolicy

VERSION: Final = 1
_PCR_BYTES: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SealingRequest:
    """`parent_sha256` is `StorageKey.public_sha256`; `pcrs` has the values by PCR, none for SIGNER."""

    policy: SealPolicy
    parent_sha256: bytes
    pcrs: Mapping[int, bytes]
    kept: KeptKey

    def encode(self) -> bytes:
        """As the module says."""
        head = bytes([VERSION, self.policy]) + self.parent_sha256
        pcrs = _encode_pcrs(self.pcrs) if self.policy is SealPolicy.MEASUREMENT else b""
        return head + pcrs + self.kept.unique + sized(self.kept.private)


def parse_request(data: bytes, binding: Binding) -> SealingRequest:
    """The request of a key that is bound so. Anything else is a `SealedDataError`."""
    try:
        request = _parse(Reader(data, "the key request", order="big"))
    except EvidenceError as error:
        raise SealedDataError(f"this key request is none of a TPM's: {error}") from error
    if request.policy is not binding.policy:
        raise SealedDataError(f"the key request is for {request.policy.name}, its binding for {binding.policy.name}")
    if request.policy is SealPolicy.MEASUREMENT:
        subject = pcr_policy(request.pcrs, digest_of(request.pcrs))
        if binding != Binding(policy=binding.policy, subject=subject):
            raise SealedDataError("the key request is for another measurement than its binding")
    return request


def _parse(reader: Reader) -> SealingRequest:
    version, policy = reader.number(1, "version"), reader.number(1, "policy")
    if version != VERSION:
        raise EvidenceError(f"it is of version {version}; {VERSION} is known here")
    if policy not in (SealPolicy.MEASUREMENT, SealPolicy.SIGNER):
        raise EvidenceError(f"its policy is {policy}")
    request = SealingRequest(
        policy=SealPolicy(policy),
        parent_sha256=reader.take(SHA256_BYTES, "storage key"),
        pcrs=_parse_pcrs(reader) if policy == SealPolicy.MEASUREMENT else MappingProxyType({}),
        kept=KeptKey(
            unique=reader.take(SHA256_BYTES, "unique part"),
            private=reader.prefixed(2, "private area", at_most=MAX_PRIVATE_BYTES),
        ),
    )
    reader.end()
    return request


def _encode_pcrs(pcrs: Mapping[int, bytes]) -> bytes:
    bits = sum(1 << index for index in pcrs)
    return struct.pack(">H", bits) + b"".join(pcrs[index] for index in sorted(pcrs))


def _parse_pcrs(reader: Reader) -> Mapping[int, bytes]:
    bits = reader.number(_PCR_BYTES, "PCRs")
    selected = [index for index in range(8 * _PCR_BYTES) if bits >> index & 1]
    return MappingProxyType({index: reader.take(SHA256_BYTES, f"PCR {index}") for index in selected})
