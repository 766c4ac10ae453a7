"""The host's door to its enclaves: load, enter, destroy.

Every call has a deadline, every enclave a name, and whatever happens to one, nothing of it stays behind.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeVar

from google.protobuf.message import DecodeError

from adyton.errors import (
    AdytonError,
    AlreadyExistsError,
    ApplicationError,
    ConfigurationError,
    ControlProtocolError,
    DeadlineError,
    EnclaveDiedError,
    WrongStateError,
)
from adyton.host.bundles import Bundle
from adyton.host.launch.launcher import LaunchedEnclave, LaunchRequest
from adyton.host.launch.registry import launcher
from adyton.proto import control_pb2
from adyton.proto import grpc_application_pb2 as extensions
from adyton.proto.control_client import ControlClient
from adyton.proto.enclave_pb2 import EnclaveConfig, EnclaveFinal, EnclaveInput, EnclaveOutput
from adyton.proto.guest import HOST_NAME
from adyton.tee.evidence import Evidence
from adyton.tee.message import decode_evidence

LOAD_SECONDS = 120.0
RUN_SECONDS = 30.0
DESTROY_SECONDS = 30.0
#: A finalized enclave that has not ended by then is killed.
END_SECONDS = 3.0

#: Longer than any deadline that makes sense, and short enough for the system's clocks.
LONGEST_SECONDS = 10 * 365 * 86400.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

#: The extensions of a configuration that choose a port; 0 leaves it to the enclave.
_PORTS = (extensions.port, extensions.plain_tls_port, extensions.mesh_port)

T = TypeVar("T")


class EnclaveClient:
    """One loaded enclave. Made by `EnclaveManager.load`; safe to use from any thread.

    Every call raises, beside what it says: ApplicationError (the application's own status), WrongStateError,
    DeadlineError, EnclaveDiedError (at once, when the enclave is gone), ControlProtocolError.
    """

    def __init__(
        self,
        name: str,
        launched: LaunchedEnclave,
        *,
        on_gone: Callable[[EnclaveClient], None],
        destroy_seconds: float = DESTROY_SECONDS,
    ) -> None:
        self.name = name
        self._launched = launched
        self._on_gone = on_gone
        self._destroy_seconds = destroy_seconds
        self._owner = os.getpid()
        self._destroying = threading.Lock()
        self._destroyed = False
        self._started = False
        self.death_was_told = False
        self._control = ControlClient(launched.control, explain=self._explain)

    def __repr__(self) -> str:
        return f"<EnclaveClient {self.name}>"

    def enter_and_run(
        self, input: EnclaveInput | None = None, *, timeout_seconds: float = RUN_SECONDS
    ) -> EnclaveOutput:
        """The application's `run(input)`. Calls may overlap."""
        return self._wait(self.run_future(input), timeout_seconds, "run")

    def run_future(self, input: EnclaveInput | None = None) -> Future[EnclaveOutput]:
        """As `enter_and_run`, but without waiting."""
        call = control_pb2.Run(input=(input or EnclaveInput()).SerializeToString())
        return _mapped(self._call(control_pb2.Request(run=call)), EnclaveOutput.FromString)

    def collect_evidence(self, question: bytes, *, timeout_seconds: float = RUN_SECONDS) -> Evidence:
        """Evidence by the enclave's hardware for a question of 64 bytes. Not verified here.

        Its report_data is `adyton.atls.binding.host_report_data(question)`, and not the question itself: a host that
        could choose what is signed could forge the binding of a client's connection. EvidenceError if the enclave
        answers with what is no evidence at all.
        """
        return self._wait(self.evidence_future(question), timeout_seconds, "collect_evidence")

    def evidence_future(self, question: bytes) -> Future[Evidence]:
        """As `collect_evidence`, but without waiting."""
        if len(question) != 64:
            raise ConfigurationError(f"a question has 64 bytes, not {len(question)}")
        call = control_pb2.CollectEvidence(question=question)
        return _mapped(self._call(control_pb2.Request(collect_evidence=call)), decode_evidence)

    def wait_stop_requested(self, timeout_seconds: float | None = None) -> str | None:
        """Wait until the application asks to be finalized; its reason, or None when the time is over."""
        try:
            return self._control.stop_requested.result(timeout_seconds)
        except FutureTimeoutError:
            return None

    @property
    def stop_requested(self) -> Future[str]:
        """Done when the application asks to be finalized, with its reason, or when the enclave is gone."""
        return self._control.stop_requested

    def address_of(self, port: int) -> str:
        """Where a client on this host reaches a port of the enclave: "host:port"."""
        return self._launched.address_of(port)

    def log_tail(self) -> tuple[str, ...]:
        """The last lines that the enclave logged, oldest first."""
        return self._launched.log_tail()

    @property
    def has_died(self) -> bool:
        """Whether the enclave has ended though nobody destroyed it."""
        return self._control.has_ended and not self._destroyed

    def destroy(self, final: EnclaveFinal | None = None, *, timeout_seconds: float | None = None) -> None:
        """Drain the calls in flight, finalize the application, end the enclave.

        `timeout_seconds`: 30 and the configuration's shutdown_grace_ms by default; the calls in flight get at most half
        of it. Whatever this raises (the status of a failing finalize, DeadlineError, EnclaveDiedError), the enclave is
        gone afterwards and nothing of it is left; only a call that WrongStateError refuses changes nothing.
        """
        seconds = max(0.0, min(self._destroy_seconds if timeout_seconds is None else timeout_seconds, LONGEST_SECONDS))
        data = (final or EnclaveFinal()).SerializeToString()
        call = control_pb2.Finalize(final=data, drain_ms=max(0, int(seconds * 500)))
        self._refuse_callbacks("destroy")
        with self._destroying:
            if self._destroyed or os.getpid() != self._owner:
                what = "is destroyed" if self._destroyed else "belongs to the process that loaded it"
                raise WrongStateError(f"destroy needs a loaded enclave; {self.name!r} {what}")
            self._destroyed = True
        try:
            self._control.call(control_pb2.Request(finalize=call)).result(seconds)
        except FutureTimeoutError:
            raise self._late("finalize", seconds) from None
        finally:
            self._tear_down()

    def _explain(self, problem: AdytonError | None) -> AdytonError:
        return problem or self._launched.explain(started=self._started)

    def _refuse_callbacks(self, what: str) -> None:
        if self._control.runs_this_thread():
            raise WrongStateError(f"{what} would wait for the thread that runs this callback; call it from another one")

    def _initialize(self, config: bytes, until: float) -> None:
        try:
            self._wait(self._control.ready, until - time.monotonic(), "start")
        except DeadlineError as problem:
            last = "; ".join(self.log_tail()[-3:]) or "nothing"
            raise DeadlineError(f"{problem.message}; the last that it printed: {last}") from problem
        self._started = True
        call = control_pb2.Initialize(config=config, name=self.name)
        request = control_pb2.Request(initialize=call)
        self._wait(self._control.call(request), until - time.monotonic(), "initialize")

    def _call(self, request: control_pb2.Request) -> Future[bytes]:
        if self._destroyed:
            needed = (request.WhichOneof("call") or "").replace("_", " ")
            raise WrongStateError(f"{needed} needs a loaded enclave; {self.name!r} is destroyed")
        return self._control.call(request)

    def _wait(self, future: Future[T], timeout_seconds: float, what: str) -> T:
        self._refuse_callbacks(what)
        try:
            return future.result(max(0.0, min(timeout_seconds, LONGEST_SECONDS)))
        except FutureTimeoutError:
            raise self._late(what, timeout_seconds) from None
        except EnclaveDiedError:
            self.death_was_told = True
            raise

    def _late(self, what: str, seconds: float) -> DeadlineError:
        return DeadlineError(f"enclave {self.name!r}: {what} was not answered in {seconds:.1f} s")

    def _tear_down(self) -> None:
        self._destroyed = True
        self._control.close()
        self._launched.wait(END_SECONDS)
        self._launched.close()
        self._on_gone(self)


class EnclaveManager:
    """Loads enclaves and knows them by name. Use it as a context manager: at its end every enclave is destroyed."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._enclaves: dict[str, EnclaveClient | None] = {}  # None: being loaded
        self._closed = False
        self._owner = os.getpid()

    def __enter__(self) -> EnclaveManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except AdytonError:
            if error is None:
                raise

    def load(
        self,
        name: str,
        target: Bundle | Path | str,
        config: EnclaveConfig | None = None,
        *,
        on: str = "process",
        state: Path | None = None,
        timeout_seconds: float = LOAD_SECONDS,
    ) -> EnclaveClient:
        """Start an enclave from a bundle (or its file, or a project's folder) and initialize its application.

        `state` is a folder of this user's, made if it is not there, for one enclave at a time: what the enclave keeps
        there outlives it. Raises AlreadyExistsError for a name in use, InUseError for a `state` in use,
        ConfigurationError, BundleError, LaunchError or UnsupportedError where nothing was started, ApplicationError
        where the application's initialize failed; then it is down again.
        """
        if not _NAME.fullmatch(name):
            raise ConfigurationError(f"{name[:140]!r} is no name for an enclave: letters, digits, '.', '_', '-'")
        configuration = config or EnclaveConfig()
        self._reserve(name)
        client: EnclaveClient | None = None
        try:
            bundle = target if isinstance(target, Bundle) else Bundle.of(Path(target))
            launcher(on).prepare(bundle)
            until = time.monotonic() + min(timeout_seconds, LONGEST_SECONDS)
            client = self._start(_request(name, bundle, configuration, state), configuration, on, until)
        finally:
            unwanted = self._settle(name, client)
        if unwanted:
            client._tear_down()
            raise WrongStateError("the manager was closed while the enclave was loading")
        return client

    def get(self, name: str) -> EnclaveClient | None:
        """The loaded enclave of that name, or None."""
        return self._enclaves.get(name)

    def close(self) -> None:
        """Destroy every enclave, and wait for loads and destroys that are under way; then nothing can be loaded.

        Raises the first error, after all of them are gone.
        """
        if os.getpid() != self._owner:
            return  # a fork's copy: the enclaves are the parent's
        failures: list[AdytonError] = []
        with self._changed:
            for each in self._enclaves.values():
                if each is not None:
                    each._refuse_callbacks("close")
            self._closed = True
        try:
            while (client := self._next_to_destroy()) is not None:
                failures += self._destroy(client)
        except BaseException:
            for each in [each for each in self._enclaves.values() if each is not None]:
                each._tear_down()
            raise
        if failures:
            raise failures[0]

    def _destroy(self, client: EnclaveClient) -> list[AdytonError]:
        """Destroy it, or wait until whoever does has; what went wrong, if nobody was told yet."""
        try:
            client.destroy()
        except WrongStateError:
            self._wait_until_forgotten(client)
        except EnclaveDiedError as problem:
            return [] if client.death_was_told else [problem]
        except AdytonError as problem:
            return [problem]
        return []

    def _reserve(self, name: str) -> None:
        with self._changed:
            if self._closed:
                raise WrongStateError("load needs an open manager; this one is closed")
            existing = self._enclaves.get(name)
            if name in self._enclaves and not (existing is not None and existing.has_died):
                raise AlreadyExistsError(f"an enclave {name!r} is loaded already")
            self._enclaves[name] = None
        if existing is not None:
            existing._tear_down()

    def _settle(self, name: str, client: EnclaveClient | None) -> bool:
        """Put a loaded enclave under its name, or free the name. Whether the manager was closed meanwhile."""
        with self._changed:
            if client is None or self._closed:
                del self._enclaves[name]
            else:
                self._enclaves[name] = client
            self._changed.notify_all()
            return client is not None and self._closed

    def _next_to_destroy(self) -> EnclaveClient | None:
        with self._changed:
            while self._enclaves:
                for client in self._enclaves.values():
                    if client is not None:
                        return client
                self._changed.wait()  # for a load, which has a deadline
            return None

    def _wait_until_forgotten(self, client: EnclaveClient) -> None:
        with self._changed:
            while self._enclaves.get(client.name) is client:
                self._changed.wait()  # for a destroy, which has a deadline

    def _start(self, request: LaunchRequest, config: EnclaveConfig, on: str, until: float) -> EnclaveClient:
        grace_seconds = max(0, config.Extensions[extensions.shutdown_grace_ms]) / 1000
        destroy_seconds = DESTROY_SECONDS + 2 * grace_seconds
        launched = launcher(on).launch(request)
        try:
            client = EnclaveClient(request.name, launched, on_gone=self._forget, destroy_seconds=destroy_seconds)
        except BaseException:
            launched.close()
            raise
        try:
            client._initialize(config.SerializeToString(), until)
        except ApplicationError as problem:
            client._tear_down()
            problem.log_tail = client.log_tail()
            raise
        except BaseException:
            client._tear_down()
            raise
        return client

    def _forget(self, client: EnclaveClient) -> None:
        with self._changed:
            if self._enclaves.get(client.name) is client:
                del self._enclaves[client.name]
            self._changed.notify_all()


def _request(name: str, bundle: Bundle, config: EnclaveConfig, state: Path | None) -> LaunchRequest:
    directory = config.logging_config.log_directory
    if "\0" in directory:
        raise ConfigurationError("log_directory has a NUL in it")
    if config.host_name and not HOST_NAME.fullmatch(config.host_name):
        raise ConfigurationError(f"{config.host_name[:80]!r} is no host name: letters, digits, '-', 63 at most")
    return LaunchRequest(
        name=name,
        bundle=bundle,
        address=config.Extensions[extensions.server_address] or "localhost",
        ports=tuple(port for each in _PORTS if (port := config.Extensions[each])),
        host_name=config.host_name or None,
        stdin_fd=_descriptor(config, "stdin_fd"),
        stdout_fd=_descriptor(config, "stdout_fd"),
        stderr_fd=_descriptor(config, "stderr_fd"),
        log_directory=Path(directory) if directory else None,
        state=state,
    )


def _descriptor(config: EnclaveConfig, field: Literal["stdin_fd", "stdout_fd", "stderr_fd"]) -> int | None:
    if not config.HasField(field):
        return None
    descriptor: int = getattr(config, field)
    try:
        os.fstat(descriptor)
    except OSError as problem:
        raise ConfigurationError(f"{field} is {descriptor}, which is not an open descriptor") from problem
    return descriptor


def _mapped(source: Future[bytes], parse: Callable[[bytes], T]) -> Future[T]:
    """A future of `parse` of what `source` gives. What can't be parsed is a ControlProtocolError."""
    target: Future[T] = Future()

    def copy(done: Future[bytes]) -> None:
        try:
            _settle_future(target, parse(done.result()))
        except DecodeError:
            problem = ControlProtocolError("the enclave answered with what is not an EnclaveOutput")
            _settle_future(target, problem)
        except BaseException as problem:  # noqa: BLE001  whatever it is, it belongs to whoever waits
            _settle_future(target, problem)

    source.add_done_callback(copy)
    return target


def _settle_future(future: Future[T], outcome: T | BaseException) -> None:
    with contextlib.suppress(InvalidStateError):  # its owner cancelled it
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
