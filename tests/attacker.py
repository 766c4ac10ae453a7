"""The attacker: a process between a client and an enclave, which writes down every byte that it gets.

It meets each connection as its plan's routes say, in turn: it passes it on to the genuine server, or ends TLS itself,
with a certificate of its own or with the enclave's leaked key, and serves whatever the client then asks for.
FOLDER/received is what came in, as it came and deciphered, and the method and the requests of every application's RPC;
FOLDER/events is what happened, a word a line.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import ssl
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc.aio
from attacker_answers import Answers
from attacker_plan import Plan, Record
from conversing import Conversation
from cryptography.hazmat.primitives.asymmetric import ec

from adyton.atls.certificates import Issued, issue_leaf, key_pem, make_ca, open_client_ca, pem

CHUNK = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """What a test knows of an attack."""

    conversation: Conversation
    folder: Path
    address: str
    port: int

    @property
    def target(self) -> str:
        return f"{self.address}:{self.port}"

    @property
    def received(self) -> bytes:
        """Every byte that came in, as it came and deciphered, with the method of each RPC that is no Attest."""
        return (self.folder / "received").read_bytes()

    @property
    def events(self) -> list[str]:
        return (self.folder / "events").read_text().split()

    def settle(self) -> int:
        """Wait until the attacker has read what was sent to it. How many connections are still open after a while."""
        left: int = self.conversation.ask(settle=True)["open"]
        return left


class Attacker:
    """The test's end of the process."""

    def __init__(self, conversation: Conversation, folder: Path) -> None:
        self._conversation = conversation
        self._folder = folder
        self._begun = 0

    def attack(self, *routes: str, address: str = "127.0.0.1", **plan: Any) -> Attack:
        """Begin another attack, and end the one before. `plan` is that of `Plan`."""
        folder = self._folder / str(self._begun)
        folder.mkdir()
        self._begun += 1
        begun = self._conversation.ask(folder=str(folder), routes=routes, address=address, **plan)
        return Attack(conversation=self._conversation, folder=folder, address=address, port=begun["port"])

    def turn(self, *routes: str) -> None:
        """Cut every connection, and meet the next ones so."""
        self._conversation.ask(turn=routes)


