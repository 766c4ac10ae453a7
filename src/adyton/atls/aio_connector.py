"""From a target to an attested session, on asyncio. What blocks, or verifies, runs in a thread."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import grpc.aio

from adyton.atls.attestation import Attestation
from adyton.atls.connector import ATTEST, CertificateChangedError, Connector, check_connected, refusal
from adyton.atls.enrolling import CHALLENGE, CHALLENGE_REQUEST, ENROL, Enrolment, enrolment_refusal
from adyton.atls.question import Question
from adyton.atls.session import Session
from adyton.atls.threads import in_thread

DIALLING_SECONDS = 0.02
"""More than gRPC needs from the first RPC to its question to the socket mutator, which it asks before connecting."""


class AioConnector:
    """An AioOpener."""

    def __init__(self, connector: Connector) -> None:
        self._connector = connector

    async def open(self, timeout_seconds: float) -> Session[grpc.aio.Channel]:
        """As Opener says. A server that changes its certificate at this very moment gets a second chance."""
        deadline = time.monotonic() + timeout_seconds
        try:
            return await self._attempt(deadline)
        except CertificateChangedError:
            return await self._attempt(deadline)

    async def renew(self, session: Session[grpc.aio.Channel], timeout_seconds: float) -> None:
        """As Opener says."""
        asked = time.monotonic()
        deadline = asked + timeout_seconds
        question = session.question.again()
        answer = await _ask(session.channel, question, self._connector.target.text, timeout_seconds)
        attestation = await in_thread(self._connector.judge, question, answer)
        enrolment = await self._enrol(session.channel, question, attestation, deadline)
        session.attestation = attestation
        session.renew_at = self._connector.renew_at(attestation, enrolment, asked)

    async def _attempt(self, deadline: float) -> Session[grpc.aio.Channel]:
        dialled = await in_thread(self._connector.dial, _left(deadline))
        channel = grpc.aio.secure_channel(dialled.uri, dialled.credentials, dialled.options)
        asked = time.monotonic()
        try:
            answer = await _ask(channel, dialled.question, dialled.uri, _left(deadline))
            dialled.once.check_used()
            attestation = await in_thread(self._connector.judge, dialled.question, answer)
            enrolment = await self._enrol(channel, dialled.question, attestation, deadline)
        except BaseException:
            await _close(channel)
            raise
        return self._connector.session(channel, dialled, attestation, enrolment, asked)

    async def _enrol(
        self, channel: grpc.aio.Channel, question: Question, attestation: Attestation, deadline: float
    ) -> Enrolment | None:
        """As adyton.atls.enrolling.enrol, in coroutines."""
        caller = self._connector.caller
        if caller is None:
            return None
        challenge_rpc: Any = channel.unary_unary(CHALLENGE)
        enrol_rpc: Any = channel.unary_unary(ENROL)
        try:
            challenge: bytes = await challenge_rpc(CHALLENGE_REQUEST, timeout=_left(deadline))
            applied = await in_thread(
                caller.apply, challenge, client_sha256=question.client_sha256, ca=attestation.anchor_certificate
            )
            answer: bytes = await enrol_rpc(applied.request, timeout=_left(deadline))
        except grpc.aio.AioRpcError as error:
            raise enrolment_refusal(error, self._connector.target.text) from error.with_traceback(None)
        return applied.accept(answer)


async def _close(channel: grpc.aio.Channel) -> None:
    """Close a channel that may be dialling: it then asks Python, within a lock for which closing waits."""
    try:
        await asyncio.sleep(DIALLING_SECONDS)
    finally:
        await channel.close()


async def _ask(channel: grpc.aio.Channel, question: Question, uri: str, timeout_seconds: float) -> bytes:
    attest: Any = channel.unary_unary(ATTEST)
    try:
        answer: bytes = await attest(question.encode(), timeout=timeout_seconds)
    except grpc.aio.AioRpcError as error:
        check_connected(error, uri)
        raise refusal(error, uri) from error.with_traceback(None)  # whose frames would keep the connection open
    return answer


def _left(deadline: float) -> float:
    return max(0.001, deadline - time.monotonic())
