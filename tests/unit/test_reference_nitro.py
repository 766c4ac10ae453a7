"""Nitro's image file against a reader of its own, and its registers against values that real enclaves have reported."""

from __future__ import annotations

import gzip
import io
import json
from typing import Any

import pytest
from eif_files import COMMAND_LINE, HEADER_BYTES, KERNEL, METADATA, RAMDISK, arm64_image, bzimage, read_eif

from adyton.errors import ConfigurationError
from adyton.host.image.reference import nitro
from adyton.host.image.reference.command_line import MAX_COMMAND_LINE_BYTES
from adyton.host.image.reference.nitro import MAX_RAMDISKS, eif_metadata, eif_pcrs, write_eif

LINE = "reboot=k panic=30 console=ttyS0"
SYSTEM, APPLICATION = b"070701 the system", b"070701 the application"
ABOUT = eif_metadata(name="translator", version="1", tool_version="0.1.0", kernel_version="6.6.79")

PCR2_OF_ONE_RAMDISK = "21b9efbc184807662e966d34f390821309eeac6802309798826296bf3e8bec7c10edb30948c90ba67310f7b964fc500a"
"""As many public deployments state it whose image has all in its first ramdisk: the register of no content at all."""


def _written(**changes: Any) -> bytes:
    parts: dict[str, Any] = {
        "kernel": bzimage(b"linux"),
        "command_line": LINE,
        "ramdisks": [SYSTEM, APPLICATION],
        "metadata": ABOUT,
    }
    target = io.BytesIO()
    write_eif(target, **parts | changes)
    return target.getvalue()


def test_another_reader_finds_every_part_in_the_order_of_awss_builder() -> None:
    image = read_eif(_written())
    assert [kind for kind, _ in image.sections] == [KERNEL, COMMAND_LINE, METADATA, RAMDISK, RAMDISK]
    assert image.of(KERNEL) == [bzimage(b"linux")]
    assert image.of(COMMAND_LINE) == [LINE.encode()]
    assert image.of(RAMDISK) == [SYSTEM, APPLICATION]
    assert image.version == 4


def test_the_header_is_what_the_specification_draws() -> None:
    data = _written()
    assert data[:0x1C].hex(" ", 4) == "2e656966 00040000 00000000 40000000 00000000 00000002 00000005"
    assert data[0x1C:0x24] == HEADER_BYTES.to_bytes(8, "big")
    assert data[0x11C:0x124] == len(bzimage(b"linux")).to_bytes(8, "big")
    assert data[0x21C:0x220] == bytes(4)
    assert data[HEADER_BYTES : HEADER_BYTES + 12] == b"\0\1\0\0" + len(bzimage(b"linux")).to_bytes(8, "big")


@pytest.mark.parametrize(("kernel", "flag"), [(bzimage(), 0), (arm64_image(), 1)])
def test_the_kernel_says_which_architecture_the_image_is_for(kernel: bytes, flag: int) -> None:
    assert read_eif(_written(kernel=kernel)).flags == flag


def test_the_registers_are_those_that_are_measured_from_the_file() -> None:
    ramdisks = [SYSTEM, APPLICATION, b"070701 one more"]
    assert eif_pcrs(bzimage(b"linux"), LINE, ramdisks) == read_eif(_written(ramdisks=ramdisks)).pcrs()


def test_an_image_of_one_ramdisk_has_the_second_register_that_the_world_knows() -> None:
    pcrs = eif_pcrs(bzimage(), LINE, [SYSTEM])
    assert pcrs[2].hex() == PCR2_OF_ONE_RAMDISK
    assert pcrs[0] == pcrs[1]


def test_another_application_leaves_the_systems_register_alone() -> None:
    one, other = (eif_pcrs(bzimage(), LINE, [SYSTEM, application]) for application in (APPLICATION, b"another"))
    assert one[1] == other[1]
    assert one[0] != other[0]
    assert one[2] != other[2]


def test_another_system_leaves_the_applications_register_alone() -> None:
    one, other = (eif_pcrs(bzimage(), LINE, [system, APPLICATION]) for system in (SYSTEM, b"another"))
    assert one[2] == other[2]
    assert one[0] != other[0]
    assert one[1] != other[1]


def test_metadata_changes_the_file_and_no_register() -> None:
    changed = _written(metadata=dict(ABOUT) | {"ImageName": "another"})
    assert changed != _written()
    assert read_eif(changed).pcrs() == read_eif(_written()).pcrs()


def test_equal_metadata_in_another_order_gives_equal_bytes() -> None:
    assert _written(metadata={key: ABOUT[key] for key in reversed(list(ABOUT))}) == _written()


