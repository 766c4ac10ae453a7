"""What the KMS of `adyton.testing.kms` answers, and how a test has it answer what KMS never would."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

HANGING_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What goes back, as an edit has left it.

    `body`, if there is one, stands in place of the members' JSON; `padding` follows it. `length` is what the head
    claims, by default the truth; `headers` are more of it, each with its CRLF. `seconds` pass before each byte.
    """

    status: int
    members: Mapping[str, Any]
    body: bytes | None = None
    padding: bytes = b""
    length: int | None = None
    headers: str = ""
    seconds: float = 0.0

    def encode(self) -> bytes:
        """HTTP/1.1."""
        body = (json.dumps(self.members).encode("ascii") if self.body is None else self.body) + self.padding
        length = len(body) if self.length is None else self.length
        kind = "Content-Type: application/x-amz-json-1.1"
        head = f"HTTP/1.1 {self.status} -\r\n{kind}\r\nContent-Length: {length}\r\n{self.headers}\r\n"
        return head.encode("ascii") + body


Edit = Callable[[Reply], Reply]


def failing(error: str, status: int = 400) -> Edit:
    """The edit that makes this error of any answer."""
    return lambda _: Reply(status=status, members={"__type": error, "message": "as the test wants it"})


def giving(**members: Any) -> Edit:
    """The edit that puts these in place of the answer's own; None takes one out."""

    def edit(reply: Reply) -> Reply:
        changed = {**reply.members, **members}
        return replace(reply, members={name: value for name, value in changed.items() if value is not None})

    return edit


def hanging(reply: Reply) -> Reply:
    """The edit that never begins to answer."""
    return replace(reply, seconds=HANGING_SECONDS)
