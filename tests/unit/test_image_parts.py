"""The parts of an image: what the cache says of them is weighed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from adyton.errors import UnsupportedError
from adyton.host.image.apt import PACKAGES
from adyton.host.image.architecture import ARCHITECTURES
from adyton.host.image.cache import Cache
from adyton.host.image.lock import ImageLock, LockedPackage
from adyton.host.image.parts import Order, build_application, build_system

X86 = ARCHITECTURES["x86_64"]
NAMES = (*PACKAGES, "linux-image-6.12.7+deb12-cloud-amd64")
LOCK = ImageLock(
    packages={"x86_64": tuple(LockedPackage(name=name, version="1", sha256="0" * 64, size=1) for name in NAMES)}
)


class Damaged(Cache):
    """A cache that says the same of every key."""

    said: Mapping[str, str] = {}

    def noted(self, _: Mapping[str, str]) -> dict[str, str]:
        return dict(self.said)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"other": "x"},
        {"kernel": "00"},
        {"kernel": "zz", "system": "../../etc/passwd", "kernel_version": "6", "application": "zz"},
        {"kernel": "0" * 64, "system": "0" * 64, "kernel_version": "6", "application": "0" * 64},
    ],
)
def test_a_damaged_note_means_no_more_than_a_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")  # a build begins with apt, which is not there
    cache = Damaged(tmp_path)
    cache.said = said
    bundle = {"requirements.lock": b""}
    order = Order(bundle=bundle, architecture=X86, host=X86, lock=LOCK, cache=cache, say=lambda _: None)
    for build in (build_system, lambda order: build_application(order, bytes(32))):
        with pytest.raises(UnsupportedError, match="no apt-get"):
            build(order)


def test_a_note_that_lacks_the_kernels_version_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    cache = Damaged(tmp_path)
    cache.said = {"kernel": cache.add(b"kernel"), "system": cache.add(b"system")}
    bundle = {"requirements.lock": b""}
    order = Order(bundle=bundle, architecture=X86, host=X86, lock=LOCK, cache=cache, say=lambda _: None)
    with pytest.raises(UnsupportedError, match="no apt-get"):
        build_system(order)
    cache.said = {**cache.said, "kernel_version": "6"}
    assert build_system(order) == cache.said
