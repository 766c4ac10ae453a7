"""What OVMF measures: QEMU's changes to the kernel to the byte, the events, and the registers that boots have shown.

The values in `SEEN` are from a boot of Debian 12's OVMF in QEMU 7.2; tests/integration repeats such boots.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from functools import partial, reduce
from uuid import UUID

import pytest

from adyton.errors import ConfigurationError
from adyton.host.image.reference.ovmf import guided_table, load_options, ovmf_events, ovmf_pcrs, patched_kernel
from adyton.host.image.reference.pe import authenticode_sha256

COMMAND_LINE = "console=ttyS0 panic=-1"
INITRD = b"initrd" * 1000
LOADED_ABOVE_4G = 0x02
STORE, FIRST_VARIABLE, VARIABLES_END = 0x48, 0x64, 0x800
FOOTER = UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
ENTRY = UUID("e47a6535-984a-4798-865e-4685a7bf8ec2")
SEPARATED = "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969"
SEEN = {
    1: "8e9d1fe23131f12d6a523e9c32eb3223d4dc25e14eb5fd60163e7ba8de0f248c",
    2: SEPARATED,
    3: SEPARATED,
    5: "a5ceb755d043f32431d63e39f5161464620a3437280494b5850dc1b47cc074e0",
    6: SEPARATED,
    7: "65caf8dd1e0ea7a6347b635d2b379c93b9a1351edc2afc3ecda700e534eb3068",
    8: "00" * 32,
}


def kernel(*, protocol: int = 0x20F, load_flags: int = 0x01, extended_flags: int = LOADED_ABOVE_4G) -> bytes:
    """A PE image without sections that has a Linux setup header, as a bzImage has both."""
    data = bytearray(b"\xcc" * 0x2000)
    data[:2] = b"MZ"
    struct.pack_into("<I", data, 0x3C, 0x40)
    struct.pack_into("<4sHH", data, 0x40, b"PE\0\0", 0x8664, 0)
    struct.pack_into("<HHH", data, 0x54, 160, 0, 0x20B)
    struct.pack_into("<I", data, 0x58 + 60, 0x1000)
    struct.pack_into("<I", data, 0x58 + 108, 6)
    struct.pack_into("<II", data, 0x58 + 144, 0, 0)
    data[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", data, 0x206, protocol)
    data[0x211] = load_flags
    struct.pack_into("<I", data, 0x22C, 0x7FFFFFFF)
    struct.pack_into("<H", data, 0x236, extended_flags)
    return bytes(data)


def firmware(*, variables: bytes = b"", entries: Mapping[UUID, bytes] | None = None) -> bytes:
    """As much of OVMF.fd as is read: its store of variables, and its table for the VMM."""
    data = bytearray(b"\xff" * 0x1000)
    data[16:32] = UUID("fff12b8d-7696-4c8b-a985-2747075b4f50").bytes_le
    struct.pack_into("<I", data, STORE + 16, VARIABLES_END - STORE)
    data[FIRST_VARIABLE : FIRST_VARIABLE + len(variables)] = variables
    table = b"".join(
        content + struct.pack("<H", len(content) + 18) + guid.bytes_le for guid, content in (entries or {}).items()
    )
    table += struct.pack("<H", len(table) + 18) + FOOTER.bytes_le
    return bytes(data) + table + bytes(32)


def extended(*digests: bytes) -> bytes:
    return reduce(lambda value, digest: hashlib.sha256(value + digest).digest(), digests, bytes(32))


def patched(data: bytes, *, memory_mb: int = 512, initrd_bytes: int = 6000, command_line: str = COMMAND_LINE) -> bytes:
    return patched_kernel(data, memory_mb=memory_mb, initrd_bytes=initrd_bytes, command_line=command_line)


def initrd_address(data: bytes) -> int:
    return int.from_bytes(data[0x218:0x21C], "little")


def test_qemu_writes_the_documented_fields_of_the_setup_header_and_no_others() -> None:
    before, after = kernel(), patched(kernel(), memory_mb=512, initrd_bytes=0x1770)
    assert after[0x210] == 0xB0
    assert after[0x211] == 0x81
    assert struct.unpack_from("<II", after, 0x218) == (0x2000_0000 - 0x28000 - 0x2000, 0x1770)
    assert struct.unpack_from("<HHI", after, 0x224) == (0xFE00, 0xCCCC, 0x20000)
    fields = {0x210, 0x211, *range(0x218, 0x220), 0x224, 0x225, *range(0x228, 0x22C)}
    assert {offset for offset in range(len(before)) if before[offset] != after[offset]} <= fields
    assert len(after) == len(before)


@pytest.mark.parametrize(
    ("memory_mb", "low"), [(256, 0x1000_0000), (2560, 0xA000_0000), (0xAFF, 0xAFF0_0000), (0xB00, 0x8000_0000)]
)
def test_the_initrd_lies_below_the_acpi_tables_at_the_end_of_low_memory(memory_mb: int, low: int) -> None:
    assert initrd_address(patched(kernel(), memory_mb=memory_mb, initrd_bytes=0x1000)) == low - 0x28000 - 0x2000
    assert initrd_address(patched(kernel(), memory_mb=memory_mb, initrd_bytes=0xFFF)) == low - 0x28000 - 0x1000


def test_a_kernel_that_is_not_loaded_above_4_gib_has_its_own_limit() -> None:
    assert initrd_address(patched(kernel(extended_flags=0x01), memory_mb=2560, initrd_bytes=0x1000)) == 0x7FFF_E000


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no Linux kernel"),
        (kernel()[:0xFFF], "no Linux kernel"),
        (kernel().replace(b"HdrS", b"HdrT"), "no Linux kernel"),
        (kernel(protocol=0x20B), "older"),
        (kernel(load_flags=0), "older"),
    ],
)
def test_what_is_no_linux_kernel_of_today_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        patched(data)


@pytest.mark.parametrize(
    ("memory_mb", "initrd_bytes"), [(512, 0), (512, -1), (16, 16 << 20), (16, (16 << 20) - 0x28001), (0, 1), (-1, 1)]
)
def test_an_initrd_that_does_not_fit_is_refused(memory_mb: int, initrd_bytes: int) -> None:
    with pytest.raises(ConfigurationError, match="does not fit"):
        patched(kernel(), memory_mb=memory_mb, initrd_bytes=initrd_bytes)


def test_the_largest_initrd_that_fits_is_taken() -> None:
    assert initrd_address(patched(kernel(), memory_mb=16, initrd_bytes=(16 << 20) - 0x28002)) == 0


@pytest.mark.parametrize(
    "line", ["vga=ask", "a vga=0x301", "noinitrd", "quiet noinitrd", "ü", "a\0", "a\nb", "a" * 2048]
)
def test_a_command_line_that_would_be_measured_otherwise_is_refused(line: str) -> None:
    with pytest.raises(ConfigurationError, match="command line"):
        load_options(line)
    with pytest.raises(ConfigurationError, match="command line"):
        patched(kernel(), command_line=line)


@pytest.mark.parametrize(("line", "expected"), [("", " initrd=initrd\0"), ("quiet", "quiet initrd=initrd\0")])
def test_the_command_line_is_measured_with_what_ovmf_appends(line: str, expected: str) -> None:
    assert load_options(line) == b"".join(bytes((ord(character), 0)) for character in expected)


def test_the_events_are_the_kernel_as_it_is_loaded_its_command_line_and_the_initrd() -> None:
    events = ovmf_events(kernel=kernel(), initrd=INITRD, command_line=COMMAND_LINE, memory_mb=512)
    assert events == {
        "kernel": authenticode_sha256(patched(kernel(), initrd_bytes=len(INITRD))),
        "command-line": hashlib.sha256(load_options(COMMAND_LINE)).digest(),
        "initrd": hashlib.sha256(INITRD).digest(),
    }


def test_firmware_that_reads_the_file_itself_measures_the_same_kernel_for_every_size_of_memory() -> None:
    kernels = {
        ovmf_events(kernel=kernel(), initrd=INITRD, command_line="", memory_mb=size, patched=False)["kernel"]
        for size in (512, 1024)
    }
    assert kernels == {authenticode_sha256(kernel())}


def test_the_registers_are_those_that_a_boot_has_shown() -> None:
    pcrs = ovmf_pcrs(firmware=firmware(), kernel=kernel(), initrd=INITRD, command_line=COMMAND_LINE, memory_mb=512)
    assert sorted(pcrs) == list(range(1, 10))
    assert {register: pcrs[register].hex() for register in SEEN} == SEEN


def test_the_kernel_is_in_register_4_and_what_it_gets_in_register_9() -> None:
    compute = partial(ovmf_pcrs, firmware=firmware(), kernel=kernel(), initrd=INITRD, command_line=COMMAND_LINE)
    pcrs = compute(memory_mb=512)
    events = ovmf_events(kernel=kernel(), initrd=INITRD, command_line=COMMAND_LINE, memory_mb=512)
    called, separator = b"Calling EFI Application from Boot Option", bytes(4)
    then = (hashlib.sha256(called).digest(), hashlib.sha256(separator).digest())
    assert pcrs[4] == extended(events["kernel"], *then)
    assert pcrs[9] == extended(events["command-line"], events["initrd"])
    file_itself = compute(memory_mb=512, patched=False)
    assert file_itself[4] == extended(authenticode_sha256(kernel()), *then)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not OVMF"),
        (bytes(0x1000), "not OVMF|broken"),
        (firmware()[:-1], "not OVMF|broken"),
        (bytes(0x100) + firmware()[0x100:], "no store of variables"),
        (firmware()[0x800:], "no store of variables"),
        (firmware(variables=b"\xaa\x55"), "variables of its own"),
        (firmware(variables=b"\xff" * 100 + b"\0"), "variables of its own"),
    ],
)
def test_firmware_that_would_measure_something_else_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        ovmf_pcrs(firmware=data, kernel=kernel(), initrd=INITRD, command_line="", memory_mb=512)


def test_the_table_at_the_firmwares_end_has_its_entries_by_their_guids() -> None:
    other = UUID(int=7)
    assert guided_table(firmware(entries={ENTRY: b"offset", other: b""})) == {ENTRY: b"offset", other: b""}
    assert guided_table(firmware()) == {}


def test_a_table_whose_lengths_do_not_add_up_is_refused() -> None:
    whole = firmware(entries={ENTRY: b"offset"})
    length_of_entry = len(whole) - 32 - 18 - 18
    length_of_table = length_of_entry + 18
    for place in (length_of_entry, length_of_table):
        for length in (0, 17, 25, 0xFFFF):
            data = bytearray(whole)
            struct.pack_into("<H", data, place, length)
            with pytest.raises(ConfigurationError, match="broken"):
                guided_table(bytes(data))
