"""How often a connection may ask for evidence: hardware signs slowly, and an answer is long."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from adyton.errors import ApplicationError, StatusCode

if TYPE_CHECKING:
    from adyton.atls.attester import Connection

MAX_A_MINUTE: Final = 10
"""For one connection. A client asks once, and then every ten minutes at most."""
MAX_A_MINUTE_WITHOUT_KEY: Final = 600
"""For all connections of one address that have no key to be told apart by."""
MAX_CONNECTIONS: Final = 10_000
_MINUTE: Final = 60.0


class Allowance:
    """Counts by the client's key, or its address. Bounded: who has not asked for the longest is forgotten."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._guard = threading.Lock()
        self._begun: OrderedDict[bytes | str, tuple[float, int]] = OrderedDict()

    def take(self, connection: Connection) -> None:
        """Count one; RESOURCE_EXHAUSTED if there were too many within a minute."""
        key = connection.client_sha256 or connection.address
        at_most = MAX_A_MINUTE if connection.client_sha256 else MAX_A_MINUTE_WITHOUT_KEY
        now = self._clock()
        with self._guard:
            begun, count = self._begun.pop(key, (now, 0))
            if now - begun >= _MINUTE:
                begun, count = now, 0
            self._begun[key] = begun, count + 1
            if len(self._begun) > MAX_CONNECTIONS:
                self._begun.popitem(last=False)
        if count >= at_most:
            raise ApplicationError(StatusCode.RESOURCE_EXHAUSTED, "evidence was asked for too often")
