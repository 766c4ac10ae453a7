"""Which hardware is here: the one place that knows the devices of all TEEs, and imports none until it looks for it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Final, Protocol

from adyton.errors import UnsupportedError
from adyton.tee._device import HardwareDevice
from adyton.tee._kernel import Kernel
from adyton.tee.evidence import Evidence
from adyton.tee.sealing import KeySource


class Device(Protocol):
    """The hardware's side of attestation, as an enclave sees it."""

    @property
    def tee(self) -> str:
        """The label of its evidence, as in adyton.tee.registry."""

    def collect_evidence(self, report_data: bytes) -> Evidence:
        """Evidence over exactly 64 bytes of `report_data`. Raises `EvidenceError`, or `UnsupportedError`."""


DEVICES: Final = (
    # First where the process itself is the enclave: what else it sees is its host's.
    ("sgx", "SgxDevice"),
    ("nitro", "NitroDevice"),
    # Then the processor. The kernel has one provider of reports, so these three exclude each other.
    ("snp", "SnpDevice"),
    ("tdx", "TdxDevice"),
    ("cca", "CcaDevice"),
    # Last a TPM, which clouds give to machines with better hardware too; a TPM is Azure's if a paravisor speaks for it.
    ("azure", "AzureDevice"),
    ("tpm", "TpmDevice"),
)
"""Room and class of each, in the order in which they are looked for."""


KEY_SOURCES: Final = {"sgx": "SgxSealing", "snp": "SnpSealing", "tpm": "TpmSealing"}
"""Room and class of those that have sealing keys too; TDX, Nitro and CCA have none, and Azure's are not tried."""


def find_key_source(
    device: Device, *, signers: Sequence[bytes] = (), approvals: Sequence[bytes] = ()
) -> KeySource | None:
    """The sealing keys of the hardware that `device` speaks to; None if it has none.

    `signers` and `approvals` are for a TPM, which does not learn otherwise who signed the code: `TpmSealing.believing`.
    """
    name = KEY_SOURCES.get(device.tee)
    if name is None:
        return None
    kind = getattr(importlib.import_module(f"adyton.tee.{device.tee}.sealing"), name)
    source: KeySource
    if device.tee == "snp":
        source = kind(collect=device.collect_evidence)
    elif device.tee == "tpm":
        source = kind.believing(signers, approvals)
    else:
        source = kind()
    return source


def find_device(*, kernel: Kernel | None = None) -> Device:
    """The first of `DEVICES` whose hardware is here; none, `UnsupportedError` with what was missing of each.

    Hardware that is here and out of order is an `EvidenceError`: weaker hardware does not stand in for it.
    """
    missing = []
    for room, name in DEVICES:
        device: HardwareDevice = getattr(importlib.import_module(f"adyton.tee.{room}.device"), name)(kernel=kernel)
        try:
            device.check_present()
        except UnsupportedError as error:
            missing.append(f"{device.tee}: {error.message}")
        else:
            return device
    raise UnsupportedError(f"no hardware here that gives evidence ({'; '.join(missing)})")
