"""The trunk's protocol: its bytes, and what it refuses."""

from __future__ import annotations

import struct

import pytest
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
    Ponged,
    Received,
    Trunk,
)

OPEN, DATA, WINDOW, END, CLOSE, PING, PONG = range(1, 8)


def said(trunk: Trunk) -> bytes:
    """What `trunk` has to say, taken from it."""
    data = bytes(trunk.outgoing)
    trunk.outgoing.clear()
    return data


def pass_on(sender: Trunk, receiver: Trunk) -> list[Event]:
    return list(receiver.receive(said(sender)))


def opened_by_peer() -> Trunk:
    """A guest whose host has opened stream 1."""
    trunk = Trunk("guest")
    assert list(trunk.receive(frame(OPEN, 1, b"boot"))) == [Opened(number=1, kind="boot")]
    return trunk


def test_the_bytes_of_every_frame() -> None:
    host = Trunk("host")
    number = host.open("tcp:50051")
    host.send(number, b"hello")
    host.end(number)
    host.close(number, Ending.BROKEN)
    host.ping()
    assert said(host) == (
        b"\x01\0\0\0\x01\0\0\0\x09tcp:50051"
        b"\x02\0\0\0\x01\0\0\0\x05hello"
        b"\x04\0\0\0\x01\0\0\0\0"
        b"\x05\0\0\0\x01\0\0\0\x01\x03"
        b"\x06\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\x01"
    )


def test_a_stream_from_its_opening_to_its_end() -> None:
    host, guest = Trunk("host"), Trunk("guest")
    number = host.open("boot")
    host.send(number, b"document")
    host.end(number)
    assert pass_on(host, guest) == [
        Opened(number=1, kind="boot"),
        Received(number=1, payload=b"document"),
        Ended(number=1),
    ]
    guest.send(number, b"thanks")
    guest.end(number)
    guest.close(number, Ending.IN_ORDER)
    assert pass_on(guest, host) == [Received(number=1, payload=b"thanks"), Ended(number=1)]
    host.close(number, Ending.IN_ORDER)
    assert pass_on(host, guest) == []
    for trunk in (host, guest):
        with pytest.raises(KeyError):  # forgotten
            trunk.room(number)


def test_each_side_has_numbers_of_its_own_and_uses_none_twice() -> None:
    host, guest = Trunk("host"), Trunk("guest")
    assert [host.open("a"), guest.open("b"), host.open("c"), guest.open("d")] == [1, 2, 3, 4]
    pass_on(host, guest)
    host.close(1, Ending.BROKEN)
    pass_on(host, guest)
    pass_on(guest, host)
    assert host.open("e") == 5


def test_credit_is_spent_by_data_and_comes_back_when_the_local_end_took_it() -> None:
    host, guest = Trunk("host"), Trunk("guest")
    number = host.open("bulk")
    while room := host.room(number):
        host.send(number, bytes(room))
    with pytest.raises(ValueError, match="cannot be sent"):
        host.send(number, b"x")
    received = [len(each.payload) for each in pass_on(host, guest) if isinstance(each, Received)]
    assert sum(received) == WINDOW_BYTES
    assert max(received) == MAX_PAYLOAD_BYTES
    guest.grant(number, 10)
    assert said(guest) == b""  # too little to be worth a frame
    guest.grant(number, WINDOW_BYTES - 10)
    assert pass_on(guest, host) == [Credited(number=number)]
    assert host.room(number) == MAX_PAYLOAD_BYTES
    host.send(number, b"x")
    host.end(number)
    pass_on(host, guest)
    guest.grant(number, WINDOW_BYTES)
    assert said(guest) == b""  # nobody has a use for it any more


