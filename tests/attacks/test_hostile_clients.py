"""Clients that do what ours never do: a server refuses each before its hardware is asked, and goes on serving."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.experimental.session_cache
import pytest
from attacked_clients import TELLERS
from attacked_servers import OTHER_NAME, TELL, AttackedServer, AttackedServers
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from tls_tunnel import tunnel

from adyton.atls.binding import Purpose
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
from adyton.atls.connector import ATTEST
from adyton.proto.attestation_pb2 import AttestRequest, AttestResponse
from adyton.tee.simulated.format import parse_simulated

NAMED = ("grpc.ssl_target_name_override", DEFAULT_AUDIENCE)


@pytest.fixture(scope="module", params=[False, True], ids=["threads", "asyncio"])
def server(request: pytest.FixtureRequest, servers: AttackedServers) -> AttackedServer:
    return servers.start(on_asyncio=request.param)


@pytest.fixture(autouse=True)
def serves_on(server: AttackedServer, policy: bytes, secret: bytes) -> Any:
    """After each of these clients, the server is there for a good one."""
    yield
    assert TELLERS["threads"](server.target, policy, secret) == b"genuine: " + secret


def leaf_of(server: AttackedServer) -> x509.Certificate:
    return x509.load_pem_x509_certificates((server.folder / "chain.pem").read_bytes())[0]


def question(server: AttackedServer, **changes: Any) -> bytes:
    key = leaf_of(server).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    good = {"version": 1, "nonce": os.urandom(32), "purpose": 1, "audience": DEFAULT_AUDIENCE}
    return AttestRequest(**{**good, "pinned_sha256": spki_sha256(key), **changes}).SerializeToString()


def open_client() -> Issued:
    """What anybody can have: a key of its own, and a certificate by the CA whose key is public."""
    key = ec.generate_private_key(ec.SECP256R1())
    return Issued(key=key, certificate=issue_open_client(key))


def client_under(ca: Issued) -> Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = issue_leaf(ca, key.public_key(), ["client.atls.internal"], datetime.now(UTC), timedelta(hours=1))
    return Issued(key=key, certificate=leaf, issuer=ca)


def outcome(channel: grpc.Channel, method: str, request: bytes) -> tuple[grpc.StatusCode, str]:
    call: Any = channel.unary_unary(method)
    try:
        call(request, timeout=10)
    except grpc.RpcError as error:
        failed: Any = error
        return failed.code(), failed.details()
    return grpc.StatusCode.OK, ""


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, grpc.StatusCode.OK),
        ({"purpose": Purpose.FLEET}, grpc.StatusCode.OK),
        ({"version": 0}, grpc.StatusCode.UNIMPLEMENTED),
        ({"version": 2}, grpc.StatusCode.UNIMPLEMENTED),
        ({"nonce": b""}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"nonce": bytes(31)}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"nonce": bytes(33)}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"audience": ""}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"audience": OTHER_NAME}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"audience": "elsewhere.example"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"purpose": 0}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"purpose": Purpose.ENROL}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"purpose": Purpose.CA_JOIN}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"purpose": 257}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"pinned_sha256": b""}, grpc.StatusCode.FAILED_PRECONDITION),
        ({"pinned_sha256": bytes(32)}, grpc.StatusCode.FAILED_PRECONDITION),
        ({"audience": "a" * 5000}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"audience": "a" * 5_000_000}, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_question_that_is_not_answered(
    server: AttackedServer, changes: dict[str, Any], code: grpc.StatusCode
) -> None:
    credentials = ConnectionKey().credentials((server.folder / "chain.pem").read_bytes())
    with grpc.secure_channel(server.target, credentials, [NAMED]) as channel:
        assert outcome(channel, ATTEST, question(server, **changes))[0] is code


def test_a_question_that_is_none(server: AttackedServer) -> None:
    credentials = ConnectionKey().credentials((server.folder / "chain.pem").read_bytes())
    with grpc.secure_channel(server.target, credentials, [NAMED]) as channel:
        for seed in range(20):
            noise = random.Random(seed).randbytes(200)
            assert outcome(channel, ATTEST, noise)[0] is not grpc.StatusCode.OK, f"seed {seed}"


def test_a_resumed_session_is_not_attested(server: AttackedServer) -> None:
    """In a resumed session the client's key signs nothing: whoever has the ticket would have the evidence."""
    client = open_client()
    root = (server.folder / "chain.pem").read_bytes()
    make_cache: Any = grpc.experimental.session_cache.ssl_session_cache_lru
    cache = make_cache(1)
    outcomes = []
    for _ in range(2):
        credentials = grpc.ssl_channel_credentials(root, key_pem(client.key), pem(client.certificate))
        options = [NAMED, ("grpc.ssl_session_cache", cache), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.secure_channel(server.target, credentials, options) as channel:
            outcomes.append(outcome(channel, ATTEST, question(server)))
    assert outcomes == [
        (grpc.StatusCode.OK, ""),
        (
            grpc.StatusCode.FAILED_PRECONDITION,
            "attestation needs a handshake of its own, not a resumed session",
        ),
    ]


def client_context(client: Issued | None, folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if client is not None:
        above = pem(client.issuer.certificate) if client.issuer is not None else b""
        (folder / "client.pem").write_bytes(key_pem(client.key) + pem(client.certificate) + above)
        context.load_cert_chain(folder / "client.pem")
    return context


def over(
    server: AttackedServer,
    context: ssl.SSLContext,
    folder: Path,
    method: str,
    request: bytes,
    *,
    name: str | None = DEFAULT_AUDIENCE,
) -> tuple[grpc.StatusCode, str]:
    """The outcome of an RPC over that TLS."""
    with tunnel(server.port, context, name, folder) as target, grpc.insecure_channel(target) as channel:
        return outcome(channel, method, request)


def test_this_way_of_speaking_tls_works(server: AttackedServer, tmp_path: Path) -> None:
    context = client_context(open_client(), tmp_path)
    assert over(server, context, tmp_path, ATTEST, question(server))[0] is grpc.StatusCode.OK


def test_a_client_that_speaks_tls_1_2_only(server: AttackedServer, tmp_path: Path) -> None:
    context = client_context(open_client(), tmp_path)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    answered = over(server, context, tmp_path, ATTEST, question(server))
    assert answered == (grpc.StatusCode.FAILED_PRECONDITION, "attestation needs TLS 1.3")


@pytest.mark.parametrize("audience", ["", DEFAULT_AUDIENCE])
def test_a_client_that_names_no_server(server: AttackedServer, tmp_path: Path, audience: str) -> None:
    context = client_context(open_client(), tmp_path)
    code, _ = over(server, context, tmp_path, ATTEST, question(server, audience=audience), name=None)
    assert code is grpc.StatusCode.INVALID_ARGUMENT


def impersonated_open_ca() -> Issued:
    """The open client CA's name, and another key."""
    ca = make_ca(datetime.now(UTC))
    return Issued(key=ca.key, certificate=open_client_ca().certificate)


STRANGERS: dict[str, Callable[[], Issued | None]] = {
    "no certificate": lambda: None,
    "of another CA": lambda: client_under(make_ca(datetime.now(UTC))),
    "of a CA of the same name": lambda: client_under(impersonated_open_ca()),
    "of a client's certificate": lambda: client_under(open_client()),
}


@pytest.mark.parametrize("stranger", STRANGERS)
@pytest.mark.parametrize("method", [ATTEST, TELL])
def test_a_client_without_a_certificate_of_the_open_ca(
    server: AttackedServer, secret: bytes, tmp_path: Path, stranger: str, method: str
) -> None:
    context = client_context(STRANGERS[stranger](), tmp_path)
    request = question(server) if method == ATTEST else secret
    code, _ = over(server, context, tmp_path, method, request)
    assert code is grpc.StatusCode.UNAVAILABLE
    assert secret not in server.heard


@pytest.mark.parametrize("port", ["port", "plain_port"])
def test_a_client_without_tls(server: AttackedServer, secret: bytes, port: str) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{getattr(server, port)}") as channel:
        for method in (ATTEST, TELL):
            assert outcome(channel, method, secret)[0] is grpc.StatusCode.UNAVAILABLE
    assert secret not in server.heard


def test_noise_at_the_door(server: AttackedServer) -> None:
    for seed in range(40):
        source = random.Random(seed)
        opening = source.choice(
            [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
        )
        with socket.create_connection(("127.0.0.1", server.port), 5) as connection, contextlib.suppress(OSError):
            connection.sendall(opening + source.randbytes(source.randrange(3000)))


def test_noise_inside_tls(server: AttackedServer, tmp_path: Path) -> None:
    context = client_context(open_client(), tmp_path)
    for seed in range(20):
        source = random.Random(seed)
        opening = source.choice([b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)])
        with (
            socket.create_connection(("127.0.0.1", server.port), 5) as connection,
            contextlib.suppress(OSError, ssl.SSLError),
            context.wrap_socket(connection, server_hostname=DEFAULT_AUDIENCE) as secured,
        ):
            secured.sendall(opening + source.randbytes(source.randrange(3000)))


def test_every_answer_is_for_the_key_of_the_connection_that_it_came_on(server: AttackedServer) -> None:
    """A question repeated on one connection binds the same; on another, whose key is another, it does not."""
    root = (server.folder / "chain.pem").read_bytes()
    request, bound = question(server), []
    for _ in range(2):
        with grpc.secure_channel(server.target, ConnectionKey().credentials(root), [NAMED]) as channel:
            attest: Any = channel.unary_unary(ATTEST)
            for _ in range(2):
                answer = AttestResponse.FromString(attest(request, timeout=10))
                bound.append(parse_simulated(answer.evidence.data).report_data)
    assert bound[0] == bound[1] != bound[2] == bound[3]
