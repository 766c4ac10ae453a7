"""SEV-SNP's launch measurement, against the same computed here by AMD's documents, for firmware that is made here."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from adyton.errors import ConfigurationError, UnsupportedError
from adyton.host.image.reference.snp import MAX_CPUS, snp_measurement

PAGE = 4096
FIRMWARE_BYTES = 1 << 16
KERNEL, INITRD, LINE = b"a kernel", b"a system and an application", "console=ttyS0 panic=-1"

MEMORY, SECRETS, CPUID, SVSM, HASHES = 1, 2, 3, 4, 0x10
"""Sections that a firmware wants to have measured (edk2, OvmfPkg/ResetVector, "OVMF metadata for the AMD SEV")."""
SECTIONS = (
    (0x800000, 9 * PAGE, MEMORY),
    (0x80A000, 3 * PAGE, MEMORY),
    (0x80D000, PAGE, SECRETS),
    (0x80E000, PAGE, CPUID),
    (0x80F000, PAGE, SVSM),
    (0x811000, 2 * PAGE, MEMORY),
    (0x810000, PAGE, HASHES),
)
HASHES_AT = 0x810C00
RESET_EIP = 0x0080B004
BOOT_EIP = 0xFFFFFFF0

EPYC_V4 = 0x00800F12
"""CPUID's function 1, EAX: family 23, model 1, stepping 2."""


def _guid(text: str) -> bytes:
    return uuid.UUID(text).bytes_le


