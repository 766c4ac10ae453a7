"""MRTD and the RTMRs: against the TDX module's rules written out, and the order that real event logs of TDs have."""

from __future__ import annotations

import hashlib
import json
import struct
from functools import reduce
from uuid import UUID

import pytest
from real_vectors import content, needs_vectors

from adyton.errors import ConfigurationError
from adyton.host.image.reference.ovmf import load_options
from adyton.host.image.reference.pe import authenticode_sha256
from adyton.host.image.reference.tdx import mrtd, rtmrs
from adyton.tee.tdx.format import parse_tdx

PAGE = 4096
OFFSET = UUID("e47a6535-984a-4798-865e-4685a7bf8ec2")
FOOTER = UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
CODE = bytes(range(256)) * 16 + b"code" * 1024
MEASURED, ADDED = 1, 0
Section = tuple[int, int, int, int, int, int]
"""Offset and size in the file, address and size in memory, type, attributes."""
SECTIONS: tuple[Section, ...] = (
    (PAGE, 2 * PAGE, 0xFFFF_E000, 2 * PAGE, 0, MEASURED),
    (0, PAGE, 0xFFFF_D000, PAGE, 1, ADDED),
    (0, 0, 0x80_9000, 2 * PAGE, 2, ADDED),
)
INITRD, COMMAND_LINE = b"initrd", "quiet"


def firmware(
    *sections: Section,
    signature: bytes = b"TDVF",
    version: int = 1,
    count: int | None = None,
    longer: int = 0,
    shift: int = 0,
    pointer: bytes | None = None,
) -> bytes:
    """A page of variables, two of code, and at the end the metadata and the table that leads to it."""
    count = len(sections) if count is None else count
    head = struct.pack("<4sIII", signature, 16 + 32 * len(sections) + longer, version, count)
    metadata = head + b"".join(struct.pack("<IIQQII", *section) for section in sections)
    distance = len(metadata) + 22 + 18 + 32 + shift
    content = struct.pack("<I", distance & 0xFFFF_FFFF) if pointer is None else pointer
    entry = content + struct.pack("<H", len(content) + 18) + OFFSET.bytes_le
    footer = struct.pack("<H", len(entry) + 18) + FOOTER.bytes_le
    return b"v" * PAGE + CODE + metadata + entry + footer + bytes(32)


def update(name: bytes, address: int) -> bytes:
    return name.ljust(16, b"\0") + address.to_bytes(8, "little") + bytes(104)


def kernel() -> bytes:
    """A PE image without sections."""
    data = bytearray(0x200)
    data[:2] = b"MZ"
    struct.pack_into("<I", data, 0x3C, 0x40)
    struct.pack_into("<4sHH", data, 0x40, b"PE\0\0", 0x8664, 0)
    struct.pack_into("<HHH", data, 0x54, 160, 0, 0x20B)
    struct.pack_into("<I", data, 0x58 + 60, 0x200)
    struct.pack_into("<I", data, 0x58 + 108, 6)
    return bytes(data)


def extended(*digests: bytes) -> bytes:
    return reduce(lambda value, digest: hashlib.sha384(value + digest).digest(), digests, bytes(48))


def test_mrtd_holds_every_pages_address_and_then_the_content_of_those_that_are_measured() -> None:
    updates = []
    for page in range(2):
        updates.append(update(b"MEM.PAGE.ADD", 0xFFFF_E000 + page * PAGE))
        for chunk in range(page * PAGE, (page + 1) * PAGE, 256):
            updates += [update(b"MR.EXTEND", 0xFFFF_E000 + chunk), CODE[chunk : chunk + 256]]
    updates += [update(b"MEM.PAGE.ADD", address) for address in (0xFFFF_D000, 0x80_9000, 0x80_A000)]
    assert mrtd(firmware(*SECTIONS)) == hashlib.sha384(b"".join(updates)).digest()


def test_another_byte_of_code_is_another_mrtd_and_another_variable_is_not() -> None:
    whole = firmware(*SECTIONS)
    assert mrtd(whole.replace(b"code", b"evil", 1)) != mrtd(whole)
    assert mrtd(b"V" + whole[1:]) == mrtd(whole)


def test_the_order_of_the_sections_counts() -> None:
    assert mrtd(firmware(*reversed(SECTIONS))) != mrtd(firmware(*SECTIONS))


