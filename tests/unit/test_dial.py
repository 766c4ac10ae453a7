"""What a target may look like, and what is said of whoever answers there."""

from __future__ import annotations

import contextlib
import gc
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from observing import eventually

from adyton.atls import dial
from adyton.atls.certificates import DEFAULT_AUDIENCE, key_pem, pem
from adyton.atls.dial import Address, Target, find
from adyton.atls.identity import LocalIdentity
from adyton.atls.server_credentials import attested_port
from adyton.errors import AdytonError, ConfigurationError, DeadlineError, EvidenceError, UnreachableError

LOOPBACK = "127.0.0.1"
IDENTITY = LocalIdentity(names=(DEFAULT_AUDIENCE,), claims=b"")

# --- what a target may look like


@pytest.mark.parametrize(
    ("text", "host", "port", "path"),
    [
        ("localhost:1", "localhost", 1, ""),
        ("a-b_c.example.:65535", "a-b_c.example.", 65535, ""),
        ("192.0.2.7:443", "192.0.2.7", 443, ""),
        ("[2001:db8::7]:443", "2001:db8::7", 443, ""),
        ("[2001:0db8:0:0:0:0:0:7]:0443", "2001:db8::7", 443, ""),
        ("[fe80::1%eth0]:443", "fe80::1%eth0", 443, ""),
        ("unix:/run/a socket", "", 0, "/run/a socket"),
        ("unix:///run/a", "", 0, "/run/a"),
        ("unix:relative:8", "", 0, "relative:8"),
    ],
)
def test_a_target_is_a_host_and_a_port_or_a_path(text: str, host: str, port: int, path: str) -> None:
    target = Target.parse(text)
    assert (target.text, target.host, target.port, target.path) == (text, host, port, path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":443",
        "localhost",
        "localhost:",
        "localhost:0",
        "localhost:65536",
        "localhost:+1",
        "localhost:1 ",
        "localhost:٣",
        "localhost:123456",
        "-a:1",
        "a-:1",
        "a b:1",
        "a/b:1",
        "a%:1",
        "dns:///a:1",
        "ipv4:192.0.2.7:1",
        "user@host:1",
        "unix:",
        "x" * 5000,
    ],
)
def test_anything_else_is_refused_with_the_forms_there_are(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"is not HOST:PORT, \[IPV6\]:PORT or unix:PATH") as caught:
        Target.parse(text)
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("text", "family", "uri"),
    [
        ("192.0.2.7:443", socket.AF_INET, "ipv4:192.0.2.7:443"),
        ("[2001:db8::7]:443", socket.AF_INET6, "ipv6:[2001:db8::7]:443"),
        ("unix:/run/a b", socket.AF_UNIX, "unix:/run/a%20b"),
    ],
)
def test_an_address_has_one_form_for_sockets_and_one_for_grpc(text: str, family: int, uri: str) -> None:
    (address,) = Target.parse(text).resolve()
    assert (address.family, address.uri) == (family, uri)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 64 + ".example", "a..b"])
def test_a_name_without_an_address_is_unreachable(host: str) -> None:
    with pytest.raises(UnreachableError, match=rf"^{host}:443: ."):
        Target.parse(f"{host}:443").resolve()


# --- who answers


@dataclass(frozen=True)
class Answering:
    """A listener whose connections are answered by `answer`, and how many there were."""

    target: Target
    connections: list[int]


@contextlib.contextmanager
def answering(answer: Callable[[socket.socket], object], family: int = socket.AF_INET) -> Iterator[Answering]:
    with socket.create_server((LOOPBACK, 0), family=family) as listener:
        connections: list[int] = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    connections.append(1)
                    with connection, contextlib.suppress(OSError):
                        answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield Answering(Target.parse(f"{LOOPBACK}:{listener.getsockname()[1]}"), connections)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


@pytest.fixture
def context(tmp_path: Path) -> ssl.SSLContext:
    """A server's, with the certificate of an enclave."""
    leaf = IDENTITY.current().leaf
    (tmp_path / "server.pem").write_bytes(key_pem(leaf.key) + pem(leaf.certificate))
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(tmp_path / "server.pem")
    return made


