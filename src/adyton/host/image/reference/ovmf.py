"""What OVMF measures when QEMU hands it a kernel: the TPM's registers 1 to 9, computed from the files alone.

Compared with boots of Debian 12's OVMF (edk2-stable202211), QEMU 7.2 and Linux 6.12 by tests/integration. Sources:
QEMU, hw/i386/x86-common.c and hw/i386/pc_q35.c; edk2, Tcg2Dxe.c and GenericQemuLoadImageLib.c; Linux,
drivers/firmware/efi/libstub; TCG PC Client Platform Firmware Profile 1.06, section 3.3.4.

PCR 0 is left out. It holds the digest of the PEI volume after PlatformPei wrote its variables into it (memory, CPUs,
addresses: some twenty bytes), at a place that only the linker knows. Whoever wants it takes it from one boot for each
firmware, memory size and number of CPUs.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final
from uuid import UUID

from adyton.errors import ConfigurationError
from adyton.host.image.reference.command_line import encode_command_line
from adyton.host.image.reference.pe import authenticode_sha256

SEPARATOR: Final = bytes(4)
CALLING_APPLICATION: Final = b"Calling EFI Application from Boot Option"
EXIT_BOOT_SERVICES: Final = (b"Exit Boot Services Invocation", b"Exit Boot Services Returned with Success")

_ACPI_BYTES: Final = 0x28000
"""What QEMU's PC machines keep free for ACPI tables below the end of low memory."""
_COMMAND_LINE_ADDRESS: Final = 0x20000
_SETUP_ADDRESS: Final = 0x10000
_MIB: Final = 1 << 20

_GLOBAL_VARIABLE: Final = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
_IMAGE_SECURITY: Final = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
_SECURE_BOOT: Final = (
    (_GLOBAL_VARIABLE, "SecureBoot", b"\0"),
    (_GLOBAL_VARIABLE, "PK", b""),
    (_GLOBAL_VARIABLE, "KEK", b""),
    (_IMAGE_SECURITY, "db", b""),
    (_IMAGE_SECURITY, "dbx", b""),
)
"""The variables that PCR 7 holds, as they are where no key was ever enrolled."""

_DXE_VOLUME: Final = UUID("7cb8bdc9-f8eb-4f34-aaea-3ee4af6516a1")
_UI_APP: Final = UUID("462caa21-7614-4503-836e-8ab6f4662331")
_FOOTER: Final = UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
_RESET_VECTOR_BYTES: Final = 32
_ENTRY_BYTES: Final = 18
"""What each entry of the table has besides its data."""
_VARIABLE_VOLUME: Final = UUID("fff12b8d-7696-4c8b-a985-2747075b4f50")
_VARIABLE_STORE: Final = 0x48
_FIRST_VARIABLE: Final = _VARIABLE_STORE + 28


def patched_kernel(kernel: bytes, *, memory_mb: int, initrd_bytes: int, command_line: str) -> bytes:
    """The kernel as firmware reads it from a q35 machine: QEMU fills in the setup header for boot loaders of old.

    So the kernel's digest depends on the guest's memory and the initrd's size. QEMU 7.2 and 10 write the same. Not
    every guest's firmware reads that: QEMU keeps the header for SEV guests, since 10.2 for TDX guests too, and since
    10.0 it offers the file itself as "etc/boot/kernel" besides, which edk2 prefers since edk2-stable202502.

    Raises `ConfigurationError` for a kernel older than boot protocol 2.12, an initrd that does not fit into the memory,
    and a command line that would make QEMU or the kernel do something else than measure.
    """
    load_options(command_line)
    _require_linux(kernel)
    limit = min(_highest_initrd_address(kernel), _low_memory(memory_mb) - _ACPI_BYTES - 1)
    if not 0 < initrd_bytes < limit:
        raise ConfigurationError(f"an initrd of {initrd_bytes} bytes does not fit into {memory_mb} MB")
    patched = bytearray(kernel)
    patched[0x210] = 0xB0  # type_of_loader: QEMU
    patched[0x211] |= 0x80  # loadflags: CAN_USE_HEAP
    struct.pack_into("<II", patched, 0x218, (limit - initrd_bytes) & ~0xFFF, initrd_bytes)
    struct.pack_into("<H", patched, 0x224, _COMMAND_LINE_ADDRESS - _SETUP_ADDRESS - 0x200)  # heap_end_ptr
    struct.pack_into("<I", patched, 0x228, _COMMAND_LINE_ADDRESS)
    return bytes(patched)