@dataclass(frozen=True, slots=True, kw_only=True)
class Firmware:
    """A file of 64 KiB with the table and the metadata of OVMF at its end, and no code."""

    sections: Sequence[tuple[int, int, int]] = SECTIONS
    hashes_at: int | None = HASHES_AT
    reset_eip: int | None = RESET_EIP

    def encode(self) -> bytes:
        described = b"".join(struct.pack("<3I", *section) for section in self.sections)
        metadata = struct.pack("<4s3I", b"ASEV", 16 + len(described), 1, len(self.sections)) + described
        table = self._entry("dc886566-984a-4798-a75e-5585a7bf67cc", struct.pack("<I", PAGE))
        if self.hashes_at is not None:
            table += self._entry("7255371f-3a3b-4b04-927b-1da6efa8d454", struct.pack("<2I", self.hashes_at, 0x400))
        if self.reset_eip is not None:
            table += self._entry("00f771de-1a7e-4fcb-890e-68c77e2fb44e", struct.pack("<I", self.reset_eip))
        table += struct.pack("<H", len(table) + 18) + _guid("96b582de-1fb2-45f7-baea-a366c55a082d")
        last_page = metadata + b"\x90" * (PAGE - 32 - len(metadata) - len(table)) + table + bytes(32)
        other_pages = b"".join(bytes([index]) * PAGE for index in range(FIRMWARE_BYTES // PAGE - 1))
        return other_pages + last_page

    @staticmethod
    def _entry(guid: str, data: bytes) -> bytes:
        return data + struct.pack("<H", len(data) + 18) + _guid(guid)


class LaunchDigest:
    """What the secure processor does at each page (SEV-SNP Firmware ABI, section 8.17.2, table "PAGE_INFO")."""

    def __init__(self) -> None:
        self.digest = bytes(48)

    def add(self, page_type: int, address: int, contents: bytes = bytes(48)) -> None:
        """One page; `contents` is its SHA-384, or zero for a page that is not measured by what it holds."""
        info = self.digest + contents + struct.pack("<H6BQ", 0x70, page_type, 0, 0, 0, 0, 0, address)
        assert len(info) == 0x70
        self.digest = hashlib.sha384(info).digest()

    def add_normal(self, address: int, data: bytes) -> None:
        for start in range(0, len(data), PAGE):
            self.add(1, address + start, hashlib.sha384(data[start : start + PAGE]).digest())


def _hashes_page(line: str) -> bytes:
    """What QEMU puts into the page (target/i386/sev.c, `PaddedSevHashTable`): a header and three entries."""
    table = b""
    for guid, data in (
        ("97d02dd8-bd20-4c94-aa78-e7714d36ab2a", line.encode() + b"\0"),
        ("44baf731-3a2f-4bd7-9af1-41e29169781d", INITRD),
        ("4de79437-abd2-427f-b835-d5b172d2045b", KERNEL),
    ):
        table += _guid(guid) + struct.pack("<H", 50) + hashlib.sha256(data).digest()
    page = bytes(HASHES_AT % PAGE) + _guid("9438d606-4f22-4cc9-b479-a793d411fd21") + struct.pack("<H", 168) + table
    return page.ljust(PAGE, b"\0")


def _registers(eip: int, signature: int) -> bytes:
    """A CPU at its reset under KVM and QEMU; the places by AMD's Architecture Programmer's Manual 2, table B-4."""
    page = bytearray(PAGE)

    def put(at: int, size: int, value: int) -> None:
        page[at : at + size] = value.to_bytes(size, "little")

    def segment(at: int, attributes: int, *, selector: int = 0, base: int = 0) -> None:
        page[at : at + 16] = struct.pack("<2HIQ", selector, attributes, 0xFFFF, base)

    segment(0x10, 0x9B, selector=0xF000, base=eip & 0xFFFF0000)
    for at, attributes in ((0x00, 0x93), (0x20, 0x93), (0x30, 0x93), (0x40, 0x93), (0x50, 0x93)):
        segment(at, attributes)
    for at, attributes in ((0x60, 0), (0x70, 0x82), (0x80, 0), (0x90, 0x8B)):
        segment(at, attributes)
    put(0xD0, 8, 0x1000)  # EFER: KVM runs every guest with SVME
    put(0x148, 8, 0x40)  # CR4: and with MCE
    put(0x158, 8, 0x10)  # CR0
    put(0x160, 8, 0x400)  # DR7
    put(0x168, 8, 0xFFFF0FF0)  # DR6
    put(0x170, 8, 2)  # RFLAGS
    put(0x178, 8, eip & 0xFFFF)  # RIP
    put(0x268, 8, 0x0007040600070406)  # PAT
    put(0x310, 8, signature)  # RDX
    put(0x3B0, 8, 1)  # SEV_FEATURES: SNPActive
    put(0x3E8, 8, 1)  # XCR0
    put(0x408, 4, 0x1F80)  # MXCSR
    put(0x410, 2, 0x37F)  # x87 FCW
    return bytes(page)


def _expected(
    firmware: Firmware, *, cpus: int, line: str = LINE, signature: int = EPYC_V4, reset_eip: int = RESET_EIP
) -> bytes:
    launch = LaunchDigest()
    launch.add_normal((1 << 32) - FIRMWARE_BYTES, firmware.encode())
    for address, size, kind in firmware.sections:
        for page in range(address, address + size, PAGE):
            match kind:
                case 0x10:
                    launch.add_normal(page, _hashes_page(line))
                case 2:
                    launch.add(5, page)
                case 3:
                    launch.add(6, page)
                case _:
                    launch.add(3, page)
    for cpu in range(cpus):
        eip = BOOT_EIP if cpu == 0 else reset_eip
        launch.add(2, 0xFFFFFFFFF000, hashlib.sha384(_registers(eip, signature)).digest())
    return launch.digest


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with the files of a guest."""
    (tmp_path / "OVMF.fd").write_bytes(Firmware().encode())
    (tmp_path / "kernel").write_bytes(KERNEL)
    (tmp_path / "initrd").write_bytes(INITRD)
    return tmp_path


def _measured(files: Path, *, line: str = LINE, cpus: int = 1, cpu_model: str = "EPYC-v4") -> bytes:
    return snp_measurement(
        firmware=files / "OVMF.fd",
        kernel=files / "kernel",
        initrd=files / "initrd",
        command_line=line,
        cpus=cpus,
        cpu_model=cpu_model,
    )


@pytest.mark.parametrize("cpus", [1, 2, 5])
def test_the_measurement_is_the_secure_processors(files: Path, cpus: int) -> None:
    assert _measured(files, cpus=cpus) == _expected(Firmware(), cpus=cpus)


def test_no_command_line_is_measured_as_an_empty_one(files: Path) -> None:
    assert _measured(files, line="") == _expected(Firmware(), cpus=1, line="")


def test_another_cpu_model_starts_with_its_own_signature(files: Path) -> None:
    assert _measured(files, cpu_model="EPYC-Milan") == _expected(Firmware(), cpus=1, signature=0x00A00F11)


def test_further_cpus_start_where_the_firmware_says(files: Path) -> None:
    elsewhere = Firmware(reset_eip=0x00ABCDE0)
    (files / "OVMF.fd").write_bytes(elsewhere.encode())
    assert _measured(files, cpus=2) == _expected(elsewhere, cpus=2, reset_eip=0x00ABCDE0)


@pytest.mark.parametrize("name", ["OVMF.fd", "kernel", "initrd"])
def test_another_byte_in_any_file_is_another_measurement(files: Path, name: str) -> None:
    before = _measured(files)
    data = bytearray((files / name).read_bytes())
    data[0] ^= 1
    (files / name).write_bytes(data)
    assert _measured(files) != before


@pytest.mark.parametrize(
    "firmware",
    [
        replace(Firmware(), sections=SECTIONS[:-1]).encode(),
        replace(Firmware(), sections=()).encode(),
        replace(Firmware(), hashes_at=None).encode(),
        replace(Firmware(), reset_eip=None).encode(),
        replace(Firmware(), sections=(*SECTIONS[:-1], (0x810000, 2 * PAGE, HASHES))).encode(),
        replace(Firmware(), sections=(*SECTIONS, (0x900000, 7, MEMORY))).encode(),
        replace(Firmware(), sections=(*SECTIONS, (0x900000, PAGE, 99))).encode(),
        Firmware().encode()[1:],
        bytes(FIRMWARE_BYTES),
        b"",
    ],
    ids=[
        "no hashes' page",
        "no metadata",
        "no hashes' table",
        "no reset block",
        "two hashes' pages",
        "part of a page",
        "an unknown section",
        "not whole pages",
        "no table",
        "nothing",
    ],
)
def test_a_firmware_that_could_not_check_a_kernel_is_refused_and_the_right_one_is_named(
    files: Path, firmware: bytes
) -> None:
    (files / "OVMF.fd").write_bytes(firmware)
    with pytest.raises(UnsupportedError, match=r"firmware OVMF\.fd \(take OVMF's AmdSev build"):
        _measured(files)


def test_more_cpus_need_a_place_to_start_at(files: Path) -> None:
    (files / "OVMF.fd").write_bytes(Firmware(reset_eip=0).encode())
    with pytest.raises(UnsupportedError, match="AmdSev"):
        _measured(files, cpus=2)


@pytest.mark.parametrize("cpus", [0, -1, MAX_CPUS + 1])
def test_a_number_of_cpus_that_no_guest_has_is_refused(files: Path, cpus: int) -> None:
    with pytest.raises(ConfigurationError, match=f"not {cpus}"):
        _measured(files, cpus=cpus)


def test_an_unknown_cpu_model_is_refused_with_those_that_are_known(files: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"'host' is none of .*EPYC-v4.*EPYC-Genoa"):
        _measured(files, cpu_model="host")


def test_a_command_line_that_qemu_would_hash_in_part_is_refused(files: Path) -> None:
    with pytest.raises(ConfigurationError, match="printable ASCII"):
        _measured(files, line="quiet\0init=/bin/sh")


def test_a_file_that_is_not_there_is_named(files: Path) -> None:
    (files / "initrd").unlink()
    with pytest.raises(FileNotFoundError, match="initrd"):
        _measured(files)


def test_without_the_library_the_error_says_how_to_get_it(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sevsnpmeasure.guest", None)
    with pytest.raises(UnsupportedError, match="pip install sev-snp-measure"):
        _measured(files)


def test_without_assertions_nothing_is_computed(files: Path) -> None:
    code = (
        "from pathlib import Path; from adyton.host.image.reference.snp import snp_measurement as measure; "
        "measure(firmware=Path('OVMF.fd'), kernel=Path('kernel'), initrd=Path('initrd'), command_line='', cpus=1)"
    )
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-O", "-c", code]
    outcome = subprocess.run(command, cwd=files, env=environment, capture_output=True, text=True, check=False)
    assert outcome.returncode == 1
    assert "run Python without -O" in outcome.stderr
