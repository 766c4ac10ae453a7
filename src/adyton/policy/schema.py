"""What a rule may say: for each key of a TEE its type, its default, and which fact of the evidence it is about.

The world is closed. A key that the schema does not know is an error. A key that decides what is trusted has no default:
whoever accepts anything writes "any". A key that has a default has the one that refuses most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from adyton.errors import ConfigurationError, Finding
from adyton.policy.constraints import Constraint, Unresolved
from adyton.policy.insecurity import Insecurity

Reading = Callable[[Any, str], Constraint]
"""The value in the file, and where it stands there, for messages → a constraint; `ConfigurationError` if it is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One key of a rule.

    `read` makes its constraint; `fact` takes what it is about from the verified evidence and the time. `default` is the
    value as the file would hold it, or None if the key must be there; `suggested` is what a generated policy has for
    such a key if the reference values do not say. Where the constraint accepts a fact for which `insecurity` has a
    name, the caller must have agreed to that as well.
    """

    key: str
    read: Reading
    fact: Callable[[Any, datetime], Any]
    mend: str
    default: Any = None
    suggested: Any = ()
    insecurity: Callable[[Any], Insecurity | None] = lambda _: None

    def finding(self, rule: str, constraint: Constraint, got: Any) -> Finding:
        """That the constraint does not accept what was got."""
        had, wanted = constraint.refusal(got)
        return Finding(rule=rule, subject=self.key, got=had, wanted=wanted, mend=self.mend)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """The keys of one TEE's rules.

    Where `hardware` is not empty, a rule also has exactly one table that is called by the label of one of these, with
    that TEE's keys, and it is about the evidence of the hardware underneath. Where the TEE as a whole is insecure,
    `insecurity` says so.
    """

    tee: str
    fields: tuple[Field, ...]
    hardware: tuple[Schema, ...] = ()
    insecurity: Insecurity | None = None

    def read(self, table: Mapping[str, Any], where: str) -> Mapping[str, Constraint]:
        """The constraints of a rule's table, one for every key of the schema."""
        known = {field.key for field in self.fields}
        if unknown := sorted(set(table) - known):
            message = f"{where} has unknown keys: {', '.join(map(repr, unknown[:8]))}"
            raise ConfigurationError(message, mend=f"rules for {self.tee} know: {', '.join(sorted(known))}")
        missing = [field.key for field in self.fields if field.default is None and field.key not in table]
        if missing:
            message = f"{where} lacks {', '.join(missing)}"
            raise ConfigurationError(message, mend='add them; what may be anything is written out as "any"')
        return {field.key: _constraint(field, table.get(field.key, field.default), where) for field in self.fields}


def _constraint(field: Field, value: Any, where: str) -> Constraint:
    return value if isinstance(value, Unresolved) else field.read(value, f"{where}: {field.key}")