def test_the_metadata_has_what_nitro_cli_demands_and_no_time_of_its_own() -> None:
    (encoded,) = read_eif(_written()).of(METADATA)
    metadata = json.loads(encoded)
    assert set(metadata) == {"ImageName", "ImageVersion", "BuildMetadata", "DockerInfo", "CustomMetadata"}
    assert metadata["BuildMetadata"] == {
        "BuildTime": "1970-01-01T00:00:00+00:00",
        "BuildTool": "adyton",
        "BuildToolVersion": "0.1.0",
        "OperatingSystem": "Linux",
        "KernelVersion": "6.6.79",
    }


def test_the_file_begins_where_the_target_stands() -> None:
    target = io.BytesIO()
    target.write(b"before")
    write_eif(target, kernel=bzimage(), command_line=LINE, ramdisks=[SYSTEM], metadata=ABOUT)
    assert read_eif(target.getvalue().removeprefix(b"before")).of(RAMDISK) == [SYSTEM]


def _zboot() -> bytes:
    """The head of a kernel that unpacks itself under EFI, as distributions ship for arm64."""
    return b"MZ\0\0zimg" + bytes(0x30) + b"\xcd\x23\x82\x81" + bytes(64)


@pytest.mark.parametrize(
    "kernel",
    [b"", b"\x7fELF" + bytes(2000), _zboot(), gzip.compress(arm64_image()), bzimage()[:-1], arm64_image()[:-1]],
)
def test_a_kernel_that_nitro_does_not_boot_is_refused(kernel: bytes) -> None:
    with pytest.raises(ConfigurationError, match="neither"):
        _written(kernel=kernel)
    with pytest.raises(ConfigurationError, match="neither"):
        eif_pcrs(kernel, LINE, [SYSTEM])


def test_an_arm64_kernel_that_leaves_its_address_open_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"text_offset.*0x200000"):
        _written(kernel=arm64_image(text_offset=0))


@pytest.mark.parametrize("line", ["a\0b", "a\nb", "caf\u00e9", "\ud800"])
def test_a_command_line_that_linux_could_read_in_another_way_is_refused(line: str) -> None:
    with pytest.raises(ConfigurationError, match="printable ASCII"):
        _written(command_line=line)
    with pytest.raises(ConfigurationError, match="printable ASCII"):
        eif_pcrs(bzimage(), line, [SYSTEM])


def test_a_command_line_is_as_long_as_linux_keeps_it_and_no_longer() -> None:
    longest = "a" * MAX_COMMAND_LINE_BYTES
    assert read_eif(_written(command_line=longest)).of(COMMAND_LINE) == [longest.encode()]
    with pytest.raises(ConfigurationError, match="2048 bytes; 2047 are allowed"):
        _written(command_line=longest + "a")


def test_as_many_ramdisks_fit_as_there_are_sections_left() -> None:
    assert len(read_eif(_written(ramdisks=[SYSTEM] * MAX_RAMDISKS)).sections) == 32


@pytest.mark.parametrize("ramdisks", [[], [SYSTEM] * (MAX_RAMDISKS + 1)])
def test_no_ramdisk_and_too_many_are_refused(ramdisks: list[bytes]) -> None:
    with pytest.raises(ConfigurationError, match="1 to 29 ramdisks"):
        _written(ramdisks=ramdisks)
    with pytest.raises(ConfigurationError, match="1 to 29 ramdisks"):
        eif_pcrs(bzimage(), LINE, ramdisks)


def test_an_empty_ramdisk_is_refused_since_its_register_would_say_that_there_is_none() -> None:
    with pytest.raises(ConfigurationError, match="a ramdisk is empty"):
        eif_pcrs(bzimage(), LINE, [SYSTEM, b""])


def test_an_image_is_as_large_as_is_allowed_and_no_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(_written())
    monkeypatch.setattr(nitro, "MAX_IMAGE_BYTES", size)
    assert len(_written()) == size
    monkeypatch.setattr(nitro, "MAX_IMAGE_BYTES", size - 1)
    target = io.BytesIO()
    with pytest.raises(ConfigurationError, match=f"would have {size} bytes"):
        write_eif(target, kernel=bzimage(b"linux"), command_line=LINE, ramdisks=[SYSTEM, APPLICATION], metadata=ABOUT)
    assert target.getvalue() == b""


@pytest.mark.parametrize("value", [float("nan"), b"bytes", {1: {2: object()}}])
def test_metadata_that_json_has_no_words_for_is_refused(value: object) -> None:
    with pytest.raises(ConfigurationError, match="can't be written as JSON"):
        _written(metadata={"ImageName": value})
