"""A client's key for one connection."""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
from datetime import timedelta
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import load_pem_x509_certificate

from adyton.atls.certificates import DEFAULT_AUDIENCE, key_pem, open_client_ca, pem, spki_sha256
from adyton.atls.client_key import ConnectionKey
from adyton.atls.identity import LocalIdentity, chain_pem
from adyton.errors import EvidenceError


def test_no_two_connections_have_one_key() -> None:
    assert len({ConnectionKey().spki_sha256 for _ in range(8)}) == 8


@pytest.mark.parametrize("root", [b"", b" \n"], ids=["empty", "blank"])
def test_it_never_connects_under_the_systems_roots(root: bytes) -> None:
    with pytest.raises(EvidenceError, match="no root to connect under"):
        ConnectionKey().credentials(root)


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


def test_a_channel_with_it_shows_it() -> None:
    server, port, root = serve(shown)
    key = ConnectionKey()
    options = [("grpc.ssl_target_name_override", DEFAULT_AUDIENCE), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(f"127.0.0.1:{port}", key.credentials(root), options) as channel:
        assert call(channel) == key.spki_sha256
        assert call(channel) == key.spki_sha256
    server.stop(0).wait()


def test_another_server_is_not_connected_to() -> None:
    server, port, _ = serve(shown)
    other, _, root = serve(shown)
    options = [("grpc.ssl_target_name_override", DEFAULT_AUDIENCE)]
    with (
        grpc.secure_channel(f"127.0.0.1:{port}", ConnectionKey().credentials(root), options) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        call(channel)
    assert status(caught.value) is grpc.StatusCode.UNAVAILABLE
    server.stop(0).wait()
    other.stop(0).wait()
