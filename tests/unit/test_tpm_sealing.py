"""Sealing by a real TPM 2.0 (swtpm): who gets a key again, who does not, and what fails how."""

from __future__ import annotations

import errno
import hmac
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from swtpms import PRODUCT, Boot, Machine, TpmWorld, approve, refusing, sealing, signer_key, world_in
from vtpms import needs_swtpm

from adyton.errors import (
    AdytonError,
    ConfigurationError,
    KeyUnavailableError,
    SealedDataError,
    UnsealError,
    UnsupportedError,
)
from adyton.sealing.sealer import Sealer
from adyton.tee import _tpm_sealing
from adyton.tee._tpm_commands import sized
from adyton.tee._tpm_sealing import STORAGE_TEMPLATE
from adyton.tee._tpm_transport import BUSY_SECONDS, DEVICE
from adyton.tee.sealing import LABEL_BYTES, Binding, SealPolicy
from adyton.tee.tpm.approvals import signer_of
from adyton.tee.tpm.sealing import SEALING_PCRS, TpmSealing
from adyton.tee.tpm.sealing_request import parse_request
from adyton.testing.sealers import KeySourceConformance, SealingWorld

pytestmark = needs_swtpm

MEASUREMENT, SIGNER = SealPolicy.MEASUREMENT, SealPolicy.SIGNER
LABEL = bytes(range(LABEL_BYTES))
FIRMWARE = Boot(pcrs=((0, b"firmware 1"), (4, b"kernel"), (9, b"initrd")))
UPDATED = Boot(pcrs=((0, b"firmware 2"), (4, b"kernel"), (9, b"initrd")))
PLANTED = bytes.fromhex("0008000b00040492")
"""As the keys are that the enclave asks for, but that somebody else may say what is in it."""
CREATE_PRIMARY, CREATE, HMAC, LOAD, POLICY_PCR, VERIFY_SIGNATURE = 0x131, 0x153, 0x155, 0x157, 0x17F, 0x177


@pytest.fixture
def world(tmp_path: Path) -> Iterator[TpmWorld]:
    with world_in(tmp_path) as world:
        yield world


@pytest.fixture
def machine(world: TpmWorld) -> Machine:
    return world.machine


class TestTpmSealing(KeySourceConformance):
    policies = frozenset({MEASUREMENT, SIGNER})
    can_downgrade = False
    has_registers = True

    @pytest.fixture
    def world(self, tmp_path: Path) -> Iterator[SealingWorld]:
        with world_in(tmp_path) as world:
            yield world


# --- this measurement


def test_a_refusal_names_the_pcrs_that_differ(machine: Machine) -> None:
    made = sealing(machine.kernel(FIRMWARE)).new_key(MEASUREMENT)
    other = Boot(pcrs=((0, b"firmware 1"), (4, b"kernel"), (7, b"secure boot"), (9, b"another")))
    with pytest.raises(UnsealError, match=r"the measurement is another than .* sealed for: PCR 7, 9 changed"):
        sealing(machine.kernel(other)).same_key(made.binding, made.request)


def test_a_pcr_that_is_extended_closes_what_was_open(machine: Machine) -> None:
    source = sealing(machine.kernel(FIRMWARE))
    made = source.new_key(MEASUREMENT)
    machine.extend(9, b"more")
    with pytest.raises(UnsealError, match="PCR 9 changed"):
        source.same_key(made.binding, made.request)


@pytest.mark.parametrize("index", [10, 11, 15, 16])
def test_pcrs_that_a_running_system_extends_are_no_matter(machine: Machine, index: int) -> None:
    source = sealing(machine.kernel(FIRMWARE))
    made = source.new_key(MEASUREMENT)
    machine.extend(index, b"a phase")
    assert source.same_key(made.binding, made.request) == made.key


def test_what_was_sealed_for_other_pcrs_is_not_opened(machine: Machine) -> None:
    # Whoever boots with the same PCR 0 could make such a key, and know it.
    made = TpmSealing(kernel=machine.kernel(FIRMWARE), pcrs=[0]).new_key(MEASUREMENT)
    with pytest.raises(UnsealError, match=r"the measurement is of the PCRs 0, 1, .*9; .* for those of 0$"):
        sealing(machine.kernel(FIRMWARE)).same_key(made.binding, made.request)


def test_more_pcrs_can_be_sealed_to(machine: Machine) -> None:
    source = TpmSealing(kernel=machine.kernel(FIRMWARE), pcrs=[*SEALING_PCRS, 12])
    made = source.new_key(MEASUREMENT)
    assert source.same_key(made.binding, made.request) == made.key
    machine.extend(12, b"")
    with pytest.raises(UnsealError, match="PCR 12 changed"):
        source.same_key(made.binding, made.request)


