"""Inside an Arm CCA realm: ask for an attestation token."""

from __future__ import annotations

from typing import ClassVar, Final

from adyton.tee._device import HardwareDevice
from adyton.tee._tsm import check_provider, request_report
from adyton.tee.evidence import Evidence

PROVIDER: Final = "arm_cca_guest"


class CcaDevice(HardwareDevice):
    """Tokens over configfs-tsm; report_data is the realm's challenge."""

    tee: ClassVar[str] = "cca"

    def check_present(self) -> None:
        """`UnsupportedError` unless the kernel's reports are those of CCA."""
        check_provider(self._kernel, PROVIDER)

    def _collect(self, report_data: bytes) -> Evidence:
        return Evidence(tee=self.tee, data=request_report(self._kernel, PROVIDER, report_data))
