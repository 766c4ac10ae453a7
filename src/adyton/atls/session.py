"""A session: one connection to an enclave that has proved itself, and what opens one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from adyton.atls.attestation import Attestation
from adyton.atls.never_sent import never_sent
from adyton.atls.one_dial import OneDial
from adyton.atls.question import Question
from adyton.errors import UnreachableError

if TYPE_CHECKING:
    import grpc
    import grpc.aio

ChannelT = TypeVar("ChannelT")


class NotAttestedError(UnreachableError):
    """The server is there, and gave no evidence this time. Another time it may."""


class Session(Generic[ChannelT]):
    """One attested connection.

    `channel` is an ordinary gRPC channel that can connect once only: it is held to one dial. When the connection
    is lost, every call on it fails with UNAVAILABLE, and the session is over. `question` is what was asked to attest
    it. `renew_at` is when the peer has to be attested again, by time.monotonic(); `once` holds the channel to its one
    connection.
    """

    __slots__ = ("__weakref__", "attestation", "channel", "once", "question", "renew_at")

    def __init__(
        self, channel: ChannelT, attestation: Attestation, renew_at: float, question: Question, once: OneDial
    ) -> None:
        self.channel = channel
        self.attestation = attestation
        self.renew_at = renew_at
        self.question = question
        self.once = once

    def never_sent(self, error: grpc.RpcError) -> bool:
        """Whether the RPC that ended with `error` was never carried out, for want of a connection to send it on.

        Then gRPC says so, and has wanted to dial again. Neither alone will do: a servicer may choose the same words.
        """
        return self.once.was_asked_again and never_sent(error)


class Opener(Protocol):
    """Opens sessions with one enclave, by threads."""

    def open(self, timeout_seconds: float) -> Session[grpc.Channel]:
        """Connect and attest. Raises `AdytonError`: `UnreachableError`, `DeadlineError`, `EvidenceError`, ….

        Nothing of an application was sent by then, and after an error nothing is left open.
        """

    def renew(self, session: Session[grpc.Channel], timeout_seconds: float) -> None:
        """Attest again on the same connection; sets the session's `attestation` and `renew_at`. Raises as `open`."""


class AioOpener(Protocol):
    """The same on asyncio."""

    async def open(self, timeout_seconds: float) -> Session[grpc.aio.Channel]:
        """As Opener.open."""

    async def renew(self, session: Session[grpc.aio.Channel], timeout_seconds: float) -> None:
        """As Opener.renew."""
