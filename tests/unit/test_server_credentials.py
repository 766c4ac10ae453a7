"""Whom each port of an enclave takes, and when its certificates are swapped."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from concurrent import futures
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from adyton.atls.certificates import (
    DEFAULT_AUDIENCE,
    Issued,
    issue_open_client,
    key_pem,
    make_ca,
    pem,
    sign_leaf,
    spki_sha256,
    validity,
)
from adyton.atls.dial import Target, find
from adyton.atls.identity import Identity, LocalIdentity
from adyton.atls.server_credentials import (
    MIN_SWAP_SECONDS,
    _Fetcher,
    attested_port,
    mesh_port,
    plain_tls_port,
)
from adyton.testing.forgery import NOW

PORTS = {"attested": attested_port, "mesh": mesh_port, "plain": plain_tls_port}


class Renewing:
    """An identity that is another when it is told to be. It counts who asks."""

    def __init__(self) -> None:
        self.asked = 0
        self._now = NOW
        self._local = LocalIdentity(names=(DEFAULT_AUDIENCE,), claims=b"", clock=lambda: self._now)

    def renew(self) -> None:
        self._now += timedelta(hours=12)

    def current(self) -> Identity:
        self.asked += 1
        return self._local.current()


class Seconds:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Seconds:
    clock = Seconds()
    monkeypatch.setattr("adyton.atls.server_credentials.time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def test_certificates_that_have_not_changed_are_never_given_again(seconds: Seconds) -> None:
    fetch = _Fetcher(Renewing(), None)
    for _ in range(1000):
        seconds.now += 3600
        assert fetch() is None


def test_changed_certificates_are_given_once(seconds: Seconds) -> None:
    source = Renewing()
    fetch = _Fetcher(source, None)
    source.renew()
    seconds.now += MIN_SWAP_SECONDS
    assert isinstance(fetch(), grpc.ServerCertificateConfiguration)
    for _ in range(10):
        seconds.now += MIN_SWAP_SECONDS
        assert fetch() is None


def test_no_two_swaps_are_less_than_a_second_apart(seconds: Seconds) -> None:
    source = Renewing()
    fetch = _Fetcher(source, None)
    swaps = []
    for _ in range(1000):
        seconds.now += 0.01
        source.renew()
        if fetch() is not None:
            swaps.append(seconds.now)
    assert MIN_SWAP_SECONDS == 1.0
    assert 9 <= len(swaps) <= 10
    assert all(later - earlier >= MIN_SWAP_SECONDS for earlier, later in itertools.pairwise(swaps))
    assert swaps[0] >= 1000.0 + MIN_SWAP_SECONDS  # the first certificates count as a swap


def test_within_the_second_nobody_is_asked(seconds: Seconds) -> None:
    source = Renewing()
    fetch = _Fetcher(source, None)
    asked = source.asked
    for _ in range(100):
        assert fetch() is None
    assert source.asked == asked


# --- whom a port takes, in real handshakes


@contextlib.contextmanager
def listening(credentials: grpc.ServerCredentials) -> Iterator[int]:
    """A server that answers with the key that TLS says its client has."""

    def answer(_request: bytes, context: Any) -> bytes:
        shown = context.auth_context().get("x509_pem_cert")
        if shown is None:
            return b"none"
        key = x509.load_pem_x509_certificate(shown[0]).public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return spki_sha256(key)

    handler: Any = grpc.unary_unary_rpc_method_handler(answer)
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", {"M": handler}),))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()


def answer_of(port: int, root: x509.Certificate, client: Issued | None) -> bytes | None:
    """What a client with that certificate hears, or None if it is not let in."""
    pair = (key_pem(client.key), pem(client.certificate)) if client else (None, None)
    options = [("grpc.ssl_target_name_override", DEFAULT_AUDIENCE), ("grpc.use_local_subchannel_pool", 1)]
    credentials = grpc.ssl_channel_credentials(pem(root), *pair)
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        call: Any = channel.unary_unary("/s/M")
        try:
            answer: bytes = call(b"", timeout=10)
        except grpc.RpcError as problem:
            failed: Any = problem
            assert failed.code() is grpc.StatusCode.UNAVAILABLE
            return None
    return answer


def client_of(ca: Issued) -> Issued:
    """What an enrolled caller has."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    made = sign_leaf(
        ca,
        key.public_key(),
        subject="a caller",
        names=[x509.DNSName("client.example")],
        usage=ExtendedKeyUsageOID.CLIENT_AUTH,
        validity=validity(ca, now, timedelta(hours=1)),
    )
    return Issued(key=key, certificate=made, issuer=ca)


