"""Whether KVM boots a guest here: tried once, not guessed.

/dev/kvm that can be opened says little: where the host is itself a guest, some KVMs start a machine and then can't run
its first kernel. So the very kernel is booted, without anything to run: it is well when it complains of that.
"""

from __future__ import annotations

import contextlib
import platform
import subprocess
from pathlib import Path
from typing import Final

from adyton.host.image.cache import default_cache
from adyton.host.image.image import Image
from adyton.host.launch.qemu.sandbox import why_closed

#: What a kernel says that has come all the way.
_BOOTED: Final = b"Kernel panic - not syncing"
PROBE_SECONDS: Final = 15.0


def choose_accelerator(image: Image) -> str:
    """The word "kvm" where that boots this kernel, else "tcg", QEMU's emulation. Remembered until the host boots."""
    if image.architecture != platform.machine() or why_closed(Path("/dev/kvm")):
        return "tcg"
    memory = default_cache() / f"accelerator-{_boot_id()}"
    with contextlib.suppress(OSError):
        return {"kvm": "kvm"}.get(memory.read_text(), "tcg")
    found = "kvm" if _boots(image) else "tcg"
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        memory.write_text(found)
    return found


def _boots(image: Image) -> bool:
    board = ["q35"] if image.architecture == "x86_64" else ["virt,gic-version=host"]
    firmware = ["-bios", "qboot.rom"] if image.architecture == "x86_64" else []
    console = "ttyS0" if image.architecture == "x86_64" else "ttyAMA0"
    command = [
        f"qemu-system-{image.architecture}",
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-M",
        *board,
        *firmware,
        "-m",
        "256",
    ]
    command += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]
    command += ["-kernel", str(image.kernel), "-append", f"console={console} panic=-1"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return _BOOTED in done.stdout


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
