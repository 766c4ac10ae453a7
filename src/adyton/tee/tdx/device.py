"""Inside an Intel TDX guest: ask for a quote."""

from __future__ import annotations

from typing import ClassVar, Final

from adyton.tee._device import HardwareDevice, stapled_event_log
from adyton.tee._tsm import check_provider, request_report
from adyton.tee.evidence import Evidence

PROVIDER: Final = "tdx_guest"
EVENT_LOG: Final = "/sys/firmware/acpi/tables/data/CCEL"


class TdxDevice(HardwareDevice):
    """Quotes over configfs-tsm, with the firmware's event log (CCEL) stapled if it can be read."""

    tee: ClassVar[str] = "tdx"

    def check_present(self) -> None:
        """`UnsupportedError` unless the kernel's reports are those of TDX."""
        check_provider(self._kernel, PROVIDER)

    def _collect(self, report_data: bytes) -> Evidence:
        quote = request_report(self._kernel, PROVIDER, report_data)
        return Evidence(tee=self.tee, data=quote, endorsements=stapled_event_log(self._kernel, EVENT_LOG))
