"""What a client knows of the other end of its connection, once it has attested it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adyton.policy.appraisal import Appraisal


class BindingLevel(enum.StrEnum):
    """What the evidence is bound to."""

    CONNECTION = "connection"
    """To the client's own key on this very connection, and so to its traffic keys."""
    KEY = "key"
    """To the server's TLS key alone: whoever holds that key too can relay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """The other end proved this.

    `claims` is what the enclave says of itself, hashed into its evidence: `v`, `name` and `config_sha256`. The host
    chose the name and the configuration; the enclave vouches only that these are what it was given.
    `anchor_certificate` is the DER certificate that the evidence names: of the enclave's TLS key, or of its CA.
    `audience` is the server's name that both sides hashed.
    """

    appraisal: Appraisal
    level: BindingLevel
    audience: str
    claims: Mapping[str, Any]
    anchor_certificate: bytes

    def record(self) -> dict[str, Any]:
        """The same for JSON: the record of the appraisal, with `level`, `audience` and `claims`."""
        return {
            **self.appraisal.record(),
            "level": str(self.level),
            "audience": self.audience,
            "claims": dict(self.claims),
        }
