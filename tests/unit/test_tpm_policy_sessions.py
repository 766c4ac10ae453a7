"""Sessions with a real TPM 2.0 (swtpm): what is seen and changed on the way, and PCRs that change meanwhile."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from swtpms import Boot, Machine, approve, before, changing, sealing
from vtpms import needs_swtpm

from adyton.errors import KeyUnavailableError, UnsealError
from adyton.tee._tpm_sessions import PolicySession
from adyton.tee.sealing import LABEL_BYTES, REGISTER_BYTES, SealPolicy
from adyton.tee.tpm.sealing_request import parse_request
from adyton.testing.kernels.tpm import Transmit

pytestmark = needs_swtpm

MEASUREMENT, SIGNER = SealPolicy.MEASUREMENT, SealPolicy.SIGNER
LABEL, VALUE = bytes(range(LABEL_BYTES)), bytes(range(REGISTER_BYTES, 2 * REGISTER_BYTES))
BOOT = Boot(pcrs=((0, b"code"),))
CREATE_PRIMARY, NV_WRITE, NV_READ, CREATE, HMAC = 0x131, 0x137, 0x14E, 0x153, 0x155
GET_CAPABILITY, POLICY_PCR = 0x17A, 0x17F
X = 10 + 4 + 4 + 2 + 4 + 4 + 2 + 6 + 2 + 4
"""Where the length of the storage key's x is in the response to CREATE_PRIMARY."""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path / "machine")
    yield machine
    machine.stop()


def _edit(place: int, by: bytes = b"") -> Callable[[bytes], bytes]:
    """From there on are those bytes; or one byte is another."""

    def edited(response: bytes) -> bytes:
        changed = bytearray(response)
        for offset, value in enumerate(by or bytes([response[place] ^ 1])):
            changed[place + offset] = value
        return bytes(changed)

    return edited


def _new_key(machine: Machine, transmit: Transmit, policy: SealPolicy = MEASUREMENT) -> None:
    sealing(machine.kernel(BOOT, transmit), approve([BOOT])).new_key(policy)


# --- on the way


@pytest.mark.parametrize("policy", [MEASUREMENT, SIGNER])
def test_who_listens_learns_no_key_and_no_registers_content(machine: Machine, policy: SealPolicy) -> None:
    heard = []

    def listening(command: bytes) -> bytes:
        response = machine.transmit(command)
        heard.append(command + response)
        return response

    source = sealing(machine.kernel(BOOT, listening), approve([BOOT]))
    made = source.new_key(policy)
    assert source.same_key(made.binding, made.request) == made.key
    register = source.register(made.binding, LABEL)
    register.write(VALUE, after=None)
    sent = len(heard)
    assert register.read() == VALUE
    assert parse_request(made.request, made.binding).kept.private in b"".join(heard)
    assert made.key not in b"".join(heard)
    assert VALUE not in b"".join(heard[sent:])


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (13, r"nonce of [0-9]+ bytes; 32 are allowed"),
        (15, "its HMAC is wrong"),
        (16, "its HMAC is wrong"),
        (47, "its HMAC is wrong"),
        (49, "nonce of 33 bytes; 32 are allowed"),
        (50, "its HMAC is wrong"),
        (82, "its HMAC is wrong"),
        (84, "HMAC of 33 bytes; 32 are allowed"),
        (-1, "somebody changed what the TPM answered: its HMAC is wrong"),
    ],
    ids=["size", "length", "secret", "its end", "nonce's length", "nonce", "attributes", "HMAC's length", "HMAC"],
)
def test_an_answer_that_somebody_changed_is_not_used(machine: Machine, place: int, message: str) -> None:
    with pytest.raises(KeyUnavailableError, match=message):
        _new_key(machine, changing(machine.transmit, HMAC, _edit(place)))
    assert machine.handles("transient") == machine.handles("sessions") == []


def test_a_command_that_somebody_changed_is_not_carried_out(machine: Machine) -> None:
    def meddling(command: bytes) -> bytes:
        return machine.transmit(command.replace(VALUE, VALUE[::-1]))

    binding = sealing(machine.kernel(BOOT)).current(MEASUREMENT)
    honest = sealing(machine.kernel(BOOT)).register(binding, LABEL)
    honest.write(bytes(REGISTER_BYTES), after=None)
    with pytest.raises(KeyUnavailableError, match="NV_WRITE was changed on its way to the TPM"):
        sealing(machine.kernel(BOOT, meddling)).register(binding, LABEL).write(VALUE, after=bytes(REGISTER_BYTES))
    assert honest.read() == bytes(REGISTER_BYTES)


