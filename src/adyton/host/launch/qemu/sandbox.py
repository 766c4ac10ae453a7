"""Where QEMU and its TPM run: they see the system's programs and the files that they use, and no needless network.

With bubblewrap, and as a user that no other process is where the host's process is root. An ordinary user has no other
user to give: its other processes can read the machine's memory. Without bubblewrap the programs' own seccomp filters
remain.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from adyton.host.launch.namespaces import bubblewrap, why_no_namespaces
from adyton.host.launch.spawner import find_setpriv, setpriv, tied

_SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")
_FOR_NETWORK: Final = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf")
_APART: Final = (
    *("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--die-with-parent", "--new-session"),
    *("--proc", "/proc", "--dev", "/dev", "--perms", "0755", "--dir", "/etc", "--perms", "0755", "--dir", "/boot"),
)
_STATE: Final = "/state"
_FOR_GROUP, _FOR_ALL = 0o060, 0o006
#: For machines: above what user databases and systemd's containers take, below podman's containers and foreign files.
_UIDS: Final = range(0x7800_0000, 0x7C00_0000)


def new_uid() -> int | None:
    """A user, and a group of that number, for one machine's processes; None where they have to be this process's.

    A process reads the memory of its user's others, so an account that others use would not do. Chosen at random: two
    machines are one user once in 67 million.
    """
    return secrets.choice(_UIDS) if _gives_uids() else None


def sandboxed(
    command: list[str],
    *,
    files: Mapping[str, Path],
    network: bool,
    devices: Sequence[str],
    uid: int | None,
    writable: Path | None = None,
) -> list[str]:
    """`command` in the sandbox. `files`: each path that it uses for a file → where that is on the host.

    `devices` are shown too. `uid`, of `new_uid`, gets the group of each that is its group's to use, as /dev/kvm mostly
    is. `writable`: the only folder that it can write to, and where it runs; its caller starts it there too. Raises
    UnsupportedError where setpriv is needed and not installed.
    """
    if why_no_namespaces():
        return tied([str(files.get(word, word)) for word in command])
    words = [bubblewrap() or "bwrap", *_APART, *(() if network else ("--unshare-net",)), *_shown(network)]
    for device in devices:
        words += ["--dev-bind", device, device]
    for inside, outside in files.items():
        words += ["--ro-bind", str(outside), inside]
    if writable is not None:
        words += ["--bind", str(writable), _STATE, "--chdir", _STATE]
    if uid is None:
        return [*words, "--unshare-user", "--cap-drop", "ALL", "--", *command]
    as_user = [setpriv(), f"--reuid={uid}", f"--regid={uid}", _groups(devices), "--no-new-privs", "--inh-caps=-all"]
    return [*words, "--", *as_user, "--", *command]


def lacks_setpriv() -> bool:
    """Whether `sandboxed` refuses because setpriv is not installed."""
    return find_setpriv() is None and (bool(why_no_namespaces()) or _gives_uids())


def why_closed(device: Path) -> str:
    """What keeps QEMU, started as `sandboxed` does, from a device, in words that follow its name; empty for nothing."""
    if not device.exists():
        return "is not there"
    if not _gives_uids():
        return "" if os.access(device, os.R_OK | os.W_OK) else "may not be used by this user: join its group"
    status = device.stat()
    if status.st_mode & _FOR_ALL == _FOR_ALL or _is_for_group(status):
        return ""
    return "is root's alone, and QEMU does not run as root: give it to a group, kvm for one"


def _gives_uids() -> bool:
    """Whether this process is the root of all users: in a container it may be that of its own few."""
    return os.geteuid() == 0 and not why_no_namespaces() and all(map(_maps_uids, ("uid_map", "gid_map")))


def _maps_uids(name: str) -> bool:
    lines = Path("/proc/self", name).read_text().splitlines()
    ranges = [(int(first), int(count)) for first, _, count in map(str.split, lines)]
    return any(first <= _UIDS.start and _UIDS.stop <= first + count for first, count in ranges)


def _groups(devices: Iterable[str]) -> str:
    """What tells setpriv which groups the user is in."""
    groups = {status.st_gid for status in map(os.stat, devices) if _is_for_group(status)}
    return f"--groups={','.join(map(str, sorted(groups)))}" if groups else "--clear-groups"


def _is_for_group(status: os.stat_result) -> bool:
    return status.st_mode & _FOR_GROUP == _FOR_GROUP and status.st_gid != 0


def _shown(network: bool) -> Iterator[str]:
    for path in (*_SYSTEM, *(_FOR_NETWORK if network else ())):
        if Path(path).exists():
            yield from ("--ro-bind", os.path.realpath(path), path)
