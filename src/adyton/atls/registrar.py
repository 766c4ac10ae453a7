"""The enclave's side of Challenge and Enrol: who may enrol, how often it may try, and what it gets. Knows no gRPC.

A caller learns the fact only. Why it was refused, finding by finding, is in the enclave's log.
"""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import DecodeError

from adyton.atls.ages import max_age_seconds
from adyton.atls.attester import Connection, check_connection
from adyton.atls.binding import NONCE_BYTES, VERSION
from adyton.atls.enrolment import Application, Standing
from adyton.atls.identity import Clock, Identity, IdentitySource
from adyton.atls.member import issue_member
from adyton.atls.peer import CONNECTED, Peer, Peers
from adyton.atls.question import Terms
from adyton.atls.sparing import SparingLog
from adyton.errors import AdytonError, ApplicationError, EvidenceError, Finding, PolicyError, StatusCode
from adyton.policy.appraisal import Appraisal
from adyton.proto.attestation_pb2 import ChallengeRequest, ChallengeResponse, EnrolResponse
from adyton.proto.messages import parse_message

CHALLENGE_SECONDS: Final = 60
MAX_FAILURES: Final = 5
"""So often a connection may fail to enrol; evidence is dear to verify."""
MAX_CHALLENGES: Final = 4096

_log = logging.getLogger("adyton.enrolment")


@dataclass(slots=True)
class _Attempts:
    challenge: bytes
    expires_at: datetime
    failures: int


class Challenges:
    """The challenges of a server, one a connection, by SHA-256 of the client's key. Bounded; safe in threads.

    Where there are too many, the connection that has asked for none the longest is forgotten.
    """

    def __init__(self, *, at_most: int = MAX_CHALLENGES, clock: Clock) -> None:
        self._at_most = at_most
        self._clock = clock
        self._guard = threading.Lock()
        self._attempts: dict[bytes, _Attempts] = {}

    def __len__(self) -> int:
        return len(self._attempts)

    def issue(self, client_sha256: bytes) -> bytes:
        """32 fresh bytes, which take the place of earlier ones. RESOURCE_EXHAUSTED after too many failures."""
        with self._guard:
            before = self._attempts.pop(client_sha256, None)
            failures = before.failures if before is not None else 0
            challenge = os.urandom(NONCE_BYTES) if failures < MAX_FAILURES else b""
            expires_at = self._clock() + timedelta(seconds=CHALLENGE_SECONDS)
            self._attempts[client_sha256] = _Attempts(challenge=challenge, expires_at=expires_at, failures=failures)
            if len(self._attempts) > self._at_most:
                del self._attempts[next(iter(self._attempts))]
        if not challenge:
            raise _refused(StatusCode.RESOURCE_EXHAUSTED, f"{MAX_FAILURES} enrolments have failed on this connection")
        return challenge

    def take(self, client_sha256: bytes) -> bytes:
        """The connection's challenge, which is used up by this and counts as failed until `succeed`."""
        with self._guard:
            attempts = self._attempts.get(client_sha256)
            if attempts is None or not attempts.challenge or self._clock() >= attempts.expires_at:
                raise _refused(
                    StatusCode.FAILED_PRECONDITION,
                    f"ask for a Challenge first: it is good once, for {CHALLENGE_SECONDS} s, on its own connection",
                )
            challenge, attempts.challenge = attempts.challenge, b""
            attempts.failures += 1
            return challenge

    def succeed(self, client_sha256: bytes) -> None:
        """The connection has enrolled, so nothing is held against it."""
        with self._guard:
            self._attempts.pop(client_sha256, None)


