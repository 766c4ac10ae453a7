"""The enclave's side of Attest: what it checks before it asks the hardware, and what it answers. Knows no gRPC."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from adyton.atls.allowance import Allowance
from adyton.atls.batch import BatchedQuotes, Quote
from adyton.atls.binding import NONCE_BYTES, VERSION, Binding, Purpose
from adyton.atls.identity import IdentitySource
from adyton.errors import ApplicationError, StatusCode
from adyton.proto.attestation_pb2 import AttestRequest, AttestResponse
from adyton.proto.messages import parse_message
from adyton.tee.message import encode_evidence

if TYPE_CHECKING:
    from adyton.atls.registrar import Registrar

MAX_REQUEST_BYTES: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """What a server knows of the connection that a call came on, from TLS itself.

    `client_sha256` is the SHA-256 of the client's key (DER SubjectPublicKeyInfo), empty if it showed no certificate.
    `address` is where the client is, without its port.
    """

    tls_version: str
    session_reused: bool
    server_name: str
    client_sha256: bytes
    address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """An answer that waits for its quote."""

    quote: Future[Quote]
    finish: Callable[[Quote], bytes]


class Attester:
    """Answers Attest for one server process. Its `registrar` answers callers that enrol, where they may."""

    def __init__(
        self,
        *,
        identity: IdentitySource,
        quotes: BatchedQuotes,
        names: frozenset[str],
        registrar: Registrar | None = None,
        allowance: Allowance | None = None,
    ) -> None:
        self.identity = identity
        self.quotes = quotes
        self.registrar = registrar
        self._names = names
        self._allowance = allowance

    def begin(self, request: bytes, connection: Connection) -> Pending:
        """Check the question and ask for a quote. Raises `ApplicationError`, before any hardware was asked."""
        asked = _parse(request)
        check_connection(connection)
        identity = self.identity.current()
        leaf = identity.find(asked.pinned_sha256)
        if leaf is None or leaf.issuer is None:
            raise _refused(
                StatusCode.FAILED_PRECONDITION, "the certificate that you have pinned is none of this enclave"
            )
        if asked.audience != connection.server_name or asked.audience not in self._names:
            raise _refused(StatusCode.INVALID_ARGUMENT, "the audience is not a name of this server, or not that of TLS")
        if self._allowance is not None:
            self._allowance.take(connection)
        of_ca = asked.purpose == Purpose.FLEET
        binding = Binding(
            purpose=Purpose(asked.purpose),
            nonce=asked.nonce,
            anchor_sha256=leaf.issuer.spki_sha256 if of_ca else leaf.spki_sha256,
            client_sha256=connection.client_sha256,
            claims_sha256=hashlib.sha256(identity.claims).digest(),
            audience=asked.audience,
        )
        answer = AttestResponse(version=VERSION, claims=identity.claims)
        if of_ca:
            answer.ca_certificate = leaf.issuer.der
        return Pending(quote=self.quotes.submit(binding.leaf()), finish=lambda quote: _finish(answer, quote))


def check_connection(connection: Connection) -> None:
    """Refuse what no binding can be made of: an old TLS, or a resumed session, which the client's key did not sign."""
    if connection.tls_version != "TLSv1.3":
        raise _refused(StatusCode.FAILED_PRECONDITION, "attestation needs TLS 1.3")
    if connection.session_reused:
        raise _refused(
            StatusCode.FAILED_PRECONDITION, "attestation needs a handshake of its own, not a resumed session"
        )


def _finish(answer: AttestResponse, quote: Quote) -> bytes:
    answer.evidence.ParseFromString(encode_evidence(quote.evidence))
    answer.batch_path.extend(quote.path)
    return answer.SerializeToString()


def _parse(request: bytes) -> AttestRequest:
    if len(request) > MAX_REQUEST_BYTES:
        raise _refused(StatusCode.INVALID_ARGUMENT, f"an AttestRequest has {MAX_REQUEST_BYTES} bytes at most")
    try:
        asked = parse_message(AttestRequest, request)
    except DecodeError as problem:
        raise _refused(StatusCode.INVALID_ARGUMENT, "not an AttestRequest") from problem
    if asked.version != VERSION:
        raise _refused(StatusCode.UNIMPLEMENTED, f"this enclave speaks version {VERSION} of ATLS")
    if len(asked.nonce) != NONCE_BYTES:
        raise _refused(StatusCode.INVALID_ARGUMENT, f"a nonce has {NONCE_BYTES} bytes")
    if asked.purpose not in (Purpose.INSTANCE, Purpose.FLEET):
        raise _refused(StatusCode.INVALID_ARGUMENT, "the purpose is none that this enclave answers")
    return asked


def _refused(status: StatusCode, message: str) -> ApplicationError:
    return ApplicationError(status, message)
