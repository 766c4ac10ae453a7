"""Where QEMU runs: it sees the system's programs and the files that it boots, and no network unless it needs one.

With bubblewrap, and as `nobody` where the host's process is root. Without bubblewrap QEMU's own seccomp filter remains.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from adyton.host.launch.namespaces import why_no_namespaces

_SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")
_FOR_NETWORK: Final = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf")
_APART: Final = (
    *("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--die-with-parent", "--new-session"),
    *("--proc", "/proc", "--dev", "/dev", "--perms", "0755", "--dir", "/etc", "--perms", "0755", "--dir", "/boot"),
)
_AS_NOBODY: Final = ("setpriv", "--reuid=65534", "--regid=65534", "--no-new-privs", "--inh-caps=-all")
_FOR_GROUP, _FOR_ALL = 0o060, 0o006


def sandboxed(command: list[str], *, files: Mapping[str, Path], network: bool, devices: Sequence[str]) -> list[str]:
    """`command` in the sandbox. `files`: each path that it uses for a file → where that is on the host.

    `devices` are shown too. `nobody` gets the group of each that is its group's to use, as /dev/kvm mostly is.
    """
    if why_no_namespaces():
        return ["setpriv", "--pdeathsig=KILL", "--", *(str(files.get(word, word)) for word in command)]
    words = ["bwrap", *_APART, *(() if network else ("--unshare-net",)), *_shown(network)]
    for device in devices:
        words += ["--dev-bind", device, device]
    for inside, outside in files.items():
        words += ["--ro-bind", str(outside), inside]
    if os.geteuid() == 0:
        return [*words, "--", *_AS_NOBODY, _groups(devices), "--", *command]
    return [*words, "--unshare-user", "--", *command]


def why_closed(device: Path) -> str:
    """What keeps QEMU, started as `sandboxed` does, from a device, in words that follow its name; empty for nothing."""
    if not device.exists():
        return "is not there"
    if os.geteuid() != 0 or why_no_namespaces():
        return "" if os.access(device, os.R_OK | os.W_OK) else "may not be used by this user: join its group"
    status = device.stat()
    if status.st_mode & _FOR_ALL == _FOR_ALL or _is_for_group(status):
        return ""
    return "is root's alone, and QEMU does not run as root: give it to a group, kvm for one"


def _groups(devices: Iterable[str]) -> str:
    """What tells setpriv which groups `nobody` is in."""
    groups = {status.st_gid for status in map(os.stat, devices) if _is_for_group(status)}
    return f"--groups={','.join(map(str, sorted(groups)))}" if groups else "--clear-groups"


def _is_for_group(status: os.stat_result) -> bool:
    return status.st_mode & _FOR_GROUP == _FOR_GROUP and status.st_gid != 0


def _shown(network: bool) -> Iterator[str]:
    for path in (*_SYSTEM, *(_FOR_NETWORK if network else ())):
        if Path(path).exists():
            yield from ("--ro-bind", os.path.realpath(path), path)
