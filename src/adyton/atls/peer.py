"""Who calls: the attested identity of the enclave at the other end of a connection to this process's server."""

from __future__ import annotations

import functools
import json
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol

from cryptography import x509

from adyton.atls.certificates import parse_certificate, spki_sha256
from adyton.atls.identity import IdentitySource
from adyton.atls.member import read_member
from adyton.errors import EvidenceError

MAX_PEERS: Final = 10_000
MAX_PEM_BYTES: Final = 16 * 1024
"""The longest client certificate that is looked at. Anybody can make one, and some are kept."""
_KEPT_CERTIFICATES: Final = 1024


class CallContext(Protocol):
    """The part of a servicer's context that says who calls; both kinds of server have it."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """As grpc.ServicerContext has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """An enrolled caller: an enclave whose evidence this server's policy has accepted.

    `rule` is the policy's rule that did; `tee`, `measurement`, `platform` and `insecurities` are what the evidence says
    and the policy let pass. After `expires_at`, which has a time zone, the caller has to enrol again.
    """

    rule: str
    tee: str
    measurement: bytes
    platform: str
    insecurities: tuple[str, ...]
    expires_at: datetime

    def __post_init__(self) -> None:
        if self.expires_at.utcoffset() is None:
            raise ValueError("expires_at must have a time zone")

    def encode(self) -> bytes:
        """For a certificate, which has the end itself."""
        fields = {
            "rule": self.rule,
            "tee": self.tee,
            "measurement": self.measurement.hex(),
            "platform": self.platform,
            "insecurities": self.insecurities,
        }
        return json.dumps(fields, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, record: bytes, expires_at: datetime) -> Peer:
        """What `encode` made. Only for what this enclave has signed itself."""
        fields = json.loads(record)
        return cls(
            rule=fields["rule"],
            tee=fields["tee"],
            measurement=bytes.fromhex(fields["measurement"]),
            platform=fields["platform"],
            insecurities=tuple(fields["insecurities"]),
            expires_at=expires_at,
        )


class Peers:
    """The enrolled callers of a server, by the key of their connection. Safe in threads.

    A client makes a key for each connection, so SHA-256 of its DER SubjectPublicKeyInfo names one. A caller that uses a
    key for two has its identity on both, which it could have anyway.
    """

    def __init__(
        self, *, max_peers: int = MAX_PEERS, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._max_peers = max_peers
        self._clock = clock
        self._guard = threading.Lock()
        self._peers: dict[bytes, Peer] = {}

    def __len__(self) -> int:
        return len(self._peers)

    def enrol(self, client_spki_sha256: bytes, peer: Peer) -> None:
        """Know the caller on that connection until it expires.

        Those that have expired are forgotten; where there are too many, so is the one that would expire first.
        """
        now = self._clock()
        with self._guard:
            self._peers = {key: each for key, each in self._peers.items() if now < each.expires_at}
            self._peers.pop(client_spki_sha256, None)
            if len(self._peers) >= self._max_peers:
                del self._peers[min(self._peers, key=lambda key: self._peers[key].expires_at)]
            self._peers[client_spki_sha256] = peer

    def find(self, client_spki_sha256: bytes) -> Peer | None:
        """The caller on that connection, if it has enrolled and has not expired."""
        with self._guard:
            found = self._peers.get(client_spki_sha256)
        return found if found is not None and self._clock() < found.expires_at else None


CONNECTED: Final = Peers()
"""Those of this process, which is one enclave's server."""


class Members:
    """The enrolled callers that show a certificate of this enclave's CA, until the certificate or the enclave ends.

    A CA that is kept outlives the policy by which its callers were judged: each has to enrol again after a restart.
    """

    def __init__(self, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self._source: IdentitySource | None = None

    def trust(self, source: IdentitySource) -> None:
        """Believe what the CA of that identity has signed, and the one before it."""
        self._source = source

    def find(self, certificate_pem: bytes) -> Peer | None:
        """The caller that the certificate is of. Whoever shows it has proved to TLS that the key is its own."""
        if self._source is None:
            return None
        identity = self._source.current()
        authorities = frozenset(leaf.issuer.certificate for leaf in identity.leaves if leaf.issuer is not None)
        found = _member_of(certificate_pem, authorities, identity.epoch)
        return found if found is not None and self._clock() < found.expires_at else None


MEMBERS: Final = Members()
"""Those of this process; nobody, unless its server has a mesh port."""


def peer(context: CallContext) -> Peer | None:
    """The attested identity of who calls, from a servicer's context of either kind of server.

    None for a caller that has not enrolled on this connection, or not lately, and shows no certificate that it got when
    it enrolled on another one; for one without a certificate; and on a plain connection.
    """
    key = client_spki_sha256(context)
    if key is None:
        return None
    found = CONNECTED.find(key)
    if found is None and b"TLSv1.3" in context.auth_context().get("ssl_tls_version", ()):
        found = MEMBERS.find(_certificate_pem(context))
    return found


def client_spki_sha256(context: CallContext) -> bytes | None:
    """What names the connection of a call: SHA-256 of the DER SubjectPublicKeyInfo of the client's P-256 key.

    None where there is no such key, and in a resumed TLS session: there the certificate is remembered from another
    connection, and its key has signed nothing.
    """
    certificate = _certificate_pem(context)
    if not certificate or list(context.auth_context().get("ssl_session_reused", ())) != [b"false"]:
        return None
    return _key_of(certificate) if len(certificate) <= MAX_PEM_BYTES else None


def _certificate_pem(context: CallContext) -> bytes:
    return next(iter(context.auth_context().get("x509_pem_cert", ())), b"")


@functools.lru_cache(maxsize=_KEPT_CERTIFICATES)
def _key_of(certificate_pem: bytes) -> bytes | None:
    # A server asks this at every call of a connection, and parsing takes longer than all the rest.
    try:
        _, key = parse_certificate(ssl.PEM_cert_to_DER_cert(certificate_pem.decode("ascii")))
    except (ValueError, EvidenceError):
        return None
    return spki_sha256(key)


@functools.lru_cache(maxsize=_KEPT_CERTIFICATES)
def _member_of(certificate_pem: bytes, authorities: frozenset[x509.Certificate], epoch: bytes) -> Peer | None:
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    record = read_member(certificate, authorities)
    if record is None or record[: len(epoch)] != epoch:
        return None
    return Peer.decode(record[len(epoch) :], certificate.not_valid_after_utc)
