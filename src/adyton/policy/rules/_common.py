"""Shorthands of the tables in this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, Final

from adyton.policy.insecurity import Insecurity
from adyton.policy.readings import hex_bytes, logged, not_older_than, one_of, permitted
from adyton.policy.schema import Field

LAUNCHED_WITH_IT: Final = "list it if your enclave is launched with it"


def of(path: str) -> Callable[[Any, datetime], Any]:
    """The fact that verified evidence has under this path of attributes."""
    take = attrgetter(path)
    return lambda verified, _: take(verified)


def listed(key: str, size: int, mend: str, *, path: str = "", suggested: Any = ()) -> Field:
    """A value of `size` bytes which must be listed, or be written out as "any"."""
    return Field(key=key, read=one_of(hex_bytes({size})), fact=of(path or key), mend=mend, suggested=suggested)


def zero_unless_listed(key: str, size: int, mend: str = LAUNCHED_WITH_IT) -> Field:
    """A value of `size` bytes which is all zero unless the rule lists others."""
    return Field(key=key, read=one_of(hex_bytes({size})), fact=of(key), mend=mend, default=["00" * size])


def insecure(key: str, insecurity: Insecurity, mend: str, *, path: str = "", negated: bool = False) -> Field:
    """What is refused unless the rule permits it and the caller agrees."""
    take = of(path or key)
    return Field(
        key=key,
        read=permitted,
        fact=lambda verified, now: bool(take(verified, now)) is not negated,
        mend=mend,
        default=False,
        insecurity=lambda so: insecurity if so else None,
    )


def events(key: str, path: str, bank: str, size: int, count: int) -> Field:
    """Which events the log of a register may have, by their digests of `bank`; the log's registers are under `path`."""
    take = of(path)

    def fact(verified: Any, now: datetime) -> Mapping[int, frozenset[bytes]]:
        logs = take(verified, now).items()
        proven = {index: [event.digests.get(bank) for event in log] for index, log in logs}
        return {index: frozenset(digests) for index, digests in proven.items() if None not in digests}

    return Field(
        key=key,
        read=logged(hex_bytes({size}), count),
        fact=fact,
        default={},
        mend="send the event log; add the digests of events that you expect",
    )


def max_age_seconds(path: str) -> Field:
    """How long ago the evidence may have been made; its time is under `path`."""
    take = of(path)
    return Field(
        key="max_age_seconds",
        read=not_older_than(timedelta(seconds=1)),
        fact=lambda verified, now: now - take(verified, now),
        mend="ask for fresh evidence",
        suggested=300,
    )
