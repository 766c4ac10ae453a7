"""SEV-SNP's sealing keys: the conformance kit and what goes wrong, against an emulated device and secure processor."""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.errors import (
    AdytonError,
    EvidenceError,
    KeyUnavailableError,
    SealedDataError,
    UnsealError,
    UnsupportedError,
)
from adyton.sealing.sealer import Sealer
from adyton.tee._kernel import opened
from adyton.tee.evidence import Evidence
from adyton.tee.sealing import MAX_REQUEST_BYTES, Binding, KeySource, SealingKey, SealPolicy
from adyton.tee.snp.sealing import BUSY_SECONDS, DEVICE, SNP_GET_DERIVED_KEY, SnpSealing
from adyton.testing.kernels.emulated import EmulatedKernel
from adyton.testing.kernels.sev_guest import DEBUG, POLICY, Chip, Guest, SevGuest, derive
from adyton.testing.kernels.tsm import Tsm
from adyton.testing.sealers import KeySourceConformance

MEASUREMENT = hashlib.sha384(b"a").digest()
GENOA = bytes((9, 2, 0, 0, 0, 0, 22, 72))
CHIP = Chip(seed=b"a chip", committed_tcb=GENOA)
GUEST = Guest(measurement=MEASUREMENT)
TCB_AT = slice(10, 18)
"""Where the TCB version is in a request."""


class World:
    """One chip. Code is a measurement, signer's key and version are the ID block's, an update is of the microcode."""

    def __init__(self, chip: Chip = CHIP) -> None:
        self._chip = chip

    def source(self, *, code: str = "a", signer: str = "s", version: int = 1, tcb: int = 1) -> SnpSealing:
        chip = replace(self._chip, committed_tcb=GENOA[:7] + bytes([GENOA[7] + tcb]))
        measurement, id_key = (hashlib.sha384(name.encode()).digest() for name in (code, signer))
        return Machine(chip, Guest(measurement=measurement, id_key_digest=id_key, svn=version)).sealing()

    def elsewhere(self) -> World:
        return World(replace(self._chip, seed=self._chip.seed + b", or another"))


class Machine:
    """A guest, its device and its kernel."""

    def __init__(self, chip: Chip = CHIP, guest: Guest = GUEST, **how: Any) -> None:
        self.device = SevGuest(chip, guest, **how)
        self.tsm = Tsm(provider="sev_guest", quote=self.device.report, privlevel_floor=guest.vmpl)
        self.kernel = EmulatedKernel(self.tsm, self.device)

    def sealing(self, **how: Any) -> SnpSealing:
        return SnpSealing(kernel=self.kernel, **how)


class TestSnpSealing(KeySourceConformance):
    policies = frozenset({SealPolicy.MEASUREMENT})

    @pytest.fixture
    def world(self) -> World:
        return World()


def _made(chip: Chip = CHIP, guest: Guest = GUEST) -> SealingKey:
    return Machine(chip, guest).sealing().new_key(SealPolicy.MEASUREMENT)


def _again(source: KeySource, made: SealingKey) -> bytes:
    return source.same_key(made.binding, made.request)


# --- what is asked


def test_the_ioctl_is_the_kernels() -> None:
    read_and_write, size, kind, number = 3, 32, ord("S"), 1
    assert read_and_write << 30 | size << 16 | kind << 8 | number == SNP_GET_DERIVED_KEY


def test_the_chips_key_is_asked_for_by_policy_measurement_vmpl_and_tcb() -> None:
    machine = Machine(guest=replace(GUEST, vmpl=2))
    with machine.kernel:
        machine.sealing().new_key(SealPolicy.MEASUREMENT)
    key_sel_vcek, policy_measurement_and_tcb = 0b010, 0b101001
    message = struct.pack("<IIQII", key_sel_vcek, 0, policy_measurement_and_tcb, 2, 0) + GENOA
    assert machine.device.messages == [message]


