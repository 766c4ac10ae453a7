"""`adyton call`: one call of a method that the server describes by reflection; JSON in, JSON out.

The channel is attested, or for an ordinary gRPC server plain. gRPC is imported when the verb runs, since every
`adyton --help` imports this module.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import os
import re
import sys
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from adyton.atls.dial import Target
from adyton.cli.connection import MAX_MESSAGE_BYTES, add_connection_arguments, open_channel, read_wanted
from adyton.cli.main import say
from adyton.cli.question import check_no_policy_is_needed
from adyton.errors import ApplicationError, ConfigurationError, StatusCode

if TYPE_CHECKING:
    import grpc

    from adyton.cli.reflection import Method, Reflection, Server

_PLAIN = "plain gRPC: this connection is neither encrypted nor attested"
_METADATA_NAME = re.compile(r"[0-9a-z_.-]+")
_METADATA_VALUE = re.compile(r"[ -~]*")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    parser.usage = f"{parser.prog} [options] HOST:PORT [package.Service/Method] [JSON ...]"
    parser.add_argument("target", metavar="HOST:PORT", help="or [IPV6]:PORT or unix:PATH")
    method = parser.add_argument("method", metavar="package.Service/Method", help="or package.Service.Method")
    messages = parser.add_argument("messages", metavar="JSON", nargs="+", default=[], help=_MESSAGES_HELP)
    method.required = messages.required = False  # not nargs "?" and "*", which stop at the first option
    parser.add_argument("--list", action="store_true", help="list the services, or a service's methods, and call none")
    parser.add_argument("--compact", action="store_true", help="one line a message, also where one message is all")
    parser.add_argument("--metadata", action="append", default=[], metavar="NAME=VALUE", help=_METADATA_HELP)
    parser.add_argument("--plaintext", action="store_true", help=_PLAINTEXT_HELP)
    add_connection_arguments(parser, policy_required=False)


_MESSAGES_HELP = (
    "a message; several for a client-streaming method, which without any reads them from standard input, one a line; "
    "for other methods - reads one from standard input, and none is the empty message"
)
_PLAINTEXT_HELP = "no policy: an ordinary gRPC server, and a connection that is neither encrypted nor attested"
_METADATA_HELP = "send this with the call; repeatable; the value of a name that ends in -bin is in base64"


def run(arguments: argparse.Namespace) -> int:
    """Print each response as JSON: indented if the method answers with one message, else one a line as they come."""
    target = Target.parse(arguments.target)
    _check(arguments)
    metadata = tuple(_parse_metadata(pair) for pair in arguments.metadata)
    method = () if arguments.list else _parse_method(arguments.method)
    from adyton.cli.reflection import Reflection, Server

    with Server(
        _plain_channel(target) if arguments.plaintext else open_channel(read_wanted(arguments)),
        name=arguments.target,
        timeout_seconds=arguments.timeout,
        metadata=metadata,
        closed_mend="an enclave's server closes a plain connection: give --policy" if arguments.plaintext else "",
    ) as server:
        reflection = Reflection(server)
        if method:
            _call(server, reflection.method(*method), arguments)
        else:
            _list(reflection, arguments.method)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if arguments.plaintext:
        check_no_policy_is_needed(arguments)
        if arguments.policy is not None or arguments.server_name is not None:
            raise ConfigurationError("--plaintext attests nothing, so it goes with neither --policy nor --server-name")
    elif arguments.policy is None:
        mend = "--policy FILE; or --plaintext for an ordinary gRPC server"
        raise ConfigurationError("which enclave would be acceptable?", mend=mend)
    if arguments.list and arguments.messages:
        raise ConfigurationError("--list calls nothing and takes no message")
    if not arguments.list and arguments.method is None:
        raise ConfigurationError("which method?", mend="--list shows what there is")


def _plain_channel(target: Target) -> grpc.Channel:
    import grpc

    say(_PLAIN)
    host = urllib.parse.quote(target.host, safe=":")
    shown = f"[{host}]" if ":" in host else host
    address = f"unix:{urllib.parse.quote(target.path)}" if target.path else f"dns:///{shown}:{target.port}"
    options = [
        ("grpc.enable_http_proxy", 0),  # a proxy named in the environment must not see what goes to this machine
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ]
    return grpc.insecure_channel(address, options=options)


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
