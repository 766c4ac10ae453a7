"""What the attacker is told, and what it writes down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from adyton.atls.certificates import DEFAULT_AUDIENCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One attack.

    `routes`: how connections are met, one after the other and over again: "genuine" passes them on to the port
    `genuine`, "terminate" ends TLS here, "plaintext" speaks HTTP/2 without TLS, "noise" and "silence" are just that.
    `enclave`: the folder of the genuine server, with its certificates and its leaked key.
    `answer`: how Attest is answered, a method of `Answers`; `upstream` is the genuine port that it asks, and
    `upstream_takes_certificates` whether that is an attested one.
    `size` is how many bytes a "huge" answer has; `measurement` what a "forge"d one is of, and `bundle` the genuine
    enclave that the attacker runs, on `technology`, to ask it for evidence.
    `name` is what the attacker's own certificate is for, and `ca` where its CA's is written to.
    """

    folder: Path
    routes: Sequence[str]
    address: str = "127.0.0.1"
    port: int = 0
    genuine: int = 0
    enclave: Path | None = None
    key_has_leaked: bool = False
    demands_certificate: bool = True
    tls_at_most_1_2: bool = False
    noise_in_tls: bool = False
    seed: int = 0
    name: str = DEFAULT_AUDIENCE
    ca: Path | None = None
    answer: str = "relay"
    upstream: int = 0
    upstream_takes_certificates: bool = True
    size: int = 0
    measurement: str = ""
    bundle: Path | None = None
    technology: str = "process"

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> Self:
        paths = {key: Path(table[key]) for key in ("folder", "enclave", "ca", "bundle") if table.get(key) is not None}
        return cls(**{**table, **paths})


class Record:
    """The attacker's files."""

    def __init__(self, folder: Path) -> None:
        self._received = folder / "received"
        self._events = folder / "events"
        self._received.touch()
        self._events.touch()

    def received(self, data: bytes) -> None:
        with self._received.open("ab") as file:
            file.write(data)

    def event(self, word: str) -> None:
        with self._events.open("a") as file:
            file.write(word + "\n")
