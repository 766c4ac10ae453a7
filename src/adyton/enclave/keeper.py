"""The keys of an enclave with several server processes: the first process has them and the device, the others ask it.

first process   Keeper.serve(connection)    a thread for each server process
server process  KeeperClient                at the other end of a socket pair that nobody outside has
"""

from __future__ import annotations

import contextlib
import socket
import threading
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import DecodeError

from adyton.atls.batch import BatchedQuotes, Quote
from adyton.atls.binding import NODE_BYTES
from adyton.atls.certificates import Issued
from adyton.atls.identity import Identity, IdentitySource
from adyton.errors import AdytonError, ApplicationError, ControlProtocolError, StatusCode
from adyton.proto import keeper_pb2
from adyton.proto.frames import encode_frame, read_frame
from adyton.proto.messages import parse_message
from adyton.tee.message import decode_evidence, encode_evidence

_GONE = "the enclave's first process is gone"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Keeper:
    """Answers the server processes of one enclave."""

    def __init__(self, identity: IdentitySource, quotes: BatchedQuotes) -> None:
        self._identity = identity
        self._quotes = quotes

    def serve(self, connection: socket.socket) -> None:
        """Answer one process until it is gone. For a thread; closes the connection."""
        with connection, contextlib.suppress(OSError, ControlProtocolError):
            while (frame := read_frame(connection)) is not None:
                connection.sendall(encode_frame(self._answer(frame).SerializeToString()))

    def _answer(self, frame: bytes) -> keeper_pb2.Reply:
        try:
            request = parse_message(keeper_pb2.Request, frame)
            if request.WhichOneof("call") == "identity":
                return keeper_pb2.Reply(identity=_encode_identity(self._identity.current()))
            if len(request.quote) != NODE_BYTES:
                raise ApplicationError(StatusCode.INVALID_ARGUMENT, f"a node has {NODE_BYTES} bytes")
            quote = self._quotes.quote(request.quote)
        except DecodeError:
            return keeper_pb2.Reply(code=StatusCode.INVALID_ARGUMENT, message="not a request of the keeper's")
        except AdytonError as problem:
            return keeper_pb2.Reply(code=problem.status, message=problem.message)
        reply = keeper_pb2.Reply(quote=keeper_pb2.Quote(path=quote.path))
        reply.quote.evidence.ParseFromString(encode_evidence(quote.evidence))
        return reply


class KeeperClient:
    """A server process's end: quotes and identity. Serial; safe in threads."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._guard = threading.Lock()
        self._identity: Identity | None = None

    def quote(self, node: bytes) -> Quote:
        """As QuoteSource says."""
        quote = self._ask(keeper_pb2.Request(quote=node)).quote
        evidence = decode_evidence(quote.evidence.SerializeToString())
        return Quote(evidence=evidence, path=tuple(quote.path))

    def current(self) -> Identity:
        """As IdentitySource says."""
        known = self._identity
        if known is None or datetime.now(UTC) >= known.renew_at:
            known = self._identity = _decode_identity(self._ask(keeper_pb2.Request(identity=True)).identity)
        return known

    def _ask(self, request: keeper_pb2.Request) -> keeper_pb2.Reply:
        with self._guard:
            try:
                self._connection.sendall(encode_frame(request.SerializeToString()))
                frame = read_frame(self._connection)
                reply = parse_message(keeper_pb2.Reply, frame) if frame is not None else None
            except (OSError, ControlProtocolError, DecodeError) as problem:
                raise ApplicationError(StatusCode.UNAVAILABLE, _GONE) from problem
        if reply is None:
            raise ApplicationError(StatusCode.UNAVAILABLE, _GONE)
        if reply.code:
            known = reply.code in StatusCode.__members__.values()
            raise ApplicationError(StatusCode(reply.code) if known else StatusCode.INTERNAL, reply.message)
        return reply


def _encode_identity(identity: Identity) -> keeper_pb2.Identity:
    return keeper_pb2.Identity(
        leaves=map(_encode_issued, identity.leaves),
        claims=identity.claims,
        renew_at=(identity.renew_at - _EPOCH) // _MICROSECOND,
    )


def _encode_issued(issued: Issued) -> keeper_pb2.Issued:
    key = issued.key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    issuer = _encode_issued(issued.issuer) if issued.issuer is not None else None
    return keeper_pb2.Issued(key=key, certificate=issued.der, issuer=issuer)


def _decode_identity(message: keeper_pb2.Identity) -> Identity:
    return Identity(
        leaves=tuple(map(_decode_issued, message.leaves)),
        claims=message.claims,
        renew_at=_EPOCH + message.renew_at * _MICROSECOND,
    )


def _decode_issued(message: keeper_pb2.Issued) -> Issued:
    key = serialization.load_der_private_key(message.key, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    certificate = x509.load_der_x509_certificate(message.certificate)
    return Issued(
        key=key, certificate=certificate, issuer=_decode_issued(message.issuer) if message.HasField("issuer") else None
    )
