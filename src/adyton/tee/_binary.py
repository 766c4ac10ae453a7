"""A cursor over untrusted bytes: every read is bounded, and what does not fit is an `EvidenceError` that says where."""

from __future__ import annotations

from typing import Literal

from adyton.errors import EvidenceError

ByteOrder = Literal["little", "big"]


class Reader:
    """Reads `data` from front to back. `what` names the whole in messages: "the TDX quote"."""

    __slots__ = ("_data", "_order", "_what", "position")

    def __init__(self, data: bytes, what: str, *, order: ByteOrder) -> None:
        self._data = data
        self._what = what
        self._order = order
        self.position = 0

    @property
    def remaining(self) -> int:
        """How many bytes are left."""
        return len(self._data) - self.position

    def take(self, count: int, field: str) -> bytes:
        """The next `count` bytes, which are the `field`."""
        if count > self.remaining:
            message = f"{self._what} ends inside its {field}: {count} bytes from {self.position}, {self.remaining} left"
            raise EvidenceError(message)
        begin = self.position
        self.position += count
        return self._data[begin : self.position]

    def number(self, size: int, field: str) -> int:
        """The next `size` bytes as an unsigned integer."""
        return int.from_bytes(self.take(size, field), self._order)

    def prefixed(self, size: int, field: str, *, at_most: int) -> bytes:
        """A field of up to `at_most` bytes after its length, which has `size` bytes itself."""
        length = self.number(size, f"length of its {field}")
        if length > at_most:
            raise EvidenceError(f"{self._what} has a {field} of {length} bytes; {at_most} are allowed")
        return self.take(length, field)

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(self.remaining, "rest")

    def end(self) -> None:
        """Refuse bytes after the end."""
        if self.remaining:
            raise EvidenceError(f"{self._what} goes on after its end, for {self.remaining} bytes")
