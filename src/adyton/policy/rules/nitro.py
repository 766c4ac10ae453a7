"""Rules for AWS Nitro Enclaves; facts from `VerifiedNitro`."""

from __future__ import annotations

from typing import Final

from adyton.policy.insecurity import Insecurity
from adyton.policy.readings import ANY, hex_bytes, one_of, registers, word
from adyton.policy.rules._common import insecure, max_age_seconds, of
from adyton.policy.schema import Field, Schema

NITRO: Final = Schema(
    tee="nitro",
    fields=(
        Field(
            key="pcrs",
            read=registers(hex_bytes({48}), 32, must_name=(0, 1, 2)),
            fact=of("pcrs"),
            mend="add the values if this is an image that you built",
        ),
        Field(
            key="platforms",
            read=one_of(word()),
            fact=of("platform"),
            mend="add this enclave's module id if it is one of yours",
            suggested=ANY,
        ),
        insecure("debug", Insecurity.DEBUG, "start the enclave without --debug-mode"),
        max_age_seconds("timestamp"),
    ),
)
