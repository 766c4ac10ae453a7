"""Sealing keys that another enclave of the same owner releases, over an attested channel: both have proved themselves.

Who must be honest: the enclave that the policy in this bundle accepts (`[sealing.release] policy`), and nobody else.
The host may say where it is, and can do no more by that than not to let the two meet: what does not meet the policy is
asked for nothing, so no data is ever sealed under a key of an impostor's.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.message import DecodeError

from adyton.atls.channel import AttestedChannel
from adyton.atls.connect import connector
from adyton.atls.connector import BlockingConnector
from adyton.atls.enrolling import CallerIdentity
from adyton.errors import (
    AdytonError,
    ConfigurationError,
    KeyUnavailableError,
    PolicyError,
    SealedDataError,
    UnsealError,
    UnsupportedError,
)
from adyton.policy.document import Policy
from adyton.policy.insecurity import Insecurity
from adyton.proto.key_release_pb2 import KeyReleaseReply, KeyReleaseRequest
from adyton.proto.messages import parse_message
from adyton.tee.sealing import (
    KEY_BYTES,
    MAX_REQUEST_BYTES,
    MAX_SUBJECT_BYTES,
    Binding,
    FreshnessRegister,
    SealingKey,
    SealPolicy,
)

if TYPE_CHECKING:
    from adyton.enclave.application import EnclaveContext

METHOD: Final = "/adyton.KeyRelease/Key"
ROLE: Final = "sealing"
"""What this enclave wants to be there; which rule accepts it is that enclave's to say."""
ASK_SECONDS: Final = 10.0
"""For one key: connecting, both attestations, the answer, and a second try."""


class ReleaseKeys:
    """A `KeySource`. Connects when the first key is asked for, and again when the connection was lost.

    `address` is HOST:PORT, `identity` what this enclave proves itself with there, `allow_insecure` as in
    `adyton.connect`. The requests are the service's own; see adyton/enclave/key_release.py.
    """

    name: Final = "release"
    policies: Final = frozenset({SealPolicy.EXTERNAL})

    def __init__(
        self,
        address: str,
        policy: Policy,
        *,
        identity: CallerIdentity,
        allow_insecure: Collection[Insecurity] = (),
        ask_seconds: float = ASK_SECONDS,
    ) -> None:
        self._address = address
        self._ask_seconds = ask_seconds
        made = connector(address, policy, identity=identity, allow_insecure=allow_insecure)
        self._channel = AttestedChannel(BlockingConnector(made), open_seconds=ask_seconds)
        self._key: Any = self._channel.unary_unary(METHOD)
        self._binding: Binding | None = None

    @classmethod
    def of(cls, context: EnclaveContext) -> ReleaseKeys:
        """That of `[sealing.release]` in enclave.toml, at the host's address if it gives one. ConfigurationError.

        An enclave of the simulation takes keys of one of the simulation; to no other insecurity is agreed.
        """
        release = context.settings.sealing.release
        address = context.key_release_address or release.address
        if not address:
            raise ConfigurationError(
                "where the key-release enclave is, neither enclave.toml (sealing.release.address) nor the host says",
                mend="adyton run --keys-at HOST:PORT",
            )
        if not context.settings.network.outbound:
            raise ConfigurationError(
                "sealing keys of a key-release enclave need a connection to it", mend="network.outbound = true"
            )
        simulated = context.device is not None and context.device.tee == "simulated"
        return cls(
            address,
            context.policy(release.policy),
            identity=context.identity(role=ROLE),
            allow_insecure=(Insecurity.SIMULATED,) if simulated else (),
        )

    def close(self) -> None:
        """Let the connection go."""
        self._channel.close()

    def current(self, policy: SealPolicy) -> Binding:
        """As `KeySource` says, once asked of the service; also UnsealError if it lets this enclave have no keys."""
        if self._binding is None or policy is not SealPolicy.EXTERNAL:
            return self.new_key(policy).binding
        return self._binding

    def new_key(self, policy: SealPolicy) -> SealingKey:
        """As `KeySource` says, fresh each time; and UnsealError as `current`."""
        if policy is not SealPolicy.EXTERNAL:
            raise UnsupportedError(f"a key-release enclave has no keys for {policy.name.lower()}: its own policy rules")
        reply = self._ask(KeyReleaseRequest())
        self._binding = Binding(policy=SealPolicy.EXTERNAL, subject=reply.subject)
        return SealingKey(key=reply.key, binding=self._binding, request=reply.request, tcb="key release")

    def same_key(self, binding: Binding, request: bytes) -> bytes:
        """As `KeySource` says. What differs, service or rule, the service names."""
        for name, wanted in (("policy", SealPolicy.EXTERNAL), ("product", b""), ("version", 0)):
            if getattr(binding, name) != wanted:
                raise UnsealError(f"the data was sealed for another {name} than a key-release enclave has keys for")
        reply = self._ask(KeyReleaseRequest(request=request))
        if reply.subject != binding.subject:
            raise UnsealError("the data's subject is another than the key-release enclave names for its key")
        return reply.key

    def register(self, _binding: Binding, _label: bytes) -> FreshnessRegister | None:
        """None: the service remembers nothing for its callers."""
        return None

    def _ask(self, request: KeyReleaseRequest) -> KeyReleaseReply:
        """The answer, asked for twice if the connection was lost meanwhile: a request changes nothing there."""
        until = time.monotonic() + self._ask_seconds
        data = request.SerializeToString()
        try:
            try:
                return self._parse(self._key(data, timeout=self._ask_seconds))
            except grpc.RpcError as problem:
                if isinstance(problem, AdytonError) or _code(problem) is not grpc.StatusCode.UNAVAILABLE:
                    raise
                return self._parse(self._key(data, timeout=until - time.monotonic()))
        except grpc.RpcError as problem:
            raise self._explained(problem) from problem

    def _parse(self, data: bytes) -> KeyReleaseReply:
        try:
            reply = parse_message(KeyReleaseReply, data)
        except DecodeError:
            reply = KeyReleaseReply()
        sized = 0 < len(reply.subject) <= MAX_SUBJECT_BYTES and 0 < len(reply.request) <= MAX_REQUEST_BYTES
        if len(reply.key) != KEY_BYTES or not sized:
            raise KeyUnavailableError(f"the key-release enclave at {self._address} answers with what is no key")
        return reply

    def _explained(self, problem: Any) -> AdytonError:
        """Two kinds of refusal must not be mixed up.

        A service that does not enrol this enclave has been attested: its word is the owner's, so UnsealError. One that
        does not meet this enclave's policy is nobody, and says nothing of the data: KeyUnavailableError, for the
        genuine one may stand there another time. Either way nothing was asked, and nothing sealed.
        """
        there = f"the key-release enclave at {self._address}"
        if isinstance(problem, PolicyError) and not problem.findings:
            return UnsealError(
                f"{there} has no keys for this code: {problem}", mend="a rule of its policy must accept it"
            )
        if isinstance(problem, AdytonError):
            return KeyUnavailableError(f"{there} was not asked: {problem}")
        code, said = _code(problem), str(problem.details())[:500]
        if code is grpc.StatusCode.PERMISSION_DENIED:
            return UnsealError(f"{there} refuses: {said}")
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            return SealedDataError(f"the sealed data's request is none of {there}: {said}")
        return KeyUnavailableError(f"{there} gives no key now: {code.name}: {said}")


def _code(problem: Any) -> grpc.StatusCode:
    code: grpc.StatusCode = problem.code()
    return code
