"""image.lock: one form, a closed world, and exactly the packages that an image is made of."""

from __future__ import annotations

import dataclasses

import pytest

from adyton.errors import ConfigurationError
from adyton.host.image.apt import PACKAGES
from adyton.host.image.architecture import ARCHITECTURES
from adyton.host.image.cache import Cache
from adyton.host.image.lock import MAX_BYTES, ImageLock, LockedPackage, parse_image_lock
from adyton.host.image.locking import choose_lock, locked_packages

X86 = ARCHITECTURES["x86_64"]
KERNEL = "linux-image-6.12.1+deb12-cloud-amd64"


def package(name: str, **changes: object) -> LockedPackage:
    made = LockedPackage(name=name, version="1:2.36-9+deb12u1~x", sha256="ab" * 32, size=1234)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


LOCK = ImageLock(packages={"x86_64": tuple(sorted(package(name) for name in (*PACKAGES, KERNEL)))})
TEXT = LOCK.encode().decode()


def test_a_lock_is_read_as_it_was_written() -> None:
    assert parse_image_lock(LOCK.encode()) == LOCK


def test_equal_locks_are_equal_bytes_whatever_order_they_were_made_in() -> None:
    one = ImageLock(packages={"x86_64": (package("a1"), package("b1")), "aarch64": (package("c1"),)})
    other = ImageLock(packages={"aarch64": (package("c1"),), "x86_64": (package("b1"), package("a1"))})
    assert one.encode() == other.encode()


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("version = 1\n", "version = 2\n", "version 1"),
        ("version = 1\n", "", "version 1"),
        ("version = 1\n", "version = 1\nmirror = 'x'\n", "unknown key 'mirror'"),
        ("version = 1\n", "version = 1\naarch64 = []\n", "'aarch64' should be 1 to"),
        ("version = 1\n", "version = 1\naarch64 = 'x'\n", "'aarch64' should be 1 to"),
        ("version = 1\n", "version = 1\n[[riscv64]]\n", "unknown key 'riscv64'"),
        ('name = "libc6"\n', 'name = "libc6"\nurl = "x"\n', "and nothing else"),
        ('name = "libc6"\n', "", "and nothing else"),
        ('name = "libc6"\n', "name = 6\n", "'name' that is none"),
        ('name = "libc6"\n', 'name = "../libc6"\n', "'name' that is none"),
        ('name = "libc6"\n', 'name = "-libc6"\n', "'name' that is none"),
        ('name = "libc6"\n', 'name = "libexpat1"\n', "names a package twice"),
        ('version = "1:2.36-9+deb12u1~x"\n', 'version = "1 -o x"\n', "'version' that is none"),
        ("abab", "ABAB", "'sha256' that is none"),
        ("size = 1234\n", "size = 0\n", "'size' that is none"),
        ("size = 1234\n", "size = true\n", "'size' that is none"),
        ("size = 1234\n", "size = 999999999\n", "'size' that is none"),
        ("size = 1234\n", "size = 1234 5\n", "not TOML"),
    ],
)
def test_what_a_lock_does_not_say_is_refused_with_the_command_that_mends_it(old: str, new: str, why: str) -> None:
    assert old in TEXT
    with pytest.raises(ConfigurationError, match=why) as problem:
        parse_image_lock(TEXT.replace(old, new, 1).encode())
    assert "--relock" in problem.value.mend


@pytest.mark.parametrize(
    "data", [b"\xff", b"#" * (MAX_BYTES + 1), b"a" + b".a" * 5000 + b" = 1", b"a = " + b"[" * 9000]
)
def test_what_is_no_lock_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigurationError, match=r"image\.lock"):
        parse_image_lock(data)


def test_a_whole_lock_has_what_an_image_is_made_of() -> None:
    assert locked_packages(LOCK, X86) == LOCK.packages["x86_64"]


def test_a_lock_that_lacks_a_package_or_has_another_is_refused() -> None:
    def changed(*, without: str = "", with_: tuple[str, ...] = ()) -> ImageLock:
        kept = tuple(each for each in LOCK.packages["x86_64"] if each.name != without)
        return ImageLock(packages={"x86_64": (*kept, *map(package, with_))})

    for lock, why in (
        (changed(without="libssl3"), "lacks libssl3"),
        (changed(without=KERNEL), "one kernel"),
        (changed(with_=("linux-image-6.1",)), "one kernel"),
        (changed(with_=("netcat",)), "netcat, which no image needs"),
    ):
        with pytest.raises(ConfigurationError, match=why):
            locked_packages(lock, X86)
    with pytest.raises(ConfigurationError, match="no packages for aarch64") as problem:
        locked_packages(LOCK, ARCHITECTURES["aarch64"])
    assert "--relock" in problem.value.mend


def test_the_bundles_own_lock_comes_before_the_machines(tmp_path: object) -> None:
    def silent(_: str) -> None:
        raise AssertionError("nothing is fetched")

    cache = Cache(tmp_path)  # type: ignore[arg-type]
    assert choose_lock({"image.lock": LOCK.encode()}, [X86], cache, silent) == LOCK
    with pytest.raises(ConfigurationError):
        choose_lock({"image.lock": b"odd"}, [X86], cache, silent)
