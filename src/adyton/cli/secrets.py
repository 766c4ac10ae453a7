"""`adyton secrets`: an owner of an enclave attests it, and sends it an order over that very connection.

A secret's value comes from a file, a pipe or a terminal that does not show it; never from the command line, which every
process of the machine can read.
"""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adyton.cli.connection import Wanted, add_connection_arguments, read_wanted
from adyton.cli.main import say
from adyton.errors import ApplicationError, ConfigurationError, StatusCode

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

    from adyton.cli.reflection import Server
    from adyton.proto.secrets_pb2 import Order, OrderReply, SecretEntry

_ORDERS: Final = {
    "put": "send a secret that the enclave has not",
    "rotate": "replace a secret that it has",
    "list": "names, versions and times of its secrets, and never a value",
    "rotate-identity": "give the enclave another CA: whoever knew the last one has to attest it again",
}
_FROM_HELP: Final = "the file with the value, byte by byte; standard input if it is - or not given"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    orders = parser.add_subparsers(dest="order", required=True, metavar="ORDER")
    for name, text in _ORDERS.items():
        order = orders.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        order.add_argument("target", metavar="HOST:PORT", help="the enclave's attested port")
        if name in ("put", "rotate"):
            order.add_argument("name", metavar="NAME", help="what the application knows the secret by")
            order.add_argument("--from", dest="source", default="-", metavar="FILE", help=_FROM_HELP)
        add_connection_arguments(order)
        key_help = "the owner's, as `adyton new-key` wrote it; enclave.toml has its id in secrets.owners"
        order.add_argument("--key", type=Path, required=True, metavar="FILE", help=key_help)
        if name == "list":
            order.add_argument("--json", action="store_true", help="print JSON")
        if name == "rotate-identity":
            output_help = "write the new CA there as PEM, for clients that can't attest; over an existing file"
            order.add_argument("-o", "--output", type=Path, metavar="FILE", help=output_help)


def run(arguments: argparse.Namespace) -> int:
    """Carry out one order. Print what was put, or all that there is, or what names the new CA."""
    from adyton.cli.key_files import load_key  # not above: `adyton --help` imports this module
    from adyton.proto import secrets_pb2 as proto

    key, wanted = load_key(arguments.key), read_wanted(arguments)
    if arguments.order == "rotate-identity":
        reply = _send(wanted, key, proto.Order(rotate_identity=proto.RotateIdentityOrder()))
        _print_ca(reply.ca, arguments.output)
        return 0
    if arguments.order == "list":
        order = proto.Order(list=proto.ListOrder())
    else:
        value, replace = _read_value(arguments.source), arguments.order == "rotate"
        order = proto.Order(put=proto.PutOrder(name=arguments.name, value=value, replace=replace))
    reply = _send(wanted, key, order)
    _print_secrets(reply.secrets, durable=reply.durable, as_json=arguments.order == "list" and arguments.json)
    if not reply.durable:
        say("note: this enclave has no state folder, so its secrets end with it (adyton run --state DIR)")
    return 0


def _read_value(source: str) -> bytes:
    """All bytes of a file or of standard input, or a line that is typed and not shown."""
    from adyton.sealing.secrets import MAX_SECRET_BYTES

    try:
        if source != "-":
            with Path(source).open("rb") as file:
                value = file.read(MAX_SECRET_BYTES + 1)
        elif sys.stdin is None:
            raise ConfigurationError("standard input is closed")
        elif sys.stdin.isatty():
            value = getpass.getpass("value: ").encode(errors="surrogateescape")
        else:
            value = sys.stdin.buffer.read(MAX_SECRET_BYTES + 1)
    except (OSError, EOFError) as problem:
        raise ConfigurationError(f"can't read the value: {getattr(problem, 'strerror', None) or 'no input'}") from None
    if not 0 < len(value) <= MAX_SECRET_BYTES:
        raise ConfigurationError(f"a secret has 1 to {MAX_SECRET_BYTES} bytes; nothing was sent")
    if value.endswith(b"\n"):
        say("note: the value ends with a line feed, and it is sent as it is")
    return value


def _send(wanted: Wanted, key: ec.EllipticCurvePrivateKey, order: Order) -> OrderReply:
    """Attest the enclave, and send the order on the connection that was attested, signed for it alone."""
    from adyton.atls.certificates import parse_certificate, spki_sha256
    from adyton.atls.connect import connector
    from adyton.atls.connector import BlockingConnector
    from adyton.atls.owner import sign_order
    from adyton.cli.reflection import Server

    opener = BlockingConnector(connector(wanted.target, wanted.policy, **wanted.options))
    session = opener.open(wanted.timeout_seconds)
    with Server(session.channel, name=wanted.target, timeout_seconds=wanted.timeout_seconds) as server:
        wanted.accept(session.attestation)
        accepted = session.attestation.appraisal
        say(f"{wanted.target} is attested: {accepted.tee} {accepted.measurement.hex()}, rule {accepted.rule!r}")
        leaf_sha256 = spki_sha256(parse_certificate(session.question.pinned)[1])
        client_sha256 = session.question.client_sha256
        return _exchange(server, sign_order(key, order, leaf_sha256=leaf_sha256, client_sha256=client_sha256))


def _exchange(server: Server, signed: bytes) -> OrderReply:
    from google.protobuf.message import DecodeError

    from adyton.atls.owner import METHOD, SERVICE
    from adyton.proto.messages import parse_message
    from adyton.proto.secrets_pb2 import OrderReply

    try:
        (answer,) = server.exchange(f"/{SERVICE}/{METHOD}", [signed])
        return parse_message(OrderReply, answer)
    except (DecodeError, ValueError):
        raise _unusable() from None
    except ApplicationError as problem:
        if problem.status is StatusCode.UNIMPLEMENTED and problem.message.startswith("Method not found"):
            problem.mend = "an enclave takes orders if its enclave.toml has secrets.owners"
        raise


def _unusable() -> ApplicationError:
    return ApplicationError(StatusCode.INTERNAL, "what the enclave answered can't be used")


def _print_secrets(entries: Iterable[SecretEntry], *, durable: bool, as_json: bool) -> None:
    from adyton.cli.tree import print_line
    from adyton.cli.verdict import print_json

    records = [_record(each) for each in entries]
    if as_json:
        print_json({"durable": durable, "secrets": records})
        return
    width = max((len(each["name"]) for each in records), default=0)
    for each in records:
        print_line(f"{each['name']:<{width}}  version {each['version']}  {each['changed_at']}")


def _record(entry: SecretEntry) -> dict[str, Any]:
    try:
        changed_at = datetime.fromtimestamp(entry.changed_at, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        raise _unusable() from None
    return {"name": entry.name, "version": entry.version, "changed_at": changed_at}


def _print_ca(der: bytes, output: Path | None) -> None:
    """First what names it: the last CA is gone, whether or not the file can be written."""
    from adyton.atls.certificates import parse_certificate, pem, spki_sha256
    from adyton.cli.verdict import print_record
    from adyton.host.bundles import write_whole

    certificate, key = parse_certificate(der)
    valid_until = certificate.not_valid_after_utc.isoformat()
    print_record({"ca_sha256": spki_sha256(key).hex(), "valid_until": valid_until}, as_json=False)
    if output is None:
        return
    try:
        write_whole(output, pem(certificate))
    except OSError as problem:
        mend = "the CA is another one all the same: `adyton export-ca` writes it"
        raise ConfigurationError(f"can't write {output}: {problem.strerror}", mend=mend) from problem
    say(f"wrote {output}")
