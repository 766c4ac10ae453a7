"""The one place that knows every launcher."""

from __future__ import annotations

import importlib

from adyton.errors import UnsupportedError
from adyton.host.launch.launcher import Launcher

#: Technology → module:class. A launcher is imported when it is asked for.
LAUNCHERS: dict[str, str] = {
    "process": "adyton.host.launch.process:ProcessLauncher",
    "sev-snp": "adyton.host.launch.qemu.confidential_launcher:SevSnpLauncher",
    "tdx": "adyton.host.launch.qemu.confidential_launcher:TdxLauncher",
    "vm": "adyton.host.launch.qemu.launcher:QemuLauncher",
}


def launcher(technology: str) -> Launcher:
    """The launcher of that name. Raises UnsupportedError, which lists the known ones."""
    if technology not in LAUNCHERS:
        raise UnsupportedError(f"no launcher {technology!r}", mend=f"known: {', '.join(LAUNCHERS)}")
    module, _, name = LAUNCHERS[technology].partition(":")
    made: Launcher = getattr(importlib.import_module(module), name)()
    return made
