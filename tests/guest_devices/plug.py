"""What a test's bundle adds to PID 1: the hardware appears when the machine's drivers are loaded. No more is changed.

PID 1 itself imports this, so the rest is imported in a process of the hardware's own.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from adyton.enclave.guest import machine

_HERE = Path(__file__).parent
_load_modules, _wanted_modules = machine.load_modules, machine._wanted_modules


class _Served(Protocol):
    def serve(self) -> None: ...


def plug_in() -> None:
    """Change what PID 1 is about to call."""
    if (_HERE / "cuse.ko").exists():
        machine.load_modules = _with_cuse
        return
    machine._wanted_modules = _with_tsm
    if (_HERE / "template.json").exists():
        machine.load_modules = _with_hardware


def _with_tsm() -> Iterator[str]:
    """The kernel's own configfs-tsm is loaded as on such hardware; it has nobody to answer for it."""
    yield from _wanted_modules()
    yield "tsm"


def _with_cuse() -> None:
    machine._load_module(str(_HERE / "cuse"))
    _with_hardware()


def _with_hardware() -> None:
    _load_modules()
    ready, done = os.pipe()
    if os.fork() == 0:
        try:
            os.close(ready)
            hardware = _make()
            os.write(done, b".")
            os.close(done)
            hardware.serve()
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    os.close(done)
    if not os.read(ready, 1):
        raise RuntimeError("the emulated hardware did not start")
    os.close(ready)


def _make() -> _Served:
    from guest_devices.template import Template

    template = Template.parse((_HERE / "template.json").read_bytes())
    if template.provider == "nsm":
        from adyton.testing.kernels.nsm import documents
        from guest_devices.character_device import NsmDevice

        return NsmDevice(documents(template.evidence_over))
    from adyton.testing.kernels.tsm import REPORTS, Tsm
    from guest_devices.file_system import FileSystem

    return FileSystem(Tsm(provider=template.provider, quote=template.evidence_over, auxblob=template.staples), REPORTS)
