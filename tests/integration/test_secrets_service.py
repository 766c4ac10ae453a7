"""The service that takes owners' orders, in both kinds of server and without an enclave around it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from channel_parties import ECHO, KINDS, NAMES, VendorDevice, adding_echo
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from owners import LIST, ORDER, ROTATE_IDENTITY, SECRET, ask, put, refusal
from vaults import make_vault

from adyton.atls.attester import Attester
from adyton.atls.batch import BatchedQuotes, DeviceQuotes
from adyton.atls.binding import NODE_BYTES
from adyton.atls.certificates import issue_open_client, key_pem, pem, sign_leaf, spki_sha256, validity
from adyton.atls.identity import LocalIdentity
from adyton.atls.owner import sign_order
from adyton.bundle.access import AccessSettings, Word
from adyton.bundle.settings import ServerSettings, Settings
from adyton.enclave.keeper import NOTICE_SECONDS, Keeper, KeeperClient
from adyton.enclave.secrets_service import ORDER_THREADS, SecretsService
from adyton.enclave.serving import Listen
from adyton.proto.secrets_pb2 import Order, OrderReply
from adyton.sealing.secrets import KeptSecrets, SecretInfo

OWNER, STRANGER = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
CODES = grpc.StatusCode
PORTS = {"attested": 0, "plain_tls": 0, "mesh": 0}


class SlowSecrets(KeptSecrets):
    """In memory. While `free` is not set, keeping a secret takes long."""

    def __init__(self) -> None:
        super().__init__(None)
        self.free = threading.Event()
        self.free.set()

    def put(self, name: str, value: bytes, *, replace: bool) -> SecretInfo:
        assert self.free.wait(30)
        return super().put(name, value, replace=replace)


@dataclass(kw_only=True)
class Server:
    """A server that takes orders, on all three ports, whose [access] lets nobody call anything."""

    kind: str
    secrets: SlowSecrets = field(default_factory=SlowSecrets)
    identity: LocalIdentity = field(default_factory=lambda: LocalIdentity(names=NAMES, claims=b"{}"))
    intercepted: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        owners = [spki_sha256(OWNER.public_key()).hex()]
        service = SecretsService(owners=owners, identity=self.identity, keeper=lambda: self.secrets)
        settings = Settings(
            name="s",
            application="s:S",
            include=(),
            server=ServerSettings(plain_tls=True, mesh=True, threads=ORDER_THREADS),
            access=AccessSettings(default=Word.NOBODY, methods=((ECHO, Word.ANYONE),)),
        )
        quotes = BatchedQuotes(DeviceQuotes(VendorDevice()))
        attester = Attester(identity=self.identity, quotes=quotes, names=frozenset(NAMES))
        listen = Listen(address="127.0.0.1", ports=PORTS, shared=False)
        echo = adding_echo(ECHO, kind=self.kind)
        started = KINDS[self.kind](settings, echo, [self._interceptor()], listen, attester, service)
        self.ports = started.ports
        try:
            yield
        finally:
            started.stop(0)

    def _interceptor(self) -> Any:
        intercepted = self.intercepted

        class Threaded(grpc.ServerInterceptor):
            def intercept_service(self, continuation: Any, details: Any) -> Any:
                intercepted.append(details.method)
                return continuation(details)

        class OnAsyncio(grpc.aio.ServerInterceptor):
            async def intercept_service(self, continuation: Any, details: Any) -> Any:
                intercepted.append(details.method)
                return await continuation(details)

        return Threaded() if self.kind == "threads" else OnAsyncio()

    @property
    def leaf_sha256(self) -> bytes:
        return self.identity.current().leaf.spki_sha256

    def channel(self, port: str, key: ec.EllipticCurvePrivateKey | None, certificate: Any = None) -> grpc.Channel:
        """A connection to that port, with a client's key and its certificate."""
        credentials = grpc.ssl_channel_credentials(
            pem(self.identity.current().ca.certificate),
            key_pem(key) if key else None,
            pem(certificate or issue_open_client(key)) if key else None,
        )
        options = [("grpc.ssl_target_name_override", NAMES[0])]
        return grpc.secure_channel(f"127.0.0.1:{self.ports[port]}", credentials, options)


