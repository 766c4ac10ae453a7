"""`adyton doctor`: what this machine can do, and what is missing for the rest."""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import adyton
from adyton.host.launch.launcher import Capability
from adyton.host.launch.registry import LAUNCHERS, launcher
from adyton.tee.registry import TEES


@dataclass(frozen=True, slots=True, kw_only=True)
class _Interface:
    """Where the kernel shows a kind of hardware, and what this version of Adyton can do with it."""

    technology: str
    path: str
    missing: str


_NOT_LAUNCHED = "its evidence can be verified; no launcher yet"
_NOT_LAUNCHED_FROM_INSIDE = "its evidence can be asked for and verified; no launcher yet"
_INSIDE = "the machine that this runs in has it: its evidence can be asked for and verified"

#: Hardware that Adyton is meant for; `missing` says what this version can do with it.
_HARDWARE = (
    _Interface(technology="sgx", path="/dev/sgx_enclave", missing=_NOT_LAUNCHED),
    _Interface(technology="tdx", path="/dev/tdx_guest", missing=_INSIDE),
    _Interface(technology="sev-snp", path="/dev/sev-guest", missing=_INSIDE),
    _Interface(technology="nitro", path="/dev/nsm", missing=_INSIDE),
    _Interface(technology="cca", path="/sys/kernel/config/tsm/report", missing=_NOT_LAUNCHED_FROM_INSIDE),
    _Interface(technology="tpm", path="/dev/tpmrm0", missing=_INSIDE),
    _Interface(technology="kvm", path="/dev/kvm", missing="virtual machines use it where it boots a kernel"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; 0 if this machine can launch at least one technology, else 6."""
    launchers = {name: launcher(name) for name in LAUNCHERS}
    found = {name: each.capabilities() for name, each in launchers.items()}
    if arguments.json:
        print(json.dumps(_as_json(found), indent=2, sort_keys=True))
    else:
        _print(found)
    return 0 if any(capabilities[0].available for capabilities in found.values()) else 6


def _as_json(found: dict[str, list[Capability]]) -> dict[str, object]:
    hardware = {each.technology: {"present": Path(each.path).exists(), "missing": each.missing} for each in _HARDWARE}
    return {
        "adyton": adyton.__version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "launchers": {name: [asdict(each) for each in capabilities] for name, capabilities in found.items()},
        "evidence": {label: each.mark for label, each in TEES.items()},
        "hardware": hardware,
    }


def _print(found: dict[str, list[Capability]]) -> None:
    print(f"adyton {adyton.__version__}, Python {platform.python_version()}, Linux {platform.release()}")
    for name, capabilities in found.items():
        print(f"\nlaunch on {name!r}")
        for each in capabilities:
            print(f"  {'yes' if each.available else 'no ':<4} {each.name:<12} {each.detail}")
    print("\nevidence that can be verified")
    for label, tee in TEES.items():
        print(f"  yes  {label:<12} {tee.mark}")
    print("\nhardware here")
    for interface in _HARDWARE:
        here = Path(interface.path).exists()
        then = f": {interface.missing}" if here else ""
        print(f"  {'here' if here else 'none':<4} {interface.technology:<12} {interface.path}{then}")
