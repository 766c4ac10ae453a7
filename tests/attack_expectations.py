"""How tests set up an attack on a server, and what they say of its end."""

from __future__ import annotations

from typing import Any

from attacked_servers import TELL, AttackedServer
from attacker import Attack, Attacker

from adyton.errors import PolicyError

LEVELS = ["connection", "key"]


def learnt_nothing(attack: Attack, secret: bytes) -> bool:
    """No byte of the application reached the attacker, though it was there."""
    attack.settle()
    assert attack.events, "the attacker took no part"
    return secret not in attack.received and TELL.encode() not in attack.received


def relaying(attacker: Attacker, genuine: AttackedServer, *routes: str, **plan: Any) -> Attack:
    """An attacker that relays Attest to the attested port of the genuine server."""
    given = {"genuine": genuine.port, "upstream": genuine.port, "enclave": str(genuine.folder), **plan}
    return attacker.attack(*(routes or ("terminate",)), **given)


def at(level: str, genuine: AttackedServer) -> dict[str, Any]:
    """What the attacker has to do for that level: ask for client certificates on both sides, or on none."""
    if level == "connection":
        return {"demands_certificate": True, "upstream": genuine.port, "upstream_takes_certificates": True}
    return {"demands_certificate": False, "upstream": genuine.plain_port, "upstream_takes_certificates": False}


def pinning(server: AttackedServer) -> bytes:
    return server.policy(f'ca_sha256 = ["{server.ca_sha256}"]')


def of_another_connection(error: PolicyError) -> bool:
    return [finding.subject for finding in error.findings] == ["report_data"]
