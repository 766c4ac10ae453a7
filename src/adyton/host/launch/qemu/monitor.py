"""QEMU's monitor (QMP): listened to for what happens to the machine, and for nothing else."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from typing import Any, Final

_MAX_LINE_BYTES: Final = 1 << 20
#: States in which QEMU stays for ever though the guest can't go on.
_STUCK: Final = {"internal-error": "the processor could not go on", "io-error": "a device failed"}


class Monitor:
    """Reads events until QEMU hangs up. `stopped_for`: why the machine can't go on, in words; empty while it can."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.stopped_for = ""
        self.stuck = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="adyton-monitor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hang up. Safe to call twice."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._connection.close()

    def _listen(self) -> None:
        with contextlib.suppress(OSError, ValueError, RecursionError), self._connection.makefile("rb") as lines:
            self._ask("qmp_capabilities")
            while (line := lines.readline(_MAX_LINE_BYTES)) and isinstance(message := json.loads(line), dict):
                self._take(message)

    def _ask(self, command: str) -> None:
        self._connection.sendall(json.dumps({"execute": command}).encode() + b"\n")

    def _take(self, message: dict[str, Any]) -> None:
        if message.get("event") == "STOP":
            self._ask("query-status")
        elif isinstance(answer := message.get("return"), dict) and str(answer.get("status")) in _STUCK:
            self.stopped_for = _STUCK[str(answer["status"])]
            self.stuck.set()
