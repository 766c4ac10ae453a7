"""Debian's packages: what is read of them, and what no package of an image may hold."""

from __future__ import annotations

import tarfile

import pytest
from image_pieces import make_deb, member

from adyton.errors import ConfigurationError
from adyton.host.image import deb
from adyton.host.image.deb import read_deb
from adyton.host.image.tree import File, Link, Tree, find_file


@pytest.mark.parametrize("compression", ["xz", "gz", ""])
def test_files_and_links_are_read_whatever_they_are_compressed_with(compression: str) -> None:
    package = make_deb(
        [
            member("./usr/", kind=tarfile.DIRTYPE),
            member("./usr/bin/run", b"program", mode=0o755),
            member("./usr/lib/libx.so.1", kind=tarfile.SYMTYPE, link="libx.so.1.2"),
            member("./usr/lib/libx.so.1.2", b"library"),
        ],
        compression=compression,
    )
    assert read_deb(package, "x") == {
        "usr/bin/run": File(content=b"program", executable=True),
        "usr/lib/libx.so.1": Link(target="libx.so.1.2"),
        "usr/lib/libx.so.1.2": File(content=b"library"),
    }


def test_only_what_is_wanted_is_read() -> None:
    package = make_deb([member("./a", b"1"), member("./b", b"2")])
    assert read_deb(package, "x", lambda path: path == "b") == {"b": File(content=b"2")}


@pytest.mark.parametrize("path", ["../etc/passwd", "/etc/passwd", "./a/../../b", "a//b", "./a\nb"])
def test_a_path_that_leaves_the_root_is_refused(path: str) -> None:
    with pytest.raises(ConfigurationError, match=r"hostile has .* no path below its root"):
        read_deb(make_deb([member(path, b"x")]), "hostile")


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_hard_links_and_devices_are_refused_even_if_nobody_wants_them(kind: bytes) -> None:
    with pytest.raises(ConfigurationError, match="neither a file nor a symbolic link"):
        read_deb(make_deb([member("./dev/mem", kind=kind, link="etc/shadow")]), "hostile", lambda _: False)


def test_a_package_that_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deb, "MAX_BYTES", 10)
    assert read_deb(make_deb([member("./a", bytes(10))]), "x")
    with pytest.raises(ConfigurationError, match="more than 10 bytes"):
        read_deb(make_deb([member("./a", bytes(6)), member("./b", bytes(5))]), "x")


def test_a_package_that_is_cut_off_is_refused_wherever_it_is_cut() -> None:
    package = make_deb([member("./a", b"content" * 100)])
    for length in range(len(package) - 4):
        with pytest.raises(ConfigurationError):
            read_deb(package[:length], "cut")


@pytest.mark.parametrize("size", ["-60", "-1", "1_0", "0x1", "x", ""])
def test_a_member_of_no_size_is_refused(size: str) -> None:
    package = make_deb([member("./a", b"1")])
    for name in ("debian-binary", "data.tar.xz"):
        at = package.index(name.encode()) + 48
        with pytest.raises(ConfigurationError, match="a member of no size"):
            read_deb(package[:at] + f"{size:<10}".encode() + package[at + 10 :], "hostile")


@pytest.mark.parametrize(("form", "size"), [(tarfile.GNU_FORMAT, -512), (tarfile.PAX_FORMAT, -1536)])
def test_a_file_that_leads_back_to_itself_is_refused_though_nobody_wants_it(form: int, size: int) -> None:
    info, _ = member("./a")
    info.size = size
    package = make_deb([member("./b"), (info, b"")], compression="", form=form)
    with pytest.raises(ConfigurationError, match=r"overlaps another|can't be read"):
        read_deb(package, "hostile", lambda _: False)


def test_a_link_is_followed_inside_its_tree_only() -> None:
    library = File(content=b"x")
    tree: Tree = {
        "lib64/ld.so": Link(target="/lib/ld.so.2"),
        "lib/ld.so.2": Link(target="../usr/lib/ld"),
        "usr/lib/ld": library,
        "out": Link(target="../../../usr/lib/ld"),
        "gone": Link(target="nowhere"),
        "round": Link(target="round"),
    }
    assert find_file(tree, "lib64/ld.so") is library
    assert find_file(tree, "out") is library  # as below a root: there is nothing above it
    assert find_file(tree, "gone") is None
    assert find_file(tree, "round") is None
