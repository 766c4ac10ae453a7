"""Whether a caller meets an expectation of enclave.toml's [access], and whether the expectations fit the policy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, assert_never

from adyton.atls.peer import Peer
from adyton.bundle.access import AccessSettings, AllOf, AnyOf, Attribute, Condition, Expectation, Not, Word
from adyton.errors import ConfigurationError
from adyton.policy.insecurity import Insecurity

if TYPE_CHECKING:
    from adyton.policy.document import Policy


def appraise_caller(expectation: Expectation, peer: Peer | None) -> tuple[str, ...]:
    """What stands against the caller, in plain sentences without anything secret; empty: it meets the expectation.

    Whatever is not `Word.ANYONE` asks for enrolment first, so a caller without an identity never meets a `not`.
    """
    if expectation is Word.ANYONE:
        return ()
    if expectation is Word.NOBODY:
        return ("nobody may call it",)
    if peer is None:
        return ("the caller is not enrolled",)
    return () if expectation is Word.ENROLLED else _against(expectation, peer)


def _against(condition: Condition, peer: Peer) -> tuple[str, ...]:
    match condition:
        case Attribute(name=name, wanted=wanted):
            got = getattr(peer, name)
            return () if got == wanted else (f"it has {replace(condition, wanted=got)}, wanted is {condition}",)
        case AllOf(parts=parts):
            return tuple(itertools.chain.from_iterable(_against(part, peer) for part in parts))
        case AnyOf(parts=parts):
            against = [_against(part, peer) for part in parts]
            return tuple(itertools.chain.from_iterable(against)) if all(against) else ()
        case Not(part=part):
            return () if _against(part, peer) else (f"it has {part}, wanted is {condition}",)
    assert_never(condition)


def agreed_insecurities(access: AccessSettings) -> tuple[Insecurity, ...]:
    """What `allow_insecure` agrees to. A word for no insecurity is a ConfigurationError."""
    for word in access.allow_insecure:
        if word not in tuple(Insecurity):
            mend = f"known: {', '.join(Insecurity)}"
            raise ConfigurationError(f"enclave.toml: 'access.allow_insecure' has the unknown {word!r}", mend=mend)
    return tuple(map(Insecurity, access.allow_insecure))


def check_against_policy(access: AccessSettings, policy: Policy) -> None:
    """Every rule and TEE that an expectation names is one of the policy, or it is a ConfigurationError.

    A misspelt name below a `not` would let everybody in who has enrolled.
    """
    known = {"rule": {rule.name for rule in policy.rules}, "tee": {rule.schema.tee for rule in policy.rules}}
    named = [("default", access.default), *((f"methods.{method}", each) for method, each in access.methods)]
    for key, expectation in named:
        for each in () if isinstance(expectation, Word) else _attributes(expectation):
            if each.name in known and each.wanted not in known[each.name]:
                mend = f"known: {', '.join(sorted(known[each.name]))}"
                raise ConfigurationError(f"enclave.toml: 'access.{key}' has {each}, not in the policy", mend=mend)


def _attributes(condition: Condition) -> Iterator[Attribute]:
    match condition:
        case Attribute():
            yield condition
        case Not(part=part):
            yield from _attributes(part)
        case AllOf(parts=parts) | AnyOf(parts=parts):
            yield from itertools.chain.from_iterable(map(_attributes, parts))
