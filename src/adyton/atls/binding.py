"""What evidence is bound to: the bytes that both ends build from values they hold, and the 64 that the hardware signs.

Nothing here is secret and nothing does I/O. docs/atls.md has the layout and a check value.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from adyton.errors import EvidenceError

VERSION: Final = 1
NONCE_BYTES: Final = 32
NODE_BYTES: Final = 64
MAX_CLAIMS_BYTES: Final = 8 * 1024
MAX_PATH_STEPS: Final = 32

_DOMAIN: Final = b"ATLS-BINDING\x00\x01"
_REPORT_DOMAIN: Final = b"ATLS-REPORT-DATA\x00\x01"
_HOST_DOMAIN: Final = b"ADYTON-HOST-QUESTION\x00\x01"
#: TEEs whose hardware signs the SHA-256 of the 64 bytes, for it has no room for more.
_HASHED_CARRIERS: Final = frozenset({"tpm", "azure"})


class Purpose(enum.IntEnum):
    """What evidence was asked for; evidence for one purpose is none for another."""

    INSTANCE = 1
    """The anchor is the certificate of the enclave's TLS key, which the client pins."""
    FLEET = 2
    """The anchor is the enclave's CA."""
    ENROL = 3
    """The anchor is the key that a caller wants certified."""
    CA_JOIN = 4
    """Reserved: a member asks for the CA's own key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """One question and everything that its answer is bound to.

    Digests are SHA-256, 32 bytes: of DER SubjectPublicKeyInfo for `anchor_sha256`, for `client_sha256` (the client's
    key on this connection; empty at level `key`) and for `peer_sha256` (the CA that a caller has attested, or empty);
    of the claims' exact bytes for `claims_sha256`. `kem_sha256` is reserved and empty.
    """

    purpose: Purpose
    nonce: bytes
    anchor_sha256: bytes
    client_sha256: bytes
    claims_sha256: bytes
    audience: str
    kem_sha256: bytes = b""
    peer_sha256: bytes = b""

    def encode(self) -> bytes:
        """B, as the protocol lays it out: unambiguous, for each part comes after its length."""
        parts = (
            self.nonce,
            self.anchor_sha256,
            self.client_sha256,
            self.kem_sha256,
            self.claims_sha256,
            self.peer_sha256,
            self.audience.encode(),
        )
        return _DOMAIN + bytes([self.purpose]) + b"".join(struct.pack(">H", len(part)) + part for part in parts)

    def leaf(self) -> bytes:
        """The node of a batch that stands for this binding."""
        return hashlib.sha512(b"\x00" + self.encode()).digest()


def parent(left: bytes, right: bytes) -> bytes:
    """The node above two nodes. Its first byte differs from a leaf's, so neither passes for the other."""
    return hashlib.sha512(b"\x01" + left + right).digest()


def fold(leaf: bytes, path: Sequence[bytes]) -> bytes:
    """The root above `leaf`. Each step is the sibling's side, 'L' or 'R', and its 64 bytes; else `EvidenceError`."""
    if len(path) > MAX_PATH_STEPS:
        raise EvidenceError(f"a batch path of {len(path)} steps; {MAX_PATH_STEPS} are allowed")
    node = leaf
    for step in path:
        side, sibling = step[:1], step[1:]
        if len(sibling) != NODE_BYTES or side not in (b"L", b"R"):
            raise EvidenceError("a step of the batch path is not 'L' or 'R' and 64 bytes")
        node = parent(sibling, node) if side == b"L" else parent(node, sibling)
    return node


def report_data(root: bytes) -> bytes:
    """The 64 bytes that the hardware is given for a batch."""
    return hashlib.sha512(_REPORT_DOMAIN + root).digest()


def host_report_data(question: bytes) -> bytes:
    """The 64 bytes that the hardware is given for a question of the enclave's host.

    A domain of its own: a host that could choose what the hardware signs could forge the binding of a channel.
    """
    return hashlib.sha512(_HOST_DOMAIN + question).digest()


def carried(tee: str, data: bytes) -> bytes:
    """What of `report_data` stands in evidence of that TEE."""
    return hashlib.sha256(data).digest() if tee in _HASHED_CARRIERS else data
