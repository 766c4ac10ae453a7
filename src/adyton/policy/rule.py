"""One rule: the constraints of one TEE under a name, and what it has against a piece of verified evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Self

from adyton.errors import ConfigurationError, Finding
from adyton.policy.constraints import Constraint
from adyton.policy.insecurity import Insecurity
from adyton.policy.schema import Schema

MAX_NAME_CHARACTERS: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a rule has to say: its findings, and the insecurities that it let pass. No finding means that it accepts."""

    findings: tuple[Finding, ...]
    insecurities: frozenset[Insecurity]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule whose every key has a constraint; `hardware` is about what lies underneath, where its TEE has that."""

    name: str
    schema: Schema
    constraints: Mapping[str, Constraint]
    hardware: Rule | None = None

    @classmethod
    def read(cls, schema: Schema, table: Mapping[str, Any]) -> Self:
        """The rule in that table of a policy's file; a `ConfigurationError` says what is wrong and where."""
        rest = dict(table)
        name = rest.pop("name", None)
        if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= MAX_NAME_CHARACTERS:
            mend = f"name = a line of up to {MAX_NAME_CHARACTERS} characters"
            raise ConfigurationError(f"a rule for {schema.tee} lacks a name", mend=mend)
        where = f"rule {name!r}"
        hardware = _read_hardware(schema, name, rest, where) if schema.hardware else None
        return cls(name=name, schema=schema, constraints=schema.read(rest, where), hardware=hardware)

    def appraise(self, verified: Any, now: datetime) -> Verdict:
        """Hold every constraint against the evidence, whatever the ones before it said."""
        findings = []
        insecurities = {self.schema.insecurity} if self.schema.insecurity else set()
        for field in self.schema.fields:
            got = field.fact(verified, now)
            constraint = self.constraints[field.key]
            if not constraint.accepts(got):
                findings.append(field.finding(self.name, constraint, got))
            elif insecurity := field.insecurity(got):
                insecurities.add(insecurity)
        below = self._appraise_hardware(verified, now)
        return Verdict(findings=(*findings, *below.findings), insecurities=below.insecurities.union(insecurities))

    def _appraise_hardware(self, verified: Any, now: datetime) -> Verdict:
        if self.hardware is None:
            return Verdict(findings=(), insecurities=frozenset())
        wanted, got = self.hardware.schema.tee, verified.hardware.tee
        if got != wanted:
            mend = f"run on {wanted}, or write a rule for {got}"
            wrong = Finding(rule=self.name, subject="hardware", got=got, wanted=wanted, mend=mend)
            return Verdict(findings=(wrong,), insecurities=frozenset())
        verdict = self.hardware.appraise(verified.hardware, now)
        findings = tuple(replace(finding, subject=f"{wanted}.{finding.subject}") for finding in verdict.findings)
        return replace(verdict, findings=findings)


def _read_hardware(schema: Schema, name: str, table: dict[str, Any], where: str) -> Rule:
    """Take the one table about the hardware out of the rule's."""
    below = {known.tee: known for known in schema.hardware}
    there = [label for label in below if isinstance(table.get(label), Mapping)]
    if len(there) != 1:
        raise ConfigurationError(f"{where} needs exactly one of the tables {', '.join(below)}")
    (label,) = there
    inner = table.pop(label)
    if "name" in inner:
        raise ConfigurationError(f"{where}: {label} has a name of its own")
    return Rule.read(below[label], {"name": name, **inner})
