"""Rules for Azure's confidential VMs; facts from `VerifiedAzure`: the hardware's, the vTPM's, and the paravisor's.

A rule has exactly one of the tables `snp` and `tdx`, with the keys of that TEE's rules, and it is about the hardware.
"""

from __future__ import annotations

from typing import Final

from adyton.policy.readings import required
from adyton.policy.rules._common import of
from adyton.policy.rules.dcap import TDX
from adyton.policy.rules.snp import SNP
from adyton.policy.rules.tpm import SHA256_EVENTS, SHA256_PCRS
from adyton.policy.schema import Field, Schema

AZURE: Final = Schema(
    tee="azure",
    fields=(
        SHA256_PCRS,
        SHA256_EVENTS,
        Field(
            key="secure_boot",
            read=required,
            fact=of("secure_boot"),
            default=True,
            mend="create the VM with secure boot",
        ),
    ),
    hardware=(SNP, TDX),
)
