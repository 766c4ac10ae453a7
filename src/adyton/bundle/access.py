"""[access] of enclave.toml: which callers may call which method, as it is written. `adyton.atls.access` decides it.

An expectation is a word, which stands alone, or a table of exactly one key, which speaks of an enrolled caller.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, cast

from adyton.errors import ConfigurationError

ATTESTATION_PREFIX: Final = "/adyton.atls.Attestation/"
"""How the methods begin by which callers enrol: they are anyone's to call, whatever [access] says."""
OWN_PREFIXES: Final = (ATTESTATION_PREFIX, "/adyton.Secrets/")
"""And with those of owners' orders, which are signed: neither [access] nor interceptors of the application see them."""
MAX_DEPTH: Final = 8
MAX_NODES: Final = 1000
MAX_MEASUREMENT_BYTES: Final = 64

# Compiled when they are needed, which they seldom are: that takes long in an emulated guest.
_METHOD: Final = r"(?a)/[A-Za-z_]\w*(\.[A-Za-z_]\w*)*/([A-Za-z_]\w*|\*)"
_HEXADECIMAL: Final = rf"([0-9a-f]{{2}}){{1,{MAX_MEASUREMENT_BYTES}}}"
_INSECURITY: Final = r"[a-z]+(-[a-z]+)*"
_KEYS: Final = ("rule", "tee", "measurement", "platform", "all", "any", "not")


