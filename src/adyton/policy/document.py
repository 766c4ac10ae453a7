"""A policy's file: TOML 1.0 → `Policy`. The whole file is checked before any of it counts."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Self

from adyton.errors import ConfigurationError
from adyton.policy.channel import ChannelRule
from adyton.policy.readings import hex_bytes
from adyton.policy.rule import Rule
from adyton.policy.rules import SCHEMAS
from adyton.policy.signed import ReferenceSource, resolve, substitute
from adyton.tee.registry import tee

VERSION: Final = 1
MAX_POLICY_BYTES: Final = 1024 * 1024
MAX_RULES: Final = 256
MAX_DEPTH: Final = 12

_sha256 = hex_bytes({32})


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What its author accepts. `sha256` names these very bytes, with the signed reference values that were used.

    `anchors` holds what the file says of them, by label; `reference_versions` the newest versions of signed reference
    values that were seen, by name; `expires` is when the first of those in use does. `channel` is for who connects.
    """

    sha256: bytes
    rules: tuple[Rule, ...]
    anchors: Mapping[str, frozenset[bytes]]
    reference_versions: Mapping[str, int] = field(default_factory=dict)
    expires: datetime | None = None
    channel: ChannelRule = field(default_factory=ChannelRule)

    @classmethod
    def parse(
        cls,
        content: bytes,
        *,
        reference_values: Sequence[bytes] = (),
        seen_versions: Mapping[str, int] | None = None,
        now: datetime | None = None,
    ) -> Self:
        """The policy in that file; `ConfigurationError` says what is wrong, and where.

        `reference_values` are signed documents, which come from anywhere (see `signed`): one that can't be used is a
        `PolicyError`. They need `now`. Of each, a version below the one in `seen_versions` is refused; store
        `reference_versions` of the result and give it the next time. Rules that ask for values of a document that is
        not given refuse all evidence.
        """
        document = _load(content)
        resolved = resolve(
            _read_sources(document.pop("reference_values", [])),
            reference_values,
            seen_versions=seen_versions or {},
            now=now,
        )
        anchors = _read_anchors(document.pop("anchors", {}))
        channel = ChannelRule.read(document.pop("channel", {}))
        rules = tuple(
            Rule.read(
                schema, substitute(table, resolved.values, (label,), tables=[below.tee for below in schema.hardware])
            )
            for label, schema in SCHEMAS.items()
            for table in _list_of_tables(document.pop(label, []), label)
        )
        if document:
            unknown = ", ".join(map(repr, sorted(document)[:8]))
            mend = f"known are version, anchors, channel, reference_values, and rules for {', '.join(SCHEMAS)}"
            raise ConfigurationError(f"the policy has unknown keys: {unknown}", mend=mend)
        _check_names(rules)
        digest = hashlib.sha256(content)
        for value in resolved.digests:
            digest.update(value)
        return cls(
            sha256=digest.digest(),
            rules=rules,
            anchors=anchors,
            reference_versions={**(seen_versions or {}), **resolved.versions},
            expires=resolved.expires,
            channel=channel,
        )

    def rules_for(self, label: str) -> tuple[Rule, ...]:
        """The rules for that TEE, in the order of the file."""
        return tuple(rule for rule in self.rules if rule.schema.tee == label)

    def anchors_for(self, label: str) -> frozenset[bytes]:
        """What evidence of that TEE must be under: what the file says, else the vendor's pinned roots."""
        return self.anchors[label] if label in self.anchors else tee(label).anchors()


def _load(content: bytes) -> dict[str, Any]:
    if len(content) > MAX_POLICY_BYTES:
        raise ConfigurationError(f"the policy has {len(content)} bytes; {MAX_POLICY_BYTES} are allowed")
    try:
        document = tomllib.loads(content.decode())
        _check_depth(document, MAX_DEPTH)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"the policy is not valid TOML: {str(error)[:200]}") from error
    version = document.pop("version", None)
    if type(version) is not int or version != VERSION:
        raise ConfigurationError(
            "the policy is of no version that is known: is it a policy?", mend=f"one begins with version = {VERSION}"
        )
    return document


def _check_depth(value: Any, left: int) -> None:
    # TOML's dotted keys nest without end, and what reads them recurses.
    if left == 0:
        raise ValueError("nested too deeply")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(inner, left - 1)


def _list_of_tables(value: Any, key: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value) or len(value) > MAX_RULES:
        raise ConfigurationError(f"{key} must be up to {MAX_RULES} tables", mend=f"write [[{key}]]")
    return value


def _read_sources(value: Any) -> Mapping[str, ReferenceSource]:
    sources: dict[str, ReferenceSource] = {}
    for source in map(ReferenceSource.read, _list_of_tables(value, "reference_values")):
        if source.name in sources:
            raise ConfigurationError(f"two tables of reference_values have the name {source.name!r}")
        sources[source.name] = source
    return sources


def _read_anchors(value: Any) -> Mapping[str, frozenset[bytes]]:
    if not isinstance(value, dict) or not set(value) <= set(SCHEMAS):
        raise ConfigurationError("anchors must be a table of lists by TEE", mend=f"known are {', '.join(SCHEMAS)}")
    for label, digests in value.items():
        if not isinstance(digests, list):
            raise ConfigurationError(f"anchors.{label} must be a list", mend="of SHA-256 digests in hexadecimal")
    return {
        label: frozenset(_sha256(digest, f"anchors.{label}[{index}]") for index, digest in enumerate(digests))
        for label, digests in value.items()
    }


def _check_names(rules: tuple[Rule, ...]) -> None:
    names = [rule.name for rule in rules]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"two rules have the name {name!r}", mend="a record names the rule that accepted")
