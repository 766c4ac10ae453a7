"""A process that runs out of file descriptors, for tests of what is left behind then."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

from machines import nothing_left

from adyton.errors import LaunchError


def failures_for_want_of_descriptors(launch: Callable[[], None], directory: Path) -> int:
    """Call `launch` with none left, then with one more each time, until it succeeds; how often it raised LaunchError.

    Each time nothing may be left of it, in `directory` or elsewhere.
    """
    for spare in range(200):
        with nothing_left(directory), contextlib.suppress(LaunchError), _descriptors_left(spare):
            launch()
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
