"""What the simulation's enclave and its hardware say to each other about sealing. Big endian.

    request   operation 1, length 2, then
        IDENTITY  nothing                              → measurement 48, tcb 4, version 4, signer 1 + n, product
        KEY       policy 1, version 4, tcb 4, key id 32 → key 32
        READ      policy 1, label 32                   → value 32, or nothing
        WRITE     policy 1, label 32, value 32, after  → nothing; `after`: what is in it, 32 or nothing
    reply     status 1, length 2, then the answer, or why not

As EGETKEY of SGX does, the hardware mixes in what it knows itself, and takes from the enclave only what may be lower:
the version and the security version.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final

from adyton.tee.simulated.format import MEASUREMENT_BYTES

KEY_ID_BYTES: Final = 32
HEAD: Final = struct.Struct(">BH")
KEY: Final = struct.Struct(">BII32s")
READ: Final = struct.Struct(">B32s")
WRITE: Final = struct.Struct(">B32s32s")
MAX_BYTES: Final = 256
_IDENTITY: Final = struct.Struct(f">{MEASUREMENT_BYTES}sIIB")


class Operation(enum.IntEnum):
    """What the enclave asks for."""

    IDENTITY = 1
    KEY = 2
    READ = 3
    WRITE = 4


class Answer(enum.IntEnum):
    """How the hardware takes it."""

    OK = 0
    REFUSED = 1
    FAILED = 2
    OTHER_VALUE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SealingIdentity:
    """Who the enclave is, as its hardware knows. Unsigned code: `version` 0, `signer` and `product` empty."""

    measurement: bytes
    tcb: int
    version: int
    signer: bytes
    product: bytes


def encode_identity(identity: SealingIdentity) -> bytes:
    """The reply to IDENTITY."""
    fixed = _IDENTITY.pack(identity.measurement, identity.tcb, identity.version, len(identity.signer))
    return fixed + identity.signer + identity.product


def parse_identity(data: bytes) -> SealingIdentity:
    """The reverse. `struct.error` or `ValueError` for what is none."""
    measurement, tcb, version, signer = _IDENTITY.unpack_from(data)
    rest = data[_IDENTITY.size :]
    if len(rest) < signer:
        raise ValueError("an identity that ends inside its signer")
    return SealingIdentity(
        measurement=measurement, tcb=tcb, version=version, signer=rest[:signer], product=rest[signer:]
    )