class Meeting:
    """One attack, under way."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._record = Record(plan.folder)
        self._answers = Answers(plan, self._record)
        self._routes: Iterator[str] = itertools.cycle(plan.routes)
        self._connections: dict[asyncio.StreamWriter, asyncio.Task[Any]] = {}
        self._random = random.Random(plan.seed)
        self._inner = grpc.aio.server()
        self._servers: list[asyncio.Server] = []

    async def begin(self) -> int:
        folder = self._plan.folder
        self._inner.add_generic_rpc_handlers((self._answers,))
        self._inner.add_insecure_port(f"unix:{folder}/h2")
        await self._inner.start()
        await self._answers.prepare()
        context = tls_context(self._plan)
        self._servers.append(await asyncio.start_unix_server(self._decipher, folder / "tls", ssl=context))
        self._servers.append(await asyncio.start_server(self._meet, self._plan.address, self._plan.port))
        port: int = self._servers[-1].sockets[0].getsockname()[1]
        return port

    def turn(self, routes: list[str]) -> None:
        self._routes = itertools.cycle(routes)
        for writer in self._connections:
            writer.transport.abort()

    async def end(self) -> None:
        for server in self._servers:
            server.close()
        await self._answers.close()
        await self._inner.stop(None)
        self.turn(["silence"])
        await self.settle()

    async def settle(self) -> int:
        """Wait a while for the connections to end; how many have not."""
        if self._connections:
            await asyncio.wait(self._connections.values(), timeout=2)
        return len(self._connections)

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with self._connection(writer):
            route = next(self._routes)
            self._record.event(route)
            match route:
                case "genuine":
                    await self._join(reader, writer, await asyncio.open_connection("127.0.0.1", self._plan.genuine))
                case "terminate":
                    await self._join(reader, writer, await asyncio.open_unix_connection(self._plan.folder / "tls"))
                case "plaintext":
                    await self._join(reader, writer, await asyncio.open_unix_connection(self._plan.folder / "h2"))
                case "noise":
                    await self._make_noise(reader, writer)
                case "silence":
                    await self._listen(reader)

    async def _decipher(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """TLS has ended here; what was inside goes to the attacker's own server."""
        async with self._connection(writer):
            self._record.event("handshake")
            self._answers.victims_certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            if self._plan.noise_in_tls:
                await self._make_noise(reader, writer)
            else:
                await self._join(reader, writer, await asyncio.open_unix_connection(self._plan.folder / "h2"))

    @contextlib.asynccontextmanager
    async def _connection(self, writer: asyncio.StreamWriter) -> AsyncIterator[None]:
        task = asyncio.current_task()
        assert task is not None
        self._connections[writer] = task
        with contextlib.suppress(OSError, ssl.SSLError):
            yield
        writer.close()
        del self._connections[writer]

    async def _join(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        """Pass everything on, both ways, until one of the two ends."""
        there = asyncio.create_task(self._pump(reader, upstream[1], received=True))
        back = asyncio.create_task(self._pump(upstream[0], writer, received=False))
        await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0.05)  # what the other direction still carries
        there.cancel()
        back.cancel()
        await asyncio.gather(there, back, return_exceptions=True)
        upstream[1].close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, received: bool) -> None:
        while data := await reader.read(CHUNK):
            if received:
                self._record.received(data)
            writer.write(data)
            await writer.drain()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(CHUNK):
            self._record.received(data)

    async def _make_noise(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Random bytes, which may begin as the protocol does, and then either silence or the end."""
        self._record.event("noise")
        opening = self._random.choice([b"", b"\x16\x03\x03", b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03", SETTINGS])
        writer.write(opening + self._random.randbytes(self._random.randrange(2000)))
        await writer.drain()
        if self._random.random() < 0.5:
            await self._listen(reader)


SETTINGS = bytes(3) + b"\x04" + bytes(5)
"""An empty SETTINGS frame, with which HTTP/2 begins."""


def tls_context(plan: Plan) -> ssl.SSLContext:
    """The attacker's TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2"])
    if plan.tls_at_most_1_2:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    if plan.demands_certificate:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=pem(open_client_ca().certificate).decode())
    if plan.key_has_leaked:
        assert plan.enclave is not None
        context.load_cert_chain(plan.enclave / "chain.pem", plan.enclave / "key.pem")
    else:
        issued = own_certificate(plan.name, plan.ca)
        (plan.folder / "key.pem").write_bytes(key_pem(issued.key))
        (plan.folder / "chain.pem").write_bytes(pem(issued.certificate))
        context.load_cert_chain(plan.folder / "chain.pem", plan.folder / "key.pem")
    return context


def own_certificate(name: str, ca_file: Path | None) -> Issued:
    """A certificate for `name` under a CA of the attacker's, which is written to `ca_file`."""
    now, key = datetime.now(UTC), ec.generate_private_key(ec.SECP256R1())
    ca = make_ca(now)
    if ca_file is not None:
        ca_file.write_bytes(pem(ca.certificate))
    return Issued(key=key, certificate=issue_leaf(ca, key.public_key(), [name], now, timedelta(days=1)), issuer=ca)


async def main() -> None:
    meeting: Meeting | None = None
    while line := await asyncio.to_thread(sys.stdin.readline):
        question = json.loads(line)
        answer: dict[str, Any] = {}
        if meeting is not None and "turn" in question:
            meeting.turn(question["turn"])
        elif meeting is not None and "settle" in question:
            answer["open"] = await meeting.settle()
        else:
            if meeting is not None:
                await meeting.end()
            meeting = Meeting(Plan.parse(question))
            answer["port"] = await meeting.begin()
        print(json.dumps(answer), flush=True)
    if meeting is not None:
        await meeting.end()
    os._exit(0)  # gRPC's threads for a key that signs in Python would not end


if __name__ == "__main__":
    asyncio.run(main())
