"""`adyton run`: start an enclave that serves, wait for a signal, finalize it."""

from __future__ import annotations

import argparse
import os
import queue
import signal
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from adyton.cli.main import say
from adyton.cli.run_options import MAX_WORKERS, a_port, a_time_ms, an_address, whole_number
from adyton.cli.sources import build_bundle
from adyton.cli.waiting import wait_for_next
from adyton.errors import AdytonError, ApplicationError, ConfigurationError, EnclaveDiedError
from adyton.host.bundles import Bundle
from adyton.host.launch.registry import LAUNCHERS, launcher
from adyton.host.manager import EnclaveManager
from adyton.proto import grpc_application_pb2 as extensions
from adyton.proto.enclave_pb2 import EnclaveConfig, LoggingConfig

_PORTS = (
    ("Server started", extensions.actual_server_port),
    ("Plain TLS", extensions.actual_plain_tls_port),
    ("Mesh", extensions.actual_mesh_port),
)
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    parser.add_argument("target", type=Path, help="project folder, or a bundle that `adyton build` wrote")
    parser.add_argument("--on", default="process", choices=sorted(LAUNCHERS), help="technology (default: %(default)s)")
    parser.add_argument("--name", help="the enclave's name (default: as in enclave.toml)")
    parser.add_argument("--signature", type=Path, metavar="FILE", help=_SIGNATURE_HELP)
    parser.add_argument("--state", type=Path, metavar="DIR", help="folder for what outlives the enclave")
    parser.add_argument(
        "--address", type=an_address, default="localhost", help="where the server listens (default: %(default)s)"
    )
    parser.add_argument("--port", type=a_port, default=0, help="0 lets the system choose (default: %(default)s)")
    parser.add_argument("--plain-tls-port", type=a_port, default=0, help="the same, if enclave.toml opens such a port")
    parser.add_argument("--mesh-port", type=a_port, default=0, help="and again")
    parser.add_argument(
        "--reference-values", type=Path, nargs="+", action="extend", default=[], metavar="FILE", help=_REFERENCE_HELP
    )
    parser.add_argument("--keys-at", metavar="HOST:PORT", help="where the enclave is that releases keys to this one")
    parser.add_argument(
        "--workers", type=whole_number(1, MAX_WORKERS), help="server processes (default: as in enclave.toml)"
    )
    parser.add_argument(
        "--lifetime-ms", type=a_time_ms, default=0, help="stop by itself after this long (default: never)"
    )
    parser.add_argument(
        "--grace-ms", type=a_time_ms, default=500, help="for RPCs in flight at the end (default: %(default)s)"
    )
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="one that enclave.toml allows")
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    parser.add_argument("--log-directory", help="append the enclave's log to a file in this folder as well")


_SIGNATURE_HELP = "as `adyton sign` wrote it (default: the one beside a bundle, if there is one)"
_REFERENCE_HELP = "signed ones, for the policies in the bundle"


def run(arguments: argparse.Namespace) -> int:
    """Print "Server started on port N" on standard output when it serves; exit 0 when it was asked to end and did."""
    if warning := launcher(arguments.on).warning:
        say(warning)
    try:
        _serve(_bundle(arguments), _config(arguments), arguments)
    except _AskedToEndError as asked:
        say(f"{asked}: ended before it served")
    except EnclaveDiedError as problem:
        problem.log_tail = problem.console  # the rest was on standard error when it was logged
        raise
    except ApplicationError as problem:
        problem.log_tail = ()
        raise
    return 0


def _bundle(arguments: argparse.Namespace) -> Bundle:
    """What is to be run; a signature that is not of it is refused whichever launcher would look at it."""
    is_project = os.path.isdir(arguments.target)  # noqa: PTH112  Path.is_dir raises for a name that is too long
    bundle = build_bundle(arguments.target) if is_project else Bundle.load(arguments.target)
    if arguments.signature:
        bundle = bundle.with_signature(arguments.signature)
    bundle.signed_code()
    _check_ports(arguments, bundle)
    return bundle


