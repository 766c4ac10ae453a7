"""Whatever is done in whatever order: bytes arrive once and in order, and only the documented error escapes."""

from __future__ import annotations

import itertools
from collections import defaultdict
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from trunks import frame

from adyton.errors import ControlProtocolError
from adyton.proto.trunk import (
    MAX_OUTGOING_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_STREAMS,
    WINDOW_BYTES,
    Aborted,
    Credited,
    Ended,
    Ending,
    Event,
    Opened,
    Received,
    Side,
    Trunk,
)

payloads = st.sampled_from([b"", b"\0", b"\x01", b"\x03", b"boot", bytes(4), b"\0\0\x01\0", bytes(8), bytes(32000)])
frames = st.one_of(
    st.builds(frame, st.integers(0, 8), st.integers(0, 4), payloads | st.binary(max_size=70)),
    st.builds(frame, st.just(1), st.sampled_from([1, 3]), st.just(b"tcp:1")),
    st.builds(frame, st.just(2), st.sampled_from([1, 2]), st.just(bytes(32000))),
)
garbage = st.lists(frames | st.binary(max_size=20), max_size=30).map(b"".join)


def _cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(garbage)
def test_garbage_breaks_the_trunk_in_one_way_only(data: bytes) -> None:
    trunk = Trunk("guest")
    trunk.open("stdout")
    trunk.send(2, b"x")
    kept = 0
    with suppress(ControlProtocolError):
        for event in trunk.receive(data):
            if isinstance(event, Received):
                kept += len(event.payload)
    assert kept <= 4 * WINDOW_BYTES
    assert len(trunk.outgoing) <= MAX_OUTGOING_BYTES + 100


def _outcome(chunks: list[bytes]) -> tuple[list[Event], str, bytes]:
    trunk, problem = Trunk("guest"), ""
    events: list[Event] = []
    try:
        for chunk in chunks:
            for event in trunk.receive(chunk):
                events.append(event)  # noqa: PERF402  what came before an error counts
    except ControlProtocolError as error:
        problem = error.message
    return events, problem, bytes(trunk.outgoing)


@given(garbage, st.lists(st.integers(0, 2**20), max_size=20))
def test_how_the_bytes_are_cut_makes_no_difference(data: bytes, places: list[int]) -> None:
    assert _outcome([data]) == _outcome(_cut(data, places))


class Party:
    """One side with its local ends: what they have to say, what they were told, and what they have not taken yet."""

    def __init__(self, side: Side) -> None:
        self.trunk = Trunk(side)
        self.open: list[int] = []
        self.sent: defaultdict[int, bytearray] = defaultdict(bytearray)
        self.received: defaultdict[int, bytearray] = defaultdict(bytearray)
        self.untaken: defaultdict[int, int] = defaultdict(int)
        self.ended: set[int] = set()
        self.peer_ended: set[int] = set()
        self.aborted: set[int] = set()

    def take(self, data: bytes) -> None:
        for event in self.trunk.receive(data):
            match event:
                case Opened(number=number):
                    self.open.append(number)
                case Received(number=number, payload=payload):
                    assert number in self.open
                    assert number not in self.peer_ended
                    self.received[number] += payload
                    self.untaken[number] += len(payload)
                    assert self.untaken[number] <= WINDOW_BYTES
                case Ended(number=number):
                    self.peer_ended.add(number)
                case Aborted(number=number):
                    self.open.remove(number)
                    self.aborted.add(number)
                case Credited(number=number):
                    assert number in self.open


class Conversation(RuleBasedStateMachine):
    """A host and a guest do what they like, in any order, and what they say arrives in pieces of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.parties = (Party("host"), Party("guest"))
        self.counter = 0

    def _bytes(self, count: int) -> bytes:
        self.counter += 1
        return (self.counter.to_bytes(4, "big") * (count // 4 + 1))[:count]

    @rule(who=st.integers(0, 1))
    def open(self, who: int) -> None:
        party = self.parties[who]
        party.open.append(party.trunk.open("tcp:1"))

    @precondition(lambda self: any(party.open for party in self.parties))
    @rule(who=st.integers(0, 1), which=st.integers(0, 20), count=st.sampled_from([1, 5, 1000, MAX_PAYLOAD_BYTES]))
    def send(self, who: int, which: int, count: int) -> None:
        party = self.parties[who]
        for number in party.open[which % max(1, len(party.open)) :][:1]:
            if number not in party.ended and (room := party.trunk.room(number)):
                payload = self._bytes(min(count, room))
                party.trunk.send(number, payload)
                party.sent[number] += payload

    @rule(who=st.integers(0, 1), share=st.integers(1, 4))
    def grant(self, who: int, share: int) -> None:
        party = self.parties[who]
        for number in party.open:
            if party.untaken[number]:
                count = -(-party.untaken[number] // share)
                party.untaken[number] -= count
                party.trunk.grant(number, count)

    @rule(who=st.integers(0, 1), which=st.integers(0, 20), abort=st.booleans())
    def end(self, who: int, which: int, abort: bool) -> None:
        party = self.parties[who]
        for number in party.open[which % max(1, len(party.open)) :][:1]:
            if abort:
                party.trunk.close(number, Ending.BROKEN)
                party.open.remove(number)
                party.aborted.add(number)
            elif number not in party.ended:
                party.trunk.end(number)
                party.ended.add(number)

    @rule(who=st.integers(0, 1))
    def ping(self, who: int) -> None:
        self.parties[who].trunk.ping()

    @rule(who=st.integers(0, 1), count=st.integers(1, 100_000))
    def carry(self, who: int, count: int) -> None:
        sender, receiver = self.parties[who], self.parties[1 - who]
        data = bytes(sender.trunk.outgoing[:count])
        del sender.trunk.outgoing[:count]
        receiver.take(data)
        for number in list(receiver.open):
            if number in receiver.ended and number in receiver.peer_ended and not receiver.untaken[number]:
                receiver.trunk.close(number, Ending.IN_ORDER)
                receiver.open.remove(number)

    @invariant()
    def what_has_arrived_is_how_what_was_sent_begins(self) -> None:
        for sender, receiver in (self.parties, self.parties[::-1]):
            for number, received in receiver.received.items():
                assert sender.sent[number].startswith(received)

    def teardown(self) -> None:
        """At last all is taken and ended: then all that was not aborted has arrived, and nothing is left."""
        for _ in range(4):  # what is on its way, the ends, the closing, and its answer
            for who in (0, 1):
                self.grant(who, 1)
                self._end_all(self.parties[who])
                self.carry(who, 2**20)
        for sender, receiver in (self.parties, self.parties[::-1]):
            for number, sent in sender.sent.items():
                assert number in sender.aborted | receiver.aborted or receiver.received[number] == sent
        for _ in range(MAX_STREAMS):  # every stream was forgotten, by both
            self.open(0)
            self.open(1)
        self.carry(0, 2**20)
        self.carry(1, 2**20)
        super().teardown()

    @staticmethod
    def _end_all(party: Party) -> None:
        for number in list(party.open):
            if number not in party.ended:
                party.trunk.end(number)
                party.ended.add(number)
            if number in party.peer_ended:
                party.trunk.close(number, Ending.IN_ORDER)
                party.open.remove(number)


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
