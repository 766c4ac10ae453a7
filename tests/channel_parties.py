"""Both ends of an attested channel without a launcher.

The pure half: an enclave's attester over a throwaway vendor at a fixed time, a client's question, and answers forged in
any single way. The other half: simulated hardware that is as slow as one likes, and a real server over it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import hashes

from adyton.atls.attestation import Attestation
from adyton.atls.attester import Attester, Connection
from adyton.atls.batch import BatchedQuotes, DeviceQuotes, QuoteSource
from adyton.atls.binding import Binding, Purpose, report_data
from adyton.atls.certificates import DEFAULT_AUDIENCE
from adyton.atls.claims import encode_claims
from adyton.atls.connect import connector
from adyton.atls.connector import Connector
from adyton.atls.identity import Identity, LocalIdentity
from adyton.atls.question import Question, Terms
from adyton.bundle.settings import ServerSettings, Settings
from adyton.enclave.serving import AioServing, Listen, Serving, ThreadedServing
from adyton.errors import EvidenceError, PolicyError
from adyton.policy.document import Policy
from adyton.policy.insecurity import Insecurity
from adyton.proto.attestation_pb2 import AttestResponse
from adyton.tee.evidence import Evidence
from adyton.tee.message import encode_evidence
from adyton.tee.simulated.device import SimulatedDevice
from adyton.tee.simulated.platform import SimulatedHardware, serve
from adyton.tee.simulated.root_file import SimulatedRoot, load_or_make_root
from adyton.testing.forgery import NOW
from adyton.testing.simulated import EvidenceRecipe, SimulatedVendor

MEASUREMENT = b"\x4d" * 48
CONFIG_SHA256 = b"\xcf" * 32
CLAIMS = encode_claims(name="an enclave", config_sha256=CONFIG_SHA256)
NONCE = bytes(range(32))
CLIENT_SHA256 = b"\x22" * 32
NAMES = (DEFAULT_AUDIENCE, "translator.example")
ECHO = "/tests.Echo/Echo"

VENDOR = SimulatedVendor()


class VendorDevice:
    """Hardware of `VENDOR`: genuine at NOW. It counts what it signs."""

    tee = "simulated"

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def collect_evidence(self, report_data: bytes) -> Evidence:
        self.asked.append(report_data)
        return evidence_over(report_data)


def evidence_over(data: bytes, **recipe: Any) -> Evidence:
    """Genuine evidence of the enclave's measurement, with this report data."""
    return VENDOR.case(EvidenceRecipe(report_data=data, measurement=MEASUREMENT, **recipe)).evidence


@functools.cache
def local_identity() -> LocalIdentity:
    return LocalIdentity(names=NAMES, claims=CLAIMS, clock=lambda: NOW)


def identity() -> Identity:
    """The enclave's, at NOW."""
    return local_identity().current()


def attester(source: QuoteSource | None = None) -> Attester:
    """The enclave's, with a device of its own unless it is given one."""
    quotes = BatchedQuotes(source or DeviceQuotes(VendorDevice()))
    return Attester(identity=local_identity(), quotes=quotes, names=frozenset(NAMES))


@functools.cache
def _attester() -> Attester:
    return attester()


def connection(**changes: Any) -> Connection:
    """What TLS says of the client's connection."""
    fine = Connection(
        tls_version="TLSv1.3", session_reused=False, server_name=DEFAULT_AUDIENCE, client_sha256=CLIENT_SHA256
    )
    return replace(fine, **changes)


def ask(**changes: Any) -> Question:
    """A client's question, over a connection that was made under the enclave's certificate."""
    question = Question(
        purpose=Purpose.INSTANCE,
        nonce=NONCE,
        audience=DEFAULT_AUDIENCE,
        pinned=identity().leaf.der,
        client_sha256=CLIENT_SHA256,
    )
    return replace(question, **changes)


def answer_to(question: Question) -> AttestResponse:
    """The enclave's own answer."""
    facts = connection(server_name=question.audience, client_sha256=question.client_sha256)
    pending = _attester().begin(question.encode(), facts)
    return AttestResponse.FromString(pending.finish(pending.quote.result(10)))


def binding_of(question: Question, claims: bytes = CLAIMS) -> Binding:
    """What the question wants bound, by somebody who knows all of it."""
    anchor = identity().leaf if question.purpose is Purpose.INSTANCE else identity().ca
    return Binding(
        purpose=question.purpose,
        nonce=question.nonce,
        anchor_sha256=anchor.spki_sha256,
        client_sha256=question.client_sha256,
        claims_sha256=hashlib.sha256(claims).digest(),
        audience=question.audience,
    )


def forged(question: Question, evidence: Evidence | None = None, **fields: Any) -> bytes:
    """The genuine answer with other fields, and with other evidence if there is any."""
    answer = answer_to(question)
    for name, value in fields.items():
        answer.ClearField(name)  # type: ignore[arg-type]
        if isinstance(value, list):
            getattr(answer, name).extend(value)
        elif value is not None:
            setattr(answer, name, value)
    if evidence is not None:
        answer.evidence.ParseFromString(encode_evidence(evidence))
    return answer.SerializeToString()


