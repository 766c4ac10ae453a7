"""Names of servers."""

from __future__ import annotations

import re
from typing import Final

_LABEL: Final = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_NAME: Final = re.compile(rf"({_LABEL}\.)*{_LABEL}", re.ASCII)
_MAX_CHARACTERS: Final = 253


def is_dns_name(text: str) -> bool:
    """Whether it is a DNS name that a certificate and TLS's SNI can have; an IP address is none."""
    is_number = text.rpartition(".")[2].isdigit()
    return len(text) <= _MAX_CHARACTERS and not is_number and _NAME.fullmatch(text) is not None