def changed(**fields: int) -> tuple[Section, ...]:
    """The sections, the first of them with these fields."""
    names = ("offset", "file_size", "address", "size", "kind", "attributes")
    offset, file_size, address, size, kind, attributes = (
        fields.get(name, value) for name, value in zip(names, SECTIONS[0], strict=True)
    )
    return ((offset, file_size, address, size, kind, attributes), *SECTIONS[1:])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not OVMF"),
        (firmware(*SECTIONS).replace(OFFSET.bytes_le, bytes(16)), "no TDVF metadata"),
        (firmware(*SECTIONS, pointer=b"abc"), "no TDVF metadata"),
        (firmware(*SECTIONS, pointer=b"\xff\xff\xff\xff"), "outside"),
        (firmware(*SECTIONS, pointer=b"\x0f\0\0\0"), "outside"),
        (firmware(*SECTIONS, shift=4), "version 1"),
        (firmware(*SECTIONS, signature=b"TDVG"), "version 1"),
        (firmware(*SECTIONS, version=2), "version 1"),
        (firmware(*SECTIONS, count=2), "wrong length"),
        (firmware(*SECTIONS, count=0xFFFF_FFFF), "wrong length"),
        (firmware(*SECTIONS, longer=1), "wrong length"),
        (firmware(SECTIONS[0]), "wrong length"),
        (firmware(*SECTIONS * 22), "wrong length"),
        (firmware(*changed(address=0xFFFF_E001)), "whole pages"),
        (firmware(*changed(size=2 * PAGE + 1)), "whole pages"),
        (firmware(*changed(file_size=3 * PAGE)), "whole pages"),
        (firmware(*changed(offset=0x10000)), "whole pages"),
        (firmware(*changed(address=2**64 - PAGE)), "beyond all memory"),
        (firmware(*changed(file_size=PAGE)), "unknown way"),
        (firmware(*changed(attributes=2)), "unknown way"),
        (firmware(*changed(attributes=3)), "unknown way"),
        (firmware(*SECTIONS, (0, 0, 0, 2**63, 3, ADDED)), "more than 16384 pages"),
    ],
)
def test_firmware_without_metadata_that_qemu_would_take_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        mrtd(data)


def test_no_other_error_than_the_documented_one_comes_of_a_changed_byte() -> None:
    whole, refused = firmware(*SECTIONS), 0
    for offset in range(3 * PAGE, len(whole)):
        data = bytearray(whole)
        data[offset] ^= 0xFF
        try:
            assert len(mrtd(bytes(data))) == 48
        except ConfigurationError:
            refused += 1
    assert refused > 100


def test_rtmr2_holds_the_command_line_and_then_the_initrd() -> None:
    options, initrd = hashlib.sha384(load_options(COMMAND_LINE)).digest(), hashlib.sha384(INITRD).digest()
    registers = rtmrs(kernel=kernel(), initrd=INITRD, command_line=COMMAND_LINE)
    assert sorted(registers) == [1, 2]
    assert registers[2] == extended(options, initrd)


def test_a_guest_without_an_initrd_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="initrd"):
        rtmrs(kernel=kernel(), initrd=b"", command_line=COMMAND_LINE)


@needs_vectors
def test_rtmr1_holds_what_the_log_of_a_real_td_has_in_the_order_in_which_it_gives_the_signed_register() -> None:
    """The TD was started by QEMU with OVMF and a kernel of its own, as here; only the kernel's digest is exchanged."""
    log = json.loads(json.loads(content("tdx/dstack_quote_report.json"))["event_log"])
    digests = [bytes.fromhex(event["digest"]) for event in log if event["imr"] == 1]
    assert extended(*digests) == parse_tdx(content("tdx/dstack_quote_report.bin")).report.rtmrs[1]
    ours = rtmrs(kernel=kernel(), initrd=INITRD, command_line=COMMAND_LINE)
    assert ours[1] == extended(authenticode_sha256(kernel(), "sha384"), *digests[1:])


@needs_vectors
def test_rtmr2_of_a_real_td_holds_two_events_that_are_labelled_as_those_here() -> None:
    log = json.loads(json.loads(content("tdx/dstack_quote_report.json"))["event_log"])
    labels = [bytes.fromhex(event["event_payload"])[8:] for event in log if event["imr"] == 2]
    assert labels == [b"LOADED_IMAGE::LoadOptions\0", b"Linux initrd\0"]