@pytest.mark.parametrize("pcrs", [[], [1, 2], [0, 16], [0, 23], [-1], [24]])
def test_pcrs_that_say_nothing_are_the_callers_mistake(pcrs: list[int]) -> None:
    with pytest.raises(ValueError, match="PCR"):
        TpmSealing(pcrs=pcrs)


def test_a_machine_that_nobody_measured_has_no_measurement(machine: Machine) -> None:
    unmeasured = sealing(machine.kernel(Boot(pcrs=((4, b"what its guest likes"),))))
    for call in (unmeasured.current, unmeasured.new_key):
        with pytest.raises(UnsupportedError, match="nothing was measured"):
            call(MEASUREMENT)
    made = sealing(machine.kernel(FIRMWARE)).new_key(MEASUREMENT)
    with pytest.raises(UnsupportedError, match="nothing was measured"):
        unmeasured.same_key(made.binding, made.request)


# --- this signer


def test_an_update_of_the_firmware_loses_nothing_that_the_signer_lets_in(machine: Machine) -> None:
    before = sealing(machine.kernel(FIRMWARE), approve([FIRMWARE], version=3))
    for_measurement, for_signer = Sealer(before, policy=MEASUREMENT), Sealer(before, policy=SIGNER)
    closed, sealed = for_measurement.seal(b"secret"), for_signer.seal(b"secret")
    after = sealing(machine.kernel(UPDATED), approve([FIRMWARE, UPDATED], version=3))
    with pytest.raises(UnsealError, match=r"measurement .* PCR 0 changed"):
        Sealer(after, policy=MEASUREMENT).unseal(closed)
    assert Sealer(after, policy=SIGNER).unseal(sealed) == b"secret"
    migrated = Sealer(after, policy=MEASUREMENT).reseal(sealed)
    again = sealing(machine.kernel(UPDATED))
    assert Sealer(again, policy=MEASUREMENT).unseal(migrated) == b"secret"
    with pytest.raises(UnsealError, match="measurement"):
        Sealer(before, policy=MEASUREMENT).unseal(migrated)


def test_the_binding_is_the_signers_word(machine: Machine) -> None:
    source = sealing(machine.kernel(FIRMWARE), approve([UPDATED, FIRMWARE], version=4))
    signer = signer_of(signer_key("s").public_key())
    assert source.current(SIGNER) == Binding(policy=SIGNER, subject=signer, product=PRODUCT, version=4)


def test_of_approvals_that_fit_the_highest_version_counts(machine: Machine) -> None:
    approvals = [*approve([FIRMWARE], version=2), *approve([FIRMWARE], version=5), *approve([UPDATED], version=9)]
    for order in (approvals, approvals[::-1]):
        assert sealing(machine.kernel(FIRMWARE), order).current(SIGNER).version == 5


def test_without_approvals_there_is_no_signer(machine: Machine) -> None:
    source = sealing(machine.kernel(FIRMWARE))
    assert source.policies == {MEASUREMENT}
    made = sealing(machine.kernel(FIRMWARE), approve([FIRMWARE])).new_key(SIGNER)
    for call in (source.current, source.new_key, lambda _: source.register(made.binding, LABEL)):
        with pytest.raises(UnsupportedError, match="no keys for a signer") as caught:
            call(SIGNER)
        assert "approvals" in caught.value.mend
    with pytest.raises(UnsealError, match="the signer has to let this machine in: none of the 0 approvals"):
        source.same_key(made.binding, made.request)


def test_approvals_of_other_pcrs_let_nobody_in(machine: Machine) -> None:
    made = sealing(machine.kernel(FIRMWARE), approve([FIRMWARE])).new_key(SIGNER)
    source = sealing(machine.kernel(UPDATED), approve([FIRMWARE]))
    for call in (source.current, source.new_key):
        with pytest.raises(UnsupportedError, match="none of the 1 approvals is for the PCRs that this machine has"):
            call(SIGNER)
    with pytest.raises(UnsealError, match="the signer has to let this machine in"):
        source.same_key(made.binding, made.request)


def test_approvals_by_another_than_the_measured_signer_are_refused() -> None:
    # Who brings approvals of his own must not get what is sealed from then on.
    for signer in (signer_of(signer_key("s").public_key()), b""):
        with pytest.raises(ConfigurationError, match="the approvals are by the signer"):
            TpmSealing(approvals=approve([FIRMWARE], signer="t"), signer=signer)


