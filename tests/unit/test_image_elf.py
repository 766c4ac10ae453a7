"""ELF: read, and cut to what the loader reads; on objects made here and on one that this interpreter runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.bindings import _rust
from image_pieces import make_elf, make_object

from adyton.errors import ConfigurationError
from adyton.host.image.architecture import host_architecture
from adyton.host.image.elf import parse_elf, trim_elf

REAL = Path(_rust.__file__)


def test_what_an_object_needs_is_read() -> None:
    elf = parse_elf(make_object("libc.so.6", "libm.so.6", machine=183, interpreter="/lib/ld.so"), "x")
    assert elf.machine == 183
    assert elf.needed() == ("libc.so.6", "libm.so.6")
    assert elf.interpreter() == "lib/ld.so"


def test_a_modules_description_is_read() -> None:
    elf = parse_elf(make_elf({".modinfo": b"depends=a,b\0name=sev_guest\0odd\0"}), "x")
    assert elf.module_facts() == {"depends": "a,b", "name": "sev_guest"}


def test_a_real_object_is_read() -> None:
    elf = parse_elf(REAL.read_bytes(), REAL.name)
    assert elf.machine == host_architecture().elf_machine
    assert "libc.so.6" in elf.needed()
    assert elf.interpreter() is None


def test_an_object_without_its_symbols_still_runs(tmp_path: Path) -> None:
    whole = REAL.read_bytes()
    trimmed = trim_elf(whole, REAL.name)
    assert len(trimmed) < len(whole)
    assert trim_elf(trimmed, REAL.name) == trimmed
    assert parse_elf(trimmed, REAL.name).sections == {}
    (tmp_path / "_rust.abi3.so").write_bytes(trimmed)
    command = f"import sys; sys.path[:0] = [{str(tmp_path)!r}]; import _rust; print(_rust.__file__)"
    answer = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout
    assert answer.startswith(str(tmp_path))


@pytest.mark.parametrize(
    "data", [b"", b"\x7fELF", b"\x7fELF\x01\x01" + bytes(80), b"\x7fELF\x02\x02" + bytes(80), b"#!/bin/sh\n" * 20]
)
def test_what_is_no_object_of_64_bits_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigurationError, match=r"odd\.so"):
        parse_elf(data, "odd.so")


def test_only_the_sections_that_are_asked_for_are_kept() -> None:
    elf = parse_elf(make_elf({".text": b"code", ".modinfo": b"depends=tsm\0"}), "x.ko")
    assert elf.sections == {".modinfo": b"depends=tsm\0"}


def test_an_object_whose_sections_are_cut_off_is_refused() -> None:
    whole = make_object("libc.so.6")
    with pytest.raises(ConfigurationError, match="damaged"):
        parse_elf(whole[:-1], "cut.so")


def test_an_object_without_segments_is_not_cut() -> None:
    with pytest.raises(ConfigurationError, match="none to load"):
        trim_elf(make_object("libc.so.6"), "module.ko")
