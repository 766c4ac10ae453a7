"""A gRPC server known only by its reflection service (grpc.reflection.v1alpha), and not trusted.

What the server sends ends as one of three things: an answer, an AdytonError, or text without control characters.

A descriptor pool that reads through a DescriptorDatabase, as grpcio-reflection's client does, follows imports by
recursion in C, and a server whose files import one another in a circle crashes the process. So imports are followed
here, and the pool is given one file after another, each after those that it imports.
"""

from __future__ import annotations

import contextlib
import graphlib
import json
import queue
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self, cast

import grpc
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import EncodeError
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from adyton.cli.printable import printable
from adyton.errors import (
    AdytonError,
    ApplicationError,
    ConfigurationError,
    DeadlineError,
    StatusCode,
    UnreachableError,
    UnsupportedError,
)

_REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
_MAX_FILES = 1000
_MAX_NAMES_SHOWN = 30
#: How the details of an UNAVAILABLE begin that gRPC's core made itself; any other came from the service.
_LOST = re.compile(
    r"failed to connect|errors? resolving|DNS resolution failed|Socket closed|Connection reset|Broken pipe"
    r"|recvmsg|sendmsg|GOAWAY|Connection (?:closed|dropped)|Stream removed|keepalive",
    re.IGNORECASE,
)

_Ask = Callable[[ServerReflectionRequest], ServerReflectionResponse]


