"""Rules for Arm CCA and PSA; facts from `VerifiedCca` and `VerifiedPsa`."""

from __future__ import annotations

from typing import Final

from adyton.policy.insecurity import Insecurity
from adyton.policy.readings import ANY, hex_bytes, none_but, number, one_of
from adyton.policy.rules._common import insecure, listed, of, zero_unless_listed
from adyton.policy.schema import Field, Schema

_HASH_SIZES: Final = frozenset({32, 48, 64})

_PLATFORM: Final = (
    listed("implementation_ids", 32, "add the implementation if you trust its maker", path="implementation_id"),
    listed("platforms", 33, "add this device's instance id if it is one of yours", path="instance_id", suggested=ANY),
    Field(
        key="components",
        read=none_but(hex_bytes(_HASH_SIZES)),
        fact=lambda verified, _: frozenset(component.measurement for component in verified.components),
        mend="add the measurements of firmware that you trust",
    ),
    insecure(
        "unsecured",
        Insecurity.DEBUG,
        "use a device whose life cycle is secured (RFC 9783, section 4.3.1)",
        path="secured",
        negated=True,
    ),
)


def _rem(index: int) -> Field:
    return Field(
        key=f"rem{index}",
        read=one_of(hex_bytes(_HASH_SIZES)),
        fact=lambda verified, _: verified.rems[index],
        mend="add the value if this is what you meant to boot",
    )


CCA: Final = Schema(
    tee="cca",
    fields=(
        Field(
            key="rim",
            read=one_of(hex_bytes(_HASH_SIZES)),
            fact=of("measurement"),
            mend="add the measurement if this is a realm that you built",
        ),
        *map(_rem, range(4)),
        zero_unless_listed("personalization_value", 64),
        *_PLATFORM,
    ),
)

PSA: Final = Schema(
    tee="psa",
    fields=(
        Field(
            key="client_ids",
            read=one_of(number(-(1 << 31), (1 << 31) - 1)),
            fact=of("client_id"),
            mend="add the number if this is the partition that you mean; those of the non-secure side are negative",
        ),
        *_PLATFORM,
    ),
)