def test_another_product_of_the_signer_is_refused_by_name(machine: Machine) -> None:
    made = sealing(machine.kernel(FIRMWARE), approve([FIRMWARE])).new_key(SIGNER)
    source = sealing(machine.kernel(UPDATED), approve([UPDATED], product=b"chess"))
    with pytest.raises(UnsealError, match="the product is b'chess'; the data was sealed for b'translator'"):
        source.same_key(made.binding, made.request)


@pytest.mark.parametrize("version", [0, 3, 1 << 32])
def test_a_version_that_was_not_approved_is_refused_by_name(machine: Machine, version: int) -> None:
    source = sealing(machine.kernel(FIRMWARE), approve([FIRMWARE], version=2))
    made = source.new_key(SIGNER)
    for call in (
        lambda binding: source.same_key(binding, made.request),
        lambda binding: source.register(binding, LABEL),
    ):
        with pytest.raises(UnsealError, match=f"the version is 2; the data was sealed for {version} or later"):
            call(replace(made.binding, version=version))


# --- who else has the TPM


def test_a_key_that_somebody_knows_is_not_taken_for_the_enclaves(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sealing(machine.kernel(FIRMWARE))
    made = source.new_key(MEASUREMENT)
    known = bytes(range(32))
    unique, private = _planted(machine, made.binding.subject, known=known)
    honest = parse_request(made.request, made.binding)
    forged = replace(honest, kept=replace(honest.kept, unique=unique, private=private)).encode()
    with pytest.raises(SealedDataError, match="the TPM knows no such key"):
        source.same_key(made.binding, forged)
    monkeypatch.setattr(_tpm_sealing, "_KEY_TEMPLATE", PLANTED)  # it is what stands between
    assert source.same_key(made.binding, forged) == hmac.digest(known, b"adyton-tpm-sealing/1", "sha256")


def _planted(machine: Machine, policy: bytes, *, known: bytes) -> tuple[bytes, bytes]:
    """A key for HMACs of that policy, as anybody on the machine can make one whose secret he knows."""
    empty = sized(sized(b"") + sized(b""))
    made = machine.command(CREATE_PRIMARY, empty + sized(STORAGE_TEMPLATE) + sized(b"") + bytes(4), 0x40000001)
    (parent,) = struct.unpack_from(">I", made)
    public = PLANTED + sized(policy) + bytes.fromhex("0005000b") + sized(b"")
    sensitive = sized(sized(b"") + sized(known))
    created = machine.command(CREATE, sensitive + sized(public) + sized(b"") + bytes(4), parent)[4:]
    machine.command(0x165, struct.pack(">I", parent))
    length = struct.unpack_from(">H", created)[0]
    private, rest = created[2 : 2 + length], created[2 + length :]
    return rest[2 : 2 + struct.unpack_from(">H", rest)[0]][-32:], private


def test_a_tpm_that_was_cleared_says_so(machine: Machine) -> None:
    source = sealing(machine.kernel(FIRMWARE), approve([FIRMWARE]))
    made = [source.new_key(policy) for policy in (MEASUREMENT, SIGNER)]
    machine.clear()
    for each in made:
        with pytest.raises(UnsealError, match=r"the TPM is another .* or was cleared since"):
            source.same_key(each.binding, each.request)


def test_another_tpm_is_named(world: TpmWorld) -> None:
    made = world.source().new_key(MEASUREMENT)
    with pytest.raises(UnsealError, match="the TPM is another"):
        world.elsewhere().source().same_key(made.binding, made.request)


# --- failures


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES])
def test_no_tpm_is_unsupported(machine: Machine, number: int) -> None:
    kernel = machine.kernel(FIRMWARE)
    source = sealing(kernel)
    source.check_present()
    made = source.new_key(MEASUREMENT)
    for call in (
        source.check_present,
        lambda: source.current(MEASUREMENT),
        lambda: source.new_key(MEASUREMENT),
        lambda: source.same_key(made.binding, made.request),
        lambda: source.register(made.binding, LABEL),
    ):
        kernel.fail("open", DEVICE, number)
        with pytest.raises(UnsupportedError, match=r"no TPM 2\.0 here"):
            call()


@pytest.mark.parametrize("operation", ["read", "write"])
def test_a_device_that_fails_now_is_said(machine: Machine, operation: str) -> None:
    kernel = machine.kernel(FIRMWARE)
    source = sealing(kernel)
    made = source.new_key(MEASUREMENT)
    kernel.fail(operation, DEVICE, errno.EIO)  # type: ignore[arg-type]
    with kernel, pytest.raises(KeyUnavailableError, match=r"the TPM 2\.0 failed: EIO"):
        source.same_key(made.binding, made.request)
    assert source.same_key(made.binding, made.request) == made.key


