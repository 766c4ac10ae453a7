"""An enclave with several server processes: the first has device, keys and secrets, the others ask it.

first process   Keeper.serve(connection)    a thread for each server process
server process  KeeperClient                at the other end of a socket pair that nobody outside has
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import DecodeError

from adyton.atls.batch import BatchedQuotes, Quote
from adyton.atls.binding import NODE_BYTES
from adyton.atls.certificates import Issued
from adyton.atls.identity import Identity, RotatingIdentity
from adyton.enclave.keeper_keys import KeeperKeys, answer_key
from adyton.enclave.vault import Vault
from adyton.errors import AdytonError, ApplicationError, ControlProtocolError, StatusCode
from adyton.proto import keeper_pb2
from adyton.proto.frames import encode_frame, read_frame
from adyton.proto.messages import parse_message
from adyton.sealing.secrets import SecretInfo
from adyton.tee.message import decode_evidence, encode_evidence
from adyton.tee.sealing import KeySource

NOTICE_SECONDS: Final = 0.1
"""After so long at most a server process that gets new connections knows that another one has rotated the identity."""
_GONE = "the enclave's first process is gone"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Keeper:
    """Answers the server processes of one enclave."""

    def __init__(self, identity: RotatingIdentity, quotes: BatchedQuotes, vault: Vault) -> None:
        self._identity = identity
        self._quotes = quotes
        self._vault = vault
        self._rotations = 0
        self._guard = threading.Lock()

    def serve(self, connection: socket.socket) -> None:
        """Answer one process until it is gone. For a thread; closes the connection."""
        with connection, contextlib.suppress(OSError, ControlProtocolError):
            while (frame := read_frame(connection)) is not None:
                connection.sendall(encode_frame(self._answer(frame).SerializeToString()))

    def _answer(self, frame: bytes) -> keeper_pb2.Reply:
        rotations = self._rotations  # as it is before: who gets a newer identity with it asks once more, no harm done
        reply = self._attempt(frame)
        reply.rotations = rotations
        return reply

    def _attempt(self, frame: bytes) -> keeper_pb2.Reply:
        try:
            return self._carry_out(parse_message(keeper_pb2.Request, frame))
        except (DecodeError, ValueError):
            return keeper_pb2.Reply(code=StatusCode.INVALID_ARGUMENT, message="not a request of the keeper's")
        except AdytonError as problem:
            return keeper_pb2.Reply(code=problem.status, message=problem.message)

    def _carry_out(self, request: keeper_pb2.Request) -> keeper_pb2.Reply:  # noqa: PLR0911  one for each call
        match request.WhichOneof("call"):
            case "identity":
                return keeper_pb2.Reply(identity=_encode_identity(self._identity.current()))
            case "rotate_identity":
                return keeper_pb2.Reply(identity=_encode_identity(self._rotate()))
            case "rotations":
                return keeper_pb2.Reply()
            case "key":
                return keeper_pb2.Reply(key=answer_key(self._vault.sealer.source, request.key))
            case "secret":
                return keeper_pb2.Reply(secret=self._vault.kept_secrets.secret(request.secret))
            case "secret_infos":
                return self._secrets(self._vault.kept_secrets.infos())
            case "put_secret":
                put = request.put_secret
                return self._secrets([self._vault.kept_secrets.put(put.name, put.value, replace=put.replace)])
            case _:
                return self._quote(request.quote)

    def _rotate(self) -> Identity:
        identity = self._identity.rotate()
        with self._guard:
            self._rotations += 1
        return identity

    def _quote(self, node: bytes) -> keeper_pb2.Reply:
        if len(node) != NODE_BYTES:
            raise ApplicationError(StatusCode.INVALID_ARGUMENT, f"a node has {NODE_BYTES} bytes")
        quote = self._quotes.quote(node)
        reply = keeper_pb2.Reply(quote=keeper_pb2.Quote(path=quote.path))
        reply.quote.evidence.ParseFromString(encode_evidence(quote.evidence))
        return reply

    def _secrets(self, infos: list[SecretInfo]) -> keeper_pb2.Reply:
        encoded = [
            keeper_pb2.SecretInfo(name=each.name, version=each.version, changed_at=each.changed_at) for each in infos
        ]
        return keeper_pb2.Reply(secrets=keeper_pb2.SecretInfos(infos=encoded, durable=self._vault.kept_secrets.durable))


class KeeperClient:
    """A server process's end: quotes, identity, sealing keys, secrets. Serial; safe in threads."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._guard = threading.Lock()
        self._identity: tuple[Identity, int] | None = None  # and after how many rotations
        self._rotations = 0
        self._heard_at = 0.0

    def quote(self, node: bytes) -> Quote:
        """As QuoteSource says."""
        quote = self._ask(keeper_pb2.Request(quote=node)).quote
        evidence = decode_evidence(quote.evidence.SerializeToString())
        return Quote(evidence=evidence, path=tuple(quote.path))

    def current(self) -> Identity:
        """As IdentitySource says."""
        self._listen()
        known = self._identity
        if known is None or datetime.now(UTC) >= known[0].renew_at or known[1] != self._rotations:
            known = self._learn(keeper_pb2.Request(identity=True))
        return known[0]

    def rotate(self) -> Identity:
        """As LocalIdentity says."""
        return self._learn(keeper_pb2.Request(rotate_identity=True))[0]

    def _learn(self, request: keeper_pb2.Request) -> tuple[Identity, int]:
        reply = self._ask(request)
        self._identity = known = _decode_identity(reply.identity), reply.rotations
        return known

    def _listen(self) -> None:
        """Have had a reply lately: each says whether the identity was rotated. One that is on its way will do."""
        if time.monotonic() - self._heard_at >= NOTICE_SECONDS and self._guard.acquire(blocking=False):
            try:
                self._exchange(keeper_pb2.Request(rotations=True))
            finally:
                self._guard.release()

    @property
    def keys(self) -> KeySource:
        """The enclave's source of sealing keys."""
        return KeeperKeys(lambda request: self._ask(keeper_pb2.Request(key=request)).key)

    def secret(self, name: str) -> bytes | None:
        """As SecretReader says."""
        reply = self._ask(keeper_pb2.Request(secret=name))
        return reply.secret if reply.HasField("secret") else None

    def secret_names(self) -> list[str]:
        """As SecretReader says."""
        return [each.name for each in self.infos()]

    def infos(self) -> list[SecretInfo]:
        """As KeptSecrets says."""
        return list(map(_decode_info, self._ask(keeper_pb2.Request(secret_infos=True)).secrets.infos))

    @property
    def durable(self) -> bool:
        """As KeptSecrets says."""
        return self._ask(keeper_pb2.Request(secret_infos=True)).secrets.durable

    def put(self, name: str, value: bytes, *, replace: bool) -> SecretInfo:
        """As KeptSecrets says."""
        put = keeper_pb2.PutSecret(name=name, value=value, replace=replace)
        return _decode_info(self._ask(keeper_pb2.Request(put_secret=put)).secrets.infos[0])

    def _ask(self, request: keeper_pb2.Request) -> keeper_pb2.Reply:
        with self._guard:
            reply = self._exchange(request)
        if reply.code:
            known = reply.code in StatusCode.__members__.values()
            raise ApplicationError(StatusCode(reply.code) if known else StatusCode.INTERNAL, reply.message)
        return reply

    def _exchange(self, request: keeper_pb2.Request) -> keeper_pb2.Reply:
        """With the guard held. Raises UNAVAILABLE; what else the reply says is for the caller to look at."""
        try:
            self._connection.sendall(encode_frame(request.SerializeToString()))
            if (frame := read_frame(self._connection)) is None:
                raise ApplicationError(StatusCode.UNAVAILABLE, _GONE)
            reply = parse_message(keeper_pb2.Reply, frame)
        except (OSError, ControlProtocolError, DecodeError) as problem:
            raise ApplicationError(StatusCode.UNAVAILABLE, _GONE) from problem
        self._rotations, self._heard_at = reply.rotations, time.monotonic()
        return reply


def _encode_identity(identity: Identity) -> keeper_pb2.Identity:
    return keeper_pb2.Identity(
        leaves=map(_encode_issued, identity.leaves),
        claims=identity.claims,
        renew_at=(identity.renew_at - _EPOCH) // _MICROSECOND,
        epoch=identity.epoch,
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
        epoch=message.epoch,
    )


def _decode_issued(message: keeper_pb2.Issued) -> Issued:
    key = serialization.load_der_private_key(message.key, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    certificate = x509.load_der_x509_certificate(message.certificate)
    return Issued(
        key=key, certificate=certificate, issuer=_decode_issued(message.issuer) if message.HasField("issuer") else None
    )


def _decode_info(info: keeper_pb2.SecretInfo) -> SecretInfo:
    return SecretInfo(name=info.name, version=info.version, changed_at=info.changed_at)