def over_tls(context: ssl.SSLContext) -> Callable[[socket.socket], object]:
    def answer(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            secured.recv(1)

    return answer


def probe(target: Target, timeout_seconds: float = 10) -> bytes:
    return find(target, DEFAULT_AUDIENCE, timeout_seconds)[1]


def test_a_probe_learns_the_certificate_and_tells_the_name_and_http_2(context: ssl.SSLContext) -> None:
    seen: list[str | None] = []
    context.set_alpn_protocols(["h2"])
    context.set_servername_callback(lambda _secured, name, _context: seen.append(name))

    def answer(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            seen.extend([secured.version(), secured.selected_alpn_protocol()])

    with answering(answer) as there:
        address, certificate = find(there.target, DEFAULT_AUDIENCE, 10)
    assert certificate == IDENTITY.current().leaf.der
    assert address.uri == f"ipv4:{there.target.text}"
    assert seen == [DEFAULT_AUDIENCE, "TLSv1.3", "h2"]


@pytest.mark.parametrize("where", ["port", "unix"])
def test_a_probe_needs_no_client_certificate_to_see_an_enclaves_own(where: str, tmp_path: Path) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    target = f"unix:{tmp_path}/socket" if where == "unix" else f"{LOOPBACK}:0"
    port = server.add_secure_port(target, attested_port(IDENTITY))
    server.start()
    assert probe(Target.parse(target.replace(":0", f":{port}"))) == IDENTITY.current().leaf.der
    server.stop(0).wait()


def test_a_probe_does_not_verify_what_it_sees(context: ssl.SSLContext) -> None:
    with answering(over_tls(context)) as there:
        assert find(there.target, "another.name", 10)[1] == IDENTITY.current().leaf.der


def test_keys_are_not_written_where_the_environment_says(
    context: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    with answering(over_tls(context)) as there:
        assert probe(there.target)
    assert not (tmp_path / "keys").exists()


def test_a_server_of_tls_1_2_is_refused(context: ssl.SSLContext) -> None:
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with answering(over_tls(context)) as there, pytest.raises(EvidenceError, match=r"does not speak TLS 1\.3: \S"):
        probe(there.target)


def test_a_server_of_plaintext_is_refused() -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(64))
        connection.recv(4096)

    with answering(answer) as there, pytest.raises(EvidenceError, match=r"does not speak TLS 1\.3: \S"):
        probe(there.target)


def test_a_server_that_shows_no_certificate_is_refused() -> None:
    # With TLS 1.3 there is none without one, so it fails as any handshake does.
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with answering(over_tls(bare)) as there, pytest.raises(EvidenceError, match=r"does not speak TLS 1\.3: \S"):
        probe(there.target)


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x03"], ids=["at once", "within a record"])
def test_a_server_that_hangs_up_is_an_error_of_ours(said: bytes) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(said)

    with answering(answer) as there, pytest.raises((EvidenceError, UnreachableError)) as caught:
        probe(there.target)
    assert caught.value.message.startswith(f"ipv4:{there.target.text}")


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x03\x40\x00"], ids=["nothing", "the beginning of a record"])
def test_a_server_that_falls_silent_costs_the_timeout_and_no_more(said: bytes) -> None:
    ended = threading.Event()

    def answer(connection: socket.socket) -> None:
        connection.sendall(said)
        ended.wait(10)

    with answering(answer) as there:
        begun = time.monotonic()
        with pytest.raises(DeadlineError, match=r"no answer in 0\.\d+ s"):
            probe(there.target, 0.3)
        assert 0.2 < time.monotonic() - begun < 2
        ended.set()


def closed_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def test_a_closed_port_is_unreachable() -> None:
    with pytest.raises(UnreachableError, match=r"^ipv4:127\.0\.0\.1:\d+: Connection refused"):
        probe(Target.parse(f"{LOOPBACK}:{closed_port()}"))


@pytest.mark.parametrize("name", ["missing", "x" * 200])
def test_a_socket_file_that_is_not_there_is_unreachable(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match=r": \S"):
        probe(Target.parse(f"unix:{tmp_path / name}"))


# --- several addresses


def with_addresses(monkeypatch: pytest.MonkeyPatch, *targets: Target) -> Target:
    """A name that has the addresses of these targets, in this order."""
    name = Target.parse("several.example:443")
    resolve, known = Target.resolve, [address for each in targets for address in each.resolve()]

    def resolved(target: Target) -> list[Address]:
        return known if target == name else resolve(target)

    monkeypatch.setattr(dial.Target, "resolve", resolved)
    return name


def test_an_address_that_refuses_the_connection_is_passed_over(
    context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(over_tls(context)) as there:
        name = with_addresses(monkeypatch, Target.parse(f"{LOOPBACK}:{closed_port()}"), there.target)
        address, _ = find(name, DEFAULT_AUDIENCE, 10)
    assert address.uri == f"ipv4:{there.target.text}"


def test_the_first_that_answers_is_the_one_and_the_next_is_left_alone(
    context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(over_tls(context)) as first, answering(over_tls(context)) as second:
        find(with_addresses(monkeypatch, first.target, second.target), DEFAULT_AUDIENCE, 10)
    assert (len(first.connections), len(second.connections)) == (1, 0)


@pytest.mark.parametrize("silent", [True, False], ids=["silent", "no TLS"])
def test_one_that_answers_wrongly_or_not_at_all_is_not_passed_over(
    silent: bool, context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()

    def answer(connection: socket.socket) -> None:
        if silent:
            ended.wait(10)
        else:
            connection.sendall(b"no TLS at all")
            connection.recv(4096)

    with answering(answer) as first, answering(over_tls(context)) as second:
        name = with_addresses(monkeypatch, first.target, second.target)
        with pytest.raises(DeadlineError if silent else EvidenceError):
            find(name, DEFAULT_AUDIENCE, 0.5)
        ended.set()
    assert not second.connections


def test_if_all_refuse_it_is_the_last_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = [closed_port() for _ in range(2)]
    name = with_addresses(monkeypatch, *(Target.parse(f"{LOOPBACK}:{port}") for port in ports))
    with pytest.raises(UnreachableError, match=f":{ports[-1]}: Connection refused"):
        find(name, DEFAULT_AUDIENCE, 10)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_descriptor_stays_open_after_a_failure(context: ssl.SSLContext) -> None:
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with answering(over_tls(context)) as there:
        before = open_descriptors()
        for _ in range(5):
            with pytest.raises(AdytonError):
                probe(there.target)
        eventually(lambda: open_descriptors() <= before)


def test_no_socket_is_left_to_the_collector_by_a_peer_that_resets_at_once() -> None:
    def reset(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with answering(reset) as there:
        for _ in range(300):
            with pytest.raises(UnreachableError):
                probe(there.target)
    gc.collect()
