"""`adyton call`: one call of a method that the server describes by reflection; JSON in, JSON out.

The channel is plain, for a server on this machine that one develops or debugs. gRPC is imported when the verb runs,
since every `adyton --help` imports this module.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import contextlib
import dataclasses
import ipaddress
import os
import re
import sys
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from adyton.cli.main import say
from adyton.errors import ApplicationError, ConfigurationError, StatusCode

if TYPE_CHECKING:
    from adyton.cli.reflection import Method, Reflection, Server

_PLAIN = "plain gRPC: this connection is neither encrypted nor attested"
_MAX_TIMEOUT_SECONDS = 365 * 86400
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_METADATA_NAME = re.compile(r"[0-9a-z_.-]+")
_METADATA_VALUE = re.compile(r"[ -~]*")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    address: str  # as gRPC reads it, with a scheme, so that gRPC has nothing left to guess
    is_local: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    parser.usage = f"{parser.prog} [options] HOST:PORT [package.Service/Method] [JSON ...]"
    parser.add_argument("target", metavar="HOST:PORT", help="or [IPV6]:PORT or unix:PATH")
    method = parser.add_argument("method", metavar="package.Service/Method", help="or package.Service.Method")
    messages = parser.add_argument("messages", metavar="JSON", nargs="+", default=[], help=_MESSAGES_HELP)
    method.required = messages.required = False  # not nargs "?" and "*", which stop at the first option
    parser.add_argument("--list", action="store_true", help="list the services, or a service's methods, and call none")
    parser.add_argument("--compact", action="store_true", help="one line a message, also where one message is all")
    parser.add_argument("--timeout", type=_seconds, default=30, metavar="SECONDS", help=_TIMEOUT_HELP)
    parser.add_argument("--metadata", action="append", default=[], metavar="NAME=VALUE", help=_METADATA_HELP)
    parser.add_argument("--plaintext", action="store_true", help="go to another machine without encryption")


_MESSAGES_HELP = (
    "a message; several for a client-streaming method, which without any reads them from standard input, one a line; "
    "for other methods - reads one from standard input, and none is the empty message"
)
_TIMEOUT_HELP = "for the call, and before it for the reflection (default: %(default)s)"
_METADATA_HELP = "send this with the call; repeatable; the value of a name that ends in -bin is in base64"


def run(arguments: argparse.Namespace) -> int:
    """Print each response as JSON: indented if the method answers with one message, else one a line as they come."""
    target = _parse_target(arguments.target)
    _check(arguments, target)
    metadata = tuple(_parse_metadata(pair) for pair in arguments.metadata)
    method = () if arguments.list else _parse_method(arguments.method)
    say(_PLAIN)
    from adyton.cli.reflection import Reflection, Server

    name, seconds = arguments.target, arguments.timeout
    with Server(target.address, name=name, timeout_seconds=seconds, metadata=metadata) as server:
        reflection = Reflection(server)
        if method:
            _call(server, reflection.method(*method), arguments)
        else:
            _list(reflection, arguments.method)
    return 0


def _check(arguments: argparse.Namespace, target: _Target) -> None:
    if not target.is_local and not arguments.plaintext:
        problem = f"{arguments.target} is not on this machine, and this command speaks plain gRPC"
        raise ConfigurationError(
            f"{problem}: the connection would be neither encrypted nor attested", mend="--plaintext accepts that"
        )
    if arguments.list and arguments.messages:
        raise ConfigurationError("--list calls nothing and takes no message")
    if not arguments.list and arguments.method is None:
        raise ConfigurationError("which method?", mend="--list shows what there is")


def _list(reflection: Reflection, service: str | None) -> None:
    from adyton.cli.reflection import signature

    if service is None:
        lines = reflection.services()
    else:
        lines = [signature(each) for each in reflection.service(service).methods]
    for line in lines:
        print(line)


def _call(server: Server, method: Method, arguments: argparse.Namespace) -> None:
    requests = _requests(method, arguments.messages)
    indent = None if arguments.compact or method.server_streaming else 2
    ascii_only = "utf" not in sys.stdout.encoding.lower()
    count = 0
    for count, response in enumerate(server.exchange(method.path, requests), 1):  # noqa: B007  used after the loop
        print(method.decode(response, indent=indent, ascii_only=ascii_only), flush=True)
    if count != 1 and not method.server_streaming:
        raise ApplicationError(StatusCode.INTERNAL, f"{method.path} gave {count} responses where one was due")


def _requests(method: Method, texts: list[str]) -> Iterable[bytes]:
    """The requests in the order of the command line, all checked before the first is sent; or from standard input."""
    if method.client_streaming and texts in ([], ["-"]):
        return (method.encode(line, where=f"line {number}") for number, line in _lines())
    if not method.client_streaming and len(texts) > 1:
        raise ConfigurationError(f"{method.path} takes one message, and there are {len(texts)}")
    if not method.client_streaming and texts == ["-"]:
        return [method.encode(b"".join(line for _, line in _lines()), where="standard input")]
    if not texts:
        return [method.encode(None, where="the empty message")]
    return [method.encode(text, where=f"message {number}") for number, text in enumerate(texts, 1)]


def _lines() -> Iterator[tuple[int, bytes]]:
    """Standard input's lines that are not blank, with their numbers, each as soon as it is there.

    Not through sys.stdin: this may run in a thread that still waits for a line when the call and the process end, and
    Python's exit aborts if such a thread holds sys.stdin's lock.
    """
    if sys.stdin is None:  # closed by the caller; descriptor 0 may by now be something else
        raise ConfigurationError("standard input is closed")
    try:
        with os.fdopen(sys.stdin.fileno(), "rb", closefd=False) as source:
            yield from ((number, line) for number, line in enumerate(source, 1) if line.strip())
    except OSError as problem:
        raise ConfigurationError(f"standard input: {problem.strerror}") from None


def _parse_target(text: str) -> _Target:
    scheme, _, path = text.partition(":")
    if scheme == "unix" and path:
        path = path.removeprefix("//") if path.startswith("///") else path
        return _Target(address=f"unix:{urllib.parse.quote(path)}", is_local=True)
    host, _, port = text.rpartition(":")
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise ConfigurationError(f"{text!r} is not HOST:PORT, [IPV6]:PORT or unix:PATH")
    with contextlib.suppress(ValueError):
        return _parse_ip(host, port)
    if not _HOST.fullmatch(host):
        raise ConfigurationError(f"{text!r} is not HOST:PORT, [IPV6]:PORT or unix:PATH")
    return _Target(address=f"dns:///{host}:{port}", is_local=host.lower() == "localhost")


def _parse_ip(host: str, port: str) -> _Target:
    address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    shown = f"ipv4:{address}" if address.version == 4 else f"ipv6:[{urllib.parse.quote(str(address), safe=':')}]"
    return _Target(address=f"{shown}:{port}", is_local=address.is_loopback)


def _parse_method(text: str) -> tuple[str, str]:
    service, _, method = text.rpartition("/" if "/" in text else ".")
    if not service or not method:
        raise ConfigurationError(f"{text!r} is not package.Service/Method", mend="--list shows what there is")
    return service.removeprefix("/"), method


def _parse_metadata(pair: str) -> tuple[str, str | bytes]:
    name, equals, value = pair.partition("=")
    name = name.lower()
    if not equals or not _METADATA_NAME.fullmatch(name) or not _METADATA_VALUE.fullmatch(value):
        raise ConfigurationError(f"--metadata {pair!r} is not NAME=VALUE in printable ASCII")
    if not name.endswith("-bin"):
        return name, value
    try:
        return name, base64.b64decode(value, validate=True)
    except binascii.Error:
        raise ConfigurationError(f"--metadata {pair!r}: the value of a -bin name is in base64") from None


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) <= _MAX_TIMEOUT_SECONDS:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds between 0 and {_MAX_TIMEOUT_SECONDS}")