def _check_ports(arguments: argparse.Namespace, bundle: Bundle) -> None:
    """Of a port that is asked for and that enclave.toml does not open, the user hears before anything starts."""
    for name in ("plain_tls", "mesh"):
        if getattr(arguments, f"{name}_port") and not getattr(bundle.settings.server, name):
            raise ConfigurationError(
                f"--{name.replace('_', '-')}-port is given, and enclave.toml opens no such port",
                mend=f"{name} = true under [server]",
            )


def _serve(bundle: Bundle, config: EnclaveConfig, arguments: argparse.Namespace) -> None:
    with _Signals() as signals, EnclaveManager() as manager:
        launcher(arguments.on).prepare(bundle, say)
        name = arguments.name or bundle.settings.name
        enclave = manager.load(name, bundle, config, on=arguments.on, state=arguments.state)
        output = enclave.enter_and_run()
        signals.wait_for_them()
        shown = [(words, output.Extensions[each]) for words, each in _PORTS if output.HasExtension(each)]
        for words, port in shown:
            print(f"{words} on port {enclave.address_of(port).rpartition(':')[2]}", flush=True)
        if not shown:
            say("the application runs; it serves no port")
        enclave.stop_requested.add_done_callback(lambda done: signals.stop.put(_outcome(done)))
        outcome = wait_for_next(signals.stop)
        if isinstance(outcome, AdytonError):
            raise outcome
        say(f"{outcome}: finalizing; a second signal ends it at once")
        enclave.destroy()


def _outcome(done: Future[str]) -> str | AdytonError:
    try:
        return done.result()
    except AdytonError as problem:
        return problem


class _AskedToEndError(BaseException):
    """A signal came before the enclave served; like KeyboardInterrupt, whatever was under way is undone."""


class _Signals:
    """Until `wait_for_them` a signal interrupts, then it is put into `stop` by name. A second one ends the process.

    One that was ignored when the process started stays ignored: `nohup` and shells, for jobs in the background, do so.
    """

    def __init__(self) -> None:
        self.stop: queue.SimpleQueue[str | AdytonError] = queue.SimpleQueue()
        self._interrupting = True
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Signals:
        for number in _STOPPING:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wait_for_them(self) -> None:
        """From now on."""
        self._interrupting = False

    def _take(self, number: int, _frame: object) -> None:
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
        name = signal.Signals(number).name
        if self._interrupting:
            raise _AskedToEndError(name)
        self.stop.put(name)


def _config(arguments: argparse.Namespace) -> EnclaveConfig:
    try:
        return _fill(EnclaveConfig(stderr_fd=2, stdout_fd=2), arguments)
    except ValueError as problem:  # a number or a text that no field can hold
        raise ConfigurationError(f"an option's value can't be used: {problem}") from problem


def _fill(config: EnclaveConfig, arguments: argparse.Namespace) -> EnclaveConfig:
    config.logging_config.level = LoggingConfig.Level.Value(arguments.log_level)
    if arguments.log_directory:
        config.logging_config.log_directory = arguments.log_directory
    for pair in arguments.env:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigurationError(f"--env {pair!r} is not NAME=VALUE")
        config.environment_variables.add(name=name, value=value)
    config.Extensions[extensions.server_address] = arguments.address
    config.Extensions[extensions.port] = arguments.port
    if arguments.plain_tls_port:
        config.Extensions[extensions.plain_tls_port] = arguments.plain_tls_port
    if arguments.mesh_port:
        config.Extensions[extensions.mesh_port] = arguments.mesh_port
    config.Extensions[extensions.reference_values].extend(map(_read_document, arguments.reference_values))
    if arguments.keys_at:
        config.Extensions[extensions.key_release_address] = arguments.keys_at
    config.Extensions[extensions.server_max_lifetime_ms] = arguments.lifetime_ms
    config.Extensions[extensions.shutdown_grace_ms] = arguments.grace_ms
    if arguments.workers is not None:
        config.Extensions[extensions.workers] = arguments.workers
    return config


def _read_document(path: Path) -> bytes:
    from adyton.cli.evidence_files import read_file  # not above: `adyton --help` imports this module
    from adyton.policy.signed import MAX_DOCUMENT_BYTES

    return read_file(path, at_most=MAX_DOCUMENT_BYTES)
