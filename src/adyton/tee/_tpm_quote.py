"""A quote together with the PCR values that it is over, which the TPM gives in separate commands."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from adyton.errors import EvidenceError
from adyton.tee._tpm import Pcrs
from adyton.tee._tpm_commands import PCRS, Tpm
from adyton.tee._tpm_structures import parse_attest, parse_signature

DEFAULT_PCRS: Final = (*range(10), *range(11, 16))
"""What booting measures. Not 10: Linux's integrity measurement extends it at any time."""
EVENT_LOG: Final = "/sys/kernel/security/tpm0/binary_bios_measurements"
BANK: Final = "sha256"
ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmQuote:
    """The TPMS_ATTEST, its TPMT_SIGNATURE, and the values of its PCRs by bank and index."""

    quoted: bytes
    signature: bytes
    pcrs: Pcrs


def check_pcrs(pcrs: Collection[int]) -> tuple[int, ...]:
    """The PCRs in order, each once; `ValueError` unless there is one, and each is of 0 to 23."""
    if not pcrs or any(index not in PCRS for index in pcrs):
        raise ValueError(f"PCRs are one or more of 0 to {PCRS[-1]}, not {list(pcrs)}")
    return tuple(sorted(set(pcrs)))


def qualifying_data(report_data: bytes) -> bytes:
    """What the TPM signs for 64 bytes of report_data: their SHA-256, since some TPMs take 50 bytes at most."""
    return hashlib.sha256(report_data).digest()


def collect_quote(tpm: Tpm, handle: int, report_data: bytes, pcrs: Collection[int]) -> TpmQuote:
    """A quote by that key, and the values that hash to its digest. PCRs that never stand still: `EvidenceError`."""
    for _ in range(ATTEMPTS):
        values = tpm.read_pcrs(pcrs)
        quoted, signature = tpm.quote(handle, qualifying_data(report_data), pcrs)
        hash_name = parse_signature(signature).scheme.hash
        joined = b"".join(values[index] for index in sorted(values))
        if hashlib.new(hash_name, joined).digest() == parse_attest(quoted).pcr_digest:
            return TpmQuote(quoted=quoted, signature=signature, pcrs={BANK: values})
    raise EvidenceError(f"PCRs were extended while they were quoted, {ATTEMPTS} times in a row")
