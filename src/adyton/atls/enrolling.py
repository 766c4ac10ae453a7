"""A caller that is an enclave itself: it attests itself on the connection on which it has attested the server.

Challenge → apply (asks the caller's own hardware) → Enrol → accept
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import DecodeError

from adyton.atls.ages import MAX_AGE_SECONDS
from adyton.atls.batch import QuoteSource
from adyton.atls.binding import NONCE_BYTES, VERSION
from adyton.atls.certificates import parse_certificate, spki, spki_sha256
from adyton.atls.enrolment import Standing
from adyton.atls.member import LABEL
from adyton.errors import (
    AdytonError,
    ConfigurationError,
    DeadlineError,
    EvidenceError,
    PolicyError,
    UnreachableError,
)
from adyton.proto.attestation_pb2 import ChallengeRequest, ChallengeResponse, EnrolRequest, EnrolResponse
from adyton.proto.messages import parse_message
from adyton.tee.message import encode_evidence

CHALLENGE: Final = "/adyton.atls.Attestation/Challenge"
ENROL: Final = "/adyton.atls.Attestation/Enrol"
CHALLENGE_REQUEST: Final = ChallengeRequest(version=VERSION).SerializeToString()

_MAY_PASS: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerIdentity:
    """What an enclave attests itself with; `EnclaveContext.identity(role=…)` makes one.

    `role` is what it wants to be to the server, a DNS label in small letters; it is hashed into the evidence, and which
    rule accepts the caller is the server's to say. `claims` are as `encode_claims` makes them.
    """

    role: str
    claims: bytes
    quotes: QuoteSource

    def __post_init__(self) -> None:
        if not LABEL.fullmatch(self.role):
            raise ConfigurationError(f"{self.role[:80]!r} is no role", mend="a DNS label in small letters")

    def apply(self, answer: bytes, *, client_sha256: bytes, ca: bytes) -> Applied:
        """Make a key, and evidence over the server's challenge, for one connection. Blocks. Raises `AdytonError`.

        `answer` is the ChallengeResponse; `ca` the DER certificate of the server's CA, which was attested on this
        connection.
        """
        ca_sha256 = spki_sha256(parse_certificate(ca)[1])
        standing = Standing(challenge=_challenge(answer), client_sha256=client_sha256, ca_sha256=ca_sha256)
        key = ec.generate_private_key(ec.SECP256R1())
        binding = standing.binding(role=self.role, key=key.public_key(), claims=self.claims)
        quote = self.quotes.quote(binding.leaf())
        request = EnrolRequest(
            version=VERSION,
            role=self.role,
            batch_path=quote.path,
            claims=self.claims,
            public_key=spki(key.public_key()),
            signature=key.sign(binding.encode(), ec.ECDSA(hashes.SHA256())),
            ca_sha256=ca_sha256,
        )
        request.evidence.ParseFromString(encode_evidence(quote.evidence))
        return Applied(key=key, ca=ca, request=request.SerializeToString())


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """That a server has accepted a caller: its identity on this connection, and a certificate for new ones.

    `certificate` was issued for `key` by `ca`, which was attested. `mesh_port` is where the server takes it, or 0.
    """

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    ca: x509.Certificate
    renew_after_seconds: int
    mesh_port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """An EnrolRequest, and the key that it is for."""

    key: ec.EllipticCurvePrivateKey
    ca: bytes
    request: bytes

    def accept(self, answer: bytes) -> Enrolment:
        """Read the EnrolResponse; `EvidenceError` if it is not one of the server that was attested, for this key."""
        try:
            response = parse_message(EnrolResponse, answer)
        except DecodeError as problem:
            raise EvidenceError("the answer is not an EnrolResponse") from problem
        if response.version != VERSION or len(response.chain) != 1:
            raise EvidenceError("the server answered the enrolment with what ATLS/1 does not know")
        certificate, key = parse_certificate(response.chain[0])
        ca, _ = parse_certificate(self.ca)
        try:
            certificate.verify_directly_issued_by(ca)
        except Exception as problem:
            raise EvidenceError("the certificate is not one of the CA that was attested") from problem
        if response.ca_certificate != self.ca or key != self.key.public_key():
            raise EvidenceError("the certificate is not for this key, or not of the CA that was attested")
        if not 0 < response.renew_after_seconds <= MAX_AGE_SECONDS or not 0 <= response.mesh_port < 65536:
            raise EvidenceError("the server answered the enrolment with numbers that can't be")
        return Enrolment(
            key=self.key,
            certificate=certificate,
            ca=ca,
            renew_after_seconds=response.renew_after_seconds,
            mesh_port=response.mesh_port,
        )


def enrol(call: Callable[[str, bytes], bytes], caller: CallerIdentity, *, client_sha256: bytes, ca: bytes) -> Enrolment:
    """Enrol on one connection; `call` takes a method and a request. Raises `AdytonError`, and what `call` raises."""
    answer = call(CHALLENGE, CHALLENGE_REQUEST)
    applied = caller.apply(answer, client_sha256=client_sha256, ca=ca)
    return applied.accept(call(ENROL, applied.request))


def enrolment_refusal(error: grpc.RpcError, uri: str) -> AdytonError:
    """Why a server did not enrol the caller, as an error of ours."""
    call: Any = error
    code, said = call.code(), str(call.details())[:500]
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineError(f"{uri}: no enrolment in time")
    if code in _MAY_PASS:
        return UnreachableError(f"{uri}: {said}")
    return PolicyError(f"{uri} does not enrol this enclave: {said}")


def _challenge(answer: bytes) -> bytes:
    try:
        response = parse_message(ChallengeResponse, answer)
    except DecodeError as problem:
        raise EvidenceError("the answer is not a ChallengeResponse") from problem
    if response.version != VERSION or len(response.nonce) != NONCE_BYTES:
        raise EvidenceError("the server's challenge is not one of ATLS/1")
    return response.nonce
