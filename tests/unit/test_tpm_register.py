"""Registers in the NV memory of a real TPM 2.0 (swtpm): who writes, who reads, and who can delete."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from swtpms import Boot, Machine, approve, before, refusing, sealing
from vtpms import needs_swtpm

from adyton.errors import KeyUnavailableError, UnsealError
from adyton.tee._tpm_commands import sized
from adyton.tee._tpm_policies import Policy, digest_of
from adyton.tee._tpm_sealing import nv_public
from adyton.tee.sealing import LABEL_BYTES, REGISTER_BYTES, FreshnessRegister, SealPolicy
from adyton.tee.tpm.register import ATTEMPTS, OWNERS

pytestmark = needs_swtpm

MEASUREMENT, SIGNER = SealPolicy.MEASUREMENT, SealPolicy.SIGNER
LABEL = bytes(range(LABEL_BYTES))
VALUE, OTHER = b"\x11" * REGISTER_BYTES, b"\x22" * REGISTER_BYTES
BOOT, LATER = Boot(pcrs=((0, b"release 1"),)), Boot(pcrs=((0, b"release 2"),))
OWNER, NV_DEFINE_SPACE, NV_WRITE, NV_READ = 0x40000001, 0x12A, 0x137, 0x14E
NV_AUTHORIZATION, AUTH_UNAVAILABLE = 0x149, 0x12F


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path / "machine")
    yield machine
    machine.stop()


def _register(machine: Machine, boot: Boot = BOOT, label: bytes = LABEL) -> FreshnessRegister:
    source = sealing(machine.kernel(boot))
    return source.register(source.current(MEASUREMENT), label)


def _signers(machine: Machine, boot: Boot, version: int) -> FreshnessRegister:
    source = sealing(machine.kernel(boot), approve([boot], version=version))
    return source.register(source.current(SIGNER), LABEL)


def _handle(machine: Machine) -> int:
    """Where the register is: it is written, read, and the only one."""
    _register(machine).write(VALUE, after=None)
    (index,) = machine.handles("nv")
    return index


def _occupy(machine: Machine, index: int) -> None:
    """An index of somebody else's."""
    public = struct.pack(">IHIHH", index, 0x000B, 0x00020002, 0, 8)
    machine.command(NV_DEFINE_SPACE, sized(b"") + sized(public), OWNER)


def _policy_at(machine: Machine, index: int) -> bytes:
    return machine.command(0x169, struct.pack(">I", index))[14:46]


# --- who writes and reads


def test_a_signers_register_is_one_for_all_versions(machine: Machine) -> None:
    first = _signers(machine, BOOT, 1)
    assert first.read() is None
    first.write(VALUE, after=None)
    later = _signers(machine, LATER, 2)
    assert later.read() == VALUE
    later.write(OTHER, after=VALUE)
    assert first.read() == OTHER
    assert len(machine.handles("nv")) == 1


def test_a_binding_of_an_earlier_version_has_the_same_register(machine: Machine) -> None:
    made = sealing(machine.kernel(BOOT), approve([BOOT], version=1)).current(SIGNER)
    _signers(machine, BOOT, 1).write(VALUE, after=None)
    later = sealing(machine.kernel(LATER), approve([LATER], version=3))
    assert later.register(made, LABEL).read() == VALUE


def test_each_label_and_policy_has_a_register_of_its_own(machine: Machine) -> None:
    registers = [_register(machine), _register(machine, label=LABEL[::-1]), _signers(machine, BOOT, 1)]
    for number, register in enumerate(registers):
        register.write(bytes([number]) * REGISTER_BYTES, after=register.read())
    assert [register.read() for register in registers] == [bytes([number]) * REGISTER_BYTES for number in range(3)]
    indices = machine.handles("nv")
    assert len({_policy_at(machine, index) for index in indices}) == 3
    assert all(index in OWNERS for index in indices)


def test_other_code_has_another_register_and_not_this_one(machine: Machine) -> None:
    binding = sealing(machine.kernel(BOOT)).current(MEASUREMENT)
    _register(machine).write(VALUE, after=None)
    with pytest.raises(UnsealError, match="the measurement is another than the register's"):
        sealing(machine.kernel(LATER)).register(binding, LABEL)
    theirs = _register(machine, LATER)
    assert theirs.read() is None
    theirs.write(OTHER, after=None)
    assert _register(machine).read() == VALUE


@pytest.mark.parametrize(("authority", "refusal"), [("owner", NV_AUTHORIZATION), ("index", AUTH_UNAVAILABLE)])
@pytest.mark.parametrize(("code", "parameters"), [(NV_WRITE, sized(OTHER) + bytes(2)), (NV_READ, b"\0\x20\0\0")])
def test_its_owner_and_an_empty_password_neither_write_nor_read(
    machine: Machine, authority: str, refusal: int, code: int, parameters: bytes
) -> None:
    index = _handle(machine)
    with pytest.raises(AssertionError, match=hex(refusal)):
        machine.command(code, parameters, OWNER if authority == "owner" else index, index)
    assert _register(machine).read() == VALUE


