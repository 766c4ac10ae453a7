"""Images: three files from which a virtual machine starts, made from a bundle.

`kernel` is Debian's, untouched. Linux unpacks `system` and then `application` as its first root file system. What they
are made of is locked by digest, in image.lock and requirements.lock, so equal bundles give equal bytes.
"""

from __future__ import annotations

import hmac
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adyton.bundle.archive import bundle_sha256, parse_archive
from adyton.errors import BundleError, ConfigurationError
from adyton.host.bundles import Bundle
from adyton.host.image.architecture import find_architecture, host_architecture
from adyton.host.image.cache import Cache, default_cache
from adyton.host.image.lock import ImageLock
from adyton.host.image.locking import choose_lock
from adyton.host.image.parts import Order, build_application, build_system


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image in the cache: files that are read-only and named by their SHA-256, which was checked just now."""

    architecture: str
    bundle_sha256: bytes
    kernel: Path
    system: Path
    application: Path
    kernel_version: str

    def digests(self) -> dict[str, bytes]:
        """The SHA-256 of "kernel", "system" and "application", 32 bytes each, known from the build."""
        return {name: bytes.fromhex(getattr(self, name).name) for name in ("kernel", "system", "application")}

    def write_initrd(self, target: Path) -> None:
        """Write what Linux gets as its initrd: the system, then the application. Raises ConfigurationError."""
        try:
            with target.open("wb") as initrd:
                for part in (self.system, self.application):
                    with part.open("rb") as source:
                        shutil.copyfileobj(source, initrd)
        except OSError as problem:
            raise ConfigurationError(f"can't write {target}: {problem.strerror}") from problem


def _silent(_: str) -> None:
    pass


def build_image(
    bundle: Bundle,
    *,
    architecture: str,
    lock: ImageLock | None = None,
    cache: Path | None = None,
    say: Callable[[str], None] = _silent,
) -> Image:
    """The image of a bundle, from the cache as far as it is there. `say` is told what takes long.

    `lock` instead of the bundle's image.lock or this machine's lock. Raises BundleError for a bundle that is not what
    its digest says, ConfigurationError for locks and packages that don't fit, UnsupportedError for what this machine
    can't build.
    """
    if not hmac.compare_digest(bundle_sha256(bundle.data), bundle.sha256):
        raise BundleError("the bundle is not the one that was asked for: its SHA-256 differs")
    files = parse_archive(bundle.data)
    target, host = find_architecture(architecture), host_architecture()
    store = Cache(cache or default_cache())
    chosen = lock or choose_lock(files, (target, host), store, say)
    order = Order(bundle=files, architecture=target, host=host, lock=chosen, cache=store, say=say)
    system, application = build_system(order), build_application(order, bundle.sha256)
    return Image(
        architecture=target.name,
        bundle_sha256=bundle.sha256,
        kernel=store.path(system["kernel"]),
        system=store.path(system["system"]),
        application=store.path(application),
        kernel_version=system["kernel_version"],
    )
