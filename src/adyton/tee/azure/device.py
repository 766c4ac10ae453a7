"""Inside a confidential VM of Azure: ask the paravisor's vTPM for its hardware report, and for a quote."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, ClassVar, Final

from adyton.errors import EvidenceError, UnsupportedError
from adyton.tee._device import REPORT_DATA_BYTES, HardwareDevice, stapled_certificates, stapled_event_log
from adyton.tee._kernel import Kernel
from adyton.tee._tpm_commands import Tpm
from adyton.tee._tpm_quote import DEFAULT_PCRS, EVENT_LOG, check_pcrs, collect_quote
from adyton.tee._tpm_transport import opened_tpm
from adyton.tee.evidence import Evidence

if TYPE_CHECKING:
    from adyton.tee.azure.format import HclReport

HCL_REPORT_INDEX: Final = 0x01400001
USER_DATA_INDEX: Final = 0x01400002
AK_HANDLE: Final = 0x81000003
TDREPORT_BYTES: Final = 1024

REFRESH_SECONDS: Final = 15.0
"""How long the paravisor may take to report on new user data; it takes about three."""
_PAUSE_SECONDS: Final = 0.5


class AzureDevice(HardwareDevice):
    """HCL report and quote over /dev/tpmrm0, with the firmware's event log stapled if it can be read.

    report_data becomes the user data in the paravisor's report, which makes that report a fresh one, and the vTPM signs
    its SHA-256. `pcrs` are those of the SHA-256 bank that are quoted, of 0 to 23, else `ValueError`.

    A device talks to no network, so what Azure serves over HTTP the caller gives. `certificates` (DER) are stapled: on
    SEV-SNP the chip's chain, from http://169.254.169.254/metadata/THIM/amd/certification. On TDX the hardware report is
    a TDREPORT, which a service on the same machine turns into a quote; `td_quote` gets the TDREPORT (1024 bytes) and
    returns the quote, as http://169.254.169.254/acc/tdquote does. What it raises is raised.
    """

    tee: ClassVar[str] = "azure"

    def __init__(
        self,
        *,
        td_quote: Callable[[bytes], bytes] | None = None,
        pcrs: Collection[int] = DEFAULT_PCRS,
        certificates: Sequence[bytes] = (),
        kernel: Kernel | None = None,
    ) -> None:
        super().__init__(kernel=kernel)
        self._td_quote = td_quote
        self._pcrs = check_pcrs(pcrs)
        self._certificates = stapled_certificates(certificates)

    def check_present(self) -> None:
        """`UnsupportedError` unless there is a TPM with a paravisor's report in it."""
        with opened_tpm(self._kernel) as descriptor:
            _hcl_size(Tpm(self._kernel, descriptor))

    def _collect(self, report_data: bytes) -> Evidence:
        # Not above: every guest with a TPM looks whether it is Azure's, and most are not.
        from adyton.tee.azure.format import encode_azure

        with opened_tpm(self._kernel) as descriptor:
            tpm = Tpm(self._kernel, descriptor)
            size = _hcl_size(tpm)
            _write_user_data(tpm, report_data)
            report, hcl = self._refreshed(tpm, size, report_data)
            quote = collect_quote(tpm, AK_HANDLE, report_data, self._pcrs)
        data = encode_azure(
            hcl_report=report,
            quoted=quote.quoted,
            signature=quote.signature,
            pcrs=quote.pcrs,
            td_quote=self._quote_td(hcl),
        )
        log = stapled_event_log(self._kernel, EVENT_LOG)
        return Evidence(tee=self.tee, data=data, endorsements=self._certificates + log)

    def _refreshed(self, tpm: Tpm, size: int, report_data: bytes) -> tuple[bytes, HclReport]:
        """The report once it is about our user data, as it is in NV memory and parsed."""
        from adyton.tee.azure.format import parse_hcl

        deadline = self._kernel.monotonic() + REFRESH_SECONDS
        while True:
            report = tpm.nv_read(HCL_REPORT_INDEX, size)
            hcl = parse_hcl(report)
            if str(hcl.runtime.get("user-data")).lower() == report_data.hex():
                return report, hcl
            if self._kernel.monotonic() >= deadline:
                raise EvidenceError(f"the paravisor did not report on our user data within {REFRESH_SECONDS:g} s")
            self._kernel.sleep(_PAUSE_SECONDS)

    def _quote_td(self, hcl: HclReport) -> bytes | None:
        if hcl.hardware_tee != "tdx":
            return None
        if self._td_quote is None:
            raise UnsupportedError("nobody quotes the TDREPORT of this VM of TDX", mend="give AzureDevice a td_quote")
        return self._td_quote(hcl.hardware_report[:TDREPORT_BYTES])


def _hcl_size(tpm: Tpm) -> int:
    size = tpm.nv_size(HCL_REPORT_INDEX)
    if size is None:
        raise UnsupportedError(f"no paravisor of Azure here: the TPM has no NV index 0x{HCL_REPORT_INDEX:08x}")
    return size


def _write_user_data(tpm: Tpm, report_data: bytes) -> None:
    size = tpm.nv_size(USER_DATA_INDEX)
    if size is None:
        tpm.nv_define(USER_DATA_INDEX, REPORT_DATA_BYTES)
    elif size != REPORT_DATA_BYTES:
        message = f"the NV index 0x{USER_DATA_INDEX:08x} has {size} bytes, not {REPORT_DATA_BYTES}"
        raise EvidenceError(message, mend=f"tpm2_nvundefine -C o 0x{USER_DATA_INDEX:08x}")
    tpm.nv_write(USER_DATA_INDEX, report_data)