def load_options(command_line: str) -> bytes:
    """What the kernel's EFI stub measures as its command line: OVMF's addition and the final NUL too, in UTF-16.

    Raises `ConfigurationError` for what `encode_command_line` refuses, for "vga=", on which QEMU acts, and for
    "noinitrd", with which the kernel would leave the initrd out.
    """
    text = encode_command_line(command_line).decode("ascii")
    if "vga=" in text or "noinitrd" in text:
        raise ConfigurationError("a command line that is measured has neither vga= nor noinitrd")
    return f"{text} initrd=initrd\0".encode("utf-16-le")


def ovmf_events(
    *, kernel: bytes, initrd: bytes, command_line: str, memory_mb: int, patched: bool = True
) -> Mapping[str, bytes]:
    """The SHA-256 digests of what is the guest's own: "kernel" in PCR 4, "command-line" and "initrd" in PCR 9.

    An event log has them as events of the types EV_EFI_BOOT_SERVICES_APPLICATION and, twice, EV_EVENT_TAG, labelled
    "LOADED_IMAGE::LoadOptions" and "Linux initrd". They do not depend on the firmware, unless it reads another kernel:
    `patched` says whether it gets the one of `patched_kernel` or the file; whether it does can't be known from here.
    """
    loaded = patched_kernel(kernel, memory_mb=memory_mb, initrd_bytes=len(initrd), command_line=command_line)
    return MappingProxyType(
        {
            "kernel": authenticode_sha256(loaded if patched else kernel),
            "command-line": _sha256(load_options(command_line)),
            "initrd": _sha256(initrd),
        }
    )


def ovmf_pcrs(
    *, firmware: bytes, kernel: bytes, initrd: bytes, command_line: str, memory_mb: int, patched: bool = True
) -> Mapping[int, bytes]:
    """The SHA-256 registers 1 to 9 of a guest's TPM once Linux runs; they do not depend on the number of CPUs.

    `firmware` is the whole OVMF.fd that QEMU gets with -bios. It must bring no variables of its own: PCR 1 and 7 hold
    some, and what is computed are those that OVMF makes itself. The others are as for `ovmf_events`.

    What can't be known from the files: whether the firmware's version measures as edk2-stable202211 does (since
    edk2-stable202505 the boot option in PCR 1 is another), and which other devices the machine has. One with an option
    ROM adds to PCR 2, so a network card needs "romfile="; else disks, cards and serial ports have changed nothing.
    PCR 0: see the module. PCR 10 is the kernel's own (IMA).
    """
    _require_fresh_ovmf(firmware)
    events = ovmf_events(kernel=kernel, initrd=initrd, command_line=command_line, memory_mb=memory_mb, patched=patched)
    separator = _sha256(SEPARATOR)
    alone = _extended(separator)
    secure_boot = [_sha256(_variable_data(*variable)) for variable in _SECURE_BOOT]
    return MappingProxyType(
        {
            1: _extended(_sha256(bytes(2)), _sha256(_boot_option()), separator),
            2: alone,
            3: alone,
            4: _extended(events["kernel"], _sha256(CALLING_APPLICATION), separator),
            5: _extended(separator, *map(_sha256, EXIT_BOOT_SERVICES)),
            6: alone,
            7: _extended(*secure_boot, separator),
            8: _extended(),
            9: _extended(events["command-line"], events["initrd"]),
        }
    )


