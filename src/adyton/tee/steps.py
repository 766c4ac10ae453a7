"""A verification as numbered steps, so that a reader can be told which passed, which failed, and which never began."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a verifier: what holds once it has passed, and the section of the specification that asks for it."""

    title: str
    reference: str


class Trace:
    """The steps of one verification that have begun: all but the last have passed, and it too if nothing was raised."""

    __slots__ = ("begun",)

    def __init__(self) -> None:
        self.begun: list[Step] = []

    def begin(self, step: Step) -> None:
        """The step before this one has passed."""
        self.begun.append(step)
