"""Where clients on the host reach a guest: real listeners, and a forward that remembers what it was given."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from adyton.errors import ConfigurationError, ControlProtocolError, LaunchError
from adyton.host.launch.qemu.ports import HostPorts


class Trunk:
    """Takes listeners as the trunk does, which closes them itself."""

    def __init__(self) -> None:
        self.given: list[tuple[socket.socket, int]] = []

    def forward(self, listener: socket.socket, port: int) -> None:
        self.given.append((listener, port))

    def close(self) -> None:
        for listener, _ in self.given:
            listener.close()


@contextmanager
def opened(address: str = "127.0.0.1") -> Iterator[tuple[HostPorts, Trunk]]:
    with contextlib.closing(HostPorts(address)) as ports, contextlib.closing(Trunk()) as trunk:
        yield ports, trunk


def connects(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 5).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.fixture
def free() -> int:
    """A port that was free just now, on every address."""
    with socket.create_server(("", 0)) as chosen:
        port: int = chosen.getsockname()[1]
    return port


def test_a_reserved_port_is_held_before_there_is_a_guest(free: int) -> None:
    with opened() as (ports, trunk):
        ports.reserve(free)
        with pytest.raises(LaunchError, match=f"port {free} of 127.0.0.1 can't be used: Address already in use"):
            HostPorts("127.0.0.1").reserve(free)
        assert trunk.given == []
        ports.start(trunk.forward)
        assert [port for _, port in trunk.given] == [free]
        assert ports.address_of(free) == f"127.0.0.1:{free}"
        assert len(trunk.given) == 1


def test_a_port_that_the_guest_chose_is_the_same_on_the_host_if_it_is_free(free: int) -> None:
    with opened() as (ports, trunk):
        ports.start(trunk.forward)
        assert ports.address_of(free) == f"127.0.0.1:{free}"
        assert connects("127.0.0.1", free)


def test_else_it_is_another_and_stays_it(free: int) -> None:
    with socket.create_server(("127.0.0.1", free)), opened() as (ports, trunk):
        ports.start(trunk.forward)
        shown = ports.address_of(free)
        assert shown != f"127.0.0.1:{free}"
        assert ports.address_of(free) == shown
        assert [port for _, port in trunk.given] == [free]


def test_a_port_asked_for_before_the_guest_listens_is_forwarded_when_it_does(free: int) -> None:
    with opened() as (ports, trunk):
        ports.address_of(free)
        assert trunk.given == []
        ports.start(trunk.forward)
        assert [port for _, port in trunk.given] == [free]


def test_localhost_is_every_loopback_address_with_one_number() -> None:
    with opened("localhost") as (ports, trunk):
        ports.start(trunk.forward)
        host, _, number = ports.address_of(1).rpartition(":")
        assert host == "localhost"
        assert {listener.getsockname()[1] for listener, _ in trunk.given} == {int(number)}
        for listener, _ in trunk.given:
            assert connects(listener.getsockname()[0], int(number))


@pytest.mark.parametrize(("address", "shown"), [("0.0.0.0", "localhost"), ("::", "localhost"), ("::1", "[::1]")])
def test_an_address_is_shown_as_a_client_writes_it(address: str, shown: str) -> None:
    with opened(address) as (ports, trunk):
        ports.start(trunk.forward)
        try:
            target = ports.address_of(1)
        except LaunchError as problem:
            pytest.skip(f"this machine has no IPv6: {problem}")
        assert target.startswith(f"{shown}:")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("192.0.2.1", r"port 0 of 192\.0\.2\.1 can't be used: Cannot assign requested address"),
        ("no.such.host.invalid", "'no.such.host.invalid' is no address of this machine"),
        ("a" * 300 + ".invalid", "'a{200}' is no address of this machine"),
        ("\u0130" * 70, "is no address of this machine"),
        ("a\0b", "is no address of this machine"),
    ],
    ids=["another's", "a name of nobody", "too long", "not IDNA", "a NUL"],
)
def test_what_is_not_an_address_of_this_machine_is_refused(address: str, message: str) -> None:
    with opened(address) as (ports, _), pytest.raises(LaunchError, match=message):
        ports.reserve(0)


def test_without_a_guest_closing_gives_the_port_back(free: int) -> None:
    ports = HostPorts("127.0.0.1")
    ports.reserve(free)
    assert connects("127.0.0.1", free)
    ports.close()
    ports.close()
    assert not connects("127.0.0.1", free)


@pytest.mark.parametrize("port", [0, -5, 65536, 70000])
def test_what_is_no_port_is_the_enclaves_fault(port: int) -> None:
    with pytest.raises(ControlProtocolError, match=f"port {port}, which is none"):
        HostPorts("localhost").address_of(port)


def test_an_enclave_does_not_choose_a_port_that_means_something_on_the_host() -> None:
    ports = HostPorts("localhost")
    try:
        assert ports.address_of(3306) != "localhost:3306"
    finally:
        ports.close()


@pytest.mark.parametrize("port", [-1, 65536, 70000])
def test_what_is_no_port_can_not_be_reserved(port: int) -> None:
    with pytest.raises(ConfigurationError, match=f"port {port} is none"):
        HostPorts("localhost").reserve(port)
