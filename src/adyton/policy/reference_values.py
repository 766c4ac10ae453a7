"""`measurements.json`, which `adyton build` writes → the text of a policy that accepts that bundle and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from adyton.errors import ConfigurationError
from adyton.policy.document import VERSION, Policy
from adyton.policy.readings import ANY
from adyton.policy.rules import SCHEMAS
from adyton.policy.schema import Schema

MAX_MEASUREMENTS_BYTES: Final = 1024 * 1024
_PLAIN: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_WITHOUT_ROOT: Final = ("tpm", "cca", "psa", "simulated")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


def policy_for(measurements: bytes, anchors: Mapping[str, bytes]) -> str:
    """A policy as TOML, with a rule for each technology in `measurements`, which is JSON of version 1.

    `anchors` has a SHA-256 for a TEE that has no vendor's root. Of such a TEE without one, and of a key for which there
    are no reference values, the policy holds an empty list, which accepts nothing until somebody fills it in. Wrong
    input is a `ConfigurationError`.
    """
    name, digest, values = _parse(measurements)
    rootless = {label: anchors.get(label) for label in values if label in _WITHOUT_ROOT}
    parts = [f"# Accepts {name}, the bundle with SHA-256 {digest}, and nothing else.\nversion = {VERSION}\n"]
    if rootless:
        lines = [f"{label} = {_toml([anchor.hex()] if anchor else [])}" for label, anchor in rootless.items()]
        parts.append("\n".join(("[anchors]  # SHA-256 of what the evidence must be under", *lines, "")))
    parts.extend(_rule(SCHEMAS[label], f"{name} {digest[:12]} on {label}", values[label]) for label in values)
    text = "\n".join(parts)
    Policy.parse(text.encode())  # a reference value of the wrong shape is found here
    return text


def _parse(measurements: bytes) -> tuple[str, str, Mapping[str, Mapping[str, Any]]]:
    mend = "give the measurements.json that `adyton build` writes"
    if len(measurements) > MAX_MEASUREMENTS_BYTES:
        raise ConfigurationError(f"the measurements have more than {MAX_MEASUREMENTS_BYTES} bytes", mend=mend)
    try:
        document = json.loads(measurements)
        name, digest, values = document["name"], document["bundle_sha256"], document["reference_values"]
        if type(document["version"]) is not int or document["version"] != 1:
            raise ValueError("version")
        if not _PLAIN.fullmatch(name) or not _DIGEST.fullmatch(digest):
            raise ValueError("name or digest")
        if not isinstance(values, dict) or not all(isinstance(table, dict) for table in values.values()):
            raise TypeError("reference_values")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigurationError("the measurements are not JSON of version 1", mend=mend) from error
    if unknown := sorted(set(values) - set(SCHEMAS)):
        raise ConfigurationError(f"measurements for technologies that are not known: {', '.join(unknown)[:200]}")
    return name, digest, values


def _rule(schema: Schema, name: str, values: Mapping[str, Any]) -> str:
    if unknown := sorted(set(values) - {field.key for field in schema.fields}):
        raise ConfigurationError(f"measurements for {schema.tee} that no rule knows: {', '.join(unknown)[:200]}")
    lines = [f"[[{schema.tee}]]", f"name = {_toml(name)}"]
    for field in schema.fields:
        if field.key in values:
            lines.append(f"{field.key} = {_toml(_listed(values[field.key]))}")
        elif field.default is None:
            comment = "" if field.suggested else f"  # accepts nothing yet: {field.mend}"
            lines.append(f"{field.key} = {_toml(field.suggested or [])}{comment}")
    return "\n".join((*lines, ""))


def _listed(value: Any) -> Any:
    """Reference values as a rule has them: one value is a list of one, and registers are a table of lists."""
    if isinstance(value, Mapping):
        return {key: inner if key == "others" or inner == ANY else _listed(inner) for key, inner in value.items()}
    return value if isinstance(value, list) else [value]


def _toml(value: Any) -> str:
    """A string, number, list or table in TOML, whose strings are JSON's."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml(key)} = {_toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)
