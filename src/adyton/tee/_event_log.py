"""TCG event logs: what was measured into which register, and whether that gives the registers' signed values.

Nobody signs a log. `confirmed` keeps what replays to registers that were signed, and even of that only the digests are
proven: an event's type is the log's own word, and its data too unless `authenticated` says otherwise.

Formats: TCG PC Client Platform Firmware Profile 1.06, sections 10.2.1 (SHA-1 only) and 10.2.2 (crypto agile); the UEFI
specification 2.10, section 38.4.1 (CCEL, whose registers 1 to 4 are RTMR0 to RTMR3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from adyton.errors import EvidenceError
from adyton.tee._binary import Reader

MAX_EVENTS: Final = 8192
EV_NO_ACTION: Final = 3
"""Such an event informs; it was not extended into its register."""

BANKS: Final[Mapping[int, tuple[str, int]]] = MappingProxyType(
    {
        0x0004: ("sha1", 20),
        0x000B: ("sha256", 32),
        0x000C: ("sha384", 48),
        0x000D: ("sha512", 64),
        0x0012: ("sm3_256", 32),
    }
)
"""TPM_ALG_ID → the name of the bank and the size of its digests (TCG Algorithm Registry, section 5.2)."""

_HASHES: Final[Mapping[str, Callable[[bytes], Any]]] = {
    "sha1": hashlib.sha1,  # old machines have no other bank; whether it counts, policy decides
    "sha256": hashlib.sha256,
    "sha384": hashlib.sha384,
    "sha512": hashlib.sha512,
}
_SHA1_BYTES: Final = 20
_AGILE_SIGNATURE: Final = b"Spec ID Event03\0"
_STARTUP_LOCALITY: Final = b"StartupLocality\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One measurement: the register as the log numbers it, and a digest for each bank by its name ("sha256")."""

    register: int
    event_type: int
    digests: Mapping[str, bytes]
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLog:
    """A well-formed log, not verified. `banks` are those of every event; the header of a crypto-agile log is none."""

    banks: tuple[str, ...]
    events: tuple[Event, ...]


def parse_event_log(data: bytes) -> EventLog:
    """Parse a log of either format, with the padding of 0x00 or 0xFF that fills the memory firmware keeps it in."""
    end = min(len(data.rstrip(b"\x00")), len(data.rstrip(b"\xff")))
    if not end:
        raise EvidenceError("the event log is empty")
    reader = Reader(data, "the event log", order="little")
    first = _sha1_event(reader)
    agile = first.event_type == EV_NO_ACTION and first.data.startswith(_AGILE_SIGNATURE)
    banks = _agile_banks(first.data) if agile else ("sha1",)
    events = [] if agile else [first]
    while reader.position < end:
        if len(events) == MAX_EVENTS:
            raise EvidenceError(f"the event log has more than {MAX_EVENTS} events")
        events.append(_agile_event(reader, banks) if agile else _sha1_event(reader))
    return EventLog(banks=banks, events=tuple(events))


def _sha1_event(reader: Reader) -> Event:
    """A TCG_PCClientPCREvent."""
    register, event_type = reader.number(4, "event's register"), reader.number(4, "event's type")
    digests = MappingProxyType({"sha1": reader.take(_SHA1_BYTES, "event's digest")})
    return Event(register=register, event_type=event_type, digests=digests, data=_data(reader))


def _agile_event(reader: Reader, banks: tuple[str, ...]) -> Event:
    """A TCG_PCR_EVENT2. It has a digest for each bank that the header names, in any order."""
    register, event_type = reader.number(4, "event's register"), reader.number(4, "event's type")
    count = reader.number(4, "event's number of digests")
    if count != len(banks):
        raise EvidenceError(
            f"an event of the log has {count} digests, not one for each of the log's {len(banks)} banks"
        )
    digests: dict[str, bytes] = {}
    for _ in banks:
        bank, size = _bank(reader.number(2, "digest's algorithm"))
        digests[bank] = reader.take(size, "event's digest")
    if digests.keys() != set(banks):
        raise EvidenceError("an event of the log has digests of other banks than its header names")
    return Event(register=register, event_type=event_type, digests=MappingProxyType(digests), data=_data(reader))