def test_a_key_is_made_at_the_committed_tcb_which_the_host_can_not_roll_back() -> None:
    machine = Machine(replace(CHIP, current_tcb=bytes((10, 2, 0, 0, 0, 0, 23, 80))))
    made = machine.sealing().new_key(SealPolicy.MEASUREMENT)
    assert machine.device.messages[0][24:] == made.request[TCB_AT] == GENOA
    assert made.tcb == "bootloader 9 tee 2 snp 22 microcode 72"


def test_who_this_guest_is_is_asked_once() -> None:
    machine = Machine()
    with machine.kernel:
        source = machine.sealing()
        for _ in range(3):
            _again(source, source.new_key(SealPolicy.MEASUREMENT))
            source.current(SealPolicy.MEASUREMENT)
    assert machine.tsm.privlevels == [0]
    assert len(machine.device.messages) == 6


def test_each_new_key_is_another() -> None:
    source = Machine().sealing()
    assert source.new_key(SealPolicy.MEASUREMENT).key != source.new_key(SealPolicy.MEASUREMENT).key


def test_a_process_that_may_not_ask_for_reports_has_them_given() -> None:
    machine = Machine()
    made = SnpSealing(collect=_given(machine.device.report), kernel=machine.kernel).new_key(SealPolicy.MEASUREMENT)
    assert machine.tsm.privlevels == []
    assert _again(machine.sealing(), made) == made.key


def _given(report: Callable[[bytes], bytes]) -> Callable[[bytes], Evidence]:
    return lambda report_data: Evidence(tee="snp", data=report(report_data))


def test_nothing_remembers() -> None:
    source = Machine().sealing()
    assert source.register(source.current(SealPolicy.MEASUREMENT), bytes(32)) is None


# --- who gets another key, even if sealed data is rewritten for him


def _rewritten(
    made: SealingKey, *, measurement: bytes = MEASUREMENT, vmpl: int = 0, policy: int = POLICY
) -> SealingKey:
    head = bytes([1, vmpl]) + policy.to_bytes(8, "little")
    return replace(made, binding=replace(made.binding, subject=measurement), request=head + made.request[10:])


def test_what_is_rewritten_for_the_same_guest_is_what_it_was() -> None:
    made = _made()
    assert _rewritten(made) == made


def test_another_measurement_has_another_key() -> None:
    made, other = _made(), hashlib.sha384(b"b").digest()
    source = Machine(guest=replace(GUEST, measurement=other)).sealing()
    with pytest.raises(UnsealError, match=f"the measurement is {other.hex()}; .* for {MEASUREMENT.hex()}"):
        _again(source, made)
    assert _again(source, _rewritten(made, measurement=other)) != made.key


def test_the_same_code_that_its_host_may_debug_has_another_key() -> None:
    made = _made()
    source = Machine(guest=replace(GUEST, policy=POLICY | DEBUG)).sealing()
    with pytest.raises(UnsealError, match="the guest policy is 0xb0000; the data was sealed under 0x30000"):
        _again(source, made)
    assert _again(source, _rewritten(made, policy=POLICY | DEBUG)) != made.key


@pytest.mark.parametrize("own", [0, 3])
def test_another_vmpl_has_another_key(own: int) -> None:
    made = _made(guest=replace(GUEST, vmpl=2))
    source = Machine(guest=replace(GUEST, vmpl=own)).sealing()
    with pytest.raises(UnsealError, match=f"the VMPL is {own}; the data was sealed at 2"):
        _again(source, made)
    assert _again(source, _rewritten(made, vmpl=own)) != made.key


def test_another_chip_has_another_key() -> None:
    made = _made()
    assert _again(Machine(replace(CHIP, seed=b"another")).sealing(), made) != made.key


def test_an_older_tcb_is_another_key() -> None:
    made, older = _made(), GENOA[:7] + b"\1"
    changed = made.request[: TCB_AT.start] + older + made.request[TCB_AT.stop :]
    assert Machine().sealing().same_key(made.binding, changed) != made.key


