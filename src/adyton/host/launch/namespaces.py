"""bubblewrap, where it is installed and the kernel lets it: namespaces of its own for the enclave's process.

It sees the system read-only, no home folders, a /tmp of its own, no other process, and a host name of its own. The
network stays the host's, for clients reach a server through it.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

_HIDDEN = ("/tmp", "/var/tmp", "/run", "/home", "/root", "/mnt", "/media", "/srv")  # noqa: S108


def bubblewrap_command(
    *, writable: Iterable[Path], readable: Iterable[str], host_name: str | None, command: list[str]
) -> list[str]:
    """`command` within namespaces; only `writable` can be written, only `readable` is shown of what is hidden."""
    words = [bubblewrap() or "bwrap", "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    words += ["--unshare-cgroup-try", "--die-with-parent", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    for hidden in _HIDDEN:
        if Path(hidden).is_dir() and not Path(hidden).is_symlink():
            words += ["--tmpfs", hidden]
    for path in dict.fromkeys(readable):
        if Path(path).exists():
            words += ["--ro-bind", path, path]
    for folder in writable:
        words += ["--bind", str(folder), str(folder)]
    words += ["--hostname", host_name or "enclave"]
    return [*words, "--", *command]


def bubblewrap() -> str | None:
    """The program's path, whatever PATH is; None where it is not installed."""
    return shutil.which("bwrap", path="/usr/bin:/bin:/usr/local/bin")


@functools.cache
def why_no_namespaces() -> str:
    """An empty string where bubblewrap works here, else the reason, and how to mend it. Tried, not guessed."""
    if bubblewrap() is None:
        return "bubblewrap is not installed (Debian, Ubuntu: apt install bubblewrap)"
    command = bubblewrap_command(writable=[Path("/tmp")], readable=(), host_name=None, command=["/bin/true"])  # noqa: S108
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        return f"bubblewrap does not start: {problem}"
    if done.returncode:
        return f"bubblewrap can't make namespaces here: {done.stderr.strip()[:200]}"
    return ""