@pytest.mark.parametrize(
    ("code", "response_code", "message"),
    [
        (CREATE_PRIMARY, 0x921, r"refused CREATE_PRIMARY: LOCKOUT \(0x921\)"),
        (CREATE_PRIMARY, 0x9A2, r"BAD_AUTH \(0x9a2\) \(a handle of the TPM has a password; give it an empty one\)"),
        (CREATE, 0x101, "refused CREATE: FAILURE"),
        (LOAD, 0x902, "refused LOAD: OBJECT_MEMORY"),
        (0x176, 0x905, "refused START_AUTH_SESSION: SESSION_HANDLES"),
        (POLICY_PCR, 0x128, "refused POLICY_PCR: PCR_CHANGED"),
        (HMAC, 0x98E, "HMAC was changed on its way to the TPM, or another process was first"),
        (0x17A, 0x101, "refused GET_CAPABILITY: FAILURE"),
        (0x17E, 0x101, "refused PCR_READ: FAILURE"),
        (VERIFY_SIGNATURE, 0x2DB, "refused VERIFY_SIGNATURE: SIGNATURE"),
        (0x167, 0x902, "refused LOAD_EXTERNAL: OBJECT_MEMORY"),
        (0x16A, 0x0A0, "refused POLICY_AUTHORIZE: TICKET"),
    ],
)
def test_a_tpm_that_refuses_is_said_and_nothing_stays_in_it(
    machine: Machine, code: int, response_code: int, message: str
) -> None:
    kernel = machine.kernel(FIRMWARE, refusing(machine.transmit, code, response_code))
    with kernel, pytest.raises(KeyUnavailableError, match=message):
        sealing(kernel, approve([FIRMWARE])).new_key(SIGNER)
    assert machine.handles("transient") == machine.handles("sessions") == []


def test_a_tpm_without_hmacs_has_no_sealing_keys(machine: Machine) -> None:
    kernel = machine.kernel(FIRMWARE, refusing(machine.transmit, HMAC, 0x143))
    with kernel, pytest.raises(UnsupportedError, match="this machine's TPM has no command HMAC"):
        sealing(kernel).new_key(MEASUREMENT)


def test_a_tpm_that_stays_busy_is_given_up(machine: Machine) -> None:
    kernel = machine.kernel(FIRMWARE, refusing(machine.transmit, HMAC, 0x922))
    with kernel, pytest.raises(KeyUnavailableError, match="refused HMAC: RETRY"):
        sealing(kernel).new_key(MEASUREMENT)
    assert kernel.monotonic() >= BUSY_SECONDS


def test_a_tpm_that_is_busy_for_a_while_is_asked_again(machine: Machine) -> None:
    kernel = machine.kernel(FIRMWARE, refusing(machine.transmit, HMAC, 0x922, times=3))
    source = sealing(kernel)
    made = source.new_key(MEASUREMENT)
    assert source.same_key(made.binding, made.request) == made.key


def test_fifty_times_in_a_row_leave_nothing_in_the_tpm(machine: Machine) -> None:
    source = sealing(machine.kernel(FIRMWARE), approve([FIRMWARE]))
    other = sealing(machine.kernel(FIRMWARE), approve([FIRMWARE], signer="t"), "t")
    made = {policy: source.new_key(policy) for policy in (MEASUREMENT, SIGNER)}
    for _ in range(50):
        for policy, each in made.items():
            assert source.same_key(each.binding, each.request) == each.key
            with pytest.raises(AdytonError):
                source.same_key(each.binding, each.request[:-1] + bytes([each.request[-1] ^ 1]))
            assert source.new_key(policy).key != each.key
        with pytest.raises(UnsealError, match="signer"):
            other.same_key(made[SIGNER].binding, made[SIGNER].request)
    assert [machine.handles(kind) for kind in ("transient", "sessions", "saved", "nv")] == [[]] * 4


def test_many_threads_and_sources_share_one_tpm(machine: Machine) -> None:
    kernel = machine.kernel(FIRMWARE)
    sources = [sealing(kernel, approve([FIRMWARE])) for _ in range(3)]
    made = sources[0].new_key(SIGNER)
    with kernel, ThreadPoolExecutor(8) as threads:
        keys = threads.map(lambda number: sources[number % 3].same_key(made.binding, made.request), range(40))
        assert set(keys) == {made.key}
