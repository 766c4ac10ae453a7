"""What the guest's first process asks of the kernel, as far as the host's own can be asked it too."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from adyton.enclave.guest import machine
from adyton.enclave.guest.machine import connect_inside

_UNSHARED = ("unshare", "--user", "--map-root-user", "--net")


def why_no_network_of_ones_own() -> str:
    try:
        done = subprocess.run([*_UNSHARED, "true"], capture_output=True, text=True, check=False, timeout=20)
    except OSError as problem:
        return str(problem)
    return done.stderr.strip()


def listening(address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, 0), family=family)
    except OSError as problem:
        pytest.skip(f"this machine has no {address}: {problem}")


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_what_listens_inside_is_reached_whatever_its_address(address: str) -> None:
    with listening(address) as server:
        server.settimeout(10)
        connection = connect_inside(str(server.getsockname()[1]))
        assert connection is not None
        with connection:
            accepted, _ = server.accept()
            with accepted:
                connection.setblocking(True)
                connection.sendall(b"hello")
                assert accepted.recv(5) == b"hello"


def test_where_nothing_listens_there_is_no_connection() -> None:
    with listening("127.0.0.1") as server:
        port = server.getsockname()[1]
    assert connect_inside(str(port)) is None


def test_a_listener_whose_queue_is_full_is_waited_for_outside() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        made = [connect_inside(str(server.getsockname()[1])) for _ in range(4)]
        assert None not in made
        for each in made:
            assert each is not None
            assert each.getblocking() is False
            each.close()


@pytest.mark.parametrize("port", ["", "0", "-1", "65536", "123456", "http", "1.5", " 80", "80\n", "\u00b2"])
def test_what_is_no_port_is_refused(port: str) -> None:
    assert connect_inside(port) is None


def test_modules_are_loaded_after_what_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MODULES", tmp_path)
    assert machine._module_order() == {}
    (tmp_path / "order").write_text("failover:\nnet_failover: failover\nvirtio_net: failover net_failover\n")
    assert machine._module_order() == {
        "failover": ("failover",),
        "net_failover": ("failover", "net_failover"),
        "virtio_net": ("failover", "net_failover", "virtio_net"),
    }


@pytest.mark.skipif(bool(why_no_network_of_ones_own()), reason=why_no_network_of_ones_own())
def test_loopback_is_brought_up() -> None:
    code = """
import socket
from adyton.enclave.guest.machine import bring_up_loopback
def works():
    with socket.create_server(("127.0.0.1", 0)) as server:
        try:
            socket.create_connection(server.getsockname(), 2).close()
        except OSError:
            return False
        return True
before = works()
bring_up_loopback()
print(before, works())
"""
    command = [*_UNSHARED, sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout == "False True\n"


def test_it_needs_nothing_but_the_standard_library() -> None:
    code = "import sys; from adyton.enclave.guest import pid1; print(*{each.partition('.')[0] for each in sys.modules})"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    foreign = {each for each in done.stdout.split() if each not in sys.stdlib_module_names}
    assert not foreign & {"grpc", "google", "cryptography", "cryptography_rust", "cffi"}
    assert {each for each in foreign if not each.startswith(("_", "sitecustomize"))} <= {"adyton"}
