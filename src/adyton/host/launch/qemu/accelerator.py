"""Whether KVM boots a guest here: tried once, not guessed.

/dev/kvm that can be opened says little: where the host is itself a guest, some KVMs start a machine and then can't run
its first kernel. So the very kernel is booted, without anything to run: it is well when it complains of that.
"""

from __future__ import annotations

import contextlib
import platform
import secrets
import subprocess
from pathlib import Path
from typing import Final

from adyton.errors import ConfigurationError
from adyton.host.image.cache import default_cache
from adyton.host.image.image import Image
from adyton.host.launch.child import kill_group
from adyton.host.launch.qemu.firmware import find_firmware
from adyton.host.launch.qemu.machine import bare_machine, linux_command_line
from adyton.host.launch.qemu.sandbox import new_uid, sandboxed, why_closed
from adyton.host.launch.spawner import spawn

#: What a kernel says that has come all the way.
_BOOTED: Final = b"Kernel panic - not syncing"
PROBE_SECONDS: Final = 15.0
_KERNEL: Final = "/boot/kernel"


def choose_accelerator(image: Image) -> str:
    """The word "kvm" where that boots this kernel, else "tcg", QEMU's emulation. Remembered until the host boots."""
    if image.architecture != platform.machine() or why_closed(Path("/dev/kvm")):
        return "tcg"
    if not (found := _recall()):
        found = "kvm" if _boots(image) else "tcg"
        with contextlib.suppress(OSError):
            _remember(found)
    return found


def known_accelerator() -> str:
    """What `choose_accelerator` has found on this machine, in words."""
    if why := why_closed(Path("/dev/kvm")):
        return f"/dev/kvm {why}: the processor is emulated, and a start takes 5 to 30 s"
    if not (found := _recall()):
        return "KVM is tried at the first start"
    return "KVM boots a kernel" if found == "kvm" else "KVM boots no kernel here: the processor is emulated"


def _memory() -> Path:
    return default_cache() / f"accelerator-{_boot_id()}"


def _recall() -> str:
    """What was found before, or an empty string."""
    with contextlib.suppress(OSError, UnicodeDecodeError, ConfigurationError):
        if (found := _memory().read_text("ascii")) in ("kvm", "tcg"):
            return found
    return ""


def _remember(found: str) -> None:
    """All of it or nothing, whatever happens meanwhile."""
    memory = _memory()
    memory.parent.mkdir(parents=True, exist_ok=True)
    scratch = memory.with_name(f"{memory.name}-{secrets.token_hex(8)}")
    try:
        scratch.write_text(found)
        scratch.replace(memory)
    finally:
        scratch.unlink(missing_ok=True)


def _boots(image: Image) -> bool:
    firmware = find_firmware(image.architecture, "none")
    command = [*bare_machine(image.architecture, "kvm"), *(["-bios", str(firmware)] if firmware else [])]
    command += ["-m", "256", "-kernel", _KERNEL, "-append", linux_command_line(image.architecture)]
    confined = sandboxed(command, files={_KERNEL: image.kernel}, network=False, devices=["/dev/kvm"], uid=new_uid())
    try:
        process = spawn(
            confined,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        return False
    try:
        said, _ = process.communicate(timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    finally:
        if process.returncode is None:
            kill_group(process)
        assert process.stdout is not None
        process.stdout.close()
    return _BOOTED in said


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