def test_a_guest_may_ask_for_the_keys_of_a_lower_privilege() -> None:
    machine = Machine(report_vmpl=3)
    made = machine.sealing(privlevel=3).new_key(SealPolicy.MEASUREMENT)
    assert machine.tsm.privlevels == [3]
    assert _again(Machine(guest=replace(GUEST, vmpl=3)).sealing(), made) == made.key
    with pytest.raises(ValueError, match="privlevel is 0 to 3, not 4"):
        SnpSealing(privlevel=4)


@pytest.mark.parametrize("before", [b"", b"a provider's"])
def test_a_key_does_not_depend_on_whether_the_host_has_loaded_one_of_its_own(before: bytes) -> None:
    made = _made(replace(CHIP, vlek=before))
    for vlek in (b"", b"a provider's", b"another's"):
        assert _again(Machine(replace(CHIP, vlek=vlek)).sealing(), made) == made.key


def test_the_ids_that_any_host_may_sign_are_in_no_key_and_so_there_are_none_for_signers() -> None:
    made = _made()
    source = Machine(guest=replace(GUEST, image_id=b"i" * 16, family_id=b"f" * 16, svn=3)).sealing()
    assert _again(source, made) == made.key
    with pytest.raises(UnsupportedError, match=r'no keys for a signer.* \[sealing\] source = "release"'):
        source.current(SealPolicy.SIGNER)
    with pytest.raises(UnsupportedError, match="no keys for external"):
        source.new_key(SealPolicy.EXTERNAL)


# --- updates


def test_what_was_sealed_before_an_update_is_opened_and_resealed_after_it() -> None:
    old, new = CHIP, replace(CHIP, committed_tcb=bytes((10, 2, 0, 0, 0, 0, 23, 84)))
    sealed = Sealer(Machine(old).sealing()).seal(b"secret")
    updated = Sealer(Machine(new).sealing())
    assert updated.unseal(sealed) == b"secret"
    resealed = updated.reseal(sealed)
    assert updated.unseal(resealed) == b"secret"
    assert Sealer(Machine(old).sealing()).unseal(sealed) == b"secret"
    with pytest.raises(UnsealError, match="newer TCB"):
        Sealer(Machine(old).sealing()).unseal(resealed)


def test_an_update_that_is_committed_while_the_guest_runs_is_noticed() -> None:
    machine = Machine()
    with machine.kernel:
        source = machine.sealing()
        source.current(SealPolicy.MEASUREMENT)
        updated = replace(CHIP, committed_tcb=GENOA[:7] + b"\xff")
        made = _made(updated)
        with pytest.raises(UnsealError, match="newer TCB"):
            _again(source, made)
        machine.device.chip = updated
        assert _again(source, made) == made.key
    assert len(machine.tsm.privlevels) == 3


TURIN = Chip(seed=b"a chip", product="Turin", committed_tcb=bytes((1, 3, 1, 4, 0, 0, 0, 130)))
MILAN = replace(CHIP, product="Milan", report_version=2)


@pytest.mark.parametrize(
    ("chip", "place", "said"),
    [
        (CHIP, 0, r"bootloader 10 \(here 9\)"),
        (CHIP, 1, r"tee 3 \(here 2\)"),
        (CHIP, 5, r"byte5 1 \(here 0\)"),
        (CHIP, 6, r"snp 23 \(here 22\)"),
        (CHIP, 7, r"microcode 73 \(here 72\)"),
        (MILAN, 6, r"snp 23 \(here 22\)"),
        (TURIN, 0, r"fmc 2 \(here 1\)"),
        (TURIN, 1, r"bootloader 4 \(here 3\)"),
        (TURIN, 3, r"snp 5 \(here 4\)"),
        (TURIN, 7, r"microcode 131 \(here 130\)"),
        (replace(TURIN, report_version=2), 0, r"byte0 2 \(here 1\)"),
    ],
)
def test_a_tcb_above_the_committed_one_is_refused_part_by_part(chip: Chip, place: int, said: str) -> None:
    machine, made = Machine(chip), _made(chip)
    tcb = bytearray(chip.committed_tcb)
    tcb[place] += 1
    request = made.request[: TCB_AT.start] + tcb + made.request[TCB_AT.stop :]
    with pytest.raises(UnsealError, match=f"sealed at a newer TCB than is committed here: {said} "):
        machine.sealing().same_key(made.binding, request)
    assert machine.device.messages == []


