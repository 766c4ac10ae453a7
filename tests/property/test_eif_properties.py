"""Whatever parts an image file is made of: it holds them, its registers are theirs, or the parts are refused."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from eif_files import COMMAND_LINE, KERNEL, METADATA, RAMDISK, arm64_image, bzimage, read_eif
from hypothesis import given
from hypothesis import strategies as st

from adyton.errors import ConfigurationError
from adyton.host.image.reference.nitro import eif_pcrs, write_eif

contents = st.binary(max_size=64)
kernels = st.builds(bzimage, contents) | st.builds(
    lambda content, offset: arm64_image(content, text_offset=offset), contents, st.integers(1, 2**64 - 1)
)
lines = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=80)
ramdisks = st.lists(st.binary(min_size=1, max_size=64), min_size=1, max_size=29)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=8,
)


def _written(kernel: bytes, line: str, disks: list[bytes], metadata: dict[Any, Any]) -> bytes:
    target = io.BytesIO()
    write_eif(target, kernel=kernel, command_line=line, ramdisks=disks, metadata=metadata)
    return target.getvalue()


@given(kernel=kernels, line=lines, disks=ramdisks)
def test_an_image_holds_its_parts_and_its_registers_are_theirs(kernel: bytes, line: str, disks: list[bytes]) -> None:
    data = _written(kernel, line, disks, {})
    image = read_eif(data)
    assert (image.of(KERNEL), image.of(COMMAND_LINE), image.of(METADATA)) == ([kernel], [line.encode()], [b"{}"])
    assert image.of(RAMDISK) == disks
    assert eif_pcrs(kernel, line, disks) == image.pcrs()
    assert data == _written(kernel, line, disks, {})


@given(kernel=kernels | contents, line=lines | st.text(), disks=ramdisks | st.lists(contents, max_size=40))
def test_parts_of_any_kind_are_written_and_measured_or_refused_in_both(
    kernel: bytes, line: str, disks: list[bytes]
) -> None:
    try:
        pcrs = eif_pcrs(kernel, line, disks)
    except ConfigurationError as refusal:
        with pytest.raises(ConfigurationError, match=f"^{re.escape(str(refusal))}$"):
            _written(kernel, line, disks, {})
    else:
        assert read_eif(_written(kernel, line, disks, {})).pcrs() == pcrs


@given(metadata=st.dictionaries(st.text() | st.integers() | st.binary(), values, max_size=4))
def test_metadata_of_any_kind_is_written_or_refused(metadata: dict[Any, Any]) -> None:
    try:
        image = read_eif(_written(bzimage(), "", [b"disk"], metadata))
    except ConfigurationError:
        return
    assert image.of(METADATA)[0].isascii()
