"""Rules for the simulation; facts from `VerifiedSimulated`."""

from __future__ import annotations

from typing import Final

from adyton.policy.insecurity import Insecurity
from adyton.policy.rules._common import listed, max_age_seconds
from adyton.policy.schema import Schema

SIMULATED: Final = Schema(
    tee="simulated",
    fields=(
        listed("measurement", 48, "add the measurement if this is a bundle that you built"),
        max_age_seconds("issued_at"),
    ),
    insecurity=Insecurity.SIMULATED,
)
