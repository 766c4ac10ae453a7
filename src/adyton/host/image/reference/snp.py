"""AMD SEV-SNP's launch measurement of a guest that QEMU boots directly, computed by sev-snp-measure from the files.

The secure processor measures pages in the order in which they are given to it (SEV-SNP Firmware ABI, section 8.17.2):
the firmware, then the pages that the firmware's own metadata name, and each CPU's first registers. One of the named
pages holds the SHA-256 of the kernel, the initrd and the command line, and the firmware refuses others: so the
measurement stands for all of them (QEMU, docs/system/i386/amd-memory-encryption.rst; its option is `kernel-hashes=on`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from adyton.errors import ConfigurationError, UnsupportedError
from adyton.host.image.reference.command_line import encode_command_line

MAX_CPUS: Final = 4096
"""As many as KVM ever has; each is one page that is measured."""

_SNP_ACTIVE: Final = 0x1
"""The SEV_FEATURES of each CPU (AMD64 Architecture Programmer's Manual 2, table B-4): SNP, and none of its options."""
_FIRMWARE_MEND: Final = "take OVMF's AmdSev build (edk2, OvmfPkg/AmdSev/AmdSevX64.dsc), which checks a kernel's hashes"


def snp_measurement(
    *, firmware: Path, kernel: Path, initrd: Path, command_line: str, cpus: int, cpu_model: str = "EPYC-v4"
) -> bytes:
    """What the report of such a guest has as its measurement, 48 bytes.

    It depends on all that is given here, and on nothing else that QEMU is told: `cpus` is what -smp says, `cpu_model`
    the model of -cpu. It is right where none of SNP's options is turned on, such as DebugSwap or Secure TSC.

    Raises UnsupportedError without sev-snp-measure, or for a firmware that does not check the kernel;
    ConfigurationError for arguments that QEMU has no such guest for; OSError if a file can't be read. Whether the
    kernel and the initrd are what they are called is not checked.
    """
    encode_command_line(command_line)
    if not 1 <= cpus <= MAX_CPUS:
        raise ConfigurationError(f"a guest has 1 to {MAX_CPUS} CPUs, not {cpus}")
    calculate, mode, models = _calculator()
    if cpu_model not in models:
        raise ConfigurationError(f"{cpu_model!r} is none of the CPU models {', '.join(models)}")
    files = (str(firmware), str(kernel), str(initrd))
    try:
        return bytes(calculate(mode, cpus, models[cpu_model], *files, command_line, _SNP_ACTIVE))
    except (AssertionError, AttributeError, RuntimeError, ValueError) as problem:
        message = f"SEV-SNP could not measure a kernel with the firmware {firmware.name}"
        raise UnsupportedError(message, mend=_FIRMWARE_MEND) from problem


def _calculator() -> tuple[Callable[..., bytes], object, Mapping[str, int]]:
    """The library's function, its word for SEV-SNP, and the signatures of the CPU models that it knows."""
    if not __debug__:
        raise UnsupportedError("sev-snp-measure checks what it reads by assertions", mend="run Python without -O")
    try:
        from sevsnpmeasure.guest import calc_launch_digest
        from sevsnpmeasure.sev_mode import SevMode
        from sevsnpmeasure.vcpu_types import CPU_SIGS
    except ImportError as problem:
        message = "SEV-SNP's measurement is computed by sev-snp-measure, which is not installed"
        raise UnsupportedError(message, mend="pip install sev-snp-measure") from problem
    return calc_launch_digest, SevMode.SEV_SNP, CPU_SIGS
