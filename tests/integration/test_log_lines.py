"""What a client that is nobody yet can write into an enclave's log: no line."""

from __future__ import annotations

import json
import socket
import ssl
from pathlib import Path

import pytest
from attested import port_of

from adyton.host.manager import EnclaveManager
from adyton.proto import grpc_application_pb2 as extensions
from adyton.testing.probes import AIO_SERVER, SERVER, probe_bundle, server_config

FORGED = b'a\n{"level": "INFO", "logger": "adyton.enrolment", "message": "a caller has enrolled", "rule": "forged"}\n'


def client_hello(server_name: bytes) -> bytes:
    """The first message of TLS (RFC 8446), with a name in it that OpenSSL itself refuses to send."""
    stand_in = ("a." * len(server_name))[: len(server_name) - 1] + "a"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    written = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), written, server_hostname=stand_in).do_handshake()
    hello = written.read()
    assert hello.count(stand_in.encode()) == 1
    return hello.replace(stand_in.encode(), server_name)


@pytest.mark.parametrize(("application", "workers"), [(SERVER, 1), (SERVER, 2), (AIO_SERVER, 1)])
def test_a_server_name_with_line_feeds_forges_no_line(
    manager: EnclaveManager, tmp_path: Path, application: str, workers: int
) -> None:
    configuration = server_config()
    configuration.Extensions[extensions.workers] = workers
    configuration.logging_config.log_directory = str(tmp_path)
    enclave = manager.load("server", probe_bundle(application), configuration)
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", port_of(enclave)), timeout=10) as client:
            client.sendall(client_hello(FORGED))
            assert client.recv(1)  # it has seen the name
    enclave.destroy()
    lines = [json.loads(line) for line in (tmp_path / "server.log").read_text().splitlines()]
    assert "server started" in [line["message"] for line in lines]
    assert "forged" not in [line.get("rule") for line in lines]
