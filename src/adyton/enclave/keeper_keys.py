"""Sealing keys for the server processes of an enclave: asked of the first process, which has the hardware."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Final

from adyton.errors import (
    AdytonError,
    ApplicationError,
    KeyUnavailableError,
    SealedDataError,
    StatusCode,
    UnsealError,
    UnsupportedError,
)
from adyton.proto import keeper_pb2
from adyton.tee.sealing import Binding, FreshnessRegister, KeySource, SealingKey, SealPolicy

_ERRORS: Final[dict[StatusCode, type[AdytonError]]] = {
    StatusCode.PERMISSION_DENIED: UnsealError,
    StatusCode.DATA_LOSS: SealedDataError,
    StatusCode.UNAVAILABLE: KeyUnavailableError,
    StatusCode.UNIMPLEMENTED: UnsupportedError,
}


def answer_key(source: KeySource, request: keeper_pb2.KeyRequest) -> keeper_pb2.KeyAnswer:
    """The first process's part. Raises what the source raises; ValueError for a policy that there is not."""
    answer = keeper_pb2.KeyAnswer()
    match request.WhichOneof("call"):
        case "about":
            answer.name = source.name
            answer.policies.extend(sorted(source.policies))
        case "current":
            answer.binding.CopyFrom(_encode(source.current(SealPolicy(request.current))))
        case "new_key":
            made = source.new_key(SealPolicy(request.new_key))
            answer.binding.CopyFrom(_encode(made.binding))
            answer.key, answer.request, answer.tcb = made.key, made.request, made.tcb
        case "same_key":
            answer.key = source.same_key(_decode(request.binding), request.same_key)
        case "register":
            _answer_register(source, request, answer)
        case _:
            raise ValueError("not a request for a key")
    return answer


def _answer_register(source: KeySource, request: keeper_pb2.KeyRequest, answer: keeper_pb2.KeyAnswer) -> None:
    register = source.register(_decode(request.binding), request.register)
    answer.has_register = register is not None
    if register is None:
        return
    if request.HasField("value"):
        register.write(request.value, after=request.after if request.HasField("after") else None)
    elif (value := register.read()) is not None:
        answer.value = value


class KeeperKeys:
    """A `KeySource`: the first process's."""

    def __init__(self, ask: Callable[[keeper_pb2.KeyRequest], keeper_pb2.KeyAnswer]) -> None:
        self._ask_keeper = ask

    @cached_property
    def _about(self) -> keeper_pb2.KeyAnswer:
        return self.ask(keeper_pb2.KeyRequest(about=True))

    @property
    def name(self) -> str:
        """As KeySource says."""
        return self._about.name

    @property
    def policies(self) -> frozenset[SealPolicy]:
        """As KeySource says."""
        return frozenset(map(SealPolicy, self._about.policies))

    def current(self, policy: SealPolicy) -> Binding:
        """As KeySource says."""
        return _decode(self.ask(keeper_pb2.KeyRequest(current=policy)).binding)

    def new_key(self, policy: SealPolicy) -> SealingKey:
        """As KeySource says."""
        made = self.ask(keeper_pb2.KeyRequest(new_key=policy))
        return SealingKey(key=made.key, binding=_decode(made.binding), request=made.request, tcb=made.tcb)

    def same_key(self, binding: Binding, request: bytes) -> bytes:
        """As KeySource says."""
        return self.ask(keeper_pb2.KeyRequest(same_key=request, binding=_encode(binding))).key

    def register(self, binding: Binding, label: bytes) -> FreshnessRegister | None:
        """As KeySource says."""
        register = _Register(self, keeper_pb2.KeyRequest(register=label, binding=_encode(binding)))
        return register if register.exists() else None

    def ask(self, request: keeper_pb2.KeyRequest) -> keeper_pb2.KeyAnswer:
        """One question, and the errors that a KeySource has."""
        try:
            return self._ask_keeper(request)
        except ApplicationError as problem:
            raise _ERRORS.get(problem.status, KeyUnavailableError)(problem.message) from None


class _Register:
    def __init__(self, keys: KeeperKeys, question: keeper_pb2.KeyRequest) -> None:
        self._keys = keys
        self._question = question

    def exists(self) -> bool:
        return self._keys.ask(self._question).has_register

    def read(self) -> bytes | None:
        answer = self._keys.ask(self._question)
        return answer.value if answer.HasField("value") else None

    def write(self, value: bytes, *, after: bytes | None) -> None:
        request = keeper_pb2.KeyRequest(value=value, after=after)
        request.MergeFrom(self._question)
        self._keys.ask(request)


def _encode(binding: Binding) -> keeper_pb2.Binding:
    return keeper_pb2.Binding(
        policy=binding.policy, subject=binding.subject, product=binding.product, version=binding.version
    )


def _decode(binding: keeper_pb2.Binding) -> Binding:
    return Binding(
        policy=SealPolicy(binding.policy), subject=binding.subject, product=binding.product, version=binding.version
    )
