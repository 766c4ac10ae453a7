"""What a TEE gives to those who keep secrets: keys that only some code can get again, and a register that remembers.

Each TEE that can has a `sealing.py` in its room; a source of keys outside (a key-release enclave, AWS KMS) has the same
shape. `adyton.sealing` makes sealed data of it; adyton.testing.sealers checks that one keeps these promises.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final, Protocol

KEY_BYTES: Final = 32
REGISTER_BYTES: Final = 32
LABEL_BYTES: Final = 32
MAX_REQUEST_BYTES: Final = 8 * 1024
MAX_SUBJECT_BYTES: Final = 64
MAX_VERSION: Final = (1 << 32) - 1


class SealPolicy(enum.IntEnum):
    """Who gets the key again. The numbers are on the wire."""

    MEASUREMENT = 1
    """The very same code."""
    SIGNER = 2
    """Code of the same signer and product, of the same version or a later one."""
    EXTERNAL = 3
    """Whomever a source of keys outside gives it to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Whom a key is bound to, in the TEE's own terms.

    `subject` (1 to 64 bytes) is the measurement, the signer's digest, or what names the key outside. `product` (up to
    64 bytes) and `version`, the least that gets the key, are for `SIGNER`; else empty and 0.
    """

    policy: SealPolicy
    subject: bytes
    product: bytes = b""
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SealingKey:
    """A key (32 bytes, a secret), and what asks the same hardware for it again (neither secret nor trusted).

    `request` begins with a version number of its own in one byte, so that what is asked today can be understood later.
    `tcb`: the security version of the hardware and firmware that it was made at, for a reader.
    """

    key: bytes = field(repr=False)
    binding: Binding
    request: bytes
    tcb: str


class FreshnessRegister(Protocol):
    """32 bytes that outlive the enclave and that nobody but it can write, the host not either."""

    def read(self) -> bytes | None:
        """What was written last; None if nothing ever was. Raises `KeyUnavailableError`."""

    def write(self, value: bytes, *, after: bytes | None) -> None:
        """Written for good when this returns, if what was in it is `after`; else `RollbackError`, and nothing happened.

        Of several writers after the same value one succeeds. Raises `KeyUnavailableError` too; then either value may
        be in it.
        """


class KeySource(Protocol):
    """Where sealing keys come from. Safe in threads."""

    @property
    def name(self) -> str:
        """Which one, in each sealed header: "simulated", "sgx", "snp", "tpm", "release", "aws-kms"."""

    @property
    def policies(self) -> frozenset[SealPolicy]:
        """What it can bind a key to."""

    def current(self, policy: SealPolicy) -> Binding:
        """Whom `new_key` would bind to: what this enclave is, as the TEE itself says.

        `UnsupportedError` for a policy that is not among `policies`, or an enclave without a signer.
        """

    def new_key(self, policy: SealPolicy) -> SealingKey:
        """A key for new data, at the present security version. Equal or fresh each time, as the source likes.

        Raises `UnsupportedError` as `current`, `KeyUnavailableError` if the hardware or the service fails, and
        `UnsealError` if a service outside does not give keys to this enclave.
        """

    def same_key(self, binding: Binding, request: bytes) -> bytes:
        """The key of that binding and request, also after an update of hardware or firmware.

        `UnsealError` (PERMISSION_DENIED), which names the field, if this enclave is not whom it is bound to, or the
        hardware's security version is older than the request's; `SealedDataError` if the request is none of this
        source's; `KeyUnavailableError` if the hardware or the service fails. A request that was tampered with, and is
        well-formed, may give another key: the caller authenticates binding and request with the key.
        """

    def register(self, binding: Binding, label: bytes) -> FreshnessRegister | None:
        """The register of that name (32 bytes), for whoever `binding` lets in; None: this hardware has none.

        `UnsealError` if that is not this enclave, here or when it is used.
        """
