"""Evidence label → TEE: the one place that knows all TEEs, and imports none of them until it is asked to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, Protocol

from adyton.errors import UnsupportedError

if TYPE_CHECKING:
    from datetime import datetime

    from cryptography import x509

Mark = Literal["hardware-run", "emulated", "vector-verified", "simulation"]
"""How far a TEE's support has been shown to work; each mark is earned by a test that anyone can run."""

_LABEL_SHOWN_CHARACTERS = 64


class VerifiedEvidence(Protocol):
    """What every verifier's result has; the rest differs from TEE to TEE."""

    @property
    def report_data(self) -> bytes:
        """The 64 bytes that the enclave had signed."""


class Verifier(Protocol):
    """Raises `EvidenceError` unless `data` is genuine at `now` under one of `roots`; does no I/O."""

    def __call__(self, data: bytes, *, roots: Sequence[x509.Certificate], now: datetime) -> VerifiedEvidence:
        """Return what the evidence proves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tee:
    """One TEE: its label on the wire, its mark, and how to get its verifier. `load_verifier` imports it when called."""

    label: str
    mark: Mark
    load_verifier: Callable[[], Verifier]


def _load_simulated() -> Verifier:
    from adyton.tee.simulated.verify import verify_simulated

    return verify_simulated


TEES: Mapping[str, Tee] = MappingProxyType(
    {known.label: known for known in (Tee(label="simulated", mark="simulation", load_verifier=_load_simulated),)}
)
"""All that this build can verify, by the label that evidence carries on the wire."""


def tee(label: str) -> Tee:
    """The TEE of that label, which may come from the wire. Another label is an `UnsupportedError` that lists all."""
    try:
        return TEES[label]
    except KeyError:
        shown = label[:_LABEL_SHOWN_CHARACTERS]
        raise UnsupportedError(f"no verifier for evidence of {shown!r}; known are: {', '.join(sorted(TEES))}") from None
