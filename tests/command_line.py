"""The command as a process, and enclaves that it runs, each with the policy that accepts it."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes

from adyton.host.bundles import Bundle
from adyton.policy.reference_values import policy_for
from adyton.tee.simulated.platform import SimulatedPlatform

COMMAND = [sys.executable, "-m", "adyton.cli"]
ALLOW = ("--allow-insecure", "simulated")
SIMULATED = "warning: simulated: no hardware protects anything\n"
"""What each verb says on standard error that has attested a simulated enclave."""


def adyton(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=False, timeout=90, **options)


def simulated_policy(target: Path) -> str:
    """The policy that accepts, on this machine, the bundle of a project's folder, or in a file, and nothing else."""
    measurements = json.dumps(Bundle.of(target).measurements()).encode()
    return policy_for(measurements, {"simulated": SimulatedPlatform.open().root.fingerprint(hashes.SHA256())})


class Running:
    """A verb that serves, and has said where on its first line; its talk is collected."""

    def __init__(self, *words: str | Path, verb: str = "run") -> None:
        self.process = subprocess.Popen(
            [*COMMAND, verb, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._talk: list[str] = []
        self._reader = threading.Thread(target=self._talk.extend, args=(self.process.stderr,))
        self._reader.start()
        self.first_line = self.next_line()
        self.port = _number_at_the_end(self.first_line)

    def next_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self, number: int | None = signal.SIGTERM) -> tuple[int, str]:
        """Exit code and standard error, after the signal."""
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(60)
        self._reader.join(10)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()
        return code, "".join(self._talk)


def _number_at_the_end(line: str) -> int:
    digits = line.replace(":", " ").rpartition(" ")[2]
    return int(digits) if digits.isdigit() else 0


@contextlib.contextmanager
def running(*words: str | Path, verb: str = "run") -> Iterator[Running]:
    started = Running(*words, verb=verb)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
            started.end(None)
