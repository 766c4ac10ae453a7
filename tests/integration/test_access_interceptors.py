"""Who may call which method, on real servers of both kinds, over TLS, by clients whose keys are enrolled or not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent import futures
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from grpc.experimental.session_cache import ssl_session_cache_lru
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from observing import eventually
from probe import probe_pb2, probe_pb2_grpc

from adyton.atls.certificates import (
    DEFAULT_AUDIENCE,
    Issued,
    issue_leaf,
    issue_open_client,
    key_pem,
    make_ca,
    open_client_ca,
    pem,
    spki_sha256,
)
from adyton.atls.client_key import ConnectionKey
from adyton.atls.never_sent import ANSWERED_KEY
from adyton.atls.peer import CONNECTED, Peer, peer
from adyton.bundle.access import ATTESTATION_PREFIX, AccessSettings, Attribute, Expectation, Not, Word
from adyton.bundle.settings import LoggingSettings
from adyton.enclave.access import access_interceptors, aio_access_interceptors, check_methods
from adyton.enclave.interceptors import AioGuardInterceptor, GuardInterceptor
from adyton.errors import ConfigurationError

Text = probe_pb2.Text
Stub = probe_pb2_grpc.ProbeStub
NOW = datetime.now(UTC)
SECRET = "secret of the request"
OPTIONS: list[tuple[str, Any]] = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.ssl_target_name_override", DEFAULT_AUDIENCE),
    ("grpc.use_local_subchannel_pool", 1),
]
ATTEST = ATTESTATION_PREFIX + "Attest"
FRONT_END = Attribute(name="rule", wanted="front end")

#: A call of each kind.
CALLS: dict[str, Callable[[Stub], Text]] = {
    "Echo": lambda stub: stub.Echo(Text(text=SECRET)),
    "Count": lambda stub: next(stub.Count(Text(text=SECRET))),
    "Collect": lambda stub: stub.Collect(iter([Text(text=SECRET)])),
    "Chat": lambda stub: next(stub.Chat(iter([Text(text=SECRET)]))),
}


class Servicer(probe_pb2_grpc.ProbeServicer):
    """Notes which of its methods were called, and answers by which rule the caller was accepted."""

    def __init__(self, called: list[str]) -> None:
        self.called = called

    def answer(self, method: str, context: Any) -> Text:
        self.called.append(method)
        found = peer(context)
        return Text(text="" if found is None else found.rule)

    def Echo(self, request: Text, context: Any) -> Any:
        return self.answer("Echo", context)

    def Count(self, request: Text, context: Any) -> Any:
        yield self.answer("Count", context)

    def Collect(self, request_iterator: Any, context: Any) -> Any:
        return self.answer("Collect", context)

    def Chat(self, request_iterator: Any, context: Any) -> Any:
        yield self.answer("Chat", context)

    def Fail(self, request: Text, context: Any) -> Any:
        raise NotImplementedError

    def Who(self, request: Text, context: Any) -> Any:
        raise NotImplementedError


class AioServicer(Servicer):
    """The same on asyncio."""

    async def Echo(self, request: Text, context: Any) -> Text:
        return self.answer("Echo", context)

    async def Count(self, request: Text, context: Any) -> AsyncIterator[Text]:
        yield self.answer("Count", context)

    async def Collect(self, request_iterator: Any, context: Any) -> Text:
        return self.answer("Collect", context)

    async def Chat(self, request_iterator: Any, context: Any) -> AsyncIterator[Text]:
        yield self.answer("Chat", context)


def as_coroutine(behavior: Callable[[bytes, Any], bytes]) -> Callable[[bytes, Any], Any]:
    async def call(request: bytes, context: Any) -> bytes:
        return behavior(request, context)

    return call


class Served:
    """A server's two ports, which methods of its servicer were called, and the methods that it has besides."""

    def __init__(self, ca: Issued) -> None:
        self.ca = ca
        self.called: list[str] = []
        self.methods: dict[str, Callable[[bytes, Any], bytes]] = {ATTEST: lambda _request, _context: b"evidence"}
        self.port = self.plain_port = 0

    def add_to(self, server: Any, servicer: Any, health_servicer: Any, form: Callable[[Any], Any]) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = issue_leaf(self.ca, key.public_key(), [DEFAULT_AUDIENCE], NOW, timedelta(hours=1))
        clients = pem(open_client_ca().certificate)
        credentials = grpc.ssl_server_credentials([(key_pem(key), pem(leaf))], clients, require_client_auth=True)
        probe_pb2_grpc.add_ProbeServicer_to_server(servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
        for method, behavior in self.methods.items():
            _, service, name = method.split("/")
            handlers: dict[str, Any] = {name: grpc.unary_unary_rpc_method_handler(form(behavior))}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        self.port = server.add_secure_port("127.0.0.1:0", credentials)
        self.plain_port = server.add_insecure_port("127.0.0.1:0")


@contextlib.contextmanager
def threaded(access: AccessSettings, served: Served) -> Iterator[None]:
    server = grpc.server(
        futures.ThreadPoolExecutor(4),
        interceptors=[GuardInterceptor(LoggingSettings(), 0), *access_interceptors(access)],
    )
    served.add_to(server, Servicer(served.called), health.HealthServicer(), lambda behavior: behavior)
    server.start()
    yield
    server.stop(None).wait()


@contextlib.contextmanager
def on_asyncio(access: AccessSettings, served: Served) -> Iterator[None]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> grpc.aio.Server:
        interceptors = [AioGuardInterceptor(LoggingSettings(), 0), *aio_access_interceptors(access)]
        server = grpc.aio.server(futures.ThreadPoolExecutor(4), interceptors=interceptors)
        served.add_to(server, AioServicer(served.called), health.aio.HealthServicer(), as_coroutine)
        await server.start()
        return server

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    yield
    asyncio.run_coroutine_threadsafe(server.stop(None), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


Serve = Callable[..., Served]


@pytest.fixture(scope="module")
def ca() -> Issued:
    return make_ca(NOW)


@pytest.fixture(params=[threaded, on_asyncio], ids=["threads", "asyncio"])
def serve(request: pytest.FixtureRequest, ca: Issued) -> Iterator[Serve]:
    with contextlib.ExitStack() as stack:

        def start(default: Expectation = Word.ANYONE, **methods: Expectation) -> Served:
            named = tuple((f"/probe.Probe/{method}", each) for method, each in methods.items())
            served = Served(ca)
            stack.enter_context(request.param(AccessSettings(default=default, methods=named), served))
            return served

        yield start


class Client:
    """A client with a key of its own for its one connection."""

    def __init__(self, served: Served) -> None:
        self.key = ConnectionKey()
        credentials = self.key.credentials(pem(served.ca.certificate))
        self.channel = grpc.secure_channel(f"127.0.0.1:{served.port}", credentials, options=OPTIONS)
        self.stub = Stub(self.channel)

    def enrol(self, seconds: float = 60, rule: str = "front end") -> None:
        CONNECTED.enrol(self.key.spki_sha256, identity(seconds, rule))


def identity(seconds: float = 60, rule: str = "front end") -> Peer:
    return Peer(
        rule=rule,
        tee="simulated",
        measurement=b"\x11" * 48,
        platform="",
        insecurities=("simulated",),
        expires_at=datetime.now(UTC) + timedelta(seconds=seconds),
    )


@pytest.fixture
def connect() -> Iterator[Callable[[Served], Client]]:
    clients: list[Client] = []

    def start(served: Served) -> Client:
        clients.append(Client(served))
        return clients[-1]

    yield start
    for client in clients:
        client.channel.close()


Connect = Callable[[Served], Client]


def refused(call: Callable[[Stub], Text], stub: Stub) -> None:
    """The wire says the fact, and only that."""
    with pytest.raises(grpc.RpcError) as caught:
        call(stub)
    error: Any = caught.value
    assert (error.code(), error.details()) == (
        grpc.StatusCode.PERMISSION_DENIED,
        "this caller may not call this method",
    )
    assert {key for key, _ in error.trailing_metadata() or ()} <= {ANSWERED_KEY, "content-length", "content-type"}


def raw(client: Client, method: str) -> object:
    """What a method answers to a request of no bytes."""
    call: Any = client.channel.unary_unary(method)
    return call(b"")


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_caller_without_an_identity_is_refused_before_the_servicer_is_called(
    serve: Serve, connect: Connect, call: Callable[[Stub], Text]
) -> None:
    for expectation in (Word.ENROLLED, Word.NOBODY, FRONT_END, Not(part=FRONT_END)):
        served = serve(expectation)
        refused(call, connect(served).stub)
        assert served.called == []


@pytest.mark.parametrize("method", CALLS)
def test_an_enrolled_caller_is_served_and_the_servicer_knows_it(serve: Serve, connect: Connect, method: str) -> None:
    for expectation in (Word.ENROLLED, FRONT_END, Word.ANYONE):
        served = serve(expectation)
        client = connect(served)
        client.enrol()
        assert CALLS[method](client.stub).text == "front end"
        assert served.called == [method]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_enrolled_caller_that_is_not_the_one_that_is_wanted_is_refused(
    serve: Serve, connect: Connect, call: Callable[[Stub], Text]
) -> None:
    for expectation in (Word.NOBODY, FRONT_END, Not(part=Attribute(name="tee", wanted="simulated"))):
        served = serve(expectation)
        client = connect(served)
        client.enrol(rule="back end")
        refused(call, client.stub)
        assert served.called == []


def test_of_two_connections_only_the_enrolled_one_is_served(serve: Serve, connect: Connect) -> None:
    served = serve(Word.ENROLLED)
    first, second = connect(served), connect(served)
    refused(CALLS["Echo"], first.stub)
    refused(CALLS["Echo"], second.stub)
    first.enrol()
    assert CALLS["Echo"](first.stub).text == "front end"
    refused(CALLS["Echo"], second.stub)
    assert served.called == ["Echo"]


def test_a_caller_is_refused_once_its_identity_has_expired(serve: Serve, connect: Connect) -> None:
    served = serve(Word.ENROLLED)
    client = connect(served)
    client.enrol(seconds=60)
    assert CALLS["Echo"](client.stub).text == "front end"
    client.enrol(seconds=0)
    refused(CALLS["Echo"], client.stub)
    assert served.called == ["Echo"]


def test_the_methods_line_comes_before_the_services_and_that_before_the_default(serve: Serve, connect: Connect) -> None:
    served = serve(Word.NOBODY, Echo=Word.ANYONE, **{"*": Word.ENROLLED})
    client = connect(served)
    assert CALLS["Echo"](client.stub).text == ""
    refused(CALLS["Count"], client.stub)
    client.enrol()
    assert CALLS["Count"](client.stub).text == "front end"
    with pytest.raises(grpc.RpcError) as caught:
        health_pb2_grpc.HealthStub(client.channel).Check(health_pb2.HealthCheckRequest())
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED


def test_a_watch_which_answers_by_a_callback_is_refused_or_served_as_any_other_method(
    serve: Serve, connect: Connect
) -> None:
    client = connect(serve(Word.ENROLLED))
    watch = health_pb2_grpc.HealthStub(client.channel).Watch
    with pytest.raises(grpc.RpcError) as caught:
        next(watch(health_pb2.HealthCheckRequest(), timeout=10))
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    client.enrol()
    assert next(watch(health_pb2.HealthCheckRequest(), timeout=10)).status == health_pb2.HealthCheckResponse.SERVING


def test_the_methods_by_which_callers_enrol_are_for_anyone(serve: Serve, connect: Connect) -> None:
    client = connect(serve(Word.NOBODY))
    assert raw(client, ATTEST) == b"evidence"


def test_a_method_that_there_is_not_is_unimplemented(serve: Serve, connect: Connect) -> None:
    client = connect(serve(Word.NOBODY))
    for method in ("/probe.Probe/Nothing", "/probe.Nobody/Echo", ATTESTATION_PREFIX + "Nothing"):
        with pytest.raises(grpc.RpcError) as caught:
            raw(client, method)
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_plain_connection_has_no_identity(serve: Serve) -> None:
    served = serve(Echo=Word.ENROLLED)
    with grpc.insecure_channel(f"127.0.0.1:{served.plain_port}", options=OPTIONS[:1]) as channel:
        refused(CALLS["Echo"], Stub(channel))
        assert CALLS["Count"](Stub(channel)).text == ""


def test_a_resumed_session_does_not_have_the_identity_of_the_first(serve: Serve) -> None:
    """Its key signs nothing, and gRPC shows the certificate of the connection that it was resumed from."""
    served = serve(Echo=Word.ENROLLED)
    key = ec.generate_private_key(ec.SECP256R1())
    CONNECTED.enrol(spki_sha256(key.public_key()), identity())
    credentials = grpc.ssl_channel_credentials(pem(served.ca.certificate), key_pem(key), pem(issue_open_client(key)))
    make_cache: Callable[[int], object] = ssl_session_cache_lru
    options = [*OPTIONS, ("grpc.ssl_session_cache", make_cache(1))]

    def reaches_echo() -> bool:
        with grpc.secure_channel(f"127.0.0.1:{served.port}", credentials, options=options) as channel:
            try:
                return CALLS["Echo"](Stub(channel)).text == "front end"
            except grpc.RpcError as error:
                refusal: Any = error
                assert refusal.code() is grpc.StatusCode.PERMISSION_DENIED
                return False

    assert reaches_echo()
    eventually(lambda: not reaches_echo())


def test_the_log_says_why_and_nothing_of_the_request(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect(serve(FRONT_END))
    time.sleep(1)  # of a kind there is one line a second
    with caplog.at_level(logging.WARNING):
        refused(CALLS["Echo"], client.stub)
        client.enrol(rule="back end")
        refused(CALLS["Chat"], client.stub)
    told = [vars(record) for record in caplog.records if record.name == "adyton.access"]
    assert [(each["levelname"], each["rpc"], each["reasons"]) for each in told] == [
        ("WARNING", "/probe.Probe/Echo", ("the caller is not enrolled",)),
        ("WARNING", "/probe.Probe/Chat", ("it has rule 'back end', wanted is rule 'front end'",)),
    ]
    assert SECRET not in repr([vars(record) for record in caplog.records])


def test_a_method_with_threads_of_its_own_keeps_them(ca: Issued, connect: Connect) -> None:
    served = Served(ca)

    def where(_request: bytes, _context: Any) -> bytes:
        return threading.current_thread().name.encode()

    with futures.ThreadPoolExecutor(1, "apart") as where.experimental_thread_pool:  # type: ignore[attr-defined]
        served.methods["/apart.Apart/Where"] = where
        with threaded(AccessSettings(default=Word.ENROLLED), served):
            client = connect(served)
            client.enrol()
            assert raw(client, "/apart.Apart/Where") == b"apart_0"


def test_where_everything_is_for_anyone_nothing_stands_before_the_servicers() -> None:
    for access in (AccessSettings(), AccessSettings(policy="p", methods=(("/a.B/C", Word.ANYONE),))):
        assert access_interceptors(access) == []
        assert aio_access_interceptors(access) == []


@pytest.mark.parametrize("method", ["/a.B/Wrong", "/a.Wrong/C", "/a.Wrong/*", "/a/B"])
def test_a_method_that_is_not_there_is_said_at_the_start(method: str) -> None:
    access = AccessSettings(policy="p", methods=((method, Word.ENROLLED),))
    with pytest.raises(ConfigurationError, match="this server has no such method"):
        check_methods(access, ["a.B", "a.Unknown"], {"a.B": {"C": object()}})


@pytest.mark.parametrize("method", ["/a.B/C", "/a.B/*", "/a.Unknown/Anything"])
def test_a_method_that_may_be_there_is_taken(method: str) -> None:
    access = AccessSettings(policy="p", methods=((method, Word.ENROLLED),))
    check_methods(access, ["a.B", "a.Unknown"], {"a.B": {"C": object()}})
