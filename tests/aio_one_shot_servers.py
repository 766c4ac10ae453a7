"""A server in a process of its own that can be killed, and an opener of sessions that connect to it once.

As a program it is the server: FOLDER (key, certificate, and the file that says what was executed), PORT, and the
longest age of a connection in milliseconds, 0 for none. Requests and responses are bytes; a request is the name of
what is executed, and the server writes each name to FOLDER/executed.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self, cast

import grpc
import grpc.aio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from translator import translator_pb2_grpc
from translator.service import Translator

from adyton.atls.attestation import Attestation
from adyton.atls.certificates import DEFAULT_AUDIENCE, issue_leaf, make_ca, open_client_ca, pem
from adyton.atls.client_key import ConnectionKey
from adyton.atls.never_sent import ANSWERED_KEY
from adyton.atls.one_dial import ARGUMENT, OneDial
from adyton.atls.question import Question
from adyton.atls.session import Session
from adyton.errors import AdytonError, UnreachableError

SERVICE = "tests.Counting"
LOST_WORDS = "failed to connect to all addresses; last error: as if"
START_SECONDS = 20.0
AioSession = Session[grpc.aio.Channel]


class Counting:
    """The handlers. A request `slow:…` takes a while, `refused:…` ends with UNAVAILABLE in gRPC's own words.

    So does `unmarked:…`, without our mark.
    """

    def __init__(self, executed: Path) -> None:
        self._executed = os.open(executed, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def handler(self) -> grpc.GenericRpcHandler:
        methods: dict[str, Any] = {
            "UnaryUnary": grpc.unary_unary_rpc_method_handler(self.answer),
            "UnaryStream": grpc.unary_stream_rpc_method_handler(self.repeat),
            "StreamUnary": grpc.stream_unary_rpc_method_handler(self.join),
            "StreamStream": grpc.stream_stream_rpc_method_handler(self.chat),
            "Metadata": grpc.unary_unary_rpc_method_handler(self.metadata),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def execute(self, request: bytes, context: grpc.ServicerContext) -> None:
        os.write(self._executed, request + b"\n")
        if request.startswith(b"slow:"):
            time.sleep(0.3)
        if request.startswith(b"refused:"):
            context.set_trailing_metadata(((ANSWERED_KEY, "1"),))
            context.abort(grpc.StatusCode.UNAVAILABLE, LOST_WORDS)
        if request.startswith(b"unmarked:"):
            context.abort(grpc.StatusCode.UNAVAILABLE, LOST_WORDS)

    def answer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.execute(request, context)
        return request

    def repeat(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        self.execute(request, context)
        for number in range(3):
            yield b"%s %d" % (request, number)

    def join(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        taken = []
        for request in requests:
            self.execute(request, context)
            taken.append(request)
        return b" ".join(taken)

    def chat(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        context.send_initial_metadata((("greeting", "hello"),))
        for request in requests:
            self.execute(request, context)
            yield request

    def metadata(self, _request: bytes, context: grpc.ServicerContext) -> bytes:
        context.send_initial_metadata((("first", "1"),))
        context.set_trailing_metadata((("last", "2"),))
        return "\n".join(sorted(f"{key}={value!s}" for key, value in context.invocation_metadata())).encode()


def serve(folder: Path, port: int, max_age_ms: int) -> None:
    options = [("grpc.so_reuseport", 0)]
    options += [("grpc.max_connection_age_ms", max_age_ms)] if max_age_ms else []
    server = grpc.server(futures.ThreadPoolExecutor(32), options=options)
    server.add_generic_rpc_handlers((Counting(folder / "executed").handler(),))
    translator_pb2_grpc.add_TranslatorServicer_to_server(Translator.from_file(), server)
    pair = ((folder / "key.pem").read_bytes(), (folder / "leaf.pem").read_bytes())
    clients = pem(open_client_ca().certificate)
    credentials = grpc.ssl_server_credentials([pair], clients, require_client_auth=True)
    server.add_secure_port(f"127.0.0.1:{port}", credentials)
    server.start()
    print("ready", flush=True)
    server.wait_for_termination()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class OneShotServer:
    """A server on one port, with one key, however often it is killed and started again."""

    folder: Path
    max_age_ms: int = 0
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        now, key = datetime.now(UTC), ec.generate_private_key(ec.SECP256R1())
        ca = make_ca(now)
        self.root_pem = pem(ca.certificate)
        leaf = issue_leaf(ca, key.public_key(), [DEFAULT_AUDIENCE], now, timedelta(days=1))
        pkcs8 = serialization.PrivateFormat.PKCS8
        secret = key.private_bytes(serialization.Encoding.PEM, pkcs8, serialization.NoEncryption())
        (self.folder / "key.pem").write_bytes(secret)
        (self.folder / "leaf.pem").write_bytes(pem(leaf) + self.root_pem)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        arguments = [str(self.folder), str(self.port), str(self.max_age_ms)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.process = subprocess.Popen(
            [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, env=environment, stdin=subprocess.DEVNULL
        )
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], START_SECONDS)
        assert ready
        assert self.process.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        if self.process is not None:
            with self.process:
                self.process.send_signal(signal.SIGKILL)
            self.process = None

    def executed(self) -> list[str]:
        file = self.folder / "executed"
        return file.read_text().split("\n")[:-1] if file.exists() else []


@dataclass
class PlainOpener:
    """Connects over TLS with a key that signs once, and attests nothing. Counts, and fails or waits as it is told."""

    server: OneShotServer
    opens: int = 0
    renewals: int = 0
    open_now: int = 0
    renew_after_seconds: float = 3600.0
    refusals: list[AdytonError] = field(default_factory=list)
    renewal_refusals: list[AdytonError] = field(default_factory=list)
    before_open: Callable[[], Any] | None = None
    sessions: list[AioSession] = field(default_factory=list)

    async def open(self, timeout_seconds: float) -> AioSession:
        self.opens += 1
        if self.before_open is not None:
            await self.before_open()
        if self.refusals:
            raise self.refusals.pop(0)
        once = OneDial()
        channel = self.channel(once)
        try:
            await self._connect(channel, timeout_seconds)
        except BaseException:
            await channel.close()
            raise
        attestation = cast(Attestation, f"attestation {self.opens}")
        question = cast(Question, None)
        renew_at = time.monotonic() + self.renew_after_seconds
        self.sessions.append(Session(channel, attestation, renew_at, question, once))
        return self.sessions[-1]

    async def renew(self, session: AioSession, timeout_seconds: float) -> None:
        self.renewals += 1
        if self.renewal_refusals:
            raise self.renewal_refusals.pop(0)
        await self._connect(session.channel, timeout_seconds)
        session.attestation = cast(Attestation, f"renewed {self.renewals}")
        session.renew_at = time.monotonic() + self.renew_after_seconds

    async def _connect(self, channel: grpc.aio.Channel, timeout_seconds: float) -> None:
        attest: Any = channel.unary_unary(f"/{SERVICE}/Metadata")
        try:
            await attest(b"", timeout=timeout_seconds)
        except grpc.aio.AioRpcError as error:
            raise UnreachableError(str(error.details())) from error

    def channel(self, once: OneDial) -> grpc.aio.Channel:
        """A channel that can connect once."""
        return grpc.aio.secure_channel(
            f"ipv4:127.0.0.1:{self.server.port}",
            ConnectionKey().credentials(self.server.root_pem),
            options=[
                ("grpc.ssl_target_name_override", DEFAULT_AUDIENCE),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.enable_http_proxy", 0),
                (ARGUMENT, once),
            ],
        )


async def each(*requests: bytes) -> AsyncIterator[bytes]:
    """An asynchronous request iterator."""
    for request in requests:
        yield request


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