def open_client() -> Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    return Issued(key=key, certificate=issue_open_client(key))


CLIENTS: dict[str, Callable[[Identity], Issued | None]] = {
    "nothing": lambda _identity: None,
    "a certificate of the open client CA": lambda _identity: open_client(),
    "a certificate of the enclave's CA": lambda identity: client_of(identity.ca),
    "a certificate of another CA": lambda _identity: client_of(make_ca(datetime.now(UTC))),
    "a certificate that the enclave's leaf has issued": lambda identity: client_of(identity.leaf),
    "the certificate of an enclave's server": lambda identity: identity.leaf,
}
TAKEN = {
    "attested": {"a certificate of the open client CA"},
    "mesh": {"a certificate of the enclave's CA"},
    "plain": set(CLIENTS),
}


@pytest.mark.parametrize("shows", CLIENTS)
@pytest.mark.parametrize("port", PORTS)
def test_a_port_takes_clients_under_its_one_root(port: str, shows: str) -> None:
    source = LocalIdentity(names=(DEFAULT_AUDIENCE,), claims=b"")
    client = CLIENTS[shows](source.current())
    with listening(PORTS[port](source)) as number:
        heard = answer_of(number, source.current().leaf.certificate, client)
    if shows not in TAKEN[port]:
        assert heard is None
    elif port == "plain" or client is None:
        assert heard == b"none"  # it asks for no certificate, so it gets none
    else:
        assert heard == client.spki_sha256


@pytest.mark.parametrize("port", PORTS)
def test_a_client_may_know_the_leaf_or_only_the_ca(port: str) -> None:
    source = LocalIdentity(names=(DEFAULT_AUDIENCE,), claims=b"")
    identity = source.current()
    client = client_of(identity.ca) if port == "mesh" else open_client()
    with listening(PORTS[port](source)) as number:
        for root in (identity.leaf.certificate, identity.ca.certificate):
            assert answer_of(number, root, client) is not None
        assert answer_of(number, make_ca(datetime.now(UTC)).certificate, client) is None


def test_new_connections_get_new_certificates_and_old_ones_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adyton.atls.server_credentials.MIN_SWAP_SECONDS", 0.0)
    source = Renewing()
    options = [("grpc.ssl_target_name_override", DEFAULT_AUDIENCE), ("grpc.use_local_subchannel_pool", 1)]
    with listening(plain_tls_port(source)) as port:
        target = Target.parse(f"127.0.0.1:{port}")
        first = source.current()
        assert find(target, DEFAULT_AUDIENCE, 10)[1] == first.leaf.der
        credentials = grpc.ssl_channel_credentials(pem(first.leaf.certificate))
        with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
            call: Any = channel.unary_unary("/s/M")
            assert call(b"", timeout=10) == b"none"
            source.renew()
            assert find(target, DEFAULT_AUDIENCE, 10)[1] == source.current().leaf.der != first.leaf.der
            assert call(b"", timeout=10) == b"none"


def test_where_no_identity_can_be_had_the_last_one_is_shown(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("adyton.atls.server_credentials.MIN_SWAP_SECONDS", 0.0)

    class Failing(Renewing):
        def current(self) -> Identity:
            if self.asked:
                raise OSError("the enclave's first process is gone")
            return super().current()

    with listening(plain_tls_port(Failing())) as port:
        assert find(Target.parse(f"127.0.0.1:{port}"), DEFAULT_AUDIENCE, 10)[1]
    capfd.readouterr()  # gRPC prints the traceback
