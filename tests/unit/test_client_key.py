"""A client's key for one connection: what it signs, and that it does so once."""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent import futures
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.experimental
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import load_pem_x509_certificate

from adyton.atls.certificates import DEFAULT_AUDIENCE, open_client_ca, pem, spki_sha256
from adyton.atls.client_key import OneShotKey
from adyton.atls.identity import LocalIdentity, chain_pem, key_pem
from adyton.errors import EvidenceError

ALGORITHM = grpc.experimental.PrivateKeySignatureAlgorithm.ECDSA_SECP256R1_SHA256
CONTEXT = b" " * 64 + b"TLS 1.3, client CertificateVerify\x00"
TRANSCRIPT = hashlib.sha256(b"a handshake").digest()


def test_it_signs_a_handshake_once() -> None:
    key = OneShotKey()
    assert key.sign(CONTEXT + TRANSCRIPT, ALGORITHM, None)
    with pytest.raises(EvidenceError, match="signs one handshake; the connection is over"):
        key.sign(CONTEXT + TRANSCRIPT, ALGORITHM, None)


def test_of_many_threads_one_gets_a_signature() -> None:
    key = OneShotKey()
    at_once = threading.Barrier(16)

    def sign(_index: int) -> bool:
        at_once.wait(10)
        try:
            return bool(key.sign(CONTEXT + TRANSCRIPT, ALGORITHM, None))
        except EvidenceError:
            return False

    with futures.ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(sign, range(16))) == 1


@pytest.mark.parametrize(
    "message",
    [
        b"",
        TRANSCRIPT,
        CONTEXT,
        CONTEXT + TRANSCRIPT[:-1],
        CONTEXT + TRANSCRIPT + b"\x00",
        CONTEXT + TRANSCRIPT * 2,
        CONTEXT.replace(b"client", b"server") + TRANSCRIPT,
        CONTEXT[1:] + TRANSCRIPT,
        b" " + CONTEXT + TRANSCRIPT,
        CONTEXT.replace(b"1.3", b"1.2") + TRANSCRIPT,
        CONTEXT[:-1] + TRANSCRIPT,
        bytes(96 + 34),
        # TLS 1.2 signs the messages of the handshake themselves.
        b"\x01\x00\x00\xc4\x03\x03" + bytes(194) + b"\x02\x00\x00\x46\x03\x03" + bytes(68),
    ],
    ids=[
        "nothing",
        "a bare hash",
        "no hash",
        "31 bytes of hash",
        "33 bytes of hash",
        "SHA-512",
        "the server's context",
        "63 spaces",
        "65 spaces",
        "another version",
        "no zero",
        "zeros",
        "TLS 1.2",
    ],
)
def test_it_signs_nothing_else_and_is_not_used_up_by_it(message: bytes) -> None:
    key = OneShotKey()
    with pytest.raises(EvidenceError, match=r"signs a TLS 1\.3 handshake and nothing else"):
        key.sign(message, ALGORITHM, None)
    assert key.sign(CONTEXT + TRANSCRIPT, ALGORITHM, None)


@pytest.mark.parametrize(
    "algorithm", [each for each in grpc.experimental.PrivateKeySignatureAlgorithm if each != ALGORITHM]
)
def test_it_signs_with_one_algorithm_only(algorithm: object) -> None:
    with pytest.raises(EvidenceError, match="and nothing else"):
        OneShotKey().sign(CONTEXT + TRANSCRIPT, algorithm, None)


def test_it_signs_handshakes_of_cipher_suites_with_sha_384_too() -> None:
    assert OneShotKey().sign(CONTEXT + hashlib.sha384(b"a handshake").digest(), ALGORITHM, None)


def test_no_two_connections_have_one_key() -> None:
    assert len({OneShotKey().spki_sha256 for _ in range(8)}) == 8


@pytest.mark.parametrize("root", [b"", b" \n"], ids=["empty", "blank"])
def test_it_never_connects_under_the_systems_roots(root: bytes) -> None:
    with pytest.raises(EvidenceError, match="no root to connect under"):
        OneShotKey().credentials(root)


def serve(answer: Callable[[grpc.ServicerContext], bytes]) -> tuple[grpc.Server, int, bytes]:
    """A server that demands certificates under the open client CA; its port and its certificate."""
    made = LocalIdentity(names=(DEFAULT_AUDIENCE,), claims=b"", leaf_lifetime=timedelta(hours=1)).current()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    handler: Any = grpc.unary_unary_rpc_method_handler(lambda _request, context: answer(context))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", {"M": handler}),))
    credentials = grpc.ssl_server_credentials(
        [(key_pem(made.leaf.key), chain_pem(made))], pem(open_client_ca().certificate), require_client_auth=True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    return server, port, pem(made.leaf.certificate)


def shown(context: grpc.ServicerContext) -> bytes:
    """SHA-256 of the key that TLS has proved the client to hold."""
    facts: Any = context.auth_context()
    (certificate,) = facts["x509_pem_cert"]
    key = load_pem_x509_certificate(certificate).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return spki_sha256(key)


def call(channel: grpc.Channel) -> bytes:
    method: Any = channel.unary_unary("/s/M")
    answer: bytes = method(b"", timeout=10)
    return answer


def status(problem: Any) -> grpc.StatusCode:
    code: grpc.StatusCode = problem.code()
    return code


def test_a_channel_with_it_shows_it_and_connects_once() -> None:
    server, port, root = serve(shown)
    key = OneShotKey()
    options = [("grpc.ssl_target_name_override", DEFAULT_AUDIENCE), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(f"127.0.0.1:{port}", key.credentials(root), options) as channel:
        assert call(channel) == key.spki_sha256
        assert call(channel) == key.spki_sha256
    with (
        grpc.secure_channel(f"127.0.0.1:{port}", key.credentials(root), options) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        call(channel)
    assert status(caught.value) is grpc.StatusCode.UNAVAILABLE
    server.stop(0).wait()


def test_a_server_that_speaks_only_tls_1_2_gets_no_signature(tmp_path: Path) -> None:
    made = LocalIdentity(names=(DEFAULT_AUDIENCE,), claims=b"", leaf_lifetime=timedelta(hours=1)).current()
    (tmp_path / "server.pem").write_bytes(key_pem(made.leaf.key) + pem(made.leaf.certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(tmp_path / "server.pem")
    context.load_verify_locations(cadata=pem(open_client_ca().certificate).decode())
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    said: list[str] = []

    def accept(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            try:
                context.wrap_socket(connection, server_side=True).close()
            except OSError as problem:
                said.append(str(problem))

    key = OneShotKey()
    options = [("grpc.ssl_target_name_override", DEFAULT_AUDIENCE), ("grpc.use_local_subchannel_pool", 1)]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, args=(listener,))
        thread.start()
        target = f"127.0.0.1:{listener.getsockname()[1]}"
        with (
            grpc.secure_channel(target, key.credentials(pem(made.leaf.certificate)), options) as channel,
            pytest.raises(grpc.RpcError) as caught,
        ):
            call(channel)
        thread.join(10)
    assert status(caught.value) is grpc.StatusCode.UNAVAILABLE
    assert len(said) == 1  # the server got as far as the client's part of the handshake, which failed
    assert key.sign(CONTEXT + TRANSCRIPT, ALGORITHM, None)  # it was not used
