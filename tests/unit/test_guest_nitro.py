"""The heartbeat of a Nitro enclave, against a parent behind a real socket of another family."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from adyton.enclave.guest.nitro import HEARTBEAT, exchange


@contextmanager
def _parent(answer: Callable[[socket.socket], None]) -> Iterator[tuple[str, int]]:
    """A parent that takes one connection and answers it; the address to reach it at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            thread.join()


def _answering(answer: bytes) -> Callable[[socket.socket], None]:
    """A parent that hears the byte and says this."""

    def hear_and_say(connection: socket.socket) -> None:
        connection.recv(1)
        connection.sendall(answer)

    return hear_and_say


def _beat(address: tuple[str, int], *, seconds: float = 20) -> None:
    with socket.socket() as connection:
        exchange(connection, address, seconds=seconds)


def test_a_parent_gets_the_byte_that_aws_chose_and_gives_it_back() -> None:
    heard: list[bytes] = []

    def echo(connection: socket.socket) -> None:
        heard.append(connection.recv(16))
        connection.sendall(heard[0])

    with _parent(echo) as address:
        _beat(address)
    assert heard == [b"\xb7"]


def test_another_byte_is_no_answer() -> None:
    with _parent(_answering(b"\xb8")) as address, pytest.raises(ConnectionError, match="b8"):
        _beat(address)


def test_a_parent_that_hangs_up_has_not_answered() -> None:
    with _parent(_answering(b"")) as address, pytest.raises(ConnectionError, match="nothing"):
        _beat(address)


def test_a_parent_that_says_nothing_is_not_waited_for_without_end() -> None:
    def listen(connection: socket.socket) -> None:
        while connection.recv(1):
            pass

    with _parent(listen) as address, pytest.raises(TimeoutError):
        _beat(address, seconds=0.2)


def test_no_parent_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    with pytest.raises(ConnectionRefusedError):
        _beat(address)


def test_the_first_byte_of_the_answer_is_the_answer() -> None:
    with _parent(_answering(HEARTBEAT + b"more")) as address:
        _beat(address)
