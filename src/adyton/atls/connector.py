"""From a target to an attested session: what both kinds of client do, and the one that blocks.

The order matters. Look at the certificate that is shown; make a key for one connection; connect once, under that very
certificate; ask for evidence; judge it; and only then let an application have the channel.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import grpc

from adyton.atls import one_dial
from adyton.atls.ages import max_age_seconds
from adyton.atls.attestation import Attestation, BindingLevel
from adyton.atls.binding import NONCE_BYTES, Purpose
from adyton.atls.certificates import DEFAULT_AUDIENCE, parse_certificate, pem
from adyton.atls.client_key import ConnectionKey
from adyton.atls.dial import Target, find
from adyton.atls.enrolling import CallerIdentity, Enrolment, enrol, enrolment_refusal
from adyton.atls.never_sent import never_sent, unanswered
from adyton.atls.one_dial import OneDial
from adyton.atls.question import Question, Terms
from adyton.atls.session import ChannelT, NotAttestedError, Session
from adyton.bundle.names import is_dns_name
from adyton.errors import AdytonError, ConfigurationError, DeadlineError, EvidenceError, UnreachableError

ATTEST: Final = "/adyton.atls.Attestation/Attest"
#: Channel options that decide whom the connection is with; they are not the caller's to set.
_OURS: Final = frozenset(
    {
        "grpc.ssl_target_name_override",
        "grpc.default_authority",
        "grpc.ssl_session_cache",
        "grpc.use_local_subchannel_pool",
        "grpc.enable_http_proxy",
        "grpc.http_proxy",
        "grpc.address_http_proxy",
        "grpc.address_http_proxy_enabled_addresses",
        "grpc.http_connect_server",
        "grpc.http_connect_headers",
        "grpc.lb_policy_name",
        "grpc.service_config",  # it can send health checks to whom nobody has attested yet, and RPCs twice
        one_dial.ARGUMENT,
    }
)

Options = Sequence[tuple[str, Any]]
WITHOUT_PROXY: Final[Options] = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.address_http_proxy_enabled_addresses", ""),  # else GRPC_ADDRESS_HTTP_PROXY of the environment counts
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialled:
    """An address, credentials to connect to it once, and the question to ask there. Nothing is connected yet."""

    uri: str
    credentials: grpc.ChannelCredentials
    question: Question
    options: Options
    once: OneDial


@dataclass(frozen=True, slots=True, kw_only=True)
class Connector:
    """How to get an attested session with one server.

    `audience` is the name that the server goes by; `level` what the evidence must be bound to (`key` is for a port
    that asks for no client certificate); `max_age_seconds` when to attest again, None for as long as the TEE allows.
    `caller` enrols on each connection that it has attested, and again whenever it attests.
    """

    target: Target
    terms: Terms
    audience: str = DEFAULT_AUDIENCE
    level: BindingLevel = BindingLevel.CONNECTION
    max_age_seconds: float | None = None
    options: Options = field(default=())
    caller: CallerIdentity | None = None

    def __post_init__(self) -> None:
        if not is_dns_name(self.audience):
            raise ConfigurationError(f"{self.audience[:80]!r} is not the name of a server", mend="a DNS name")
        check_options(self.options)
        if self.max_age_seconds is not None and self.max_age_seconds <= 0:
            raise ConfigurationError("max_age_seconds must be more than 0")
        if self.caller is not None and self.level is not BindingLevel.CONNECTION:
            raise ConfigurationError("who enrols has a key on its connection, so its level is connection")

    @property
    def purpose(self) -> Purpose:
        """What has to be bound: for one who enrols, the CA that will issue its certificate."""
        return self.terms.purpose if self.caller is None else Purpose.FLEET

    def dial(self, timeout_seconds: float) -> Dialled:
        """Find the server and prepare one connection to it. Blocks. Raises `AdytonError`."""
        address, certificate = find(self.target, self.audience, timeout_seconds)
        root = pem(parse_certificate(certificate)[0])
        if self.level is BindingLevel.KEY:
            credentials, client_sha256 = grpc.ssl_channel_credentials(root), b""
        else:
            key = ConnectionKey()
            credentials, client_sha256 = key.credentials(root), key.spki_sha256
        question = Question(
            purpose=self.purpose,
            nonce=os.urandom(NONCE_BYTES),
            audience=self.audience,
            pinned=certificate,
            client_sha256=client_sha256,
        )
        once = OneDial()
        own = [
            ("grpc.ssl_target_name_override", self.audience),
            ("grpc.use_local_subchannel_pool", 1),
            *WITHOUT_PROXY,
            (one_dial.ARGUMENT, once),
        ]
        return Dialled(
            uri=address.uri, credentials=credentials, question=question, options=[*self.options, *own], once=once
        )

    def judge(self, question: Question, answer: bytes) -> Attestation:
        """What the answer proves, now. Raises as Question.judge."""
        return question.judge(answer, self.terms, now=datetime.now(UTC))

    def session(
        self, channel: ChannelT, dialled: Dialled, attestation: Attestation, enrolment: Enrolment | None, asked: float
    ) -> Session[ChannelT]:
        """The session that an application may have. `asked`: as in `renew_at`."""
        renew_at = self.renew_at(attestation, enrolment, asked)
        return Session(channel, attestation, renew_at, dialled.question, dialled.once)

    def renew_at(self, attestation: Attestation, enrolment: Enrolment | None, asked: float) -> float:
        """When what was attested, on either side, gets too old, or the policy ends, by time.monotonic().

        `asked` is when the question was: evidence is as old as that, however long the answer was held back.
        """
        by_tee = max_age_seconds(attestation.appraisal.tee)
        by_server = by_tee if enrolment is None else enrolment.renew_after_seconds
        oldest = asked + min(by_tee, by_server, self.max_age_seconds or by_tee)
        if (expires := self.terms.policy.expires) is None:
            return oldest
        return min(oldest, time.monotonic() + (expires - datetime.now(UTC)).total_seconds())


def check_options(options: Sequence[tuple[Any, Any]]) -> None:
    """That the caller sets no option that is ours. Raises ConfigurationError."""
    for name, _ in options:
        if not isinstance(name, str) or name in _OURS:
            raise ConfigurationError(f"the channel option {name} is not the caller's to set")


def refusal(error: grpc.RpcError, uri: str) -> AdytonError:
    """Why a server gave no evidence, as an error of ours."""
    call: Any = error
    code, said = call.code(), str(call.details())[:500]
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineError(f"{uri}: no evidence in time")
    if never_sent(error) and "Hostname Verification Check failed" in said:
        mend = "the server's name is atls.internal, or one of server.names in its enclave.toml"
        return EvidenceError(f"{uri} shows a certificate for another name than the one that was asked for", mend=mend)
    if code is grpc.StatusCode.UNAVAILABLE and unanswered(error):
        return UnreachableError(f"{uri}: {said}")
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED):
        return NotAttestedError(f"{uri}: {said}")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return EvidenceError(f"{uri} is no enclave's server: it has no Attestation service")
    return EvidenceError(f"{uri} gave no evidence: {code.name}: {said}")


class CertificateChangedError(UnreachableError):
    """The server showed one certificate to the probe and another to the connection: it renews it, or somebody tries."""


class BlockingConnector:
    """An Opener for threads."""

    def __init__(self, connector: Connector) -> None:
        self._connector = connector

    def open(self, timeout_seconds: float) -> Session[grpc.Channel]:
        """As Opener says. A server that changes its certificate at this very moment gets a second chance."""
        return self._open(timeout_seconds)[0]

    def join(self, timeout_seconds: float) -> Enrolment:
        """Attest the server and enrol there, on a connection that is closed again. Raises as `open`."""
        session, enrolment = self._open(timeout_seconds)
        session.channel.close()
        assert enrolment is not None, "a connector without a caller"
        return enrolment

    def renew(self, session: Session[grpc.Channel], timeout_seconds: float) -> None:
        """As Opener says."""
        asked = time.monotonic()
        deadline = asked + timeout_seconds
        question = session.question.again()
        answer = _ask(session.channel, question, self._connector.target.text, timeout_seconds)
        attestation = self._connector.judge(question, answer)
        enrolment = self._enrol(session.channel, question, attestation, deadline)
        session.attestation = attestation
        session.renew_at = self._connector.renew_at(attestation, enrolment, asked)

    def _open(self, timeout_seconds: float) -> tuple[Session[grpc.Channel], Enrolment | None]:
        deadline = time.monotonic() + timeout_seconds
        try:
            return self._attempt(deadline)
        except CertificateChangedError:
            return self._attempt(deadline)

    def _attempt(self, deadline: float) -> tuple[Session[grpc.Channel], Enrolment | None]:
        dialled = self._connector.dial(_left(deadline))
        channel = grpc.secure_channel(dialled.uri, dialled.credentials, dialled.options)
        asked = time.monotonic()
        try:
            answer = _ask(channel, dialled.question, dialled.uri, _left(deadline))
            dialled.once.check_used()
            attestation = self._connector.judge(dialled.question, answer)
            enrolment = self._enrol(channel, dialled.question, attestation, deadline)
        except BaseException:
            channel.close()
            raise
        return self._connector.session(channel, dialled, attestation, enrolment, asked), enrolment

    def _enrol(
        self, channel: grpc.Channel, question: Question, attestation: Attestation, deadline: float
    ) -> Enrolment | None:
        if self._connector.caller is None:
            return None

        def call(method: str, request: bytes) -> bytes:
            rpc: Any = channel.unary_unary(method)
            answer: bytes = rpc(request, timeout=_left(deadline))
            return answer

        try:
            ca = attestation.anchor_certificate
            return enrol(call, self._connector.caller, client_sha256=question.client_sha256, ca=ca)
        except grpc.RpcError as error:
            raise enrolment_refusal(error, self._connector.target.text) from error.with_traceback(None)


def check_connected(error: grpc.RpcError, uri: str) -> None:
    """Raise what tells `open` to look at the certificate again, if the handshake failed for that."""
    call: Any = error
    if never_sent(error) and "CERTIFICATE_VERIFY_FAILED" in str(call.details()):
        raise CertificateChangedError(f"{uri} shows one certificate to one connection and another to the next")


def _ask(channel: grpc.Channel, question: Question, uri: str, timeout_seconds: float) -> bytes:
    attest: Any = channel.unary_unary(ATTEST)
    try:
        answer: bytes = attest(question.encode(), timeout=timeout_seconds)
    except grpc.RpcError as error:
        check_connected(error, uri)
        raise refusal(error, uri) from error.with_traceback(None)  # whose frames would keep the connection open
    return answer


def _left(deadline: float) -> float:
    return max(0.001, deadline - time.monotonic())
