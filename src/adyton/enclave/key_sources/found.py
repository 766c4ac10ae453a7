"""Which source of keys an enclave has: its hardware's, or the one outside that enclave.toml names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adyton.errors import UnsupportedError
from adyton.tee.sealing import KeySource

if TYPE_CHECKING:
    from adyton.enclave.application import EnclaveContext

_OUTSIDE = 'set sealing.source in enclave.toml to "release" or "aws-kms"'


def find_key_source(context: EnclaveContext, hardware: KeySource | None) -> KeySource:
    """By `[sealing]`. UnsupportedError where the hardware has no sealing key and nothing else is configured."""
    source = context.settings.sealing.source
    if source == "release":
        from adyton.enclave.key_sources.release import ReleaseKeys  # its channel takes a second to import

        return ReleaseKeys.of(context)
    if source == "aws-kms":
        from adyton.enclave.key_sources.aws_kms import AwsKms

        return AwsKms.of(context)
    if hardware is None:
        tee = context.device.tee if context.device else "this machine"
        raise UnsupportedError(f"{tee} has no sealing key", mend=_OUTSIDE)
    return hardware
