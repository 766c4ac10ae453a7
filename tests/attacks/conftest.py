"""The parties: enclaves, an attacker in a process of its own, and clients of both kinds with a secret to tell."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import attacked_servers
import attacker as attacker_program
import pytest
from attacked_clients import TELLERS, Tell
from attacked_servers import AttackedServer, AttackedServers, policy_text
from attacker import Attacker
from conversing import Conversation


@pytest.fixture(scope="session")
def servers(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AttackedServers]:
    with Conversation(Path(attacked_servers.__file__)) as conversation:
        yield AttackedServers(conversation, tmp_path_factory.mktemp("servers"))


@pytest.fixture(scope="session")
def genuine(servers: AttackedServers) -> AttackedServer:
    """An enclave whose TLS key the attacker may have."""
    return servers.start()


@pytest.fixture(scope="session")
def attacker(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacker]:
    with Conversation(Path(attacker_program.__file__)) as conversation:
        yield Attacker(conversation, tmp_path_factory.mktemp("attacker"))


@pytest.fixture(scope="session")
def policy(home: Path) -> bytes:
    """It accepts what runs in `genuine`."""
    return policy_text()


@pytest.fixture
def secret() -> bytes:
    return secrets.token_hex(16).encode()


@pytest.fixture(params=sorted(TELLERS))
def tell(request: pytest.FixtureRequest) -> Tell:
    return TELLERS[request.param]