@pytest.mark.parametrize(
    ("code", "change", "message"),
    [
        (CREATE_PRIMARY, _edit(23), "another storage key than the one that it was told to make"),
        (CREATE_PRIMARY, _edit(X + 5), "storage key is not a point of P-256"),
        (CREATE_PRIMARY, _edit(X, b"\0\x1f"), "the TPM's storage key has a y of "),
        (CREATE_PRIMARY, _edit(X, b"\0\x21"), "has a x of 33 bytes; 32 are allowed"),
        (
            CREATE,
            lambda response: response.replace(bytes.fromhex("000404b2"), bytes.fromhex("00040492")),
            "another key",
        ),
        (GET_CAPABILITY, _edit(14), "does not say its firmware's version"),
        (GET_CAPABILITY, _edit(18), "does not say its firmware's version"),
    ],
)
def test_a_tpm_that_does_not_do_what_it_was_told_is_not_trusted(
    machine: Machine, code: int, change: Callable[[bytes], bytes], message: str
) -> None:
    with pytest.raises(KeyUnavailableError, match=message):
        _new_key(machine, changing(machine.transmit, code, change))
    assert machine.handles("transient") == machine.handles("sessions") == []


def test_a_storage_key_whose_coordinates_are_not_filled_up_is_refused(machine: Machine) -> None:
    def shortened(response: bytes) -> bytes:
        tag, size, code, handle, parameters, public = struct.unpack_from(">HIIIIH", response)
        head = struct.pack(">HIIIIH", tag, size - 1, code, handle, parameters - 1, public - 1)
        y = X + 34
        return head + response[len(head) : y] + b"\0\x1f" + response[y + 3 :]

    with pytest.raises(KeyUnavailableError, match="does not fill up the coordinates"):
        _new_key(machine, changing(machine.transmit, CREATE_PRIMARY, shortened))


def test_secrets_of_another_size_are_refused(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    source = sealing(machine.kernel(BOOT))
    register = source.register(source.current(MEASUREMENT), LABEL)
    register.write(VALUE, after=None)
    monkeypatch.setattr(PolicySession, "execute", lambda *_, **__: b"short")
    with pytest.raises(KeyUnavailableError, match="gives an HMAC of 5 bytes, not 32"):
        source.new_key(MEASUREMENT)
    with pytest.raises(KeyUnavailableError, match=r"the NV index 0x01[ab][0-9a-f]{5} gives 5 bytes, not 32"):
        register.read()


# --- PCRs that change meanwhile


@pytest.mark.parametrize("policy", [MEASUREMENT, SIGNER])
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (POLICY_PCR, r"the measurement is another: the PCRs 0, 1, .* have not the values that let in"),
        (HMAC, "the measurement changed: PCRs were extended meanwhile"),
    ],
)
def test_a_pcr_that_is_extended_meanwhile_closes(machine: Machine, policy: SealPolicy, code: int, message: str) -> None:
    kernel = machine.kernel(BOOT, before(machine.transmit, code, lambda: machine.extend(4, b"late")))
    with kernel, pytest.raises(UnsealError, match=message):
        sealing(kernel, approve([BOOT])).new_key(policy)
    assert machine.handles("transient") == machine.handles("sessions") == []


@pytest.mark.parametrize("code", [NV_WRITE, NV_READ, POLICY_PCR])
def test_a_register_closes_too(machine: Machine, code: int) -> None:
    source = sealing(machine.kernel(BOOT))
    register = source.register(source.current(MEASUREMENT), LABEL)
    register.write(VALUE, after=None)
    kernel = machine.kernel(BOOT, before(machine.transmit, code, lambda: machine.extend(4, b"late")))
    late = sealing(kernel).register(source.current(MEASUREMENT), LABEL)
    call = late.read if code == NV_READ else lambda: late.write(bytes(REGISTER_BYTES), after=VALUE)
    with kernel, pytest.raises(UnsealError, match="the measurement"):
        call()
    with pytest.raises(UnsealError, match=r"the PCRs 0, 1, .* have not the values that let in"):
        register.read()
    machine.stop()
    assert register.read() == VALUE
