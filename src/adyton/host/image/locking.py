"""Which lock an image is built by: the bundle's own, or this machine's, which is made on first use and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from adyton.errors import ConfigurationError
from adyton.host.image.apt import KERNEL_PREFIX, PACKAGES, resolve
from adyton.host.image.architecture import Architecture
from adyton.host.image.cache import Cache
from adyton.host.image.lock import FILE_NAME, RELOCK, ImageLock, LockedPackage, parse_image_lock

_KEPT = {"lock": "this machine's"}


def choose_lock(
    bundle: Mapping[str, bytes], architectures: Iterable[Architecture], cache: Cache, say: Callable[[str], None]
) -> ImageLock:
    """The lock for these architectures. `bundle`: path → content. Raises ConfigurationError, UnsupportedError."""
    if FILE_NAME in bundle:
        return parse_image_lock(bundle[FILE_NAME])
    lock = _kept(cache)
    if missing := {each for each in architectures if each.name not in lock.packages}:
        return _keep(ImageLock(packages={**lock.packages, **_resolve(missing, cache, say)}), cache, say)
    return lock


def _kept(cache: Cache) -> ImageLock:
    """This machine's lock; one of nothing if there is none, or what was kept is damaged."""
    try:
        return parse_image_lock(cache.noted(_KEPT)["text"].encode())
    except (KeyError, UnicodeEncodeError, ConfigurationError):
        return ImageLock(packages={})


def relock(architectures: Iterable[Architecture], cache: Cache, say: Callable[[str], None]) -> ImageLock:
    """Lock what Debian's index has now, and keep it as this machine's lock. Raises UnsupportedError."""
    return _keep(ImageLock(packages=_resolve(set(architectures), cache, say)), cache, say)


def _resolve(
    architectures: set[Architecture], cache: Cache, say: Callable[[str], None]
) -> dict[str, tuple[LockedPackage, ...]]:
    say("reading Debian's index")
    return {each.name: resolve(each, cache) for each in architectures}


def _keep(lock: ImageLock, cache: Cache, say: Callable[[str], None]) -> ImageLock:
    cache.note(_KEPT, {"text": lock.encode().decode()})
    say(f"locked Debian's packages for {' and '.join(sorted(lock.packages))}, for every project without {FILE_NAME}")
    return lock


def locked_packages(lock: ImageLock, architecture: Architecture) -> tuple[LockedPackage, ...]:
    """What `lock` has for an architecture: exactly what an image is made of. Raises ConfigurationError."""
    packages = lock.packages.get(architecture.name, ())
    if not packages:
        raise ConfigurationError(f"{FILE_NAME} has no packages for {architecture.name}", mend=RELOCK)
    names = {each.name for each in packages}
    kernels = [name for name in names if name.startswith(KERNEL_PREFIX)]
    if missing := sorted(set(PACKAGES) - names):
        raise ConfigurationError(f"{FILE_NAME} lacks {missing[0]} for {architecture.name}", mend=RELOCK)
    if len(kernels) != 1:
        raise ConfigurationError(f"{FILE_NAME} should have one kernel for {architecture.name}", mend=RELOCK)
    if needless := sorted(names - set(PACKAGES) - set(kernels)):
        raise ConfigurationError(f"{FILE_NAME} has {needless[0]}, which no image needs", mend=RELOCK)
    return packages