def test_an_abort_is_answered_and_what_was_on_its_way_is_dropped() -> None:
    host, guest = Trunk("host"), Trunk("guest")
    number = host.open("tcp:1")
    pass_on(host, guest)
    guest.send(number, b"on its way")
    guest.end(number)
    host.close(number, Ending.BROKEN)
    assert pass_on(guest, host) == []
    assert pass_on(host, guest) == [Aborted(number=number, ending=Ending.BROKEN)]
    assert said(guest) == frame(CLOSE, number, b"\0")


def test_aborts_that_cross_are_one() -> None:
    host, guest = Trunk("host"), Trunk("guest")
    number = host.open("tcp:1")
    pass_on(host, guest)
    host.close(number, Ending.BROKEN)
    guest.close(number, Ending.REFUSED)
    from_host = said(host)
    assert pass_on(guest, host) == []
    assert list(guest.receive(from_host)) == []
    assert said(host) == said(guest) == b""


def test_an_abort_of_a_stream_that_the_peer_has_closed_in_order_is_no_error() -> None:
    host, guest = Trunk("host"), Trunk("guest")
    number = host.open("tcp:1")
    host.end(number)
    pass_on(host, guest)
    guest.end(number)
    guest.close(number, Ending.IN_ORDER)
    pass_on(guest, host)
    host.close(number, Ending.BROKEN)
    assert pass_on(host, guest) == []


def test_a_ping_is_answered_with_its_own_number() -> None:
    host, guest = Trunk("host"), Trunk("guest")
    pings = [host.ping(), host.ping()]
    assert pass_on(host, guest) == []
    assert pass_on(guest, host) == [Ponged(ping=ping) for ping in pings]


def test_no_more_streams_are_opened_than_the_peer_takes() -> None:
    host, guest = Trunk("host"), Trunk("guest")
    for _ in range(MAX_STREAMS):
        host.open("tcp:1")
    assert not host.may_open
    with pytest.raises(ValueError, match="opened now"):
        host.open("tcp:1")
    assert len(pass_on(host, guest)) == MAX_STREAMS
    host.close(1, Ending.BROKEN)
    assert not host.may_open, "the peer has not let go of it yet"
    pass_on(host, guest)
    pass_on(guest, host)
    host.open("tcp:1")
    assert pass_on(host, guest) == [Opened(number=2 * MAX_STREAMS + 1, kind="tcp:1")]


