"""TCG event logs: both formats to the byte, their replay, and what of them may be believed."""

from __future__ import annotations

import hashlib
from dataclasses import FrozenInstanceError

import pytest

from adyton.errors import EvidenceError
from adyton.tee._event_log import (
    EV_NO_ACTION,
    MAX_EVENTS,
    Event,
    authenticated,
    confirmed,
    parse_event_log,
    replay,
)
from adyton.testing.tpm_quotes import (
    EV_ACTION,
    EV_SEPARATOR,
    MEASUREMENTS,
    agile_log,
    digest_of,
    pcrs_after,
    sha1_log,
)

SHA1_EVENT = b"\x04\0\0\0" + b"\x05\0\0\0" + hashlib.sha1(b"data").digest() + b"\x04\0\0\0" + b"data"
AGILE_HEADER = (
    bytes(4) + b"\x03\0\0\0" + bytes(20) + b"\x25\0\0\0"
    b"Spec ID Event03\0" + bytes(4) + b"\0\x02\0\x02\x02\0\0\0" + b"\x04\0\x14\0" + b"\x0b\0\x20\0" + b"\0"
)
AGILE_EVENT = (
    b"\x04\0\0\0\x05\0\0\0\x02\0\0\0\x04\0"
    + hashlib.sha1(b"data").digest()
    + b"\x0b\0"
    + hashlib.sha256(b"data").digest()
    + b"\x04\0\0\0data"
)


def test_logs_have_the_documented_layout() -> None:
    assert sha1_log([(4, EV_ACTION, b"data")]) == SHA1_EVENT
    assert agile_log([(4, EV_ACTION, b"data")]) == AGILE_HEADER + AGILE_EVENT


def test_an_old_log_holds_its_first_event_too() -> None:
    log = parse_event_log(SHA1_EVENT * 2)
    event = Event(register=4, event_type=5, digests={"sha1": hashlib.sha1(b"data").digest()}, data=b"data")
    assert (log.banks, log.events) == (("sha1",), (event, event))


def test_the_header_of_a_new_log_is_no_event() -> None:
    log = parse_event_log(AGILE_HEADER + AGILE_EVENT)
    digests = {"sha1": hashlib.sha1(b"data").digest(), "sha256": hashlib.sha256(b"data").digest()}
    assert log.banks == ("sha1", "sha256")
    assert log.events == (Event(register=4, event_type=5, digests=digests, data=b"data"),)


def test_digests_may_come_in_any_order() -> None:
    swapped = AGILE_EVENT[:12] + AGILE_EVENT[34:68] + AGILE_EVENT[12:34] + AGILE_EVENT[68:]
    assert parse_event_log(AGILE_HEADER + swapped) == parse_event_log(AGILE_HEADER + AGILE_EVENT)


def test_a_header_of_another_event_type_makes_an_old_log() -> None:
    log = parse_event_log(AGILE_HEADER[:4] + b"\x05" + AGILE_HEADER[5:])
    assert (log.banks, len(log.events)) == (("sha1",), 1)


def test_all_banks_are_known_by_name() -> None:
    banks = ("sm3_256", "sha512", "sha384", "sha256", "sha1")
    log = parse_event_log(agile_log(MEASUREMENTS, banks))
    assert log.banks == banks
    assert {bank: len(digest) for bank, digest in log.events[0].digests.items()} == {
        bank: len(digest_of(bank, b"")) for bank in banks
    }


@pytest.mark.parametrize("padding", [b"", bytes(1), bytes(100_000), b"\xff" * 1, b"\xff" * 100_000])
@pytest.mark.parametrize("log", [sha1_log(MEASUREMENTS), agile_log(MEASUREMENTS)])
def test_padding_ends_the_log(log: bytes, padding: bytes) -> None:
    # The last event's data are zeros, and belong to it, not to the padding.
    events = parse_event_log(log + padding).events
    assert events == parse_event_log(log).events
    assert (len(events), events[-1].data) == (len(MEASUREMENTS), bytes(4))


@pytest.mark.parametrize("padding", [b"\0\x01", b"\xff\0", b"\0\xff", bytes(40) + b"\x01"])
def test_padding_of_two_kinds_is_none(padding: bytes) -> None:
    with pytest.raises(EvidenceError, match=r"the event log ends inside its|an event of the log has 0 digests"):
        parse_event_log(agile_log(MEASUREMENTS) + padding)


def test_an_event_of_no_register_is_one() -> None:
    # Windows ends its logs so.
    log = parse_event_log(sha1_log([*MEASUREMENTS, (0xFFFFFFFF, EV_NO_ACTION, b"trust point")]))
    assert log.events[-1].register == 0xFFFFFFFF
    assert 0xFFFFFFFF not in replay(log, "sha1")


def test_as_many_events_as_allowed_are_read() -> None:
    assert len(parse_event_log(SHA1_EVENT * MAX_EVENTS).events) == MAX_EVENTS
    with pytest.raises(EvidenceError, match=f"the event log has more than {MAX_EVENTS} events"):
        parse_event_log(SHA1_EVENT * (MAX_EVENTS + 1))


def test_a_size_beyond_the_end_is_refused_at_once() -> None:
    with pytest.raises(EvidenceError, match="ends inside its event's data: 4294967295 bytes from 32, 4 left"):
        parse_event_log(SHA1_EVENT[:28] + b"\xff" * 4 + b"data")


