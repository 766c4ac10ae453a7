"""What the forging half of every TEE's tests is made of: a case, and a case that is wrong in one way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from adyton.tee.evidence import Evidence, VerifiedEvidence, Verifier
from adyton.tee.steps import Trace

NOW: Final = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
"""A time for tests that do not need the real one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Evidence, and what to verify it with."""

    evidence: Evidence
    anchors: frozenset[bytes]
    now: datetime = NOW

    def verify_with(self, verifier: Verifier, trace: Trace | None = None) -> VerifiedEvidence:
        """Call that verifier."""
        return verifier(self.evidence, anchors=self.anchors, now=self.now, trace=trace)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgery:
    """A case that must be refused with a message that contains `refusal`, because of the one guard that it is for.

    Everything else about it is in order: without that guard it is accepted, or refused elsewhere for another reason.
    """

    refusal: str
    make: Callable[[], Case]


def fields_of(verified: object) -> dict[str, Any]:
    """A verifier's result as a dictionary, one level deep."""
    return {name: getattr(verified, name) for name in verified.__slots__}  # type: ignore[attr-defined]