class Server:
    """A channel of any kind, and what each call on it carries. A context manager: leaving it closes the channel.

    Nobody else may hold the channel: see `_Call` for why nothing of gRPC's may be left. `closed_mend` is what to say
    where the other side has closed the connection.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        *,
        name: str,
        timeout_seconds: float,
        metadata: tuple[tuple[str, str | bytes], ...] = (),
        closed_mend: str = "",
    ) -> None:
        self.name = name
        self._channel = channel
        self._timeout_seconds = timeout_seconds
        self._metadata = metadata
        self._closed_mend = closed_mend

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        del self._channel

    def exchange(self, path: str, requests: Iterable[bytes]) -> Iterator[bytes]:
        """One call of any kind (they are alike on the wire): the answers, as they come.

        `requests` is read in a thread of its own; an exception out of it cancels the call and comes out here.
        """
        call = _Call(requests)
        try:
            call.start(self._channel.stream_stream(path), timeout=self._timeout_seconds, metadata=self._metadata)
            while isinstance(answer := call.answer(), bytes):
                yield answer
        finally:
            call.end()
        if answer is not None:
            raise call.failure or self._error(*answer)

    def _error(self, code: grpc.StatusCode, details: str) -> AdytonError:
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            ours = "Deadline Exceeded" in details  # else the service's own words
            return DeadlineError(f"{self.name} was not done in {self._timeout_seconds:g} s" if ours else details)
        if code is grpc.StatusCode.UNAVAILABLE and _LOST.match(details):
            return self._unreachable(details)
        return ApplicationError(StatusCode[code.name], details)

    def _unreachable(self, details: str) -> UnreachableError:
        cause = details.rpartition(": ")[2].rstrip("]")[:200]
        mend = self._closed_mend if cause == "Socket closed" else ""
        return UnreachableError(f"can't reach {self.name}: {cause}", mend=mend)


class _Call:
    """A call's two directions. After `end`, nothing refers to gRPC's own call object.

    That must be so: its destructor takes a lock which gRPC's threads use. If it ran only when Python exits, when those
    threads have been stopped wherever they were, the process would hang. And gRPC raises the call object itself, so
    its traceback, or another exception's context, would keep it until then.
    """

    def __init__(self, requests: Iterable[bytes]) -> None:
        self.failure: Exception | None = None
        self._requests = requests
        self._started = threading.Event()
        self._call: Any = None

    def start(self, method: Callable[..., Any], **options: object) -> None:
        """Begin to send."""
        self._call = method(self._read(), **options)
        self._started.set()

    def _read(self) -> Iterator[bytes]:
        """The requests. gRPC would log an exception's traceback and half-close would say "that was all": so cancel."""
        try:
            yield from self._requests
        except Exception as problem:  # noqa: BLE001  raised again where the answers are read
            self.failure = problem
            self._started.wait()
            if call := self._call:
                call.cancel()

    def answer(self) -> bytes | tuple[grpc.StatusCode, str] | None:
        """The next answer, or the status that the call failed with, or None after the last."""
        try:
            return cast("bytes | None", next(self._call, None))
        except grpc.RpcError as problem:
            problem.__traceback__ = None
            if isinstance(problem, AdytonError):  # the attested channel's own: there is no such connection
                self.failure = problem
            return problem.code(), printable(problem.details() or "")

    def end(self) -> None:
        """Cancel what is left of the call."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()


class Reflection:
    """The descriptors that a server gives of its own services. Every method raises an AdytonError or what it says."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._pool = DescriptorPool()
        self._built: set[str] = set()

    def services(self) -> list[str]:
        """The names that the server lists, sorted, in ASCII."""
        with self._conversation() as ask, self.distrust():
            response = ask(ServerReflectionRequest(list_services=""))
        if response.WhichOneof("message_response") != "list_services_response":
            raise self._unusable("it does not list its services")
        return sorted({printable(json.dumps(each.name)[1:-1]) for each in response.list_services_response.service})

    def service(self, name: str) -> ServiceDescriptor:
        """A service by its full name."""
        try:
            self._load(name)
            return self._pool.FindServiceByName(name)
        except KeyError:
            raise self._unknown(name) from None

    def method(self, service: str, name: str) -> Method:
        """A method by its service's full name and its own."""
        methods = {each.name: each for each in self.service(service).methods}
        if name not in methods:
            raise ConfigurationError(f"{service} has no method {name}", mend=_choice(sorted(methods)))
        with self.distrust():
            return Method(self, methods[name])

    def FindMessageTypeByName(self, full_name: str) -> Descriptor:  # noqa: N802  the pool's method that json_format calls
        """A message type by its full name, as json_format asks for what is in an Any; KeyError if there is none."""
        with contextlib.suppress(KeyError):
            return self._pool.FindMessageTypeByName(full_name)
        self._load(full_name)
        return self._pool.FindMessageTypeByName(full_name)

    @contextlib.contextmanager
    def distrust(self) -> Iterator[None]:
        """Around what protobuf does with the server's own descriptors and bytes: it fails in too many ways to name."""
        try:
            yield
        except AdytonError:
            raise
        except Exception as problem:  # noqa: BLE001
            raise self._unusable(f"{type(problem).__name__}: {problem}") from None

    def _load(self, symbol: str) -> None:
        """Put the file of a symbol, and all that it imports, into the pool; nothing if the server does not know it."""
        with self._conversation() as ask, self.distrust():
            files = self._describe(ask, ServerReflectionRequest(file_containing_symbol=symbol))
            while missing := _imports(files) - files.keys() - self._built:
                for name in sorted(missing):
                    files |= self._describe(ask, ServerReflectionRequest(file_by_filename=name))
                    if name not in files:
                        raise self._unusable(f"it does not have {name}, which another file imports")
                    if len(files) > _MAX_FILES:
                        raise self._unusable(f"more than {_MAX_FILES} files")
            self._build(files)

    def _build(self, files: dict[str, FileDescriptorProto]) -> None:
        try:
            order = list(graphlib.TopologicalSorter({name: files[name].dependency for name in files}).static_order())
        except graphlib.CycleError as problem:
            raise self._unusable(f"files import one another: {' → '.join(problem.args[1])}") from None
        for name in order:
            if name not in self._built:
                self._pool.AddSerializedFile(files[name].SerializeToString())
                self._built.add(name)

    def _describe(self, ask: _Ask, request: ServerReflectionRequest) -> dict[str, FileDescriptorProto]:
        response = ask(request)
        match response.WhichOneof("message_response"):
            case "error_response":
                return {}
            case "file_descriptor_response":
                protos = response.file_descriptor_response.file_descriptor_proto
                return {file.name: file for file in map(FileDescriptorProto.FromString, protos)}
        raise self._unusable("an answer of another kind than was asked for")

    @contextlib.contextmanager
    def _conversation(self) -> Iterator[_Ask]:
        """One reflection call, so that one deadline holds for all questions."""
        questions: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        answers = self._server.exchange(_REFLECTION, iter(questions.get, None))

        def ask(request: ServerReflectionRequest) -> ServerReflectionResponse:
            questions.put(request.SerializeToString())
            return self._response(answers)

        try:
            yield ask
        finally:
            questions.put(None)
            cast("Any", answers).close()

    def _response(self, answers: Iterator[bytes]) -> ServerReflectionResponse:
        try:
            answer = next(answers, None)
        except ApplicationError as problem:
            if problem.status is not StatusCode.UNIMPLEMENTED:
                raise
            mend = "enclave.toml: reflection = true under [server]"
            raise UnsupportedError(f"{self._server.name} does not offer server reflection", mend=mend) from None
        if answer is None:
            raise self._unusable("it ended without an answer")
        return ServerReflectionResponse.FromString(answer)

    def _unknown(self, service: str) -> AdytonError:
        if service in (known := self.services()):
            return self._unusable(f"it lists {service} and does not describe it")
        return ConfigurationError(f"{self._server.name} has no service {service}", mend=_choice(known))

    def _unusable(self, why: str) -> ApplicationError:
        return ApplicationError(StatusCode.INTERNAL, f"what {self._server.name} sent can't be used: {printable(why)}")