def bound_to(question: Question, **changes: Any) -> bytes:
    """An answer in order but for its genuine evidence, which is bound to something else in one way."""
    binding = replace(binding_of(question), **changes)
    return forged(question, evidence_over(report_data(binding.leaf())))


def policy_text(anchor: bytes, *, channel: str = "", max_age: str = "300") -> bytes:
    """A policy that accepts MEASUREMENT of a simulation under that root."""
    return f"""
        version = 1
        [anchors]
        simulated = ["{anchor.hex()}"]
        [channel]
        {channel}
        [[simulated]]
        name = "an enclave"
        measurement = ["{MEASUREMENT.hex()}"]
        max_age_seconds = {max_age}
    """.encode()


def terms(channel: str = "", **changes: Any) -> Terms:
    """What the client accepts: the enclave, by a policy with such a [channel] table."""
    policy = Policy.parse(policy_text(VENDOR.root.fingerprint(hashes.SHA256()), channel=channel))
    return replace(Terms(policy=policy, allow=frozenset({Insecurity.SIMULATED})), **changes)


def judged(answer: bytes, question: Question | None = None, *, accepted: Terms | None = None) -> Attestation:
    return (question or ask()).judge(answer, accepted or terms(), now=NOW)


def refused(answer: bytes, question: Question | None = None, *, accepted: Terms | None = None) -> str:
    """What is said against an answer that is not of this protocol or not genuine."""
    with pytest.raises(EvidenceError) as caught:
        judged(answer, question, accepted=accepted)
    return caught.value.message


def subjects(answer: bytes, question: Question | None = None, *, accepted: Terms | None = None) -> set[str]:
    """What the policy has against an answer that is not acceptable."""
    with pytest.raises(PolicyError) as caught:
        judged(answer, question, accepted=accepted)
    return {finding.subject for finding in caught.value.findings}


class SlowHardware(SimulatedHardware):
    """Simulated hardware that takes its time and does one thing after the other, as real hardware does.

    While `free` is not set, it is busy with something else.
    """

    def __init__(self, root: SimulatedRoot, seconds: float) -> None:
        super().__init__(root, MEASUREMENT)
        self.seconds = seconds
        self.quotes = 0
        self.free = threading.Event()
        self.free.set()
        self._serial = threading.Lock()

    def quote(self, report_data: bytes) -> bytes:
        with self._serial:
            self.free.wait()
            time.sleep(self.seconds)
            self.quotes += 1
            return super().quote(report_data)


@contextlib.contextmanager
def slow_device(folder: Path, seconds: float) -> Iterator[tuple[SimulatedDevice, SlowHardware]]:
    """A real device, and the hardware at the other end of its socket. `folder` keeps the root."""
    hardware = SlowHardware(load_or_make_root(folder, datetime.now(UTC)), seconds)
    inside, outside = socket.socketpair()
    with outside, inside:
        thread = threading.Thread(target=serve, args=(hardware, outside))
        thread.start()
        try:
            yield SimulatedDevice(inside), hardware
        finally:
            inside.close()
            thread.join()


Method = Callable[[bytes, Any], bytes]


def adding(service: str, methods: Mapping[str, Method], *, kind: str) -> Callable[[Any], None]:
    """What adds a service of unary methods, none of which waits, to a server of that one of KINDS."""
    made: Any = methods if kind == "threads" else {name: _coroutine(each) for name, each in methods.items()}

    def add(server: Any) -> None:
        handlers: dict[str, Any] = {name: grpc.unary_unary_rpc_method_handler(each) for name, each in made.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))

    return add


def _coroutine(method: Method) -> Any:
    async def called(request: bytes, context: Any) -> bytes:
        return method(request, context)

    return called


def adding_echo(path: str, *, kind: str) -> Callable[[Any], None]:
    """What adds a method by that path that answers with its request."""
    service, method = path.strip("/").split("/")
    return adding(service, {method: lambda request, _context: request}, kind=kind)


KINDS: dict[str, Callable[..., Serving]] = {"threads": ThreadedServing, "asyncio": AioServing}


@contextlib.contextmanager
def serving(
    quotes: BatchedQuotes, *, kind: str = "threads", leaf_lifetime: timedelta = timedelta(hours=24)
) -> Iterator[str]:
    """A real server of an enclave, with one application method (`ECHO`); its target."""
    settings = Settings(name="parties", application="parties:Parties", include=(), server=ServerSettings())
    source = LocalIdentity(names=NAMES, claims=CLAIMS, leaf_lifetime=leaf_lifetime)
    made = Attester(identity=source, quotes=quotes, names=frozenset(NAMES))
    listen = Listen(address="127.0.0.1", ports={"attested": 0}, shared=False)
    server = KINDS[kind](settings, adding_echo(ECHO, kind=kind), (), listen, made)
    try:
        yield f"127.0.0.1:{server.ports['attested']}"
    finally:
        server.stop(0)


def connector_to(target: str, hardware: SlowHardware, *, options: Sequence[tuple[str, Any]] = ()) -> Connector:
    """What connects to a server whose device is over that hardware."""
    anchor = hardware.root.fingerprint(hashes.SHA256())
    return connector(target, policy_text(anchor), allow_insecure=["simulated"], options=options)
