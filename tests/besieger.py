"""A crowd at an enclave's door: a process that opens connections, asks for evidence, and never goes away."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import grpc.aio
from conversing import converse
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from adyton.atls.certificates import DEFAULT_AUDIENCE, parse_certificate, spki_sha256
from adyton.atls.client_key import ConnectionKey
from adyton.atls.connector import ATTEST
from adyton.proto.attestation_pb2 import AttestRequest

ASKING_AT_ONCE = 100
CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
"""How a ClientHello of 508 bytes begins; the rest never comes."""


class Siege:
    """One siege; it lasts as long as its process."""

    def __init__(self, port: int, folder: Path) -> None:
        self._port = port
        self._chain = (folder / "chain.pem").read_bytes()
        self._held: list[socket.socket] = []
        self._asking: list[asyncio.Task[None]] = []
        self._answered = self._refused = 0

    def crowd(self, silent: int, half: int, idle: int) -> None:
        """Connections that say nothing, that stop within a ClientHello, and that stop within the handshake."""
        for _ in range(silent + half):
            self._held.append(socket.create_connection(("127.0.0.1", self._port)))
        for connection in self._held[:half]:
            connection.sendall(CLIENT_HELLO)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        for _ in range(idle):
            plain = socket.create_connection(("127.0.0.1", self._port))
            secured = context.wrap_socket(plain, server_hostname=DEFAULT_AUDIENCE, do_handshake_on_connect=False)
            secured.setblocking(False)
            with contextlib.suppress(ssl.SSLWantReadError):
                secured.do_handshake()
            self._held.append(secured)

    def ask(self, at_once: int) -> None:
        """So many Attests in flight, always."""
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        for _ in range(at_once // ASKING_AT_ONCE):
            asyncio.run_coroutine_threadsafe(self._ask_on(), loop).result(20)

    def outcomes(self) -> dict[str, Any]:
        return {"answered": self._answered, "refused": self._refused}

    async def _ask_on(self) -> None:
        options = [("grpc.ssl_target_name_override", DEFAULT_AUDIENCE), ("grpc.enable_http_proxy", 0)]
        channel = grpc.aio.secure_channel(f"127.0.0.1:{self._port}", ConnectionKey().credentials(self._chain), options)
        self._asking += [asyncio.create_task(self._keep_asking(channel)) for _ in range(ASKING_AT_ONCE)]

    async def _keep_asking(self, channel: grpc.aio.Channel) -> None:
        leaf = x509.load_pem_x509_certificates(self._chain)[0].public_bytes(Encoding.DER)
        pinned = spki_sha256(parse_certificate(leaf)[1])
        asked = AttestRequest(version=1, purpose=1, audience=DEFAULT_AUDIENCE, pinned_sha256=pinned)
        attest: Any = channel.unary_unary(ATTEST)
        while True:
            asked.nonce = os.urandom(32)
            try:
                await attest(asked.SerializeToString())
            except grpc.aio.AioRpcError:
                self._refused += 1
                await asyncio.sleep(1)  # a flood beyond what the processor takes would be another test
            else:
                self._answered += 1


def main() -> None:
    sieges: list[Siege] = []

    def answer(*, port: int = 0, folder: str = "", crowd: int = 0, asking: int = 0) -> dict[str, Any]:
        if port:
            sieges.append(Siege(port, Path(folder)))
            sieges[-1].crowd(silent=crowd, half=crowd, idle=crowd)
            sieges[-1].ask(asking)
        return sieges[-1].outcomes()

    converse(answer)


if __name__ == "__main__":
    main()