class Registrar:
    """Enrols the callers of one server process. `mesh_port` is where their certificates are good for, or 0."""

    def __init__(
        self,
        *,
        terms: Terms,
        identity: IdentitySource,
        peers: Peers = CONNECTED,
        clock: Clock = lambda: datetime.now(UTC),
    ) -> None:
        self.mesh_port = 0
        self._terms = terms
        self._identity = identity
        self._peers = peers
        self._clock = clock
        self._challenges = Challenges(clock=clock)
        self._refusals = SparingLog(_log)

    def challenge(self, request: bytes, connection: Connection) -> bytes:
        """Answer a ChallengeRequest. Raises `ApplicationError`."""
        _check(connection)
        try:
            version = parse_message(ChallengeRequest, request).version
        except DecodeError as problem:
            raise _refused(StatusCode.INVALID_ARGUMENT, "not a ChallengeRequest") from problem
        if version != VERSION:
            raise _refused(StatusCode.UNIMPLEMENTED, f"this enclave speaks version {VERSION} of ATLS")
        nonce = self._challenges.issue(connection.client_sha256)
        return ChallengeResponse(version=VERSION, nonce=nonce).SerializeToString()

    def enrol(self, request: bytes, connection: Connection) -> bytes:
        """Judge an EnrolRequest; if it is accepted, the connection has an identity. Raises `ApplicationError`.

        Verifies evidence, so it takes its time.
        """
        _check(connection)
        application = Application.parse(request)
        identity = self._identity.current()
        _check_ca(application, identity)
        standing = Standing(
            challenge=self._challenges.take(connection.client_sha256),
            client_sha256=connection.client_sha256,
            ca_sha256=identity.ca.spki_sha256,
        )
        now = self._clock()
        try:
            appraisal = application.judge(standing, self._terms, now=now)
        except AdytonError as problem:
            raise self._logged(application, problem) from problem
        self._challenges.succeed(connection.client_sha256)
        return self._admit(application, appraisal, identity, connection, now)

    def _admit(
        self, application: Application, appraisal: Appraisal, identity: Identity, connection: Connection, now: datetime
    ) -> bytes:
        lifetime = timedelta(seconds=max_age_seconds(appraisal.tee))
        if (end := self._terms.policy.expires) is not None:
            lifetime = min(lifetime, end - now)
        peer = Peer(
            rule=appraisal.rule,
            tee=appraisal.tee,
            measurement=appraisal.measurement,
            platform=appraisal.platform,
            insecurities=tuple(map(str, appraisal.insecurities)),
            expires_at=now + lifetime,
        )
        record = identity.epoch + peer.encode()
        certificate = issue_member(
            identity.ca, application.key, rule=peer.rule, record=record, now=now, lifetime=lifetime
        )
        self._peers.enrol(connection.client_sha256, peer)
        _log.info("a caller has enrolled", extra={"role": application.role, "rule": peer.rule, "tee": peer.tee})
        return EnrolResponse(
            version=VERSION,
            chain=[certificate.public_bytes(Encoding.DER)],
            ca_certificate=identity.ca.der,
            renew_after_seconds=max(1, int(lifetime.total_seconds() / 2)),
            mesh_port=self.mesh_port,
        ).SerializeToString()

    def _logged(self, application: Application, problem: AdytonError) -> ApplicationError:
        """The fact, for the wire; the rest goes to the log."""
        findings: tuple[Finding, ...] = problem.findings if isinstance(problem, PolicyError) else ()
        reasons = [problem.message, *map(str, findings)]
        extra = {"role": application.role, "reasons": reasons}
        self._refusals.warning("a caller was not enrolled", kind="enrolment", extra=extra)
        if isinstance(problem, EvidenceError):
            return _refused(StatusCode.UNAUTHENTICATED, "the evidence is not genuine, or not this key's")
        return _refused(StatusCode.PERMISSION_DENIED, "this enclave's policy does not accept the caller")


def _check(connection: Connection) -> None:
    check_connection(connection)
    if not connection.client_sha256:
        raise _refused(StatusCode.FAILED_PRECONDITION, "who enrols needs a client key of its own on this connection")


def _check_ca(application: Application, identity: Identity) -> None:
    """A caller that has attested the CA before a rotation must connect again: its certificate would be of no use."""
    if application.ca_sha256 != identity.ca.spki_sha256:
        raise _refused(StatusCode.ABORTED, "the CA that you have attested is not this enclave's; connect again")


def _refused(status: StatusCode, message: str) -> ApplicationError:
    return ApplicationError(status, message)
