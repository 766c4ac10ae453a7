"""What a policy asks of a connection beyond its evidence: the [channel] table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Self

from adyton.errors import ConfigurationError, Finding
from adyton.policy.readings import hex_bytes

MAX_DIGESTS: Final = 1024

_sha256 = hex_bytes({32})


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelRule:
    """Digests that are accepted, 32 bytes each; None asks for nothing.

    `config_sha256`: of the configuration that the enclave's host gave it. `ca_sha256`: of the public key (DER
    SubjectPublicKeyInfo) of the enclave's CA, which pins this enclave and no other one of the same code.
    """

    config_sha256: frozenset[bytes] | None = None
    ca_sha256: frozenset[bytes] | None = None

    @classmethod
    def read(cls, table: Any) -> Self:
        """The rule of a [channel] table. Raises ConfigurationError."""
        if not isinstance(table, dict):
            raise ConfigurationError("channel must be a table", mend="write [channel]")
        read = {key: _digests(value, f"channel.{key}") for key, value in table.items() if key in KEYS}
        if unknown := sorted(set(table) - set(read)):
            raise ConfigurationError(f"channel has the unknown key {unknown[0]!r}", mend=f"known: {', '.join(KEYS)}")
        return cls(**read)

    def findings(self, *, config_sha256: bytes, ca_sha256: bytes | None) -> Iterator[Finding]:
        """What is wrong with a connection whose evidence binds these; `ca_sha256` is None if it binds no CA."""
        for key, got in (("config_sha256", config_sha256), ("ca_sha256", ca_sha256)):
            wanted: frozenset[bytes] | None = getattr(self, key)
            if wanted is not None and got not in wanted:
                yield Finding(
                    rule="",
                    subject=f"channel.{key}",
                    got=got.hex() if got else "not said",
                    wanted=" or ".join(sorted(each.hex() for each in wanted)) or "nothing at all",
                    mend=KEYS[key],
                )


KEYS: Final = {
    "config_sha256": "the host runs the enclave with another configuration; list this one if it is acceptable",
    "ca_sha256": "it is another enclave of this code, or was started anew; list its CA if you know that it is yours",
}


def _digests(value: Any, where: str) -> frozenset[bytes]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_DIGESTS:
        raise ConfigurationError(f"{where} must be a list of 1 to {MAX_DIGESTS} SHA-256 digests")
    return frozenset(_sha256(each, f"{where}[{index}]") for index, each in enumerate(value))