class Method:
    """A method, its path, and its messages from and to JSON, with field names as in the .proto file."""

    def __init__(self, reflection: Reflection, descriptor: MethodDescriptor) -> None:
        self.path = f"/{descriptor.containing_service.full_name}/{descriptor.name}"
        self.client_streaming = descriptor.client_streaming
        self.server_streaming = descriptor.server_streaming
        self._reflection = reflection
        self._request = message_factory.GetMessageClass(descriptor.input_type)
        self._response = message_factory.GetMessageClass(descriptor.output_type)
        self._pool = cast("DescriptorPool", reflection)  # json_format only calls its FindMessageTypeByName

    def encode(self, text: str | bytes | None, *, where: str) -> bytes:
        """A request; None is the empty one. `where` says in an error which message it was."""
        message = self._request()
        try:
            if text is not None:
                json_format.Parse(text, message, descriptor_pool=self._pool)
            return message.SerializeToString()
        except (json_format.ParseError, EncodeError, UnicodeDecodeError) as problem:
            why = printable(" ".join(str(problem).split()))
            raise ConfigurationError(f"{where} does not fit {message.DESCRIPTOR.full_name}: {why}") from None

    def decode(self, data: bytes, *, indent: int | None, ascii_only: bool) -> str:
        """A response as one JSON value; `indent` None makes it one line."""
        with self._reflection.distrust():
            text = json_format.MessageToJson(
                self._response.FromString(data),
                preserving_proto_field_name=True,
                indent=indent,
                descriptor_pool=self._pool,
                ensure_ascii=ascii_only,
            )
        return printable(text)


def signature(method: MethodDescriptor) -> str:
    """A method with its types, as in `package.Service/Method(stream Request) returns (Response)`."""
    request = "stream " * method.client_streaming + method.input_type.full_name
    response = "stream " * method.server_streaming + method.output_type.full_name
    return f"{method.containing_service.full_name}/{method.name}({request}) returns ({response})"


def _imports(files: dict[str, FileDescriptorProto]) -> set[str]:
    return {name for file in files.values() for name in file.dependency}


def _choice(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES_SHOWN} more" if len(names) > _MAX_NAMES_SHOWN else ""
    return f"it has {', '.join(names[:_MAX_NAMES_SHOWN]) or 'none'}{more}"
