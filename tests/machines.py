"""Virtual machines for tests: what they need here, what belongs to one on the host, and what may not be left of it."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from observing import children_of, eventually

from adyton.errors import UnsupportedError
from adyton.host.launch.qemu.firmware import find_firmware
from adyton.host.launch.qemu.launcher import QemuLauncher
from adyton.host.manager import EnclaveClient
from adyton.tee.tpm.verify import VerifiedTpm, verify_tpm

QEMU = f"qemu-system-{platform.machine()}"
_MISSING = [name for name in (QEMU, "swtpm", "apt-get") if shutil.which(name) is None]


def _why_no_ovmf() -> str:
    try:
        find_firmware(platform.machine(), "ovmf")
    except UnsupportedError as problem:
        return str(problem)
    return ""


boots = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(_MISSING), reason=f"machines need what is not here: {', '.join(_MISSING)}"),
]
"""The marks of every test that starts a machine."""
needs_ovmf = pytest.mark.skipif(bool(_why_no_ovmf()), reason=_why_no_ovmf())
LOAD_SECONDS = 90.0
"""How long a machine may take to start where others start too."""


def process_of(program: str) -> int:
    """The process id of the `program` that this process, directly or not, has started last.

    Other tests' may run beside it: the attacked machine lives as long as there are tests.
    """
    found = [pid for pid in children_of(os.getpid()) if _command(pid) == program[:15]]
    return max(found, key=_started_at)


def _started_at(pid: int) -> int:
    """In clock ticks since the machine's boot (proc(5), starttime)."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def quoted(enclave: EnclaveClient) -> VerifiedTpm:
    """What the enclave's evidence proves to whoever trusts this host's TPMs."""
    evidence = enclave.collect_evidence(bytes(64), timeout_seconds=60)
    return verify_tpm(evidence, anchors={QemuLauncher().anchors()["tpm"]}, now=datetime.now(UTC))


@contextlib.contextmanager
def nothing_left(directory: Path) -> Iterator[None]:
    """What is begun within it must be gone at its end: processes, threads, descriptors, folders in `directory`.

    The thread that starts processes stays.
    """
    processes, threads, descriptors = set(children_of(os.getpid())), set(threading.enumerate()), _descriptors()
    folders = set(directory.glob("enclave-*"))
    yield
    eventually(lambda: set(children_of(os.getpid())) <= processes)
    eventually(lambda: not [each for each in set(threading.enumerate()) - threads if each.name != "adyton-spawner"])
    try:
        eventually(lambda: len(_descriptors()) <= len(descriptors))
    except AssertionError:
        raise AssertionError(f"open now: {sorted(_descriptors())}; before: {sorted(descriptors)}") from None
    assert set(directory.glob("enclave-*")) <= folders


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _descriptors() -> list[str]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists the folder
            found.append(str(entry.readlink()))
    return found
