"""Log lines that strangers cause: not more than one a second of a kind, and it says how many were left out."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

_SECONDS: Final = 1.0
_MOST_KINDS: Final = 1024


class SparingLog:
    """Warnings of a logger, by kind. Safe in threads."""

    def __init__(self, logger: logging.Logger, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._clock = clock
        self._guard = threading.Lock()
        self._kinds: dict[str, tuple[float, int]] = {}

    def warning(self, message: str, *, kind: str, extra: Mapping[str, Any]) -> None:
        """Log `message`, unless one of that kind was logged within the second."""
        now = self._clock()
        with self._guard:
            last, left_out = self._kinds.get(kind, (-_SECONDS, 0))
            if now - last < _SECONDS:
                self._kinds[kind] = last, left_out + 1
                return
            if len(self._kinds) >= _MOST_KINDS:
                self._kinds.clear()
            self._kinds[kind] = now, 0
        self._logger.warning(message, extra={**extra, **({"left_out": left_out} if left_out else {})})
