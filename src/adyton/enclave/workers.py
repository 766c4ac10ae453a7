"""Several server processes in one enclave, each on a CPU of its own, behind one port.

The enclave's first process reserves the port, starts the others as fresh interpreters of the same verified bundle,
and is their host: it speaks the control protocol to each. A worker that dies is replaced, but not for ever.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass

from adyton.enclave.application import EnclaveContext
from adyton.enclave.keeper import Keeper
from adyton.enclave.ports import Numbers, open_ports
from adyton.enclave.serving import Listen, cannot_bind, probe_bind
from adyton.errors import AdytonError, ApplicationError, EnclaveDiedError, StatusCode
from adyton.proto import control_pb2
from adyton.proto import grpc_application_pb2 as extensions
from adyton.proto.control_client import ControlClient
from adyton.proto.enclave_pb2 import EnclaveConfig, EnclaveFinal

_log = logging.getLogger(__name__)

START_SECONDS = 60.0
#: More deaths than this within a minute, and the enclave asks to be finalized.
MAX_DEATHS_A_MINUTE = 10


@dataclass(slots=True, eq=False)
class _Worker:
    index: int
    process: subprocess.Popen[bytes]
    control: ControlClient
    gone: Future[None]


class WorkerPool:
    """The server processes of one enclave; a Serving. All of them serve, or `__init__` raises."""

    def __init__(
        self, context: EnclaveContext, config: EnclaveConfig, *, keeper: Keeper, listen: Listen, workers: int
    ) -> None:
        self._context = context
        self._keeper = keeper
        self._reservations = {name: _reserve(listen.address, number) for name, number in listen.ports.items()}
        self.ports: Numbers = {name: held.getsockname()[1] for name, held in self._reservations.items()}
        self._config = EnclaveConfig()
        self._config.CopyFrom(config)
        for port in open_ports(context.settings.server):
            self._config.Extensions[port.asked] = self.ports[port.name]
        self._config.Extensions[extensions.workers] = workers
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS_A_MINUTE)
        self._stopping = False
        self._workers: dict[int, _Worker] = {}
        self._orders: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        started: Future[None] = Future()
        # One thread starts every worker and lives as long as the enclave: the kernel ends a worker with its starter.
        threading.Thread(target=self._tend, args=(range(workers), started), name="workers", daemon=True).start()
        try:
            started.result()
        except BaseException:
            self._end()
            raise

    def stop(self, grace_seconds: float) -> None:
        """Finalize every worker at once; those that do not end in time are killed."""
        self._stopping = True
        workers = list(self._workers.values())
        calls = [worker.control.call(_finalize(grace_seconds)) for worker in workers]
        until = time.monotonic() + grace_seconds + 5
        for call in calls:
            with contextlib.suppress(AdytonError, FutureTimeoutError):
                call.result(max(0.0, until - time.monotonic()))
        self._end()

    def _end(self) -> None:
        self._stopping = True
        self._orders.put(None)
        for worker in list(self._workers.values()):
            worker.process.kill()
            worker.control.close()
            worker.process.wait()
        for held in self._reservations.values():
            held.close()

    def _tend(self, indices: range, started: Future[None]) -> None:
        """Start the workers, then one for each that died, until the end."""
        try:
            self._start(indices)
        except BaseException as problem:  # noqa: BLE001  it belongs to whoever waits
            started.set_exception(problem)
            return
        started.set_result(None)
        while (index := self._orders.get()) is not None:
            try:
                self._workers.pop(index).control.close()
                self._start([index])
            except Exception as problem:  # noqa: BLE001  this thread must not end
                _log.exception("a worker could not be replaced")
                self._context.request_stop(f"a worker could not be replaced: {type(problem).__name__}")

    def _start(self, indices: Iterable[int]) -> None:
        """Start one worker for each index, side by side, and wait until all of them serve."""
        fresh = [self._spawn(index) for index in indices]
        until = time.monotonic() + START_SECONDS
        try:
            for worker in fresh:
                worker.control.ready.result(max(0.0, until - time.monotonic()))
            calls = [worker.control.call(self._initialize(worker.index)) for worker in fresh]
            for call in calls:
                call.result(max(0.0, until - time.monotonic()))
        except FutureTimeoutError as problem:
            raise ApplicationError(StatusCode.INTERNAL, "a worker did not start in time") from problem
        for worker in fresh:
            worker.gone.add_done_callback(functools.partial(self._replace, worker.index))

    def _spawn(self, index: int) -> _Worker:
        with contextlib.ExitStack() as stack:
            on_failure = stack.enter_context(contextlib.ExitStack())
            mine, theirs = _socket_pair(on_failure, stack)
            kept, keeper = _socket_pair(on_failure, stack)
            process = subprocess.Popen(
                _command(theirs.fileno(), keeper.fileno(), index),
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), keeper.fileno()],
                env=_environment(),
            )
            on_failure.pop_all()
        threading.Thread(target=self._keeper.serve, args=(kept,), name="keeper", daemon=True).start()
        gone: Future[None] = Future()
        control = ControlClient(mine, explain=functools.partial(_explain, process, gone))
        self._workers[index] = worker = _Worker(index=index, process=process, control=control, gone=gone)
        return worker

    def _initialize(self, index: int) -> control_pb2.Request:
        name = f"{self._context.name}/{index}"
        call = control_pb2.Initialize(config=self._config.SerializeToString(), name=name)
        return control_pb2.Request(initialize=call)

    def _replace(self, index: int, _: Future[None]) -> None:
        if self._stopping:
            return
        now = time.monotonic()
        self._deaths.append(now)
        if len(self._deaths) == MAX_DEATHS_A_MINUTE and now - self._deaths[0] < 60:
            self._context.request_stop(f"{MAX_DEATHS_A_MINUTE} workers died within a minute")
            return
        _log.error("a worker died; another takes its place", extra={"worker": index})
        self._orders.put(index)


def _explain(process: subprocess.Popen[bytes], gone: Future[None], problem: AdytonError | None) -> AdytonError:
    process.kill()
    status = process.wait()
    gone.set_result(None)
    return problem or EnclaveDiedError(f"a worker ended with {status}", exit_status=status)


def _reserve(address: str, port: int) -> socket.socket:
    """Hold the port for the workers. Exclusively first: sharing it with a stranger who allows sharing must fail."""
    try:
        exclusive = probe_bind(address, port)
        chosen = exclusive.getsockname()[1]
        exclusive.close()
        return probe_bind(address, chosen, shared=True)
    except OSError as problem:
        raise cannot_bind(address, port) from problem


def _socket_pair(on_failure: contextlib.ExitStack, always: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    mine, theirs = socket.socketpair()
    on_failure.callback(mine.close)
    always.enter_context(theirs)
    return mine, theirs


def _command(control_fd: int, keeper_fd: int, index: int) -> list[str]:
    """This very interpreter's command line, with another control connection, no device, and this process as parent."""
    spec = json.loads(sys.orig_argv[-1])
    spec |= {
        "control_fd": control_fd,
        "keeper_fd": keeper_fd,
        "device_fd": None,
        "sealing_fd": None,
        "hardware": None,
        "parent_pid": os.getpid(),
        "worker": index,
        "cpu": _cpu(index),
    }
    return [sys.executable, *sys.orig_argv[1:-1], json.dumps(spec)]


def _environment() -> dict[str, str]:
    """Without what the host put into ours: each worker takes that from its own configuration, checked."""
    return {
        name: os.environ[name] for name in ("LANG", "HOME", "TMPDIR", "PATH", "GRPC_VERBOSITY") if name in os.environ
    }


def _cpu(index: int) -> int:
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[index % len(allowed)]


def _finalize(grace_seconds: float) -> control_pb2.Request:
    final = EnclaveFinal().SerializeToString()
    return control_pb2.Request(finalize=control_pb2.Finalize(final=final, drain_ms=int(grace_seconds * 1000)))