def test_all_parts_that_are_above_are_named() -> None:
    lower = replace(CHIP, committed_tcb=bytes((9, 1, 0, 0, 0, 0, 22, 71)))
    with pytest.raises(UnsealError, match=r": tee 2 \(here 1\), microcode 72 \(here 71\) "):
        _again(Machine(lower).sealing(), _made())


def test_a_tcb_of_a_processor_that_is_not_known_is_told_by_its_bytes() -> None:
    machine = Machine()

    def report(report_data: bytes) -> bytes:
        made = machine.device.report(report_data)
        return made[:0x188] + b"\x77" + made[0x189:]

    source = SnpSealing(collect=_given(report), kernel=machine.kernel)
    assert source.new_key(SealPolicy.MEASUREMENT).tcb == "byte0 9 byte1 2 byte6 22 byte7 72"


# --- what is none of ours


def test_a_request_of_another_version_or_size_is_refused() -> None:
    source, made = Machine().sealing(), _made()
    for request in (b"", made.request[:-1], made.request + b"\0"):
        with pytest.raises(SealedDataError, match="none of SEV-SNP's"):
            source.same_key(made.binding, request)
    with pytest.raises(SealedDataError, match="version 2 are not known"):
        source.same_key(made.binding, b"\2" + made.request[1:])


@given(
    request=st.binary(max_size=64)
    | st.builds(bytes.__add__, st.just(b"\1"), st.binary(min_size=49, max_size=49))
    | st.builds(
        lambda tcb, salt: b"\1\0" + POLICY.to_bytes(8, "little") + tcb + salt,
        st.binary(min_size=8, max_size=8) | st.lists(st.integers(0, 9), min_size=8, max_size=8).map(bytes),
        st.binary(min_size=32, max_size=32),
    )
)
def test_any_request_gives_a_key_or_a_documented_error(request: bytes) -> None:
    machine = Machine()
    with machine.kernel:
        try:
            key = machine.sealing().same_key(Binding(policy=SealPolicy.MEASUREMENT, subject=MEASUREMENT), request)
        except (SealedDataError, UnsealError):
            return
    assert len(key) == 32
    assert len(request) <= MAX_REQUEST_BYTES


@given(
    policy=st.sampled_from(SealPolicy),
    subject=st.binary(max_size=64),
    product=st.binary(max_size=64),
    version=st.integers(0, 2**32 - 1),
)
def test_any_other_binding_is_refused(policy: SealPolicy, subject: bytes, product: bytes, version: int) -> None:
    binding = Binding(policy=policy, subject=subject, product=product, version=version)
    with pytest.raises((UnsealError, UnsupportedError)):
        Machine().sealing().same_key(binding, _made().request)


# --- hardware that refuses


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (0x16, r"INVALID_PARAMS \(have the host update its firmware"),
        (0x27, r"INVALID_KEY_SELECTION: the host keeps the chip's key \(VCEK\) from this guest \(take keys from"),
        (0x99, "status 0x99"),
    ],
)
def test_a_status_of_the_firmware_is_put_in_words(status: int, said: str) -> None:
    machine, made = Machine(), _made()
    machine.device.answer(status)
    with machine.kernel, pytest.raises(KeyUnavailableError, match=f"derived no key: {said}"):
        _again(machine.sealing(), made)


def test_a_key_of_zeros_is_none() -> None:
    machine = Machine()
    machine.device.answer(0)
    with pytest.raises(KeyUnavailableError, match="derived no key, and said that it had"):
        machine.sealing().new_key(SealPolicy.MEASUREMENT)