def _data(reader: Reader) -> bytes:
    return reader.take(reader.number(4, "event's size"), "event's data")


def _agile_banks(header: bytes) -> tuple[str, ...]:
    """The banks that a TCG_EfiSpecIdEvent names."""
    reader = Reader(header, "the event log's header", order="little")
    reader.take(len(_AGILE_SIGNATURE) + 8, "platform class and version")
    count = reader.number(4, "number of banks")
    if not 1 <= count <= len(BANKS):
        raise EvidenceError(f"the event log's header names {count} banks; 1 to {len(BANKS)} are allowed")
    banks = tuple(_header_bank(reader) for _ in range(count))
    if len(set(banks)) != count:
        raise EvidenceError("the event log's header names a bank twice")
    reader.take(reader.number(1, "vendor's size"), "vendor's part")
    reader.end()
    return banks


def _header_bank(reader: Reader) -> str:
    bank, size = _bank(reader.number(2, "bank's algorithm"))
    named = reader.number(2, "bank's digest size")
    if named != size:
        raise EvidenceError(f"the event log's header gives digests of {bank} {named} bytes, not {size}")
    return bank


def _bank(algorithm: int) -> tuple[str, int]:
    if algorithm not in BANKS:
        raise EvidenceError(f"the event log has digests of the unknown algorithm 0x{algorithm:04x}")
    return BANKS[algorithm]


def replay(log: EventLog, bank: str) -> Mapping[int, bytes]:
    """The value of every register that the log extends, by the log's numbers.

    Empty if the log lacks the bank, or for SM3, which is not computed here. Register 0 starts at the locality that a
    StartupLocality event names (Platform Firmware Profile, section 10.4.5.3), all else at zero.
    """
    if bank not in _HASHES or bank not in log.banks:
        return {}
    sha = _HASHES[bank]
    start = bytes(sha(b"").digest_size)
    start_0 = start
    values: dict[int, bytes] = {}
    for event in log.events:
        if event.event_type != EV_NO_ACTION:
            before = values.get(event.register, start if event.register else start_0)
            values[event.register] = sha(before + event.digests[bank]).digest()
        elif event.register == 0 and event.data.startswith(_STARTUP_LOCALITY):
            start_0 = start[1:] + event.data[len(_STARTUP_LOCALITY) :][:1].rjust(1, b"\0")
    return values


def confirmed(log: EventLog, registers: Mapping[str, Mapping[int, bytes]]) -> Mapping[int, tuple[Event, ...]]:
    """The events of each register of which the log gives the signed values, in all of the banks that both have.

    `registers` are signed values: bank → register as the log numbers it → digest. The events keep no digest of any
    other bank, and those that were never extended are left out: nothing vouches for either.
    """
    banks = [bank for bank in registers if bank in log.banks and bank in _HASHES]
    values = {bank: replay(log, bank) for bank in banks}
    proven: dict[int, list[str]] = {}
    for register in sorted({event.register for event in log.events}):
        signed = [bank for bank in banks if register in registers[bank]]
        if signed and all(values[bank].get(register) == registers[bank][register] for bank in signed):
            proven[register] = signed
    events: dict[int, list[Event]] = {register: [] for register in proven}
    for event in log.events:
        if event.register in events and event.event_type != EV_NO_ACTION:
            events[event.register].append(_within(event, proven[event.register]))
    return MappingProxyType({register: tuple(found) for register, found in events.items()})


def _within(event: Event, banks: list[str]) -> Event:
    digests = MappingProxyType({bank: event.digests[bank] for bank in banks})
    return Event(register=event.register, event_type=event.event_type, digests=digests, data=event.data)


def authenticated(event: Event) -> bool:
    """Whether each of the event's digests is the hash of its data: then who vouches for the digest does for the data.

    Not so for events whose digest is of something else, as of a boot loader's image, which the data only describes.
    """
    return bool(event.digests) and all(
        bank in _HASHES and _HASHES[bank](event.data).digest() == digest for bank, digest in event.digests.items()
    )
