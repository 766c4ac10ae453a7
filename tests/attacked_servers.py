"""Enclaves' servers for attackers to attack: real ATLS, simulated hardware, and a TLS key that leaks into a file.

As a program it runs any number of them, each as if it were an enclave of its own. A server has one application method,
and writes each request that it hears to FOLDER/heard.
"""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from conversing import Conversation, converse
from cryptography.hazmat.primitives import hashes

from adyton.atls.allowance import Allowance
from adyton.atls.attester import Attester
from adyton.atls.batch import BatchedQuotes, DeviceQuotes, Quote, QuoteSource
from adyton.atls.certificates import DEFAULT_AUDIENCE, key_pem
from adyton.atls.claims import encode_claims
from adyton.atls.identity import LocalIdentity, chain_pem
from adyton.bundle.settings import ServerSettings, Settings
from adyton.enclave.ports import ATTESTED, PLAIN_TLS
from adyton.enclave.serving import AioServing, Listen, Serving, ThreadedServing
from adyton.tee.simulated.device import SimulatedDevice
from adyton.tee.simulated.platform import SimulatedPlatform, serve

SERVICE = "tests.Confidant"
TELL = f"/{SERVICE}/Tell"
OTHER_NAME = "second.example"
MEASUREMENT = b"\x5a" * 48
SETTINGS = Settings(
    name="attacked", application="a:B", include=("a",), server=ServerSettings(names=(OTHER_NAME,), plain_tls=True)
)
CLAIMS = encode_claims(name="attacked", config_sha256=bytes(32))


def policy_text(measurement: bytes = MEASUREMENT, *, channel: str = "") -> bytes:
    """A policy that accepts these servers; `channel` is the text of its [channel] table."""
    anchor = SimulatedPlatform.open().root.fingerprint(hashes.SHA256()).hex()
    return f"""
        version = 1
        [anchors]
        simulated = ["{anchor}"]
        [channel]
        {channel}
        [[simulated]]
        name = "attacked"
        measurement = ["{measurement.hex()}"]
        max_age_seconds = 300
    """.encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackedServer:
    """What a test knows of one: `port` is the attested one, and `plain_port` takes no client certificates."""

    folder: Path
    port: int
    plain_port: int
    ca_sha256: str

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def heard(self) -> bytes:
        """Every request that reached the application."""
        return (self.folder / "heard").read_bytes()

    def policy(self, channel: str = "") -> bytes:
        """What accepts it; `channel` is the text of its [channel] table."""
        return policy_text(channel=channel)


class AttackedServers:
    """The test's end of the program."""

    def __init__(self, conversation: Conversation, folder: Path) -> None:
        self._conversation = conversation
        self._folder = folder
        self._started = 0

    def start(self, **options: Any) -> AttackedServer:
        """Another enclave; `options` are those of `Confidant`, `measurement` in hexadecimal."""
        folder = self._folder / f"enclave {self._started}"
        folder.mkdir()
        self._started += 1
        return AttackedServer(folder=folder, **self._conversation.ask(folder=str(folder), **options))


class SlowQuotes:
    """Hardware that takes its time."""

    def __init__(self, source: QuoteSource, seconds: float) -> None:
        self._source = source
        self._seconds = seconds

    def quote(self, node: bytes) -> Quote:
        time.sleep(self._seconds)
        return self._source.quote(node)


class Confidant:
    """One enclave: the server that an enclave has, with one method."""

    def __init__(
        self,
        folder: Path,
        *,
        measurement: str = MEASUREMENT.hex(),
        address: str = "127.0.0.1",
        quote_seconds: float = 0,
        on_asyncio: bool = False,
    ) -> None:
        self._folder = folder
        (folder / "heard").touch()
        self._identity = LocalIdentity(names=(DEFAULT_AUDIENCE, OTHER_NAME), claims=CLAIMS)
        quotes = BatchedQuotes(SlowQuotes(DeviceQuotes(_device(bytes.fromhex(measurement))), quote_seconds))
        names = frozenset({DEFAULT_AUDIENCE, OTHER_NAME})
        attester = Attester(identity=self._identity, quotes=quotes, names=names, allowance=Allowance())
        listen = Listen(address=address, ports={ATTESTED.name: 0, PLAIN_TLS.name: 0}, shared=False)
        if on_asyncio:
            self._serving: Serving = AioServing(SETTINGS, self._add_aio, (), listen, attester)
        else:
            self._serving = ThreadedServing(SETTINGS, self._add, (), listen, attester)

    def facts(self) -> dict[str, Any]:
        """What the test and the attacker may know; the key has leaked."""
        identity = self._identity.current()
        (self._folder / "key.pem").write_bytes(key_pem(identity.leaf.key))
        (self._folder / "chain.pem").write_bytes(chain_pem(identity))
        ports = self._serving.ports
        return {
            "port": ports[ATTESTED.name],
            "plain_port": ports[PLAIN_TLS.name],
            "ca_sha256": identity.ca.spki_sha256.hex(),
        }

    def _add(self, server: Any) -> None:
        self._add_handler(server, self._tell)

    def _add_aio(self, server: Any) -> None:
        async def tell(request: bytes, context: Any) -> bytes:
            return self._tell(request, context)

        self._add_handler(server, tell)

    def _add_handler(self, server: Any, tell: Any) -> None:
        methods: dict[str, Any] = {"Tell": grpc.unary_unary_rpc_method_handler(tell)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))

    def _tell(self, request: bytes, context: Any) -> bytes:
        with (self._folder / "heard").open("ab") as file:
            file.write(request + b"\n")
        return b"genuine: " + request


def _device(measurement: bytes) -> SimulatedDevice:
    inside, outside = socket.socketpair()
    hardware = SimulatedPlatform.open().enclave(measurement)
    threading.Thread(target=serve, args=(hardware, outside), daemon=True).start()
    return SimulatedDevice(inside)


def main() -> None:
    running = []

    def answer(*, folder: str, **options: Any) -> dict[str, Any]:
        running.append(Confidant(Path(folder), **options))
        return running[-1].facts()

    converse(answer)


if __name__ == "__main__":
    main()
