"""AWS Nitro's enclave image file (EIF), version 4, and the registers that its parts give. Pure but for the target.

A header of 548 bytes, then the sections, each after a header of 12; all numbers are big-endian. The CRC at the header's
end is over everything but itself. The layout is that of the specification in aws-nitro-enclaves-image-format,
README.md; what is hashed is said by its section "EIF Measurements" and done by src/utils/mod.rs, `measure`:

    PCR0   kernel, command line, all ramdisks
    PCR1   kernel, command line, the first ramdisk
    PCR2   the other ramdisks

each as SHA-384(48 zero bytes ‖ SHA-384(content)), a TPM's extension of a new register. Neither headers nor metadata are
measured. Of an image, the first ramdisk is `system` and the second `application`.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO, Final

from adyton.errors import ConfigurationError
from adyton.host.image.reference.command_line import encode_command_line

MAX_IMAGE_BYTES: Final = 1 << 31
MAX_RAMDISKS: Final = 29
"""Of 32 sections, without those of the kernel, the command line and the metadata."""

_VERSION: Final = 4
_SECTIONS: Final = 32
_HEADER: Final = struct.Struct(f">4s2H2Q2H{_SECTIONS}Q{_SECTIONS}QI")
"""Magic, version, flags, memory, CPUs, reserved, number of sections, their offsets, their sizes, reserved."""
_CRC: Final = struct.Struct(">I")
_SECTION_HEADER: Final = struct.Struct(">2HQ")
"""Type, flags (none are defined), bytes of data."""
_KERNEL, _COMMAND_LINE, _RAMDISK, _METADATA = 1, 2, 3, 5

_X86_64, _AARCH64 = 0, 1
_DEFAULT_MEMORY_BYTES, _DEFAULT_CPUS = 1 << 30, 2
"""What AWS's builder writes; nobody reads them."""

_BZIMAGE_MAGIC_AT, _BZIMAGE_MAGIC = 0x202, b"HdrS"
_ARM64_MAGIC_AT, _ARM64_MAGIC = 0x38, b"ARM\x64"
_ARM64_TEXT_OFFSET: Final = slice(8, 16)

_NO_TIME: Final = "1970-01-01T00:00:00+00:00"


def eif_metadata(*, name: str, version: str, tool_version: str, kernel_version: str) -> Mapping[str, Any]:
    """The metadata that nitro-cli demands of an image, always the same for the same image.

    `name` and `version` are the image's; the time of the build is the epoch. Nothing of it is measured.
    """
    return {
        "ImageName": name,
        "ImageVersion": version,
        "BuildMetadata": {
            "BuildTime": _NO_TIME,
            "BuildTool": "adyton",
            "BuildToolVersion": tool_version,
            "OperatingSystem": "Linux",
            "KernelVersion": kernel_version,
        },
        "DockerInfo": {},
        "CustomMetadata": {},
    }


def write_eif(
    target: BinaryIO, *, kernel: bytes, command_line: str, ramdisks: Sequence[bytes], metadata: Mapping[str, Any]
) -> None:
    """Write the image file of these parts to `target`, from where it stands; equal parts give equal bytes.

    `kernel` is a bzImage (x86_64) or an uncompressed arm64 Image, and says which architecture the image is for.
    `ramdisks` are cpio archives, which Linux unpacks one after the other. `metadata` becomes JSON; see `eif_metadata`.
    Raises ConfigurationError, before anything is written, if no enclave could be started from these parts.
    """
    architecture = _architecture(kernel)
    sections = [
        (_KERNEL, kernel),
        (_COMMAND_LINE, encode_command_line(command_line)),
        (_METADATA, _encoded_metadata(metadata)),
        *((_RAMDISK, ramdisk) for ramdisk in _checked_ramdisks(ramdisks)),
    ]
    header = _encoded_header(architecture, [len(data) for _, data in sections])
    body = [part for kind, data in sections for part in (_SECTION_HEADER.pack(kind, 0, len(data)), data)]
    target.writelines((header, _CRC.pack(_crc32([header, *body])), *body))


def eif_pcrs(kernel: bytes, command_line: str, ramdisks: Sequence[bytes]) -> Mapping[int, bytes]:
    """PCR 0, 1 and 2 of an enclave from the image of these parts, 48 bytes each.

    They are what the hardware reports unless the enclave runs in debug mode, where all three are zero. Raises
    ConfigurationError for parts that `write_eif` refuses for what they are, but does not add up their sizes.
    """
    _architecture(kernel)
    boot = (kernel, encode_command_line(command_line))
    first, *others = _checked_ramdisks(ramdisks)
    return {0: _extended((*boot, first, *others)), 1: _extended((*boot, first)), 2: _extended(others)}


def _extended(parts: Iterable[bytes]) -> bytes:
    content = hashlib.sha384()
    for part in parts:
        content.update(part)
    return hashlib.sha384(bytes(content.digest_size) + content.digest()).digest()


def _crc32(parts: Iterable[bytes]) -> int:
    value = 0
    for part in parts:
        value = zlib.crc32(part, value)
    return value


def _encoded_header(architecture: int, sizes: Sequence[int]) -> bytes:
    offsets = []
    end = _HEADER.size + _CRC.size
    for size in sizes:
        offsets.append(end)
        end += _SECTION_HEADER.size + size
    if end > MAX_IMAGE_BYTES:
        raise ConfigurationError(f"the enclave image file would have {end} bytes; {MAX_IMAGE_BYTES} are allowed")
    unused = [0] * (_SECTIONS - len(sizes))
    numbers = (architecture, _DEFAULT_MEMORY_BYTES, _DEFAULT_CPUS, 0, len(sizes))
    return _HEADER.pack(b".eif", _VERSION, *numbers, *offsets, *unused, *sizes, *unused, 0)


def _architecture(kernel: bytes) -> int:
    """The header's flag for the kernel's architecture, which Linux's boot protocols let one see.

    Documentation/arch/x86/boot.rst, section "The real-mode kernel header"; Documentation/arch/arm64/booting.rst.
    """
    if kernel.startswith(_BZIMAGE_MAGIC, _BZIMAGE_MAGIC_AT):
        return _X86_64
    if not kernel.startswith(_ARM64_MAGIC, _ARM64_MAGIC_AT):
        raise ConfigurationError("Nitro boots a bzImage or an uncompressed arm64 Image, and the kernel is neither")
    # The loader loads at this offset, and 0, "anywhere", is where nothing can run (AWS's kernel.nix, fixupPhase).
    if not any(kernel[_ARM64_TEXT_OFFSET]):
        raise ConfigurationError(
            "the arm64 kernel leaves its text_offset to the loader, and Nitro's does not choose one",
            mend="write 0x200000, little-endian, into the eight bytes from byte 8 of the Image, as AWS's build does",
        )
    return _AARCH64


def _encoded_metadata(metadata: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(dict(metadata), allow_nan=False, separators=(",", ":"), sort_keys=True).encode("ascii")
    except (TypeError, ValueError, RecursionError) as problem:
        raise ConfigurationError(f"the image's metadata can't be written as JSON: {problem}") from problem


def _checked_ramdisks(ramdisks: Sequence[bytes]) -> Sequence[bytes]:
    if not 1 <= len(ramdisks) <= MAX_RAMDISKS:
        raise ConfigurationError(f"an enclave image file holds 1 to {MAX_RAMDISKS} ramdisks, not {len(ramdisks)}")
    if not all(ramdisks):
        raise ConfigurationError("a ramdisk is empty")
    return ramdisks