def test_a_log_can_not_be_changed() -> None:
    event = parse_event_log(SHA1_EVENT).events[0]
    with pytest.raises(FrozenInstanceError):
        event.data = b""  # type: ignore[misc]
    with pytest.raises(TypeError):
        event.digests["sha1"] = b""  # type: ignore[index]


# --- replay


@pytest.mark.parametrize("bank", ["sha1", "sha256", "sha384", "sha512"])
def test_a_replay_gives_what_the_registers_had(bank: str) -> None:
    log = parse_event_log(agile_log(MEASUREMENTS, [bank]))
    wanted = pcrs_after(MEASUREMENTS, bank)[bank]
    assert replay(log, bank) == {register: wanted[register] for register in (0, 4, 7)}


def test_an_old_log_replays_too() -> None:
    wanted = pcrs_after(MEASUREMENTS, "sha1")["sha1"]
    assert replay(parse_event_log(sha1_log(MEASUREMENTS)), "sha1")[0] == wanted[0]


def test_registers_start_at_zero_without_startup_locality() -> None:
    log = parse_event_log(agile_log([(0, EV_ACTION, b"x")]))
    assert replay(log, "sha256") == {0: hashlib.sha256(bytes(32) + hashlib.sha256(b"x").digest()).digest()}


@pytest.mark.parametrize(("register", "named"), [(0, b"\x04"), (0, b""), (1, b"\x03")])
def test_only_register_0_has_a_startup_locality(register: int, named: bytes) -> None:
    log = parse_event_log(
        agile_log([(register, EV_NO_ACTION, b"StartupLocality\0" + named), (register, EV_ACTION, b"x")])
    )
    start = bytes(31) + (named.rjust(1, b"\0") if register == 0 else b"\0")
    assert replay(log, "sha256")[register] == hashlib.sha256(start + hashlib.sha256(b"x").digest()).digest()


def test_banks_that_the_log_lacks_or_that_are_not_computed_replay_to_nothing() -> None:
    log = parse_event_log(agile_log(MEASUREMENTS, ["sha256", "sm3_256"]))
    assert (replay(log, "sha384"), replay(log, "sm3_256"), replay(log, "md5")) == ({}, {}, {})


# --- what is confirmed


def test_events_are_confirmed_in_the_banks_that_were_signed() -> None:
    log = parse_event_log(agile_log(MEASUREMENTS, ["sha1", "sha256", "sha384"]))
    events = confirmed(log, pcrs_after(MEASUREMENTS, "sha256", "sha384", "sha512"))
    assert {register: [event.data for event in found] for register, found in events.items()} == {
        0: [b"firmware", bytes(4)],
        4: [b"Calling EFI Application from Boot Option", bytes(4)],
        7: [bytes(4)],
    }
    assert {tuple(event.digests) for found in events.values() for event in found} == {("sha256", "sha384")}
    with pytest.raises(TypeError):
        events[0] = ()  # type: ignore[index]


def test_a_register_with_another_value_has_no_events() -> None:
    log = parse_event_log(agile_log(MEASUREMENTS))
    signed = pcrs_after(MEASUREMENTS, "sha256")
    signed["sha256"][4] = bytes(32)
    del signed["sha256"][7]
    assert set(confirmed(log, signed)) == {0}


def test_one_bank_that_differs_is_enough_to_doubt() -> None:
    log = parse_event_log(agile_log(MEASUREMENTS))
    signed = pcrs_after(MEASUREMENTS, "sha1", "sha256")
    signed["sha1"][4] = bytes(20)
    del signed["sha1"][7]
    events = confirmed(log, signed)
    assert set(events) == {0, 7}
    assert (set(events[0][0].digests), set(events[7][0].digests)) == ({"sha1", "sha256"}, {"sha256"})


def test_a_register_that_was_never_extended_has_no_events() -> None:
    log = parse_event_log(agile_log([(5, EV_NO_ACTION, b"for information")]))
    assert confirmed(log, {"sha256": {5: bytes(32)}}) == {}


def test_without_a_common_bank_nothing_is_confirmed() -> None:
    log = parse_event_log(agile_log(MEASUREMENTS, ["sha1", "sm3_256"]))
    assert confirmed(log, pcrs_after(MEASUREMENTS, "sha256") | {"sm3_256": {4: bytes(32)}}) == {}


def test_data_is_authenticated_by_all_of_its_digests() -> None:
    (event,) = parse_event_log(AGILE_HEADER + AGILE_EVENT).events
    assert authenticated(event)
    one_wrong = Event(register=4, event_type=5, digests={**event.digests, "sha256": bytes(32)}, data=b"data")
    others = Event(register=4, event_type=5, digests=event.digests, data=b"date")
    none = Event(register=4, event_type=5, digests={}, data=b"data")
    unknown = Event(register=4, event_type=5, digests={"sm3_256": bytes(32)}, data=b"data")
    assert not any(authenticated(event) for event in (one_wrong, others, none, unknown))


def test_a_replay_does_not_prove_types() -> None:
    # An event's type is nobody's word but the log's: the same digests replay under any type.
    honest = parse_event_log(agile_log([(1, EV_SEPARATOR, bytes(4))]))
    lying = parse_event_log(agile_log([(1, EV_ACTION, bytes(4))]))
    assert replay(honest, "sha256") == replay(lying, "sha256")
