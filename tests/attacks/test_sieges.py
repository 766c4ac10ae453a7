"""Whoever can reach an enclave can crowd its door. A genuine client gets in, and one that is in is served."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import besieger
import pytest
from attacked_clients import Tell
from attacked_servers import TELL, AttackedServer, AttackedServers
from conversing import Conversation

from adyton.atls.connect import connector
from adyton.atls.connector import BlockingConnector

IN_TIME_SECONDS = 15.0
QUOTE_SECONDS = 0.5


@pytest.fixture(scope="module", params=[False, True], ids=["threads", "asyncio"])
def slow(request: pytest.FixtureRequest, servers: AttackedServers) -> AttackedServer:
    """An enclave whose hardware takes its time."""
    return servers.start(on_asyncio=request.param, quote_seconds=QUOTE_SECONDS)


SIEGES = {
    "unfinished handshakes": {"crowd": 100},
    "questions that wait for the hardware": {"asking": 600},
    "more questions than a server's RPCs": {"asking": 1500},
}


@pytest.mark.slow
@pytest.mark.parametrize("siege", SIEGES.values(), ids=SIEGES)
def test_a_genuine_client_gets_in_and_is_served(
    slow: AttackedServer, policy: bytes, secret: bytes, tell: Tell, siege: dict[str, Any]
) -> None:
    inside = BlockingConnector(connector(slow.target, policy, allow_insecure=["simulated"])).open(IN_TIME_SECONDS)
    with inside.channel as channel, Conversation(Path(besieger.__file__)) as conversation:
        conversation.ask(port=slow.port, folder=str(slow.folder), **siege)
        call: Any = channel.unary_unary(TELL)
        for _ in range(3):
            begun = time.monotonic()
            assert call(b"inside", timeout=IN_TIME_SECONDS) == b"genuine: inside"
            assert tell(slow.target, policy, secret, timeout=IN_TIME_SECONDS) == b"genuine: " + secret
            assert time.monotonic() - begun < IN_TIME_SECONDS
        if "asking" in siege:
            outcomes = conversation.ask()
            assert outcomes["answered"] + outcomes["refused"] > siege["asking"]
