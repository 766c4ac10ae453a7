"""Inside a machine with a TPM 2.0: ask it for a quote."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

from adyton.tee._device import HardwareDevice, stapled_certificates, stapled_event_log
from adyton.tee._kernel import Kernel
from adyton.tee._tpm_commands import Tpm
from adyton.tee._tpm_quote import DEFAULT_PCRS, EVENT_LOG, check_pcrs, collect_quote
from adyton.tee._tpm_transport import opened_tpm
from adyton.tee.evidence import Endorsement, EndorsementKind, Evidence
from adyton.tee.tpm.format import encode_tpm


class TpmDevice(HardwareDevice):
    """Quotes over /dev/tpmrm0 of the SHA-256 bank, with an event log stapled.

    The TPM signs the SHA-256 of report_data. `pcrs` are those that are quoted, of 0 to 23, else `ValueError`. The key
    is `ak_handle`, which must be persistent and need no password; None is an ECDSA key of P-256 that the TPM derives
    each time anew and always the same. `certificates` (DER) vouch for the key, from its own to the root; they are
    stapled. So is `event_log`, unless it is empty; None is the firmware's, if the kernel has it and it can be read.
    """

    tee: ClassVar[str] = "tpm"

    def __init__(
        self,
        *,
        pcrs: Collection[int] = DEFAULT_PCRS,
        ak_handle: int | None = None,
        certificates: Sequence[bytes] = (),
        event_log: bytes | None = None,
        kernel: Kernel | None = None,
    ) -> None:
        super().__init__(kernel=kernel)
        self._pcrs = check_pcrs(pcrs)
        self._ak_handle = ak_handle
        self._certificates = stapled_certificates(certificates)
        self._event_log = event_log

    def check_present(self) -> None:
        """`UnsupportedError` unless there is a TPM."""
        with opened_tpm(self._kernel):
            pass

    def _collect(self, report_data: bytes) -> Evidence:
        with opened_tpm(self._kernel) as descriptor:
            tpm = Tpm(self._kernel, descriptor)
            with self._attestation_key(tpm) as (handle, public):
                quote = collect_quote(tpm, handle, report_data, self._pcrs)
        data = encode_tpm(quoted=quote.quoted, signature=quote.signature, ak_public=public, pcrs=quote.pcrs)
        log = self._stapled_log()
        return Evidence(tee=self.tee, data=data, endorsements=self._certificates + log)

    def _stapled_log(self) -> tuple[Endorsement, ...]:
        if self._event_log is None:
            return stapled_event_log(self._kernel, EVENT_LOG)
        return (Endorsement(kind=EndorsementKind.EVENT_LOG, data=self._event_log),) if self._event_log else ()

    @contextmanager
    def _attestation_key(self, tpm: Tpm) -> Iterator[tuple[int, bytes]]:
        if self._ak_handle is not None:
            yield self._ak_handle, tpm.read_public(self._ak_handle)
            return
        with tpm.attestation_key() as key:
            yield key