class Word(enum.StrEnum):
    """An expectation of one word."""

    ANYONE = "anyone"
    """No condition. The only expectation that a caller without an identity meets."""
    ENROLLED = "enrolled"
    """Whoever attested itself to this server, by any rule of `policy`."""
    NOBODY = "nobody"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """A fact of the caller's identity: `name` is a field of `adyton.Peer`, `wanted` its value."""

    name: Literal["rule", "tee", "measurement", "platform"]
    wanted: str | bytes

    def __str__(self) -> str:
        return f"{self.name} {self.wanted.hex() if isinstance(self.wanted, bytes) else repr(self.wanted)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Several:
    parts: tuple[Condition, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("an expectation of no parts would say nothing")


@dataclass(frozen=True, slots=True, kw_only=True)
class AllOf(_Several):
    """Every part, of which there is at least one."""

    def __str__(self) -> str:
        return f"({' and '.join(map(str, self.parts))})"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyOf(_Several):
    """One part or more."""

    def __str__(self) -> str:
        return f"({' or '.join(map(str, self.parts))})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Not:
    """An enrolled caller that does not meet `part`."""

    part: Condition

    def __str__(self) -> str:
        return f"not {self.part}"


Condition: TypeAlias = Attribute | AllOf | AnyOf | Not
"""What only an enrolled caller can meet."""
Expectation: TypeAlias = Word | Condition


def parse_expectation(raw: object, key: str) -> Expectation:
    """An expectation, from a value of TOML. Raises ConfigurationError, which names the key."""
    if isinstance(raw, str):
        if raw not in tuple(Word):
            raise _wrong(f"{key!r} should be one of the words {', '.join(Word)}, or a table")
        return Word(raw)
    condition = _parse_condition(raw, key, 1)
    if _size(condition) > MAX_NODES:
        raise _wrong(f"{key!r} has more than {MAX_NODES} parts")
    return condition


def _parse_condition(raw: object, key: str, depth: int) -> Condition:
    if depth > MAX_DEPTH:
        raise _wrong(f"{key!r} is nested more than {MAX_DEPTH} deep")
    if not isinstance(raw, dict) or len(raw) != 1:
        raise _wrong(f"{key!r} should be a table of exactly one key", mend=f"one of {', '.join(_KEYS)}")
    ((name, value),) = raw.items()
    inner = f"{key}.{name}"
    if name == "not":
        return Not(part=_parse_condition(value, inner, depth + 1))
    if name in ("all", "any"):
        if not isinstance(value, list) or not value:
            raise _wrong(f"{inner!r} should be a list of one expectation or more")
        parts = tuple(_parse_condition(each, f"{inner}[{index}]", depth + 1) for index, each in enumerate(value))
        return AllOf(parts=parts) if name == "all" else AnyOf(parts=parts)
    return _parse_attribute(name, value, inner, key)


def _parse_attribute(name: str, value: object, inner: str, key: str) -> Attribute:
    if name == "measurement":
        if not isinstance(value, str) or not re.fullmatch(_HEXADECIMAL, value):
            raise _wrong(f"{inner!r} should be 1 to {MAX_MEASUREMENT_BYTES} bytes in lower-case hexadecimal")
        return Attribute(name="measurement", wanted=bytes.fromhex(value))
    if name in ("rule", "tee", "platform"):
        if not isinstance(value, str) or not value or not value.isprintable():
            raise _wrong(f"{inner!r} should be a line of text")
        return Attribute(name=cast('Literal["rule", "tee", "platform"]', name), wanted=value)
    raise _wrong(f"unknown key {name!r} in {key!r}", mend=f"known: {', '.join(_KEYS)}")


def _size(condition: Condition) -> int:
    if isinstance(condition, Attribute):
        return 1
    parts = (condition.part,) if isinstance(condition, Not) else condition.parts
    return 1 + sum(map(_size, parts))


def _parse_methods(raw: object, key: str) -> tuple[tuple[str, Expectation], ...]:
    if not isinstance(raw, dict):
        raise _wrong(f"{key!r} should be a table")
    for method in raw:
        if not re.fullmatch(_METHOD, method):
            mend = "'/package.Service/Method', or '/package.Service/*' for the rest of a service"
            raise _wrong(f"{key!r} has {method!r}, which is no method", mend=mend)
        if method.startswith(ATTESTATION_PREFIX):
            raise _wrong(f"{key!r} has {method!r}, by which callers enrol: it is always anyone's to call")
    return tuple((method, parse_expectation(value, f"{key}.{method}")) for method, value in raw.items())


def _parse_policy(raw: object, key: str) -> str:
    # What is hidden is left out of a bundle.
    if not isinstance(raw, str) or any(not part or part.startswith(".") for part in raw.split("/")):
        raise _wrong(f"{key!r} should be the path of a file in the bundle")
    return raw


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessSettings:
    """[access]: who may enrol, and what callers have to be for which method.

    `policy` is the path in the bundle of the policy that those who enrol must meet; without it nobody can.
    `allow_insecure` are words of `adyton.policy.insecurity.Insecurity`. `methods` holds pairs of a method,
    "/package.Service/Method" or "/package.Service/*", and an expectation; `default` is for what they don't name.
    """

    policy: str | None = field(default=None, metadata={"parse": _parse_policy})
    allow_insecure: tuple[str, ...] = ()
    default: Expectation = field(default=Word.ANYONE, metadata={"parse": parse_expectation})
    methods: tuple[tuple[str, Expectation], ...] = field(default=(), metadata={"parse": _parse_methods})


def is_included(file: str, include: Collection[str]) -> bool:
    """Whether a file is in the bundle, by itself or in a folder."""
    return any(file == path or file.startswith(path + "/") for path in include)


def check_access(access: AccessSettings, include: Collection[str]) -> None:
    """Whether the keys fit together, and the bundle. Raises ConfigurationError, which names the key."""
    for word in access.allow_insecure:
        if not re.fullmatch(_INSECURITY, word):
            raise _wrong(f"'access.allow_insecure' has {word!r}, which is no word for an insecurity")
    if access.policy is not None:
        if not is_included(access.policy, include):
            raise _wrong(
                f"'access.policy' is {access.policy!r}, which is not in the bundle", mend="name it in 'include'"
            )
        return
    needless = ["allow_insecure"] if access.allow_insecure else []
    named = [("default", access.default), *((f"methods.{method}", each) for method, each in access.methods)]
    needless += [key for key, each in named if each not in (Word.ANYONE, Word.NOBODY)]
    if needless:
        raise _wrong(f"'access.{needless[0]}' without 'access.policy', so nobody can enrol", mend="set 'access.policy'")


def _wrong(message: str, *, mend: str = "") -> ConfigurationError:
    return ConfigurationError(f"enclave.toml: {message}", mend=mend)
