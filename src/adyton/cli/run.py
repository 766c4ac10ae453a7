"""`adyton run`: start an enclave that serves, wait for a signal, finalize it."""

from __future__ import annotations

import argparse
import contextlib
import queue
import signal
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

from adyton.cli.main import say
from adyton.errors import AdytonError
from adyton.host.bundles import Bundle
from adyton.host.launch.registry import LAUNCHERS, launcher
from adyton.host.manager import EnclaveManager
from adyton.proto import grpc_application_pb2 as extensions
from adyton.proto.enclave_pb2 import EnclaveConfig, LoggingConfig

_STOPPING = (signal.SIGINT, signal.SIGTERM)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    parser.add_argument("target", type=Path, help="project folder, or a bundle that `adyton build` wrote")
    parser.add_argument("--on", default="process", choices=sorted(LAUNCHERS), help="technology (default: %(default)s)")
    parser.add_argument("--name", help="the enclave's name (default: as in enclave.toml)")
    parser.add_argument("--address", default="localhost", help="where the server listens (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="0 lets the system choose (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="server processes (default: as in enclave.toml)")
    parser.add_argument("--lifetime-ms", type=int, default=0, help="stop by itself after this long (default: never)")
    parser.add_argument(
        "--grace-ms", type=int, default=500, help="for RPCs in flight at the end (default: %(default)s)"
    )
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="one that enclave.toml allows")
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    parser.add_argument("--log-directory", help="append the enclave's log to a file in this folder as well")


def run(arguments: argparse.Namespace) -> int:
    """Print "Server started on port N" on standard output when it serves; exit 0 when it was asked to end and did."""
    if warning := launcher(arguments.on).warning:
        say(warning)
    bundle = Bundle.of(arguments.target)
    with _signals() as stop, EnclaveManager() as manager:
        enclave = manager.load(arguments.name or bundle.settings.name, bundle, _config(arguments), on=arguments.on)
        port = enclave.enter_and_run().Extensions[extensions.actual_server_port]
        print(f"Server started on port {port}", flush=True)
        enclave.stop_requested.add_done_callback(lambda done: stop.put(_outcome(done)))
        outcome = stop.get()
        if isinstance(outcome, AdytonError):
            raise outcome
        say(f"{outcome}: finalizing")
        enclave.destroy(timeout_seconds=30 + arguments.grace_ms / 1000)
    return 0


def _outcome(done: Future[str]) -> str | AdytonError:
    try:
        return done.result()
    except AdytonError as problem:
        return problem


@contextlib.contextmanager
def _signals() -> Iterator[queue.SimpleQueue[str | AdytonError]]:
    """A queue that gets the name of a signal that asks to end. A second one ends this process at once."""
    stop: queue.SimpleQueue[str | AdytonError] = queue.SimpleQueue()

    def take(number: int, _frame: object) -> None:
        for each in _STOPPING:
            signal.signal(each, signal.SIG_DFL)
        stop.put(signal.Signals(number).name)

    before = {number: signal.signal(number, take) for number in _STOPPING}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _config(arguments: argparse.Namespace) -> EnclaveConfig:
    config = EnclaveConfig(stderr_fd=2, stdout_fd=2)
    config.logging_config.level = LoggingConfig.Level.Value(arguments.log_level)
    if arguments.log_directory:
        config.logging_config.log_directory = arguments.log_directory
    for pair in arguments.env:
        name, _, value = pair.partition("=")
        config.environment_variables.add(name=name, value=value)
    config.Extensions[extensions.server_address] = arguments.address
    config.Extensions[extensions.port] = arguments.port
    config.Extensions[extensions.server_max_lifetime_ms] = arguments.lifetime_ms
    config.Extensions[extensions.shutdown_grace_ms] = arguments.grace_ms
    if arguments.workers is not None:
        config.Extensions[extensions.workers] = arguments.workers
    return config
