"""What the options of `adyton run` may be: said before anything starts, and in the options' own words.

The enclave checks the same of its configuration, wherever that comes from (adyton/enclave/grpc_application.py).
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
from collections.abc import Callable
from typing import Final

MAX_PORT: Final = 65535
MAX_WORKERS: Final = 256
MAX_TIME_MS: Final = 10 * 365 * 24 * 3600 * 1000


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """A type for argparse: a number from `low` to `high`."""

    def read(text: str) -> int:
        with contextlib.suppress(ValueError):
            if low <= (value := int(text)) <= high:
                return value
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a whole number from {low} to {high}")

    return read


a_port = whole_number(0, MAX_PORT)
a_time_ms = whole_number(0, MAX_TIME_MS)


def an_address(text: str) -> str:
    """A type for argparse: where a server can listen."""
    if text != "localhost":
        try:
            ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
        except ValueError:
            why = f"{text[:80]!r} is neither localhost nor an IP address of this machine"
            raise argparse.ArgumentTypeError(why) from None
    return text
