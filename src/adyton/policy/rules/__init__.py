"""Label → schema of that TEE's rules; one module a family, each a table."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from adyton.policy.rules.arm import CCA, PSA
from adyton.policy.rules.azure import AZURE
from adyton.policy.rules.dcap import SGX, TDX
from adyton.policy.rules.nitro import NITRO
from adyton.policy.rules.simulated import SIMULATED
from adyton.policy.rules.snp import SNP
from adyton.policy.rules.tpm import TPM
from adyton.policy.schema import Schema

SCHEMAS: Final[Mapping[str, Schema]] = MappingProxyType(
    {schema.tee: schema for schema in (SGX, TDX, SNP, NITRO, TPM, AZURE, CCA, PSA, SIMULATED)}
)
"""Every TEE's, by label."""
