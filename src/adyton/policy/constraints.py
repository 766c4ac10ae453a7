"""What a policy can demand of one value. A constraint accepts or refuses, and can say in words what it wants.

Each class is a predicate over one kind of value, and only ever narrows: there is no constraint that makes another one
accept more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

SHOWN_VALUES: Final = 4
"""How many of a list's values a message shows."""


class Constraint(ABC):
    """A predicate that can say what it wants."""

    __slots__ = ()

    @abstractmethod
    def accepts(self, got: Any) -> bool:
        """Whether that value satisfies it."""

    @abstractmethod
    def wanted(self) -> str:
        """What it wants, for a finding."""

    def refusal(self, got: Any) -> tuple[str, str]:
        """For a value that it does not accept: the part that is wrong, and what was wanted in its place."""
        return shown(got), self.wanted()


def shown(value: object) -> str:
    """A value as findings and records print it: bytes as hex, sets sorted."""
    if isinstance(value, bytes):
        return value.hex() or "empty"
    if isinstance(value, (frozenset, set, tuple, list)):
        return ", ".join(sorted(map(shown, value))) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={shown(item)}" for key, item in value.items()) or "none"
    text = str(value)
    return text if text.isprintable() else ascii(text)


@dataclass(frozen=True, slots=True)
class Anything(Constraint):
    """Accepts whatever there is; in a policy's file: "any"."""

    def accepts(self, got: Any) -> bool:  # noqa: ARG002
        """Always."""
        return True

    def wanted(self) -> str:
        """Nothing in particular."""
        return "anything"


@dataclass(frozen=True, slots=True)
class OneOf(Constraint):
    """Accepts the listed values; an empty list accepts none."""

    values: frozenset[Any]

    def accepts(self, got: Any) -> bool:
        """Whether it is listed."""
        return got in self.values

    def wanted(self) -> str:
        """The first few of the list."""
        if not self.values:
            return "nothing, since the list is empty"
        listed = sorted(map(shown, self.values))
        more = f" or one of {len(listed) - SHOWN_VALUES} more" if len(listed) > SHOWN_VALUES else ""
        return " or ".join(listed[:SHOWN_VALUES]) + more


@dataclass(frozen=True, slots=True)
class NoneBut(Constraint):
    """Accepts a set of which every element is listed; the empty set too."""

    values: frozenset[Any]

    def accepts(self, got: Any) -> bool:
        """Whether nothing in it is unlisted."""
        return self.values.issuperset(got)

    def wanted(self) -> str:
        """The list."""
        return f"none but {shown(self.values)}" if self.values else "none"

    def refusal(self, got: Any) -> tuple[str, str]:
        """Only what is not listed."""
        return shown(frozenset(got) - self.values), self.wanted()


@dataclass(frozen=True, slots=True)
class AtLeast(Constraint):
    """Accepts a number that is not below the floor."""

    floor: int

    def accepts(self, got: Any) -> bool:
        """Whether it is the floor or more."""
        return bool(got >= self.floor)

    def wanted(self) -> str:
        """The floor."""
        return f"at least {self.floor}"


@dataclass(frozen=True, slots=True)
class NotOlderThan(Constraint):
    """Accepts an age that is not above the limit."""

    limit: timedelta

    def accepts(self, got: Any) -> bool:
        """Whether it is the limit or less."""
        return bool(got <= self.limit)

    def wanted(self) -> str:
        """The limit."""
        return f"at most {self.limit}"


@dataclass(frozen=True, slots=True)
class Within(Constraint):
    """Accepts flags of which none is outside `allowed`."""

    allowed: int

    def accepts(self, got: Any) -> bool:
        """Whether every bit that is set is allowed."""
        return not got & ~self.allowed

    def wanted(self) -> str:
        """The mask."""
        return f"no flags outside 0x{self.allowed:x}"


@dataclass(frozen=True, slots=True)
class Permitted(Constraint):
    """Accepts what is not so; and what is so, if the policy permits it."""

    permitted: bool

    def accepts(self, got: Any) -> bool:
        """Whether it is not so, or may be."""
        return self.permitted or not got

    def wanted(self) -> str:
        """Yes or no."""
        return "either" if self.permitted else "False"


@dataclass(frozen=True, slots=True)
class Required(Constraint):
    """Accepts what is so; and what is not, if the policy does not require it."""

    required: bool

    def accepts(self, got: Any) -> bool:
        """Whether it is so, or need not be."""
        return bool(got) or not self.required

    def wanted(self) -> str:
        """Yes or no."""
        return "True" if self.required else "either"


@dataclass(frozen=True, slots=True)
class NoComponentBelow(Constraint):
    """Accepts a TCB version of which no component is below its floor; a component that it lacks is below."""

    floors: Mapping[str, int]

    def accepts(self, got: Any) -> bool:
        """Whether each component that has a floor reaches it."""
        return all(component is not None and component >= floor for component, floor in self._pairs(got))

    def _pairs(self, got: Any) -> list[tuple[int | None, int]]:
        return [(got.get(name), floor) for name, floor in self.floors.items()]

    def wanted(self) -> str:
        """The floors."""
        return "at least " + shown(self.floors)


@dataclass(frozen=True, slots=True)
class Registers(Constraint):
    """Accepts registers by index, or parts by name: each named one must satisfy its own constraint.

    Every other one must be all zero, unless `others` says that they may hold anything. A named one that the evidence
    does not have is not acceptable, whatever its constraint.
    """

    named: Mapping[Any, Constraint]
    others: bool

    def accepts(self, got: Any) -> bool:
        """Whether all of them are acceptable."""
        return not self._wrong(got)

    def _wrong(self, got: Mapping[Any, bytes]) -> list[Any]:
        wrong = [index for index, wanted in self.named.items() if index not in got or not wanted.accepts(got[index])]
        if not self.others:
            wrong.extend(index for index in got if index not in self.named and not self._is_empty(got[index]))
        return sorted(wrong)

    def _is_empty(self, value: bytes) -> bool:
        return not any(value)

    def _empty(self) -> str:
        return "zero"

    def _wanted_of(self, index: Any) -> str:
        return f"{index}={self.named[index].wanted() if index in self.named else self._empty()}"

    def wanted(self) -> str:
        """Each named register, and whether others may hold anything."""
        others = "any" if self.others else self._empty()
        return "; ".join((*map(self._wanted_of, sorted(self.named)), f"others={others}"))

    def refusal(self, got: Any) -> tuple[str, str]:
        """Only the registers that are wrong."""
        wrong = self._wrong(got)
        had = "; ".join(f"{index}={shown(got[index]) if index in got else 'missing'}" for index in wrong)
        return had, "; ".join(map(self._wanted_of, wrong))


@dataclass(frozen=True, slots=True)
class Parts(Registers):
    """The same for parts by name, of which one that is not named must not be there at all."""

    def _is_empty(self, value: bytes) -> bool:  # noqa: ARG002
        return False

    def _empty(self) -> str:
        return "absent"


@dataclass(frozen=True, slots=True)
class Unresolved(Constraint):
    """Accepts nothing: it stands for signed reference values that were not given."""

    reference: str

    def accepts(self, got: Any) -> bool:  # noqa: ARG002
        """Never."""
        return False

    def wanted(self) -> str:
        """Whose values are missing."""
        return f"in the signed reference values {self.reference!r}, which were not given"
