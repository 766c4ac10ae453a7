"""The enclave's end of the control protocol: the same in every kind of enclave.

Whoever starts a runtime (process_entry.py for the simulation; a guest's first process) gives it a stream to its host,
a folder with the verified bundle, and the device that makes evidence.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import logging
import os
import socket
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import DecodeError, Message

from adyton.atls.binding import host_report_data
from adyton.bundle.settings import Settings
from adyton.enclave.application import EnclaveContext, TrustedApplication
from adyton.enclave.key_sources.found import find_key_source
from adyton.enclave.lifecycle import LifeCycle, Step
from adyton.enclave.logs import start_logging
from adyton.enclave.vault import Vault, enter
from adyton.errors import AdytonError, ApplicationError, ConfigurationError, StatusCode, WrongStateError
from adyton.proto import control_pb2
from adyton.proto.control_server import Send
from adyton.proto.enclave_pb2 import EnclaveConfig, EnclaveFinal, EnclaveInput, EnclaveOutput
from adyton.proto.grpc_application_pb2 import key_release_address, reference_values
from adyton.proto.messages import parse_message
from adyton.tee.message import encode_evidence

if TYPE_CHECKING:
    from adyton.enclave.keeper import KeeperClient
    from adyton.tee.devices import Device
    from adyton.tee.sealing import KeySource

_log = logging.getLogger(__name__)

T = TypeVar("T", bound=Message)

#: Requests of which any number may be in flight, and those that are alone in their state.
_OVERLAPPING = {"run": Step.RUN, "collect_evidence": Step.COLLECT_EVIDENCE}
_ALONE = {"initialize": Step.INITIALIZE, "finalize": Step.FINALIZE}


class Runtime:
    """One application, its life cycle, and the requests of its host."""

    def __init__(  # noqa: PLR0913  one for each part of what an enclave is given
        self,
        *,
        settings: Settings,
        application_directory: Path,
        data_directory: Path,
        state_directory: Path | None = None,
        device: Device | None,
        key_source: KeySource | None = None,
        worker: int | None = None,
        keeper: socket.socket | None = None,
        request_stop: Callable[[str], None],
    ) -> None:
        self.finalized = threading.Event()
        self._settings = settings
        self._application_directory = application_directory
        self._data_directory = data_directory
        self._state_directory = state_directory
        self._device = device
        self._key_source = key_source
        self._worker = worker
        self._keeper = keeper
        self._request_stop = request_stop
        self._life = LifeCycle()
        self._application: TrustedApplication | None = None

    def accept(self, request: control_pb2.Request) -> Callable[[Send], None]:
        """Take the step in the life cycle that a request means, or refuse it; the result carries it out and replies.

        So the order in which requests arrive is the order of their steps, whichever thread is faster afterwards.
        """
        call = request.WhichOneof("call") or "nothing"
        try:
            if call in _OVERLAPPING:
                self._life.begin(_OVERLAPPING[call])
            elif call in _ALONE:
                self._life.take(_ALONE[call])
            else:
                raise ConfigurationError(f"this enclave does not know the request {call!r}")
        except AdytonError as error:
            wrong_state = isinstance(error, WrongStateError)
            refusal = _refusal(error.status, error.message, wrong_state=wrong_state)
            return lambda send: send(refusal)
        return functools.partial(self._carry_out, call, request)

    def _carry_out(self, call: str, request: control_pb2.Request, send: Send) -> None:
        try:
            send(self._outcome(call, request))
        finally:
            if call in _OVERLAPPING:
                self._life.end()  # after the reply: what finalizing waits for is that the host has it

    def _outcome(self, call: str, request: control_pb2.Request) -> control_pb2.Reply:
        """Whatever happens becomes the reply's status; nothing is raised."""
        try:
            return self._attempt(call, request)
        except BaseException as error:  # noqa: BLE001  whatever an application raises, the host gets an answer
            _log.exception("uncaught exception in %s", call)
            return _refusal(StatusCode.INTERNAL, f"uncaught {type(error).__name__} in {call}")

    def _attempt(self, call: str, request: control_pb2.Request) -> control_pb2.Reply:
        actions: dict[str, Callable[[], bytes]] = {
            "initialize": lambda: self._initialize(request.initialize),
            "run": lambda: self._run(request.run.input),
            "collect_evidence": lambda: self._collect_evidence(request.collect_evidence.question),
            "finalize": lambda: self._finalize(request.finalize),
        }
        try:
            return control_pb2.Reply(status=control_pb2.Status(), result=actions[call]())
        except AdytonError as error:
            return _refusal(error.status, f"{error.message} ({error.mend})" if error.mend else error.message)

    def _initialize(self, call: control_pb2.Initialize) -> bytes:
        try:
            config = _parse(EnclaveConfig, call.config)
            self._prepare(config)
            self._application = application = self._load_application()
            application.context = self._context(call, config)
            config = _parse(EnclaveConfig, call.config)  # again: the application's extensions are known now
            application.initialize(config)
        except BaseException:
            self._life.take(Step.INITIALIZE_FAILED)
            raise
        self._life.take(Step.INITIALIZED)
        return b""

    def _prepare(self, config: EnclaveConfig) -> None:
        start_logging(config.logging_config.level or logging.INFO)
        allowed = self._settings.environment.allow
        for variable in config.environment_variables:
            if variable.name not in allowed or "\0" in variable.value:
                raise ConfigurationError(
                    f"environment variable {variable.name[:128]!r} is not one that the enclave takes from its host: "
                    "enclave.toml lists those in environment.allow"
                )
        os.environ.update({each.name: each.value for each in config.environment_variables})
        directory = self._data_directory / config.current_working_directory
        try:
            os.chdir(directory)
        except (OSError, ValueError) as problem:
            raise ConfigurationError(f"current_working_directory {str(directory)[:200]!r}: {problem}") from problem

    def _load_application(self) -> TrustedApplication:
        try:
            kind = _import(*self._settings.application.split(":"))
        except Exception as problem:
            _log.exception("the application can't be imported")
            why = _import_failure(problem, self._application_directory)
            raise ConfigurationError(
                f"application {self._settings.application!r} can't be imported: {why}"
            ) from problem
        if not (isinstance(kind, type) and issubclass(kind, TrustedApplication)):
            raise ConfigurationError(f"{self._settings.application} is not a TrustedApplication")
        return kind()

    def _context(self, call: control_pb2.Initialize, config: EnclaveConfig) -> EnclaveContext:
        keeper = self._keeper_client()

        def find_source() -> KeySource:
            return keeper.keys if keeper else find_key_source(context, self._key_source)

        vault = Vault(
            self._settings,
            instance=call.name,
            state_directory=self._state_directory,
            find_source=find_source,
            keeper=keeper,
        )
        context = EnclaveContext(
            name=call.name,
            settings=self._settings,
            application_directory=self._application_directory,
            data_directory=self._data_directory,
            state_directory=self._state_directory,
            config_sha256=hashlib.sha256(call.config).digest(),
            device=self._device,
            worker=self._worker,
            keeper=keeper,
            request_stop=self._request_stop,
            reference_values=tuple(config.Extensions[reference_values]),
            key_release_address=config.Extensions[key_release_address],
            vault=vault,
        )
        enter(vault)
        return context

    def _keeper_client(self) -> KeeperClient | None:
        if self._keeper is None:
            return None
        from adyton.enclave.keeper import KeeperClient  # only a worker needs it, and what it imports takes a while

        return KeeperClient(self._keeper)

    def _run(self, data: bytes) -> bytes:
        assert self._application is not None
        output = self._application.run(_parse(EnclaveInput, data))
        if not isinstance(output, EnclaveOutput | None):
            raise TypeError(f"run returned {type(output).__name__}")
        return b"" if output is None else output.SerializeToString()

    def _collect_evidence(self, question: bytes) -> bytes:
        if len(question) != 64:
            raise ApplicationError(StatusCode.INVALID_ARGUMENT, "a question has 64 bytes")
        if self._device is None:
            raise ApplicationError(StatusCode.UNIMPLEMENTED, "this enclave has no device that makes evidence")
        return encode_evidence(self._device.collect_evidence(host_report_data(question)))

    def _finalize(self, call: control_pb2.Finalize) -> bytes:
        try:
            assert self._application is not None
            final = _parse(EnclaveFinal, call.final)
            if stuck := self._life.drain(call.drain_ms / 1000):
                _log.warning("finalizing though %d calls are in flight", stuck)
            self._application.finalize(final)
        finally:
            self._life.take(Step.FINALIZED)
            self.finalized.set()
        return b""


