"""The launchers of machines that their host can't look into: the virtual machine's, with a processor to vouch for it.

There is no TPM: the processor measures the firmware and, through it, the same three files and command line.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from adyton.bundle.settings import VmSettings
from adyton.host.bundles import Bundle
from adyton.host.image.image import Image
from adyton.host.image.measurements import Measured, measure_snp, measure_tdx, with_measured
from adyton.host.launch.launcher import Capability, LaunchRequest, say_nothing
from adyton.host.launch.qemu.confidential import SEV_SNP, TDX, Confidential
from adyton.host.launch.qemu.launcher import QemuLauncher
from adyton.host.launch.qemu.machine import Protection, linux_command_line
from adyton.host.launch.state import StateDirectory

Measure = Callable[..., Measured]


class ConfidentialLauncher(QemuLauncher):
    """Starts enclaves in such machines. `vm.firmware` of enclave.toml has no say here: it is always OVMF."""

    def __init__(self, confidential: Confidential, measure: Measure) -> None:
        super().__init__(accelerator="kvm")
        self.technology = confidential.technology
        self.warning = f"{confidential.title}: this launcher has never run on the hardware that it is for"
        self._confidential = confidential
        self._measure = measure

    def capabilities(self) -> list[Capability]:
        """Whether this machine can, and each thing that it needs."""
        return self._confidential.capabilities()

    def measurements(self, bundle: Bundle) -> dict[str, object]:
        """As `Launcher` says; of the image and the firmware on this machine. Raises UnsupportedError without one."""
        firmware = self._confidential.find_firmware()
        image: Image = self._build(bundle)
        command_line = linux_command_line(image.architecture)
        measured = self._measure(image, bundle.settings.vm, command_line=command_line, firmware=firmware)
        return with_measured(bundle.measurements(), measured)

    def anchors(self) -> dict[str, bytes]:
        """None: the vendor's root is known."""
        return {}

    def prepare(self, bundle: Bundle, say: Callable[[str], None] = say_nothing) -> None:
        """As QemuLauncher does, on a machine that can start the image. Raises UnsupportedError on any other."""
        self._confidential.check()
        super().prepare(bundle, say)

    def _check(self, request: LaunchRequest) -> None:
        super()._check(request)
        self._confidential.check()

    def _find_firmware(self, _: VmSettings) -> Path:
        return self._confidential.find_firmware()

    def _start_tpm(
        self,
        _settings: VmSettings,
        _directory: Path,
        _state: StateDirectory | None,
        _digests: dict[str, bytes],
        _uid: int | None,
    ) -> None:
        return None

    def _protection(self, bundle: Bundle) -> Protection:
        return self._confidential.protect(bundle.sha256, bundle.settings.vm.memory_mb)


class SevSnpLauncher(ConfidentialLauncher):
    """Starts enclaves in SEV-SNP guests."""

    def __init__(self) -> None:
        super().__init__(SEV_SNP, measure_snp)


class TdxLauncher(ConfidentialLauncher):
    """Starts enclaves in TDX guests."""

    def __init__(self) -> None:
        super().__init__(TDX, measure_tdx)
