"""Reference values of an image, computed from its files alone: what evidence says of a machine that booted just them.

What can't be computed is said, not guessed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adyton.bundle.settings import VmSettings
from adyton.host.image.image import Image
from adyton.host.image.reference import hcrtm, nitro, ovmf, snp, tdx
from adyton.tee.tpm.launch import parse_launch, pcr0

#: Of Nitro's kernels, which hand the virtio devices over on the command line themselves.
NITRO_COMMAND_LINE: Final = "reboot=k panic=30 console=ttyS0 nomodules random.trust_cpu=on"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Reference values for one TEE, as a rule of a policy has them, and what could not be computed, in words."""

    tee: str
    values: Mapping[str, Any]
    lacking: tuple[str, ...] = ()


def with_measured(measurements: Mapping[str, Any], measured: Measured) -> dict[str, Any]:
    """The content of measurements.json with another TEE's reference values."""
    return {
        **measurements,
        "reference_values": {**measurements["reference_values"], measured.tee: dict(measured.values)},
    }


def measure_vm(image: Image, *, command_line: str) -> Measured:
    """A virtual machine whose launcher measures: PCR 0."""
    document = hcrtm.launch_document(image.digests(), command_line)
    launch = {name: digest.hex() for name, digest in parse_launch(document).items()}
    return Measured(tee="tpm", values={"pcrs": {"0": pcr0(document).hex()}, "launch": launch})


def measure_ovmf_vm(
    image: Image, settings: VmSettings, *, command_line: str, firmware: Path, firmware_pcr0: str
) -> Measured:
    """A virtual machine whose firmware measures: PCR 1 to 9, computed, and the firmware's own, which can't be.

    `firmware_pcr0` is from a boot that the caller trusts. Without it a machine of any other firmware would pass: one
    that measures nothing lets its guest write what it likes into PCR 1 to 9.
    """
    kernel, initrd = image.kernel.read_bytes(), _initrd(image)
    booted: dict[str, Any] = {
        "kernel": kernel,
        "initrd": initrd,
        "command_line": command_line,
        "memory_mb": settings.memory_mb,
    }
    pcrs = ovmf.ovmf_pcrs(firmware=firmware.read_bytes(), **booted)
    return Measured(
        tee="tpm",
        values={
            "pcrs": {"0": firmware_pcr0} | {str(index): digest.hex() for index, digest in pcrs.items()},
            "launch": {name: digest.hex() for name, digest in ovmf.ovmf_events(**booted).items()},
        },
        lacking=("PCR 0, the firmware's own, which is from a boot on this machine",),
    )


def measure_snp(image: Image, settings: VmSettings, *, command_line: str, firmware: Path) -> Measured:
    """An SEV-SNP guest that QEMU starts with kernel hashes."""
    with tempfile.TemporaryDirectory() as folder:
        initrd = Path(folder, "initrd")
        image.write_initrd(initrd)
        measurement = snp.snp_measurement(
            firmware=firmware, kernel=image.kernel, initrd=initrd, command_line=command_line, cpus=settings.cpus
        )
    return Measured(tee="snp", values={"measurement": measurement.hex(), "host_data": image.bundle_sha256.hex()})


def measure_tdx(image: Image, settings: VmSettings, *, command_line: str, firmware: Path) -> Measured:
    """A TDX guest. QEMU 10.1 still patches the kernel that it hands to firmware, later ones don't: both are listed."""
    kernel, initrd = image.kernel.read_bytes(), _initrd(image)
    patched = ovmf.patched_kernel(
        kernel, memory_mb=settings.memory_mb, initrd_bytes=len(initrd), command_line=command_line
    )
    either = [tdx.rtmrs(kernel=each, initrd=initrd, command_line=command_line) for each in (kernel, patched)]
    return Measured(
        tee="tdx",
        values={"mrtd": tdx.mrtd(firmware.read_bytes()).hex()}
        | {f"rtmr{index}": list(dict.fromkeys(each[index].hex() for each in either)) for index in either[0]}
        | {"rtmr3": "00" * 48, "mr_config_id": image.bundle_sha256.hex().ljust(96, "0")},
        lacking=("RTMR0, which holds what the hypervisor tells the firmware of the machine",),
    )


def measure_nitro(*, kernel: bytes, command_line: str, ramdisks: Sequence[bytes]) -> Measured:
    """A Nitro enclave from the image file that `write_eif` writes of the same parts."""
    pcrs = nitro.eif_pcrs(kernel, command_line, ramdisks)
    return Measured(tee="nitro", values={"pcrs": {str(index): digest.hex() for index, digest in pcrs.items()}})


def _initrd(image: Image) -> bytes:
    return image.system.read_bytes() + image.application.read_bytes()
