"""`adyton.connect` and `adyton.aio.connect`: what a user calls."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar, Unpack

from adyton.atls.attestation import BindingLevel
from adyton.atls.certificates import DEFAULT_AUDIENCE
from adyton.atls.connector import BlockingConnector, Connector, Options
from adyton.atls.dial import Target
from adyton.atls.enrolling import CallerIdentity
from adyton.atls.question import Terms
from adyton.atls.sessions import OPEN_SECONDS
from adyton.errors import ConfigurationError
from adyton.policy.appraisal import Hook
from adyton.policy.document import MAX_POLICY_BYTES, Policy
from adyton.policy.insecurity import Insecurity
from adyton.policy.signed import MAX_DOCUMENT_BYTES

if TYPE_CHECKING:
    import grpc
    import grpc.aio

    from adyton.atls.aio_channel import AttestedAioChannel
    from adyton.atls.channel import AttestedChannel

WordT = TypeVar("WordT", Insecurity, BindingLevel)

PolicySource = str | Path | bytes | Policy
"""A policy's file, its content, or a policy that is parsed already."""


class ConnectOptions(TypedDict, total=False):
    """What `connect` takes beside a target and a policy.

    `server_name`: the name that the server goes by, "atls.internal" unless its enclave.toml adds others.
    `allow_insecure`: the insecurities that you agree to, if the policy permits them too.
    `reference_values`: files of signed reference values that the policy asks for, or their content.
    `refuse`: your own look at the verified evidence, which can only add refusals.
    `level`: "connection", or "key" for a port that takes no client certificates: see docs/threat-model.md.
    `max_age_seconds`: how old an attestation may get before it is repeated; an hour at most, less for some TEEs. A
    server answers ten questions a minute on a connection, so less than 6 seconds may end it.
    `identity`: for an enclave that calls another: what it attests itself with to the server, on each connection. See
    docs/mutual.md.
    `options`: gRPC's channel arguments.
    """

    server_name: str
    allow_insecure: Collection[Insecurity | str]
    reference_values: Sequence[str | Path | bytes]
    refuse: Hook | None
    level: BindingLevel | str
    max_age_seconds: float | None
    identity: CallerIdentity | None
    options: Options


def connect(
    target: str,
    policy: PolicySource,
    *,
    timeout: float = OPEN_SECONDS,
    **options: Unpack[ConnectOptions],
) -> AttestedChannel:
    """A gRPC channel to the enclave at `target` (HOST:PORT, [IPV6]:PORT, unix:PATH), which has proved what it is.

    Returns within `timeout` seconds, which attesting anew after a lost connection may take too. Raises an error that is
    both an `AdytonError` and a `grpc.RpcError`: `PolicyError` with its findings if the policy does not accept the
    enclave, `EvidenceError` if its evidence is not genuine, `UnreachableError` or `DeadlineError` if nobody answers.
    `ConfigurationError` if the policy's file is wrong.

    The channel is for generated stubs and `grpc.intercept_channel` as any other is. Its calls raise these errors too,
    when the connection was lost and the enclave that answers then is not acceptable.
    """
    from adyton.atls.channel import AttestedChannel

    channel = AttestedChannel(BlockingConnector(connector(target, policy, **options)), open_seconds=timeout)
    try:
        channel.open()
    except BaseException:
        channel.close()
        raise
    return channel


def aio_connect(
    target: str,
    policy: PolicySource,
    *,
    timeout: float = OPEN_SECONDS,
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
    **options: Unpack[ConnectOptions],
) -> AttestedAioChannel:
    """The same on asyncio: `async with adyton.aio.connect(…) as channel` connects and attests, or raises as `connect`.

    `interceptors` are grpc.aio's, for the application's calls. Without `async with` the first call connects.
    """
    from adyton.atls.aio_channel import AttestedAioChannel
    from adyton.atls.aio_connector import AioConnector

    opener = AioConnector(connector(target, policy, **options))
    return AttestedAioChannel(opener, interceptors=interceptors, open_seconds=timeout)


def connector(  # noqa: PLR0913  one for each thing that a caller may choose
    target: str,
    policy: PolicySource,
    *,
    server_name: str = DEFAULT_AUDIENCE,
    allow_insecure: Collection[Insecurity | str] = (),
    reference_values: Sequence[str | Path | bytes] = (),
    refuse: Hook | None = None,
    level: BindingLevel | str = BindingLevel.CONNECTION,
    max_age_seconds: float | None = None,
    identity: CallerIdentity | None = None,
    options: Options = (),
) -> Connector:
    """What `connect` would connect with. Reads files and connects to nothing. Raises `ConfigurationError`."""
    allow = frozenset(_word(Insecurity, each) for each in _listed(allow_insecure))
    bound = _word(BindingLevel, level)
    return Connector(
        target=Target.parse(target),
        terms=Terms(policy=load_policy(policy, reference_values), allow=allow, refuse=refuse),
        audience=server_name,
        level=bound,
        max_age_seconds=max_age_seconds,
        options=tuple(options),
        caller=identity,
    )


def _listed(words: Collection[str]) -> Collection[str]:
    return [words] if isinstance(words, str) else words


def _word(kind: type[WordT], word: str) -> WordT:
    try:
        return kind(word)
    except ValueError as problem:
        known = ", ".join(kind)
        raise ConfigurationError(f"{word!r} is none of these words", mend=f"known: {known}") from problem


def load_policy(source: PolicySource, reference_values: Sequence[str | Path | bytes] = ()) -> Policy:
    """The policy of a file, or of a file's content. Raises ConfigurationError, PolicyError."""
    if isinstance(source, Policy):
        if reference_values:
            raise ConfigurationError("a policy that is parsed already has its reference values")
        return source
    content = _content(source, MAX_POLICY_BYTES)
    documents = [_content(document, MAX_DOCUMENT_BYTES) for document in reference_values]
    try:
        return Policy.parse(content, reference_values=documents, now=datetime.now(UTC))
    except ConfigurationError as problem:
        if isinstance(source, bytes):
            raise
        raise ConfigurationError(f"{source}: {problem.message}", mend=problem.mend) from problem


def _content(source: str | Path | bytes, at_most: int) -> bytes:
    return source if isinstance(source, bytes) else _read(source, at_most)


def _read(path: str | Path, at_most: int) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(at_most + 1)  # one more than allowed is for the parser to refuse
    except OSError as problem:
        raise ConfigurationError(f"can't read {str(path)[:300]}: {problem.strerror}") from problem
    except ValueError as problem:  # no path can be so
        raise ConfigurationError(f"{str(path)[:300]!r} is no path: {problem}") from problem