def test_a_guest_whose_host_keeps_the_chips_key_gets_none_from_the_provider_instead() -> None:
    source = Machine(replace(CHIP, vlek=b"a provider's"), replace(GUEST, vcek_disabled=True)).sealing()
    with pytest.raises(KeyUnavailableError, match=r"INVALID_KEY_SELECTION.*release"):
        source.new_key(SealPolicy.MEASUREMENT)


@pytest.mark.parametrize(
    ("number", "firmware", "host", "said"),
    [
        (errno.EIO, 0x16, 0, r"the firmware or the host refused, firmware error 0x16 INVALID_PARAM: EIO"),
        (errno.EIO, 0x99, 0, r"firmware error 0x99: EIO"),
        (errno.EIO, 0xFFFFFFFF, 1, r"refused, host error 0x1 INVALID_LEN: EIO"),
        (errno.ETIMEDOUT, 0xFFFFFFFF, 2, r"throttled .*lost its key.*, host error 0x2 BUSY: ETIMEDOUT"),
        (errno.EBADMSG, 0, 0, r"failed: the answer is not the firmware's: EBADMSG"),
        (errno.ENOTTY, 0xFFFFFFFF, 0, r"failed: the guest has lost its key to the firmware.*: ENOTTY"),
        (errno.ENOMEM, 0xFFFFFFFF, 0x77, r"failed: no key was derived, host error 0x77: ENOMEM"),
    ],
)
def test_a_failing_request_says_why(number: int, firmware: int, host: int, said: str) -> None:
    machine, made = Machine(), _made()
    machine.device.refuse(number, firmware=firmware, host=host)
    with machine.kernel:
        source = machine.sealing()
        with pytest.raises(KeyUnavailableError, match=said):
            _again(source, made)
        with pytest.raises(KeyUnavailableError, match="lost its key to the firmware"):
            _again(source, made)


def test_a_python_that_drops_what_a_failing_ioctl_wrote_leaves_the_errno() -> None:
    machine = Machine(hands_back_errors=False)
    machine.device.refuse(errno.EIO, firmware=0x16)
    with pytest.raises(KeyUnavailableError, match=r"failed: the firmware or the host refused: EIO \("):
        machine.sealing().new_key(SealPolicy.MEASUREMENT)


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EBUSY, errno.EINTR])
def test_a_busy_device_is_asked_again(number: int) -> None:
    machine, made = Machine(), _made()
    machine.kernel.fail("ioctl", DEVICE, number, times=3)
    with machine.kernel:
        assert _again(machine.sealing(), made) == made.key
    assert machine.kernel.monotonic() > 0


def test_a_device_that_stays_busy_is_given_up() -> None:
    machine, made = Machine(), _made()
    machine.kernel.fail("ioctl", DEVICE, errno.EBUSY, times=10_000)
    with machine.kernel, pytest.raises(KeyUnavailableError, match="failed: it was busy for 60 s: EBUSY"):
        _again(machine.sealing(), made)
    assert BUSY_SECONDS <= machine.kernel.monotonic() < BUSY_SECONDS + 1


@pytest.mark.parametrize(("operation", "end"), [("open", DEVICE), ("close", DEVICE), ("open", "outblob")])
def test_any_other_failure_of_the_kernel_leaves_the_key_for_later(operation: Any, end: str) -> None:
    machine, made = Machine(), _made()
    machine.kernel.fail(operation, end, errno.EMFILE)
    with machine.kernel:
        source = machine.sealing()
        with pytest.raises(KeyUnavailableError, match="EMFILE"):
            _again(source, made)
        assert _again(source, made) == made.key


