"""The parts of an image out of the cache, or built into it: each is named by all that it is made of."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from adyton.host.bundles import LOCK
from adyton.host.image.application import encode_application
from adyton.host.image.apt import KERNEL_PREFIX, fetch
from adyton.host.image.architecture import Architecture
from adyton.host.image.bytecode import Compiler
from adyton.host.image.cache import Cache
from adyton.host.image.deb import read_deb
from adyton.host.image.lock import ImageLock
from adyton.host.image.locking import locked_packages
from adyton.host.image.modules import find_kernel, is_wanted
from adyton.host.image.system import encode_system
from adyton.host.image.tree import File, Files, Link
from adyton.host.image.wheels import fetch_wheels, read_wheel

#: What the interpreter itself is made of; the other packages are for the guest only.
_COMPILER = ("libc6", "libexpat1", "libpython3.11-minimal", "libpython3.11-stdlib", "python3.11-minimal", "zlib1g")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is built: `bundle` (path → content) for `architecture`, on `host`, by `lock`, in `cache`."""

    bundle: Mapping[str, bytes]
    architecture: Architecture
    host: Architecture
    lock: ImageLock
    cache: Cache
    say: Callable[[str], None]


def build_system(order: Order) -> dict[str, str]:
    """The digests of "kernel" and "system", in hexadecimal, and "kernel_version". The files are in the cache."""
    key = {
        "part": "system",
        "builder": _builder_sha256(),
        "packages": _locked_sha256(order.lock, order.architecture),
        "compiler": _locked_sha256(order.lock, order.host),
        "requirements": hashlib.sha256(order.bundle[LOCK]).hexdigest(),
    }
    noted = order.cache.noted(key)
    if "kernel_version" in noted and all(order.cache.find(noted.get(part, "")) for part in ("kernel", "system")):
        return noted
    locked = locked_packages(order.lock, order.architecture)
    paths = fetch(locked, order.architecture, order.cache, order.say)
    wheels = fetch_wheels(order.bundle[LOCK], order.architecture, order.cache, order.say)
    order.say(f"building the system for {order.architecture.name}")
    built = _add_system(order, paths, [read_wheel(name, path.read_bytes()) for name, path in wheels])
    order.cache.note(key, built)
    return built


def _add_system(order: Order, paths: Mapping[str, Path], wheels: Iterable[Files]) -> dict[str, str]:
    (kernel_package,) = (name for name in paths if name.startswith(KERNEL_PREFIX))
    kernel = read_deb(paths[kernel_package].read_bytes(), kernel_package, is_wanted)
    packages = _read(paths, paths.keys() - {kernel_package})
    version, image = find_kernel(kernel)
    system = encode_system(packages, kernel, wheels, order.architecture, _compiler(order))
    return {"kernel": order.cache.add(image), "system": order.cache.add(system), "kernel_version": version}


def build_application(order: Order, bundle_sha256: bytes) -> str:
    """The digest of the application's part, in hexadecimal. The file is in the cache."""
    key = {
        "part": "application",
        "builder": _builder_sha256(),
        "compiler": _locked_sha256(order.lock, order.host),
        "bundle": bundle_sha256.hex(),
    }
    noted = order.cache.noted(key).get("application", "")
    if order.cache.find(noted):
        return noted
    order.say("building the application")
    built = order.cache.add(encode_application(order.bundle, _compiler(order)))
    order.cache.note(key, {"application": built})
    return built


def _compiler(order: Order) -> Compiler:
    locked = [each for each in locked_packages(order.lock, order.host) if each.name in _COMPILER]
    paths = fetch(locked, order.host, order.cache, order.say)
    return Compiler(_read(paths, _COMPILER), order.host, order.cache)


def _read(paths: Mapping[str, Path], names: Iterable[str]) -> dict[str, File | Link]:
    return {path: entry for name in sorted(names) for path, entry in read_deb(paths[name].read_bytes(), name).items()}


def _locked_sha256(lock: ImageLock, architecture: Architecture) -> str:
    packages = locked_packages(lock, architecture)
    return hashlib.sha256(ImageLock(packages={architecture.name: packages}).encode()).hexdigest()


@functools.cache
def _builder_sha256() -> str:
    """What this code is: another code may build another image of the same."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