@pytest.mark.parametrize("size", [0, 31, 33])
def test_sizes_are_checked(machine: Machine, size: int) -> None:
    register = _register(machine)
    with pytest.raises(ValueError, match=f"a register has 32 bytes, not {size}"):
        register.write(bytes(size), after=None)
    with pytest.raises(ValueError, match=f"a register's label has 32 bytes, not {size}"):
        _register(machine, label=bytes(size))


# --- where it is


def test_handles_that_others_have_are_passed_by(machine: Machine) -> None:
    index = _handle(machine)
    machine.undefine(index)
    for taken in (index, index + 1):
        _occupy(machine, taken)
    register = _register(machine)
    assert register.read() is None
    register.write(VALUE, after=None)
    assert machine.handles("nv") == [index, index + 1, index + 2]
    machine.undefine(index)
    assert register.read() == VALUE
    register.write(OTHER, after=VALUE)
    assert (register.read(), machine.handles("nv")) == (OTHER, [index + 1, index + 2])


def test_an_empty_one_before_it_does_not_hide_what_was_written(machine: Machine) -> None:
    index = _handle(machine)
    machine.undefine(index)
    _occupy(machine, index)
    register = _register(machine)
    register.write(VALUE, after=None)
    policy = _policy_at(machine, index + 1)
    machine.undefine(index)
    public = nv_public(index, policy, REGISTER_BYTES, written=False)
    machine.command(NV_DEFINE_SPACE, sized(b"") + sized(public), OWNER)
    assert register.read() == VALUE
    register.write(OTHER, after=VALUE)
    assert register.read() == OTHER


def test_no_room_is_said(machine: Machine) -> None:
    index = _handle(machine)
    machine.undefine(index)
    for taken in range(index, index + ATTEMPTS):
        _occupy(machine, taken)
    register = _register(machine)
    assert register.read() is None
    with pytest.raises(KeyUnavailableError, match=f"NV indices at 0x{index:08x} and the 7 handles after it belong to"):
        register.write(VALUE, after=None)


def test_who_defines_it_at_the_same_time_defines_the_same(machine: Machine) -> None:
    kernel = machine.kernel(BOOT, before(machine.transmit, NV_DEFINE_SPACE, lambda: _meanwhile(machine)))
    register = sealing(kernel).register(sealing(kernel).current(MEASUREMENT), LABEL)
    register.write(VALUE, after=None)
    assert (len(machine.handles("nv")), register.read()) == (1, VALUE)


def _meanwhile(machine: Machine) -> None:
    """What another process of the same code has just done."""
    values = BOOT.values
    policy = Policy(pcrs=tuple(values), pcr_digest=digest_of(values), label=LABEL).digest
    index = OWNERS[int.from_bytes(policy[:4], "big") % len(OWNERS)]
    public = nv_public(index, policy, REGISTER_BYTES, written=False)
    machine.command(NV_DEFINE_SPACE, sized(b"") + sized(public), OWNER)


# --- what it does not stop, and what fails


def test_a_register_that_was_deleted_reads_none(machine: Machine) -> None:
    machine.undefine(_handle(machine))
    assert _register(machine).read() is None


def test_a_cleared_tpm_has_no_register(machine: Machine) -> None:
    _handle(machine)
    machine.clear()
    assert _register(machine).read() is None


def test_a_register_that_was_defined_and_not_written_reads_none(machine: Machine) -> None:
    kernel = machine.kernel(BOOT, refusing(machine.transmit, NV_WRITE, 0x923))
    with kernel, pytest.raises(KeyUnavailableError, match="refused NV_WRITE: NV_UNAVAILABLE"):
        sealing(kernel).register(sealing(kernel).current(MEASUREMENT), LABEL).write(VALUE, after=None)
    register = _register(machine)
    assert (len(machine.handles("nv")), register.read()) == (1, None)
    register.write(VALUE, after=None)
    assert register.read() == VALUE


@pytest.mark.parametrize(
    ("code", "response_code", "message"),
    [
        (NV_DEFINE_SPACE, 0x14B, "refused NV_DEFINE_SPACE: NV_SPACE"),
        (NV_WRITE, 0x920, "refused NV_WRITE: NV_RATE"),
        (NV_READ, 0x921, "refused NV_READ: LOCKOUT"),
        (0x169, 0x101, "refused NV_READ_PUBLIC: FAILURE"),
        (0x171, 0x101, "refused POLICY_OR: FAILURE"),
    ],
)
def test_a_tpm_that_refuses_is_said_and_nothing_stays_in_it(
    machine: Machine, code: int, response_code: int, message: str
) -> None:
    kernel = machine.kernel(BOOT, refusing(machine.transmit, code, response_code))
    register = sealing(kernel).register(sealing(kernel).current(MEASUREMENT), LABEL)
    if code == NV_READ:
        register.write(VALUE, after=None)
    call = register.read if code == NV_READ else lambda: register.write(VALUE, after=None)
    with kernel, pytest.raises(KeyUnavailableError, match=message):
        call()
    assert machine.handles("transient") == machine.handles("sessions") == []


def test_fifty_writes_leave_nothing_loaded(machine: Machine) -> None:
    register = _signers(machine, BOOT, 2)
    for number in range(50):
        register.write(bytes([number]) * REGISTER_BYTES, after=register.read())
        assert register.read() == bytes([number]) * REGISTER_BYTES
    assert [machine.handles(kind) for kind in ("transient", "sessions", "saved")] == [[]] * 3