def _import(module: str, name: str) -> object:
    found = importlib.import_module(module)
    if not hasattr(found, name):
        raise ImportError(f"module {module!r} has no attribute {name!r}")
    return getattr(found, name)


def _import_failure(problem: Exception, directory: Path) -> str:
    """The exception's type, the innermost line of the application's own that led to it, and perhaps what it says."""
    where = ""
    for frame in traceback.extract_tb(problem.__traceback__):
        if (file := Path(frame.filename)).is_relative_to(directory):
            where = f" at {file.relative_to(directory)}, line {frame.lineno}"
    # What Python says of a bundle's syntax and imports is about code that the host has, and Adyton's own errors cross
    # everywhere. Any other message is the work of code that may have read a secret: it stays in the enclave's log.
    says = f": {problem}" if isinstance(problem, SyntaxError | ImportError | AdytonError) else ""
    return type(problem).__name__ + where + says


def _parse(kind: type[T], data: bytes) -> T:
    try:
        return parse_message(kind, data)
    except DecodeError as problem:
        raise ConfigurationError(f"the host sent what is not an {kind.__name__}") from problem


def _refusal(code: StatusCode, message: str, *, wrong_state: bool = False) -> control_pb2.Reply:
    text = message[:4096].encode("utf-8", "backslashreplace").decode()  # a file's name may hold what is not UTF-8
    status = control_pb2.Status(code=code, message=text, wrong_state=wrong_state)
    return control_pb2.Reply(status=status)
