"""The connection of the verbs that speak to an enclave: which arguments ask for it, and how it is made.

Every `adyton --help` imports this module, so what is heavy is imported when a verb runs.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adyton.cli.question import add_policy, read_policy
from adyton.cli.verdict import warn

if TYPE_CHECKING:
    import grpc

    from adyton.atls.attestation import Attestation
    from adyton.atls.channel import AttestedChannel
    from adyton.atls.connect import ConnectOptions
    from adyton.atls.connector import BlockingConnector
    from adyton.atls.session import Opener, Session
    from adyton.policy.document import Policy

MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
"""How large a message of a server may be for these verbs."""
DEFAULT_SECONDS: Final = 30
_MAX_SECONDS: Final = 365 * 86400
_TIMEOUT_HELP: Final = "for the connection, and for each call that is made on it (default: %(default)s)"


def add_connection_arguments(parser: argparse.ArgumentParser, *, policy_required: bool = True) -> None:
    """Say what a verb takes to connect, beside a target."""
    add_policy(parser, required=policy_required)
    parser.add_argument(
        "--reference-values", type=Path, action="append", default=[], metavar="FILE", help="signed ones; repeatable"
    )
    parser.add_argument("--server-name", metavar="NAME", help="one of the server's names (default: atls.internal)")
    parser.add_argument("--timeout", type=_seconds, default=DEFAULT_SECONDS, metavar="SECONDS", help=_TIMEOUT_HELP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the arguments ask for; `options` is for `adyton.connect`."""

    target: str
    policy: Policy
    options: ConnectOptions
    timeout_seconds: float
    state: Path | None

    def accept(self, attestation: Attestation | None) -> None:
        """Warn of what is not as it should be with it, and remember the versions of the reference values."""
        from adyton.cli.seen_versions import keep_seen_versions

        assert attestation is not None  # the channel is open
        warn(attestation.appraisal)
        if self.state is not None:
            keep_seen_versions(self.state, self.policy.reference_versions)


def read_wanted(arguments: argparse.Namespace) -> Wanted:
    """Read the files that the arguments name, and connect to nothing. Raises ConfigurationError, PolicyError."""
    options: ConnectOptions = {
        "allow_insecure": arguments.allow_insecure,
        "options": [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ],
    }
    if arguments.server_name is not None:
        options["server_name"] = arguments.server_name
    return Wanted(
        target=arguments.target,
        policy=read_policy(arguments, datetime.now(UTC)),
        options=options,
        timeout_seconds=arguments.timeout,
        state=arguments.state,
    )


def make_opener(wanted: Wanted) -> BlockingConnector:
    """What opens sessions with the server, and has opened none. Raises ConfigurationError."""
    from adyton.atls.connect import connector
    from adyton.atls.connector import BlockingConnector

    return BlockingConnector(connector(wanted.target, wanted.policy, **wanted.options))


def open_channel(wanted: Wanted, opener: Opener | None = None) -> AttestedChannel:
    """Connect and attest, with `make_opener`'s unless another is given. Raises as `adyton.connect`."""
    from adyton.atls.channel import AttestedChannel

    channel = AttestedChannel(opener or make_opener(wanted), open_seconds=wanted.timeout_seconds)
    try:
        channel.open()
        wanted.accept(channel.attestation)
    except BaseException:
        channel.close()
        raise
    return channel


def attest(wanted: Wanted, *, bind_ca: bool = False) -> Session[grpc.Channel]:
    """A session that proves what the server is, and ends with that; `bind_ca`: its evidence names the enclave's CA."""
    from adyton.atls.connect import connector
    from adyton.atls.connector import BlockingConnector

    made = connector(wanted.target, wanted.policy, **wanted.options)
    made = dataclasses.replace(made, terms=dataclasses.replace(made.terms, bind_ca=bind_ca))
    session = BlockingConnector(made).open(wanted.timeout_seconds)
    session.channel.close()
    wanted.accept(session.attestation)
    return session


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) <= _MAX_SECONDS:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds between 0 and {_MAX_SECONDS}")