@pytest.fixture(params=sorted(KINDS))
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    made = Server(kind=request.param)
    with made.serving():
        yield made


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A connection to the attested port."""

    server: Server
    channel: grpc.Channel
    client_sha256: bytes

    def signed(self, order: Order, key: ec.EllipticCurvePrivateKey = OWNER) -> bytes:
        return sign_order(key, order, leaf_sha256=self.server.leaf_sha256, client_sha256=self.client_sha256)

    def order(self, order: Order) -> OrderReply:
        return OrderReply.FromString(ask(self.channel, ORDER, self.signed(order)))

    def refused(self, request: bytes) -> grpc.StatusCode:
        return refusal(self.channel, request)


@pytest.fixture
def caller(server: Server) -> Iterator[Caller]:
    key = ec.generate_private_key(ec.SECP256R1())
    with server.channel("attested", key) as channel:
        yield Caller(server=server, channel=channel, client_sha256=spki_sha256(key.public_key()))


def test_an_owner_puts_replaces_and_lists(caller: Caller) -> None:
    (first,) = caller.order(put("a", SECRET)).secrets
    assert (first.name, first.version) == ("a", 1)
    assert caller.refused(caller.signed(put("a", b"x"))) is CODES.ALREADY_EXISTS
    assert caller.refused(caller.signed(put("b", b"x", replace=True))) is CODES.NOT_FOUND
    (second,) = caller.order(put("a", b"next", replace=True)).secrets
    assert second.version == 2
    caller.order(put("b", b""))
    listed = caller.order(LIST)
    assert [(each.name, each.version) for each in listed.secrets] == [("a", 2), ("b", 1)]
    assert not listed.durable
    assert caller.server.secrets.secret("a") == b"next"


def test_neither_access_nor_interceptors_of_the_application_have_a_say(caller: Caller) -> None:
    assert ask(caller.channel, ECHO, b"hello") == b"hello"
    caller.order(put("a", SECRET))
    assert caller.server.intercepted == [ECHO]


def test_strangers_and_nonsense_are_refused(caller: Caller) -> None:
    order = put("a", SECRET)
    assert caller.refused(b"") is CODES.PERMISSION_DENIED
    assert caller.refused(caller.signed(order, STRANGER)) is CODES.PERMISSION_DENIED
    assert caller.refused(b"\xff" * 100) is CODES.INVALID_ARGUMENT
    assert caller.refused(caller.signed(Order())) is CODES.INVALID_ARGUMENT
    assert caller.refused(caller.signed(put("", SECRET))) is CODES.INVALID_ARGUMENT
    assert caller.refused(caller.signed(put("a", bytes(64 * 1024 + 1)))) is CODES.INVALID_ARGUMENT
    assert caller.server.secrets.secret_names() == []


def test_a_request_is_of_no_use_on_another_connection(caller: Caller) -> None:
    """To whoever finds it in a log of the owner's. The owner's own connection takes it again, for it is the owner's."""
    captured = caller.signed(put("a", SECRET, replace=True))
    caller.order(put("a", b"older"))
    ask(caller.channel, ORDER, captured)
    rotation = caller.signed(ROTATE_IDENTITY)
    with caller.server.channel("attested", ec.generate_private_key(ec.SECP256R1())) as channel:
        assert refusal(channel, captured) is CODES.PERMISSION_DENIED
        assert refusal(channel, rotation) is CODES.PERMISSION_DENIED
    assert [each.version for each in caller.server.secrets.infos()] == [2]
    ask(caller.channel, ORDER, rotation)


def test_orders_are_taken_on_the_attested_port_only(server: Server) -> None:
    order = {"leaf_sha256": server.leaf_sha256}
    with server.channel("plain_tls", None) as channel:
        request = sign_order(OWNER, put("a", SECRET), client_sha256=bytes(32), **order)
        assert refusal(channel, request) is CODES.FAILED_PRECONDITION
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    ca = server.identity.current().ca
    member = sign_leaf(
        ca,
        key.public_key(),
        subject="a member",
        names=[x509.DNSName("member.example")],
        usage=ExtendedKeyUsageOID.CLIENT_AUTH,
        validity=validity(ca, now, timedelta(hours=1)),
    )
    with server.channel("mesh", key, member) as channel:
        assert ask(channel, ECHO, b"hello") == b"hello"
        request = sign_order(OWNER, put("a", SECRET), client_sha256=spki_sha256(key.public_key()), **order)
        assert refusal(channel, request) is CODES.FAILED_PRECONDITION
    assert server.secrets.secret_names() == []


def test_calls_of_the_application_do_not_wait_for_orders(caller: Caller) -> None:
    caller.server.secrets.free.clear()
    call: Any = caller.channel.unary_unary(ORDER)
    slow = [call.future(caller.signed(put(f"{index}", SECRET)), timeout=30) for index in range(2 * ORDER_THREADS)]
    for _ in range(20):
        assert ask(caller.channel, ECHO, b"hello") == b"hello"
    assert not any(each.done() for each in slow)
    caller.server.secrets.free.set()
    assert [each.result(30) is not None for each in slow] == [True] * 2 * ORDER_THREADS


def test_after_a_rotation_the_last_certificate_is_none_of_the_enclaves(caller: Caller) -> None:
    before, request = caller.server.identity.current(), caller.signed(LIST)
    reply = caller.order(ROTATE_IDENTITY)
    assert reply.ca == caller.server.identity.current().ca.der != before.ca.der
    assert caller.refused(request) is CODES.FAILED_PRECONDITION
    assert ask(caller.channel, ECHO, b"still") == b"still"


def test_a_server_process_notices_what_another_has_rotated_while_its_own_connection_is_busy() -> None:
    """By the replies that it gets anyway; else it asks, once in a while."""
    identity, quotes = LocalIdentity(names=NAMES, claims=b"{}"), BatchedQuotes(DeviceQuotes(VendorDevice()))
    with contextlib.ExitStack() as stack:
        keeper, clients = Keeper(identity, quotes, make_vault()), []
        for _ in range(2):
            inside, outside = map(stack.enter_context, socket.socketpair())
            threading.Thread(target=keeper.serve, args=(outside,), daemon=True).start()
            clients.append(KeeperClient(inside))
        one, other = clients
        for _ in range(3):
            other.current()
            rotated = one.rotate()
            other.quote(bytes(NODE_BYTES))
            assert other.current().ca.der == rotated.ca.der
            rotated = one.rotate()
            time.sleep(NOTICE_SECONDS)
            assert other.current().ca.der == rotated.ca.der
            assert one.current().ca.der == rotated.ca.der
        assert other.current() is other.current()