def guided_table(firmware: bytes) -> Mapping[UUID, bytes]:
    """The entries of the table that OVMF keeps at its end for the VMM, by their GUIDs.

    From the end backwards: 32 bytes of reset vector, the footer's GUID, the table's length, and then each entry as its
    data, its length and its GUID; lengths have two bytes and count themselves and the GUID (edk2, ResetVectorVtf0).
    Raises `ConfigurationError` where there is no such table, or a broken one.
    """
    end = len(firmware) - _RESET_VECTOR_BYTES
    guid, length = _table_entry(firmware, end)
    if guid != _FOOTER:
        raise ConfigurationError("this firmware is not OVMF")
    begin, end = end - length, end - _ENTRY_BYTES
    entries: dict[UUID, bytes] = {}
    while end > begin:
        guid, length = _table_entry(firmware, end)
        if end - length < begin:
            raise ConfigurationError("the firmware's table of entries is broken")
        entries.setdefault(guid, firmware[end - length : end - _ENTRY_BYTES])
        end -= length
    return MappingProxyType(entries)


def _table_entry(firmware: bytes, end: int) -> tuple[UUID, int]:
    """The GUID and the length of the entry that ends there."""
    if end < _ENTRY_BYTES:
        raise ConfigurationError("this firmware is not OVMF")
    length = int.from_bytes(firmware[end - _ENTRY_BYTES : end - 16], "little")
    if not _ENTRY_BYTES <= length <= end:
        raise ConfigurationError("the firmware's table of entries is broken")
    return UUID(bytes_le=firmware[end - 16 : end]), length


def _require_linux(kernel: bytes) -> None:
    """The kernel has a setup header whose fields all exist, and is one that is loaded high."""
    if len(kernel) < 0x1000 or kernel[0x202:0x206] != b"HdrS":
        raise ConfigurationError("this is no Linux kernel for x86")
    if int.from_bytes(kernel[0x206:0x208], "little") < 0x20C or not kernel[0x211] & 0x01:
        raise ConfigurationError("this Linux kernel is older than boot protocol 2.12")


def _highest_initrd_address(kernel: bytes) -> int:
    """The kernel's own limit, which QEMU drops for a kernel that can be loaded above 4 GiB."""
    above_4g = kernel[0x236] & 0x02
    return 0xFFFFFFFF if above_4g else int.from_bytes(kernel[0x22C:0x230], "little")


def _low_memory(memory_mb: int) -> int:
    """How many bytes of its memory a q35 machine has below 4 GiB."""
    return memory_mb * _MIB if memory_mb < 0xB00 else 0x80000000


def _require_fresh_ovmf(firmware: bytes) -> None:
    guided_table(firmware)
    size = int.from_bytes(firmware[_VARIABLE_STORE + 16 : _VARIABLE_STORE + 20], "little")
    store_end = _VARIABLE_STORE + size
    if firmware[16:32] != _VARIABLE_VOLUME.bytes_le or not _FIRST_VARIABLE < store_end <= len(firmware):
        raise ConfigurationError("this firmware has no store of variables", mend="give OVMF.fd, not OVMF_CODE.fd")
    if firmware[_FIRST_VARIABLE:store_end].strip(b"\xff"):
        raise ConfigurationError("this firmware brings variables of its own, so PCR 1 and 7 can't be computed")


def _boot_option() -> bytes:
    """Boot0000, OVMF's own menu, which it lists though it never gets there: an EFI_LOAD_OPTION."""
    path = struct.pack("<BBH", 4, 7, 20) + _DXE_VOLUME.bytes_le + struct.pack("<BBH", 4, 6, 20) + _UI_APP.bytes_le
    path += struct.pack("<BBH", 0x7F, 0xFF, 4)
    active_hidden_application = 0x109
    return struct.pack("<IH", active_hidden_application, len(path)) + "UiApp\0".encode("utf-16-le") + path


def _variable_data(vendor: UUID, name: str, value: bytes) -> bytes:
    """A UEFI_VARIABLE_DATA."""
    return vendor.bytes_le + struct.pack("<QQ", len(name), len(value)) + name.encode("utf-16-le") + value


def _extended(*digests: bytes) -> bytes:
    """A register after these digests."""
    value = bytes(32)
    for digest in digests:
        value = _sha256(value + digest)
    return value


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
