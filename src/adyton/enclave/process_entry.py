"""Where an enclave's interpreter begins when the operating system's process is the enclave, and a worker's too.

Whoever has verified the bundle (the simulation's firmware; in a guest whoever measured what it booted) starts this with
one argument: a JSON object with `path` (added to sys.path already), `bundle` and `data` (folders), `control_fd`, and,
each or null, `state` (the folder that outlives the enclave), `device_fd` and `sealing_fd` (to the simulation's
hardware), `hardware` (how to reach a guest's, see guest/enclave.py), `keeper_fd` (to the first process of its
enclave), `parent_pid`, `worker` (its number among the server processes of one enclave) and `cpu`. Packages that are not
part of what was measured are compared with the bundle's lock.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from adyton.bundle.settings import Settings, parse_settings
from adyton.enclave.logs import log_threads_quietly, start_logging
from adyton.enclave.runtime import Runtime
from adyton.errors import ControlProtocolError
from adyton.proto.control_server import ControlServer

if TYPE_CHECKING:
    from adyton.tee.devices import Device
    from adyton.tee.sealing import KeySource

EXIT_FINALIZED = 0
EXIT_HOST_GONE = 80
EXIT_REFUSED = 84
EXIT_CONTROL_PROTOCOL = 85

#: How long a finalized enclave waits for its host to hang up before it leaves by itself.
LINGER_SECONDS = 5.0

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_log = logging.getLogger(__name__)


def main(argument: str) -> NoReturn:
    """Serve the control protocol until the host hangs up. Never returns, and waits for no thread."""
    spec = json.loads(argument)
    try:
        code = _serve(spec)
    except BaseException:  # noqa: BLE001  the last frame of the process
        _log.exception("the enclave's runtime failed")
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _serve(spec: dict[str, Any]) -> int:
    _shut_off(spec)
    _raise_descriptor_limit()
    start_logging(logging.INFO)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what an application prints is seen when it is printed
    bundle = Path(spec["bundle"])
    settings = parse_settings((bundle / "enclave.toml").read_bytes())
    log_threads_quietly(messages=settings.logging.exception_messages)
    server: ControlServer
    device = _device(spec)
    runtime = Runtime(
        settings=settings,
        application_directory=bundle / "app",
        data_directory=Path(spec["data"]),
        state_directory=None if spec["state"] is None else Path(spec["state"]),
        device=device,
        key_source=_key_source(spec, device, settings),
        worker=spec["worker"],
        keeper=_socket(spec["keeper_fd"]),
        request_stop=lambda reason: server.request_stop(reason),  # noqa: PLW0108  server comes below
    )
    server = ControlServer(socket.socket(fileno=spec["control_fd"]), runtime.accept)
    if mismatches := _other_packages(spec, bundle):
        server.refuse(
            "other packages than locked: "
            + "; ".join(mismatches)
            + " (pip install --require-hashes -r requirements.lock)"
        )
        return EXIT_REFUSED
    threading.Thread(target=_leave_when_finalized, args=(runtime.finalized,), daemon=True).start()
    try:
        server.serve()
    except ControlProtocolError as problem:
        _log.critical("the host broke the control protocol: %s", problem)
        return EXIT_CONTROL_PROTOCOL
    return EXIT_FINALIZED if runtime.finalized.is_set() else EXIT_HOST_GONE


def _other_packages(spec: dict[str, Any], bundle: Path) -> list[str]:
    """What is installed otherwise than locked. A guest's image was built from the lock, by digest, and measured."""
    if spec["hardware"] is not None:
        return []
    from adyton.bundle.installed import installed_version  # not above: a guest spends a second on what they import
    from adyton.bundle.lock import find_mismatches, parse_lock

    return find_mismatches(parse_lock((bundle / "requirements.lock").read_bytes()), installed_version)


def _shut_off(spec: dict[str, Any]) -> None:
    """Repeat what an exec undoes, and keep the descriptors from children."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if spec["parent_pid"] is not None and os.getppid() != spec["parent_pid"]:
        os._exit(EXIT_HOST_GONE)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _do_nothing)  # and not SIG_IGN, which the application's children would inherit
    os.register_at_fork(after_in_child=_hear_signals)
    if spec["cpu"] is not None:
        os.sched_setaffinity(0, {spec["cpu"]})  # before there is a second thread
    for descriptor in (spec["control_fd"], spec["device_fd"], spec["sealing_fd"], spec["keeper_fd"]):
        if descriptor is not None:
            os.set_inheritable(descriptor, False)


def _raise_descriptor_limit() -> None:
    """As many open files as the host allows: each connection takes one, and the usual limit is 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # a host may refuse even that, and fewer will do
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _do_nothing(_number: int, _frame: object) -> None:
    """Only the host ends an enclave, by finalizing it; a service manager may signal every process of a service."""


def _hear_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _device(spec: dict[str, Any]) -> Device | None:
    if spec["hardware"] is not None:
        from adyton.enclave.guest.hardware import find_hardware  # not above: a simulation has no use for it

        hardware = spec["hardware"]
        return find_hardware(certificates=hardware["certificates"], broker_fd=hardware["broker_fd"])
    if spec["device_fd"] is None:
        return None
    from adyton.tee.simulated.device import SimulatedDevice

    return SimulatedDevice(socket.socket(fileno=spec["device_fd"]))


def _key_source(spec: dict[str, Any], device: Device | None, settings: Settings) -> KeySource | None:
    """What of this hardware has sealing keys. The signers are measured; what they approve came with the host."""
    if spec["sealing_fd"] is not None:
        from adyton.tee.simulated.sealing import SimulatedSealing

        return SimulatedSealing(socket.socket(fileno=spec["sealing_fd"]))
    if spec["hardware"] is None or device is None:
        return None
    from adyton.tee.devices import find_key_source

    return find_key_source(
        device,
        signers=list(map(bytes.fromhex, settings.sealing.signers)),
        approvals=list(map(bytes.fromhex, spec["hardware"]["approvals"])),
    )


def _socket(descriptor: int | None) -> socket.socket | None:
    return None if descriptor is None else socket.socket(fileno=descriptor)


def _leave_when_finalized(finalized: threading.Event) -> None:
    finalized.wait()
    time.sleep(LINGER_SECONDS)
    os._exit(EXIT_FINALIZED)
