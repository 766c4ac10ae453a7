"""`adyton proxy`: a local port for any gRPC client; what it sends goes through an attested channel."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
import queue
import re
import signal
import socket
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adyton.cli.connection import MAX_MESSAGE_BYTES, add_connection_arguments, make_opener, open_channel, read_wanted
from adyton.cli.main import say
from adyton.cli.tree import one_line
from adyton.cli.waiting import wait_for_next
from adyton.errors import AdytonError, ConfigurationError

if TYPE_CHECKING:
    import grpc

    from adyton.atls.attestation import Attestation
    from adyton.atls.session import Opener, Session

GRACE_SECONDS: Final = 5.0
MAX_RPCS: Final = 256
"""So many at once; each has a thread, and one more than that is refused with RESOURCE_EXHAUSTED."""
_STOPPING: Final = (signal.SIGINT, signal.SIGTERM)
_UNIX: Final = "unix:"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    parser.add_argument("target", metavar="HOST:PORT", help="the enclave: or [IPV6]:PORT or unix:PATH")
    parser.add_argument(
        "--listen", required=True, metavar="ADDRESS", help="127.0.0.1:PORT, [::1]:PORT or unix:PATH; port 0 is any"
    )
    add_connection_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Attest, print the address that it listens on, and pass RPCs on until SIGINT or SIGTERM."""
    address = _local(arguments.listen)
    wanted = read_wanted(arguments)
    opener = TellingOpener(make_opener(wanted), wanted.target)
    with open_channel(wanted, opener) as channel, _signals() as stop:
        server, listens = _listening(address, channel)
        server.start()
        print(listens, flush=True)
        wait_for_next(stop)
        server.stop(GRACE_SECONDS).wait()
    return 0


class TellingOpener:
    """An Opener that says on standard error what each attestation came to. Of calls it knows nothing.

    How often there can be a line is for the channel to decide, which waits longer after each failure.
    """

    def __init__(self, opener: Opener, target: str) -> None:
        self._opener = opener
        self._target = target
        self._serves = False  # if the first attestation fails, the command does, and says why

    def open(self, timeout_seconds: float) -> Session[grpc.Channel]:
        """As Opener says."""
        with self._telling_refusals():
            session = self._opener.open(timeout_seconds)
        self._tell(session.attestation)
        return session

    def renew(self, session: Session[grpc.Channel], timeout_seconds: float) -> None:
        """As Opener says."""
        with self._telling_refusals():
            self._opener.renew(session, timeout_seconds)
        self._tell(session.attestation)

    def _tell(self, attestation: Attestation) -> None:
        accepted = attestation.appraisal
        about = f"{accepted.tee}, rule {accepted.rule!r}, measurement {accepted.measurement.hex()}"
        say(one_line(f"attested {self._target}: {about}, level {attestation.level}"))
        self._serves = True

    @contextlib.contextmanager
    def _telling_refusals(self) -> Iterator[None]:
        try:
            yield
        except AdytonError as problem:
            if self._serves:
                why = "; ".join(line.strip() for line in str(problem).splitlines())
                say(one_line(f"not attested {self._target}: {why}"))
            raise


@contextlib.contextmanager
def _signals() -> Iterator[queue.SimpleQueue[None]]:
    """A queue into which the first signal puts something; a second one ends the process as it would without this."""
    stop: queue.SimpleQueue[None] = queue.SimpleQueue()
    before = {number: signal.getsignal(number) for number in _STOPPING}

    def take(*_: object) -> None:
        restore()
        stop.put(None)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in _STOPPING:
        signal.signal(number, take)
    try:
        yield stop
    finally:
        restore()


def _listening(address: str, channel: grpc.Channel) -> tuple[grpc.Server, str]:
    """A server on that address, not started yet, and the address with its port."""
    import grpc

    from adyton.cli.proxying import Passage

    limits = ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.max_send_message_length", MAX_MESSAGE_BYTES)
    server = grpc.server(
        ThreadPoolExecutor(MAX_RPCS, "proxy"),
        handlers=[Passage(channel)],
        options=[*limits, ("grpc.so_reuseport", 0)],
        maximum_concurrent_rpcs=MAX_RPCS,
    )
    is_file = address.startswith(_UNIX)
    if is_file:
        _remove_stale(Path(address.removeprefix(_UNIX)))
    before = os.umask(0o177)  # a socket's file is made with the mode that this leaves it
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as problem:
        raise ConfigurationError(f"can't listen on {address}", mend="it may be in use, or not to be had") from problem
    finally:
        os.umask(before)
    return server, address if is_file else f"{address.rpartition(':')[0]}:{port}"


def _remove_stale(path: Path) -> None:
    """Remove the file of a socket that nobody listens on any more: gRPC would replace a live one too."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigurationError(f"{path} exists, and is no socket")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
        return
    except OSError as problem:
        raise ConfigurationError(f"can't listen on {path}: {problem.strerror or problem}") from problem
    raise ConfigurationError(f"somebody listens on {path} already")


def _local(text: str) -> str:
    """The address for gRPC. What arrives there is neither encrypted nor attested, so no other machine may reach it."""
    if text.startswith(_UNIX) and text != _UNIX:
        return text
    host, _, port = text.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]")
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        if address.is_loopback and re.fullmatch("[0-9]{1,5}", port) and int(port) < 65536:
            return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
    raise ConfigurationError(
        f"--listen {text!r}: a proxy listens on this machine only", mend="127.0.0.1:PORT, [::1]:PORT or unix:PATH"
    )
