"""Rules for a TPM 2.0's quote; facts from `VerifiedTpm`."""

from __future__ import annotations

from typing import Final

from adyton.policy.readings import ANY, hex_bytes, parts, registers
from adyton.policy.rules._common import events, listed
from adyton.policy.schema import Field, Schema
from adyton.tee.tpm.launch import launched

PCRS: Final = 24
"""How many registers a PC client's TPM has (TCG PC Client Platform TPM Profile, section 4.6.1)."""

SHA256_PCRS: Final = Field(
    key="pcrs",
    read=registers(hex_bytes({32}), PCRS),
    fact=lambda verified, _: verified.quote.pcrs.get("sha256", {}),
    mend="they tell what was booted; missing ones have to be quoted, of the SHA-256 bank",
)

SHA256_EVENTS: Final = events("pcr_events", "quote.events", "sha256", 32, PCRS)

TPM: Final = Schema(
    tee="tpm",
    fields=(
        Field(
            key="launch",
            read=parts(hex_bytes({32})),
            fact=lambda verified, _: launched(verified.quote.pcrs.get("sha256", {}), verified.quote.events),
            default={},
            mend="another one was booted; if that is what you built, make the policy anew",
        ),
        SHA256_PCRS,
        SHA256_EVENTS,
        listed(
            "platforms",
            32,
            "add the digest of this TPM's attestation key if it is one of yours",
            path="ak_sha256",
            suggested=ANY,
        ),
    ),
)
