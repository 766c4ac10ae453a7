"""The host's door to its enclaves: load, enter, destroy.

Every call has a deadline, every enclave a name, and whatever happens to one, nothing of it stays behind.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from google.protobuf.message import DecodeError

from adyton.errors import (
    AdytonError,
    AlreadyExistsError,
    ConfigurationError,
    ControlProtocolError,
    DeadlineError,
    WrongStateError,
)
from adyton.host.bundles import Bundle
from adyton.host.launch.launcher import LaunchedEnclave, LaunchRequest
from adyton.host.launch.registry import launcher
from adyton.proto import control_pb2
from adyton.proto.control_client import ControlClient
from adyton.proto.enclave_pb2 import EnclaveConfig, EnclaveFinal, EnclaveInput, EnclaveOutput

LOAD_SECONDS = 60.0
RUN_SECONDS = 30.0
DESTROY_SECONDS = 30.0
#: A finalized enclave that has not ended by then is killed.
END_SECONDS = 3.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

T = TypeVar("T")


class EnclaveClient:
    """One loaded enclave. Made by `EnclaveManager.load`; safe to use from any thread.

    Every call raises, beside what it says: ApplicationError (the application's own status), WrongStateError,
    DeadlineError, EnclaveDiedError (at once, when the enclave is gone), ControlProtocolError.
    """

    def __init__(self, name: str, launched: LaunchedEnclave, on_gone: Callable[[EnclaveClient], None]) -> None:
        self.name = name
        self._launched = launched
        self._on_gone = on_gone
        self._control = ControlClient(launched.control, explain=lambda problem: problem or launched.explain())
        self._destroying = threading.Lock()
        self._destroyed = False

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

    def collect_evidence(self, report_data: bytes, *, timeout_seconds: float = RUN_SECONDS) -> bytes:
        """Evidence by the enclave's hardware over 64 bytes of the caller's choice. Not verified here."""
        return self._wait(self.evidence_future(report_data), timeout_seconds, "collect_evidence")

    def evidence_future(self, report_data: bytes) -> Future[bytes]:
        """As `collect_evidence`, but without waiting."""
        if len(report_data) != 64:
            raise ConfigurationError(f"report_data has 64 bytes, not {len(report_data)}")
        return self._call(control_pb2.Request(collect_evidence=control_pb2.CollectEvidence(report_data=report_data)))

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

    def destroy(self, final: EnclaveFinal | None = None, *, timeout_seconds: float = DESTROY_SECONDS) -> None:
        """Drain the calls in flight, finalize the application, end the enclave.

        Of `timeout_seconds` the calls in flight get at most half. Whatever this raises (the status of a failing
        finalize, DeadlineError, EnclaveDiedError), the enclave is gone afterwards and nothing of it is left.
        """
        with self._destroying:
            if self._destroyed:
                raise WrongStateError(f"destroy needs a loaded enclave; {self.name!r} is destroyed")
            self._destroyed = True
        data = (final or EnclaveFinal()).SerializeToString()
        call = control_pb2.Finalize(final=data, drain_ms=max(0, int(timeout_seconds * 500)))
        try:
            self._wait(self._control.call(control_pb2.Request(finalize=call)), timeout_seconds, "finalize")
        finally:
            self._tear_down()

    def _initialize(self, config: bytes, until: float) -> None:
        self._wait(self._control.ready, until - time.monotonic(), "start")
        call = control_pb2.Initialize(config=config, name=self.name)
        request = control_pb2.Request(initialize=call)
        self._wait(self._control.call(request), until - time.monotonic(), "initialize")

    def _call(self, request: control_pb2.Request) -> Future[bytes]:
        if self._destroyed:
            needed = (request.WhichOneof("call") or "").replace("_", " ")
            raise WrongStateError(f"{needed} needs a loaded enclave; {self.name!r} is destroyed")
        return self._control.call(request)

    def _wait(self, future: Future[T], timeout_seconds: float, what: str) -> T:
        try:
            return future.result(max(0.0, timeout_seconds))
        except FutureTimeoutError:
            if future.done():  # it raised a TimeoutError of its own
                raise
            raise DeadlineError(f"enclave {self.name!r}: {what} was not answered in {timeout_seconds:.1f} s") from None

    def _tear_down(self) -> None:
        self._destroyed = True
        self._control.close()
        self._launched.wait(END_SECONDS)
        self._launched.close()
        self._on_gone(self)


class EnclaveManager:
    """Loads enclaves and knows them by name. Use it as a context manager: at its end every enclave is destroyed."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._enclaves: dict[str, EnclaveClient | None] = {}

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
        timeout_seconds: float = LOAD_SECONDS,
    ) -> EnclaveClient:
        """Start an enclave from a bundle (or its file, or a project's folder) and initialize its application.

        Raises AlreadyExistsError for a name in use, ConfigurationError, BundleError, LaunchError or UnsupportedError
        where nothing was started, ApplicationError where the application's initialize failed; then it is down again.
        """
        if not _NAME.fullmatch(name):
            raise ConfigurationError(f"{name[:140]!r} is no name for an enclave: letters, digits, '.', '_', '-'")
        until = time.monotonic() + timeout_seconds
        with self._guard:
            if name in self._enclaves:
                raise AlreadyExistsError(f"an enclave {name!r} is loaded already")
            self._enclaves[name] = None
        try:
            client = self._start(
                name,
                target if isinstance(target, Bundle) else Bundle.of(Path(target)),
                config or EnclaveConfig(),
                on,
                until,
            )
        except BaseException:
            with self._guard:
                del self._enclaves[name]
            raise
        with self._guard:
            self._enclaves[name] = client
        return client

    def get(self, name: str) -> EnclaveClient | None:
        """The loaded enclave of that name, or None."""
        return self._enclaves.get(name)

    def close(self) -> None:
        """Destroy every enclave that is still loaded. Raises the first error, after all of them are gone."""
        failures = []
        for client in [each for each in self._enclaves.values() if each is not None]:
            try:
                client.destroy()
            except AdytonError as problem:
                failures.append(problem)
        if failures:
            raise failures[0]

    def _start(self, name: str, bundle: Bundle, config: EnclaveConfig, on: str, until: float) -> EnclaveClient:
        client = EnclaveClient(name, launcher(on).launch(_request(name, bundle, config)), self._forget)
        try:
            client._initialize(config.SerializeToString(), until)
        except BaseException:
            client._tear_down()
            raise
        return client

    def _forget(self, client: EnclaveClient) -> None:
        with self._guard, contextlib.suppress(KeyError):
            if self._enclaves[client.name] is client:
                del self._enclaves[client.name]


def _request(name: str, bundle: Bundle, config: EnclaveConfig) -> LaunchRequest:
    directory = config.logging_config.log_directory
    return LaunchRequest(
        name=name,
        bundle=bundle,
        host_name=config.host_name or None,
        stdin_fd=config.stdin_fd if config.HasField("stdin_fd") else None,
        stdout_fd=config.stdout_fd if config.HasField("stdout_fd") else None,
        stderr_fd=config.stderr_fd if config.HasField("stderr_fd") else None,
        log_directory=Path(directory) if directory else None,
    )


def _mapped(source: Future[bytes], parse: Callable[[bytes], T]) -> Future[T]:
    """A future of `parse` of what `source` gives. What can't be parsed is a ControlProtocolError."""
    target: Future[T] = Future()

    def copy(done: Future[bytes]) -> None:
        try:
            target.set_result(parse(done.result()))
        except DecodeError:
            target.set_exception(ControlProtocolError("the enclave answered with what is not an EnclaveOutput"))
        except BaseException as problem:  # noqa: BLE001  whatever it is, it belongs to whoever waits
            target.set_exception(problem)

    source.add_done_callback(copy)
    return target