@pytest.mark.parametrize("kind", ["", "x" * 65, "two words", "größe", "line\n"])
def test_a_kind_that_the_peer_would_not_take_is_not_sent(kind: str) -> None:
    with pytest.raises(ValueError, match="opened now"):
        Trunk("host").open(kind)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(frame(0, 1), "a frame of type 0", id="no type"),
        pytest.param(frame(8, 1), "a frame of type 8", id="unknown type"),
        pytest.param(struct.pack(">BII", DATA, 1, MAX_PAYLOAD_BYTES + 1), "32760 bytes", id="too long"),
        pytest.param(struct.pack(">BII", DATA, 1, 0xFFFFFFFF), "4294967295 bytes", id="huge"),
        pytest.param(frame(DATA, 1), "of type 2 and 0 bytes", id="data without bytes"),
        pytest.param(frame(WINDOW, 1, b"\0\0\x01"), "of type 3 and 3 bytes", id="short credit"),
        pytest.param(frame(END, 1, b"x"), "of type 4 and 1 bytes", id="end with a payload"),
        pytest.param(frame(OPEN, 3, b"x" * 65), "of type 1 and 65 bytes", id="long kind"),
        pytest.param(frame(OPEN, 3), "of type 1 and 0 bytes", id="no kind"),
        pytest.param(frame(OPEN, 3, b"\xc3\xa4"), "not printable ASCII", id="kind not ASCII"),
        pytest.param(frame(OPEN, 3, b"a b"), "not printable ASCII", id="kind with a space"),
        pytest.param(frame(OPEN, 2, b"x"), "out of turn", id="the other side's number"),
        pytest.param(frame(OPEN, 1, b"x"), "out of turn", id="number used again"),
        pytest.param(frame(OPEN, 5, b"x"), "out of turn", id="number left out"),
        pytest.param(frame(OPEN, 0, b"x"), "on stream 0", id="stream 0"),
        pytest.param(frame(PING, 1, bytes(8)), "on stream 1", id="ping on a stream"),
        pytest.param(frame(PONG, 0, bytes(7) + b"\x01"), "a ping that was not sent", id="pong unasked"),
        pytest.param(frame(DATA, 3, b"x"), "not open", id="stream not open"),
        pytest.param(frame(DATA, 2, b"x"), "not open", id="stream that this side has not opened"),
        pytest.param(frame(END, 1) + frame(DATA, 1, b"x"), "goes on after its end", id="data after end"),
        pytest.param(frame(END, 1) * 2, "goes on after its end", id="end twice"),
        pytest.param(frame(CLOSE, 1, b"\x09"), "unknown way", id="unknown ending"),
        pytest.param(frame(CLOSE, 1, b"\0"), "before its end", id="closed in order before the end"),
        pytest.param(frame(END, 1) + frame(CLOSE, 1, b"\0"), "before its end", id="closed before our end"),
        pytest.param(frame(CLOSE, 1, b"\x03") + frame(DATA, 1, b"x"), "not open", id="data after close"),
        pytest.param(frame(WINDOW, 1, b"\0\0\0\x01"), "credit for what was not sent", id="credit for nothing"),
        pytest.param(frame(WINDOW, 1, b"\0\0\0\0"), "credit for what was not sent", id="no credit"),
        pytest.param(frame(DATA, 1, bytes(MAX_PAYLOAD_BYTES)) * 9, "more data than it has credit for", id="overrun"),
    ],
)
def test_what_the_protocol_does_not_allow_breaks_it(data: bytes, message: str) -> None:
    with pytest.raises(ControlProtocolError, match=message):
        list(opened_by_peer().receive(data))


def test_a_header_is_refused_before_its_payload_is_there() -> None:
    with pytest.raises(ControlProtocolError):
        list(Trunk("guest").receive(frame(OPEN, 1, bytes(100))[:9]))


def test_a_peer_that_opens_too_many_streams_breaks_the_protocol() -> None:
    trunk = Trunk("guest")
    list(trunk.receive(b"".join(frame(OPEN, number, b"x") for number in range(1, 2 * MAX_STREAMS, 2))))
    with pytest.raises(ControlProtocolError, match="more than 1024"):
        list(trunk.receive(frame(OPEN, 2 * MAX_STREAMS + 1, b"x")))


def test_credit_binds_on_a_stream_that_this_side_aborted_too() -> None:
    trunk = opened_by_peer()
    trunk.close(1, Ending.REFUSED)
    with pytest.raises(ControlProtocolError, match="credit"):
        list(trunk.receive(frame(DATA, 1, bytes(MAX_PAYLOAD_BYTES)) * 9))


@pytest.mark.parametrize("flood", ["pings", "streams"])
def test_a_peer_that_asks_and_never_reads_is_cut_off(flood: str) -> None:
    trunk = Trunk("guest")
    pings = frame(PING, 0, bytes(8)) * 100_000
    streams = b"".join(frame(OPEN, each, b"x") + frame(CLOSE, each, b"\x03") for each in range(1, 300_000, 2))
    with pytest.raises(ControlProtocolError, match="does not read"):
        list(trunk.receive(pings if flood == "pings" else streams))
    assert len(trunk.outgoing) < MAX_OUTGOING_BYTES + 100


def test_a_stream_is_not_closed_in_order_before_both_ends() -> None:
    trunk = opened_by_peer()
    trunk.end(1)
    with pytest.raises(ValueError, match="not ended on both sides"):
        trunk.close(1, Ending.IN_ORDER)
    with pytest.raises(ValueError, match="cannot be sent"):
        trunk.send(1, b"x")
