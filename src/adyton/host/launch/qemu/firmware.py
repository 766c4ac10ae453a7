"""The firmware files that distributions have."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from adyton.errors import UnsupportedError

_OVMF: Final = ("/usr/share/ovmf/OVMF.fd", "/usr/share/qemu/OVMF.fd", "/usr/share/edk2/ovmf/OVMF.fd")
QBOOT: Final = "qboot.rom"
"""QEMU's own, which it finds by name."""


def find_ovmf() -> Path:
    """OVMF with its variables in one file. Raises UnsupportedError where there is none."""
    for path in map(Path, _OVMF):
        if path.is_file():
            return path
    raise UnsupportedError('firmware = "ovmf" needs OVMF.fd', mend="apt install ovmf")


def find_firmware(architecture: str, asked: str) -> Path | str | None:
    """For `vm.firmware` of enclave.toml: a file, the name of one of QEMU's own, or none. Raises UnsupportedError."""
    if asked == "ovmf":
        if architecture != "x86_64":
            raise UnsupportedError(f'firmware = "ovmf" is for x86_64, not for {architecture}')
        return find_ovmf()
    return QBOOT if architecture == "x86_64" else None
