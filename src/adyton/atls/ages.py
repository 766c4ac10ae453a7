"""How old an attestation may get before it has to be repeated, whichever side asked for it."""

from __future__ import annotations

from typing import Final

MAX_AGE_SECONDS: Final = 3600.0
EXTENDABLE_MAX_AGE_SECONDS: Final = 600.0
_EXTENDABLE: Final = frozenset({"tpm", "azure", "tdx", "cca", "nitro"})
"""TEEs whose guest can extend registers while it runs: what they say gets old sooner."""


def max_age_seconds(tee: str) -> float:
    """How long evidence of that TEE counts."""
    return EXTENDABLE_MAX_AGE_SECONDS if tee in _EXTENDABLE else MAX_AGE_SECONDS