def test_a_report_that_can_not_be_read_is_no_evidence_error() -> None:
    def refuse(report_data: bytes) -> Evidence:
        raise EvidenceError("root's process is gone")

    for collect in (refuse, _given(lambda _: b"?")):
        source = SnpSealing(collect=collect, kernel=Machine().kernel)
        with pytest.raises(KeyUnavailableError, match=r"root's process is gone|the SNP report has 1 bytes"):
            source.current(SealPolicy.MEASUREMENT)


# --- hardware that is not here


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ENODEV])
def test_a_device_that_is_not_there_or_not_for_us_is_unsupported_and_says_how_to_mend_it(number: int) -> None:
    machine, made = Machine(), _made()
    machine.kernel.fail("open", DEVICE, number, times=2)
    source = machine.sealing()
    for ask in (source.check_present, lambda: _again(source, made)):
        with pytest.raises(
            UnsupportedError, match=r"no sev-guest device here: .*\(in an SEV-SNP guest load .*sev-guest"
        ):
            ask()


def test_presence_is_found_out_without_asking_for_a_key() -> None:
    machine = Machine()
    with machine.kernel:
        machine.sealing().check_present()
    assert (machine.device.messages, machine.tsm.privlevels) == ([], [])
    machine.kernel.fail("open", DEVICE, errno.EIO)
    with pytest.raises(KeyUnavailableError, match="EIO"):
        machine.sealing().check_present()


def test_reports_of_other_hardware_are_unsupported() -> None:
    kernel = EmulatedKernel(Tsm(provider="tdx_guest"), SevGuest(CHIP, GUEST))
    with kernel, pytest.raises(UnsupportedError, match="'tdx_guest', not 'sev_guest'"):
        SnpSealing(kernel=kernel).current(SealPolicy.MEASUREMENT)


def test_an_error_never_has_the_salt_or_the_key_in_it() -> None:
    machine, made = Machine(), _made()
    machine.device.refuse(errno.EIO)
    with pytest.raises(AdytonError) as caught:
        _again(machine.sealing(), made)
    for secret in (made.key, made.request[18:]):
        assert secret.hex() not in str(caught.value)
        assert repr(secret) not in repr(caught.value)


# --- the emulation itself


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({}, 0),
        ({"root": 0b001}, 0),
        ({"root": 0b100}, 0x27),
        ({"root": 0b110}, 0x16),
        ({"root": 0b1010}, 0x16),
        ({"reserved": 1}, 0x16),
        ({"fields": 0b1000000}, 0x16),
        ({"vmpl": 0}, 0x16),
        ({"vmpl": 3}, 0),
        ({"vmpl": 4}, 0x16),
        ({"svn": 2}, 0),
        ({"svn": 3}, 0x16),
        ({"tcb": GENOA[:6] + bytes((22, 73))}, 0x16),
        ({"tcb": bytes((10, 0, 0, 0, 0, 0, 0, 0))}, 0x16),
        ({"tcb": bytes(8)}, 0),
    ],
)
def test_the_emulated_firmware_takes_what_the_specification_lets_it(changed: dict[str, Any], status: int) -> None:
    message = {"root": 0b010, "reserved": 0, "fields": 0b111111, "vmpl": 1, "svn": 0, "tcb": GENOA} | changed
    got, key = derive(CHIP, replace(GUEST, vmpl=1, svn=2), struct.pack("<IIQII8s", *message.values()))
    assert got == status
    assert any(key) == (status == 0)


def test_the_emulated_device_takes_what_linux_takes() -> None:
    machine = Machine()
    for flags, request, argument, number in (
        (os.O_RDWR, SNP_GET_DERIVED_KEY + 1, bytes(32), errno.ENOTTY),
        (os.O_RDWR, SNP_GET_DERIVED_KEY, bytes(32), errno.EINVAL),
        (os.O_RDONLY, SNP_GET_DERIVED_KEY, bytes(32), errno.ENOENT),
    ):
        with pytest.raises(OSError, match=os.strerror(number)), opened(machine.kernel, DEVICE, flags) as descriptor:
            machine.kernel.ioctl(descriptor, request, bytearray(argument))
