"""A process that runs out of file descriptors, for tests of what is left behind then.

It is a process of its own: in one that has served and called, gRPC opens and closes descriptors when it likes.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from machines import nothing_left

from adyton.errors import LaunchError
from adyton.host.launch.launcher import LaunchRequest
from adyton.host.launch.registry import launcher
from adyton.testing.probes import SERVER, probe_bundle

python_leaves_none = pytest.mark.skipif(
    sys.version_info < (3, 11, 7), reason="Popen of this Python leaves /dev/null open when there is no descriptor left"
)


def failures_for_want_of_descriptors(technology: str) -> int:
    """Start an enclave with none left, then with one more each time, until it succeeds; how often it failed.

    Each time it must be a LaunchError, and nothing may be left of it.
    """
    command = [sys.executable, "-W", "error", __file__, technology]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def _count(technology: str) -> int:
    directory = Path(os.environ["XDG_RUNTIME_DIR"]) / "adyton"
    request = LaunchRequest(name="probe", bundle=probe_bundle(SERVER), ports=(65000,))
    starting = launcher(technology)
    starting.launch(request).close()  # so that nothing is built or imported when there are none
    for spare in range(200):
        with nothing_left(directory), contextlib.suppress(LaunchError), _descriptors_left(spare):
            starting.launch(request).close()
            return spare
    raise AssertionError("it never succeeds")


@contextlib.contextmanager
def _descriptors_left(count: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir())) - 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


if __name__ == "__main__":
    sys.stdout.write(str(_count(sys.argv[1])))
