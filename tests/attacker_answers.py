"""What the attacker's own server answers, once it has ended a client's TLS."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import inspect
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import grpc.experimental
from attacked_servers import CLAIMS
from attacker_plan import Plan, Record
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from adyton.atls.binding import Binding, Purpose, report_data
from adyton.atls.certificates import DEFAULT_AUDIENCE, parse_certificate, pem, spki_sha256
from adyton.atls.client_key import ConnectionKey
from adyton.atls.connector import ATTEST
from adyton.host.manager import EnclaveManager
from adyton.proto.attestation_pb2 import AttestRequest, AttestResponse
from adyton.proto.enclave_pb2 import EnclaveConfig
from adyton.proto.grpc_application_pb2 import port, server_address
from adyton.tee.evidence import Endorsement, EndorsementKind, Evidence
from adyton.tee.message import encode_evidence
from adyton.tee.simulated.platform import SimulatedPlatform

Answer = Callable[[bytes], Awaitable[bytes]]
_credentials: Any = inspect.unwrap(grpc.experimental.ssl_channel_credentials_with_custom_signer)


class Answers(grpc.GenericRpcHandler):
    """Attest by the plan; every other RPC is heard to its end and written down, and gets an echo."""

    def __init__(self, plan: Plan, record: Record) -> None:
        self._plan = plan
        self._record = record
        self._channel: grpc.aio.Channel | None = None
        self._kept: bytes | None = None
        self._manager: EnclaveManager | None = None
        self.victims_certificate: bytes | None = None

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        if details.method == ATTEST:
            self._record.event("attest")
            return grpc.stream_stream_rpc_method_handler(self._attest)
        self._record.received(details.method.encode())
        return grpc.stream_stream_rpc_method_handler(self._hear)

    async def prepare(self) -> None:
        """What takes too long while a client waits."""
        if self._plan.bundle is not None:
            self._manager = EnclaveManager()
            load = functools.partial(self._manager.load, on=self._plan.technology)
            self._enclave = await asyncio.to_thread(load, "genuine", self._plan.bundle, localhost())

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()
        if self._manager is not None:
            await asyncio.to_thread(self._manager.close)

    async def _hear(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            self._record.received(request)
            yield b"attacker: " + request

    async def _attest(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            if self._plan.answer == "endless":
                while True:
                    yield bytes(1024)
            answer: Answer = getattr(self, self._plan.answer)
            try:
                yield await answer(request)
            except grpc.aio.AioRpcError as error:
                self._record.event(f"upstream:{error.code().name}")
                await context.abort(error.code(), error.details())

    async def relay(self, request: bytes) -> bytes:
        """Ask the genuine server the same, of its own certificate, over a connection of the attacker's own."""
        asked = AttestRequest.FromString(request)
        asked.pinned_sha256 = spki_sha256(parse_certificate(self._genuine_leaf())[1])
        asked.audience = DEFAULT_AUDIENCE
        if self._channel is None:
            self._channel = self._connect()
        attest: Any = self._channel.unary_unary(ATTEST)
        answer: bytes = await attest(asked.SerializeToString(), timeout=10)
        self._record.event("relayed")
        return answer

    async def replay(self, request: bytes) -> bytes:
        """The first answer of the genuine server, again and again."""
        if self._kept is None:
            self._kept = await self.relay(request)
        else:
            self._record.event("replayed")
        return self._kept

    async def huge(self, request: bytes) -> bytes:
        return AttestResponse(version=1, claims=bytes(self._plan.size)).SerializeToString()

    async def noise(self, request: bytes) -> bytes:
        source = random.Random(self._plan.seed)
        return source.randbytes(source.randrange(300))

    async def never(self, request: bytes) -> bytes:
        await asyncio.sleep(600)
        return b""

    async def forge(self, request: bytes) -> bytes:
        """As the enclave would answer on this very connection, if the attacker's hardware may sign what it likes."""
        quote = SimulatedPlatform.open().enclave(bytes.fromhex(self._plan.measurement)).quote
        root = SimulatedPlatform.open().root.public_bytes(Encoding.DER)
        endorsements = (Endorsement(kind=EndorsementKind.CERTIFICATE, data=root),)
        evidence = Evidence(tee="simulated", data=quote(self.forged_report_data(request)), endorsements=endorsements)
        return self.answer_with(evidence)

    async def forge_by_question(self, request: bytes) -> bytes:
        """The same, as the host of a genuine enclave, which may ask it for evidence over any bytes."""
        collect = self._enclave.collect_evidence
        return self.answer_with(await asyncio.to_thread(collect, self.forged_report_data(request)))

    def forged_report_data(self, request: bytes) -> bytes:
        """The 64 bytes that the client expects to find in evidence, of the attacker's own certificate."""
        asked = AttestRequest.FromString(request)
        assert self.victims_certificate is not None
        binding = Binding(
            purpose=Purpose(asked.purpose),
            nonce=asked.nonce,
            anchor_sha256=asked.pinned_sha256,
            client_sha256=spki_sha256(parse_certificate(self.victims_certificate)[1]),
            claims_sha256=hashlib.sha256(CLAIMS).digest(),
            audience=asked.audience,
        )
        return report_data(binding.leaf())

    def answer_with(self, evidence: Evidence) -> bytes:
        response = AttestResponse(version=1, claims=CLAIMS)
        response.evidence.ParseFromString(encode_evidence(evidence))
        self._record.event("forged")
        return response.SerializeToString()

    def _genuine_leaf(self) -> bytes:
        assert self._plan.enclave is not None
        chain = x509.load_pem_x509_certificates((self._plan.enclave / "chain.pem").read_bytes())
        return chain[0].public_bytes(Encoding.DER)

    def _connect(self) -> grpc.aio.Channel:
        assert self._plan.enclave is not None
        root = (self._plan.enclave / "chain.pem").read_bytes()
        if not self._plan.upstream_takes_certificates:
            credentials = grpc.ssl_channel_credentials(root)
        elif self._plan.answer == "relay_as_victim":
            credentials = self._victims_credentials(root)
        else:
            credentials = ConnectionKey().credentials(root)
        options = [("grpc.ssl_target_name_override", DEFAULT_AUDIENCE), ("grpc.enable_http_proxy", 0)]
        return grpc.aio.secure_channel(f"127.0.0.1:{self._plan.upstream}", credentials, options)

    relay_as_victim = relay
    """The same, over a connection that shows the client's certificate, with a signature by another key."""

    def _victims_credentials(self, root: bytes) -> grpc.ChannelCredentials:
        assert self.victims_certificate is not None
        key = ec.generate_private_key(ec.SECP256R1())

        def sign(message: bytes, algorithm: object, on_complete: object) -> bytes:
            self._record.event("signed")
            return key.sign(message, ec.ECDSA(hashes.SHA256()))

        made: grpc.ChannelCredentials = _credentials(
            private_key_sign_fn=sign,
            root_certificates=root,
            certificate_chain=pem(x509.load_der_x509_certificate(self.victims_certificate)),
        )
        return made


def localhost() -> EnclaveConfig:
    config = EnclaveConfig()
    config.Extensions[server_address] = "127.0.0.1"
    config.Extensions[port] = 0
    return config
