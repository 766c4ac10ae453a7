"""Requests for a TPM's sealing keys: what they are made of, and that no other bytes do harm."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from swtpms import Boot, Machine, approve, sealing
from vtpms import needs_swtpm

from adyton.errors import SealedDataError, UnsealError
from adyton.tee._tpm_sealing import MAX_PRIVATE_BYTES
from adyton.tee._tpm_transport import DEVICE
from adyton.tee.sealing import SealPolicy
from adyton.tee.tpm.sealing_request import parse_request

pytestmark = needs_swtpm

MEASUREMENT, SIGNER = SealPolicy.MEASUREMENT, SealPolicy.SIGNER
FIRMWARE = Boot(pcrs=((0, b"firmware 1"), (4, b"kernel"), (9, b"initrd")))


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path / "machine")
    yield machine
    machine.stop()


def test_a_request_says_what_it_is_made_of(machine: Machine) -> None:
    made = sealing(machine.kernel(FIRMWARE)).new_key(MEASUREMENT)
    parsed = parse_request(made.request, made.binding)
    assert parsed.encode() == made.request
    assert parsed.pcrs == FIRMWARE.values
    assert made.tcb.startswith("TPM firmware 0x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda request: b"\x02" + request[1:], "of version 2"),
        (lambda request: b"\x01\x03" + request[2:], "its policy is 3"),
        (lambda request: b"\x01\x02" + request[2:], "goes on after its end|length of its private area|private area of"),
        (lambda request: request[:36] + b"\xff" + request[37:], "another measurement than its binding"),
        (lambda request: request[:-1], "ends inside its private area"),
        (lambda request: request + b"\0", "goes on after its end"),
        (lambda request: b"", "ends inside its version"),
        (
            lambda request: request[:388] + struct.pack(">H", MAX_PRIVATE_BYTES + 1) + bytes(MAX_PRIVATE_BYTES + 1),
            "private area of 513 bytes; 512 are allowed",
        ),
    ],
)
def test_a_request_that_is_none_is_refused_before_the_tpm_is_asked(
    machine: Machine, change: Callable[[bytes], bytes], message: str
) -> None:
    made = sealing(machine.kernel(FIRMWARE)).new_key(MEASUREMENT)
    kernel = machine.kernel(FIRMWARE)
    kernel.fail("open", DEVICE, errno.EIO)
    with pytest.raises(SealedDataError, match=message):
        sealing(kernel).same_key(made.binding, change(made.request))


def test_a_private_area_of_nothing_is_damage(machine: Machine) -> None:
    source = sealing(machine.kernel(FIRMWARE))
    made = source.new_key(MEASUREMENT)
    honest = parse_request(made.request, made.binding)
    for private in (b"", b"\0", bytes(MAX_PRIVATE_BYTES), honest.kept.private[:-1] + b"\0"):
        with pytest.raises(SealedDataError, match="the TPM knows no such key"):
            source.same_key(made.binding, replace(honest, kept=replace(honest.kept, private=private)).encode())
    assert machine.handles("transient") == machine.handles("sessions") == []


def test_no_request_gives_another_error_than_the_documented(tmp_path_factory: pytest.TempPathFactory) -> None:
    machine = Machine(tmp_path_factory.mktemp("tpm") / "machine")
    source = sealing(machine.kernel(FIRMWARE), approve([FIRMWARE], version=2))
    made = {policy: source.new_key(policy) for policy in (MEASUREMENT, SIGNER)}

    @settings(max_examples=400)
    @given(st.data(), st.sampled_from([MEASUREMENT, SIGNER]))
    def check(data: st.DataObject, policy: SealPolicy) -> None:
        honest = made[policy].request
        request = data.draw(_changed(honest) | st.binary(max_size=600))
        try:
            key = source.same_key(made[policy].binding, request)
        except (SealedDataError, UnsealError):
            assert request != honest
        else:
            assert (key, request) == (made[policy].key, honest)

    try:
        check()
        assert machine.handles("transient") == machine.handles("sessions") == []
    finally:
        machine.stop()


def _changed(request: bytes) -> st.SearchStrategy[bytes]:
    """Up to two bytes, or none, in the place of up to two of it."""
    return st.builds(
        lambda place, length, by: request[:place] + by + request[place + length :],
        st.integers(0, len(request)),
        st.integers(0, 2),
        st.binary(max_size=2),
    )
