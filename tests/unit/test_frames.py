"""Frames of the control protocol, over real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.errors import ControlProtocolError
from adyton.proto.frames import MAX_FRAME_BYTES, encode_frame, read_frame

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    one, other = socket.socketpair()
    with one, other:
        for each in (one, other):
            each.settimeout(10)
        yield one, other


def send_all(pair: Pair, data: bytes) -> socket.socket:
    """Send and close one end; the other end, to read from."""
    one, other = pair
    one.sendall(data)
    one.close()
    return other


def test_a_frame_is_its_length_and_its_payload() -> None:
    assert encode_frame(b"abc") == b"\0\0\0\x03abc"
    assert encode_frame(b"") == b"\0\0\0\0"
    assert encode_frame(bytes(258))[:4] == b"\0\0\x01\x02"


def test_what_is_sent_is_read_in_order(pair: Pair) -> None:
    payloads = [b"one", b"", b"\0\0\0\x05three"]
    stream = send_all(pair, b"".join(map(encode_frame, payloads)))
    assert [read_frame(stream) for _ in payloads] == payloads


def test_a_stream_that_ends_between_two_frames_gives_none(pair: Pair) -> None:
    stream = send_all(pair, encode_frame(b"x"))
    assert read_frame(stream) == b"x"
    assert read_frame(stream) is None
    assert read_frame(stream) is None


@pytest.mark.parametrize("kept", [1, 2, 3, 4, 5, 8])
def test_a_frame_that_is_cut_off_is_an_error(pair: Pair, kept: int) -> None:
    stream = send_all(pair, encode_frame(b"hello")[:kept])
    with pytest.raises(ControlProtocolError, match="the stream ended within a frame"):
        read_frame(stream)


def test_the_longest_frame_comes_through(pair: Pair) -> None:
    payload = bytes(range(256)) * (MAX_FRAME_BYTES // 256)
    sender = threading.Thread(target=send_all, args=(pair, encode_frame(payload)))
    sender.start()
    assert read_frame(pair[1]) == payload
    sender.join()


def test_a_frame_that_is_too_long_is_not_sent() -> None:
    with pytest.raises(ControlProtocolError, match="a message of 4194305 bytes; the control protocol takes 4194304"):
        encode_frame(bytes(MAX_FRAME_BYTES + 1))


@pytest.mark.parametrize("length", [MAX_FRAME_BYTES + 1, 0xFFFFFFFF, int.from_bytes(b"HTTP", "big")])
def test_a_frame_that_is_too_long_is_refused_before_it_is_read(pair: Pair, length: int) -> None:
    pair[0].sendall(length.to_bytes(4, "big"))  # and nothing more: a reader that waited for it would time out
    with pytest.raises(ControlProtocolError, match=f"a frame of {length} bytes; the control protocol takes 4194304"):
        read_frame(pair[1])


def test_a_frame_is_put_together_from_the_smallest_pieces(pair: Pair) -> None:
    def dribble() -> None:
        for byte in encode_frame(b"slowly"):
            pair[0].sendall(bytes([byte]))

    sender = threading.Thread(target=dribble)
    sender.start()
    assert read_frame(pair[1]) == b"slowly"
    sender.join()


def test_no_byte_of_the_next_frame_is_taken(pair: Pair) -> None:
    stream = send_all(pair, encode_frame(b"x") + b"rest")
    assert read_frame(stream) == b"x"
    assert stream.recv(10) == b"rest"


def test_a_broken_stream_is_an_os_error(pair: Pair) -> None:
    pair[1].close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        read_frame(pair[1])


@given(st.lists(st.binary(max_size=20)), st.binary(max_size=40))
def test_whatever_is_sent_there_are_only_frames_and_protocol_errors(payloads: list[bytes], rest: bytes) -> None:
    one, other = socket.socketpair()
    with one, other:
        one.sendall(b"".join(map(encode_frame, payloads)) + rest)
        one.close()
        assert [read_frame(other) for _ in payloads] == payloads
        try:
            while read_frame(other) is not None:
                pass
        except ControlProtocolError:
            assert rest
