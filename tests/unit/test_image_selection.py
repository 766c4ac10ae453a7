"""What goes into an image: no more than runs, and every library that it needs."""

from __future__ import annotations

import lzma

import pytest
from image_pieces import make_elf, make_object

from adyton.errors import ConfigurationError
from adyton.host.image.architecture import ARCHITECTURES
from adyton.host.image.modules import find_kernel, is_wanted, select_modules
from adyton.host.image.selection import select_libraries, select_standard_library, select_wheel
from adyton.host.image.tree import File, Link, Tree

X86 = ARCHITECTURES["x86_64"]
LIBC = File(content=make_object(interpreter="/lib64/ld-linux-x86-64.so.2"))
LOADER = File(content=make_object(), executable=True)
PACKAGES: Tree = {
    "lib64/ld-linux-x86-64.so.2": Link(target="/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"),
    "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2": LOADER,
    "lib/x86_64-linux-gnu/libc.so.6": LIBC,
    "usr/lib/x86_64-linux-gnu/libssl.so.3": Link(target="libssl.so.3.0"),
    "usr/lib/x86_64-linux-gnu/libssl.so.3.0": File(content=make_object("libcrypto.so.3", "libc.so.6")),
    "usr/lib/x86_64-linux-gnu/libcrypto.so.3": File(content=make_object("libc.so.6")),
    "usr/lib/x86_64-linux-gnu/libneedless.so.1": File(content=make_object("libc.so.6")),
}


def test_libraries_come_with_all_that_they_need_and_nothing_else() -> None:
    objects = {"usr/bin/python": File(content=make_object("libssl.so.3")), "text": File(content=b"libneedless.so.1")}
    found = select_libraries(objects, PACKAGES, X86)
    assert set(found) == {
        "usr/lib/x86_64-linux-gnu/libssl.so.3",
        "usr/lib/x86_64-linux-gnu/libcrypto.so.3",
        "lib/x86_64-linux-gnu/libc.so.6",
        "lib64/ld-linux-x86-64.so.2",
    }
    assert found["lib64/ld-linux-x86-64.so.2"] is LOADER  # the file itself, where the link was


def test_a_library_that_nobody_has_ends_the_build() -> None:
    objects = {"site-packages/odd.so": File(content=make_object("libX11.so.6"))}
    with pytest.raises(ConfigurationError, match=r"site-packages/odd\.so needs libX11\.so\.6"):
        select_libraries(objects, PACKAGES, X86)


def test_a_library_that_a_wheel_brings_along_is_there_already() -> None:
    objects = {
        "site-packages/odd.so": File(content=make_object("libblas-1234.so")),
        "site-packages/odd.libs/libblas-1234.so": File(content=make_object("libc.so.6")),
    }
    assert "lib/x86_64-linux-gnu/libc.so.6" in select_libraries(objects, PACKAGES, X86)


def test_an_object_of_another_machine_ends_the_build() -> None:
    objects = {"site-packages/odd.so": File(content=make_object("libc.so.6", machine=183))}
    with pytest.raises(ConfigurationError, match="another machine than x86_64"):
        select_libraries(objects, PACKAGES, X86)


def test_the_standard_library_is_without_what_no_server_needs() -> None:
    library = "usr/lib/python3.11/"
    kept = ["os.py", "asyncio/events.py", "lib-dynload/_ssl.cpython-311-x86_64-linux-gnu.so", "sqlite3/dbapi2.py"]
    left = ["test/support.py", "tkinter/__init__.py", "lib-dynload/_testcapi.cpython-311-x86_64-linux-gnu.so"]
    left += ["pydoc_data/topics.py", "lib2to3/Grammar.txt", "LICENSE.txt"]
    tree: dict[str, File | Link] = {library + path: File(content=b"") for path in kept + left}
    tree |= {"usr/bin/python3.11": File(content=b"", executable=True), "usr/share/doc/x.py": File(content=b"")}
    tree |= {library + "sitecustomize.py": Link(target="/etc/python3.11/sitecustomize.py")}
    assert set(select_standard_library(tree)) == {"usr/bin/python3.11", *(library + path for path in kept)}


def test_what_the_interpreter_has_in_itself_is_not_there_twice_but_for_what_it_finds_its_library_by() -> None:
    kept = [
        "os.py",
        "importlib/__init__.py",
        "importlib/metadata/__init__.py",
        "email/policy.py",
        "logging/handlers.py",
    ]
    left = ["posixpath.py", "io.py", "site.py", "importlib/util.py", "importlib/_bootstrap.py"]
    tree = {f"usr/lib/python3.11/{path}": File(content=b"") for path in kept + left}
    assert set(select_standard_library(tree)) == {f"usr/lib/python3.11/{path}" for path in kept}


def test_encodings_of_text_that_comes_over_a_network_stay() -> None:
    kept = ["__init__", "aliases", "utf_8", "idna", "cp1252", "iso8859_1", "koi8_r", "cp437"]
    left = ["cp866", "cp037", "mac_roman", "big5", "mbcs"]
    tree = {f"usr/lib/python3.11/encodings/{name}.py": File(content=b"") for name in kept + left}
    assert set(select_standard_library(tree)) == {f"usr/lib/python3.11/encodings/{name}.py" for name in kept}


def test_a_wheel_is_without_what_is_for_compilers_and_installers() -> None:
    kept = ["a/__init__.py", "a/data.json", "a/native.so", "a-1.dist-info/METADATA", "a-1.dist-info/entry_points.txt"]
    left = ["a/__init__.pyi", "a/native.pyx", "a/native.h", "a-1.dist-info/RECORD", "a-1.dist-info/licenses/LICENSE"]
    found = select_wheel({path: File(content=b"") for path in kept + left})
    assert set(found) == {f"usr/lib/python3.11/site-packages/{path}" for path in kept}


def module(name: str, depends: str = "") -> tuple[str, File]:
    content = make_elf({".modinfo": f"name={name}\0depends={depends}\0".encode()})
    return f"lib/modules/6.12/kernel/x/{name}.ko.xz", File(content=lzma.compress(content))


def test_modules_are_decompressed_and_listed_after_what_they_need() -> None:
    package = dict(
        [
            module("sev-guest", "tsm,configfs"),
            module("tsm", "configfs"),
            module("configfs"),
            module("needless"),
            module("vmw_vsock_virtio_transport", "vmw_vsock_virtio_transport_common,vsock"),
            module("vmw_vsock_virtio_transport_common", "vsock"),
            module("vsock"),
        ]
    )
    files = select_modules(package)
    order = files["lib/modules/adyton/order"].content.decode().splitlines()
    assert order == [
        "configfs:",
        "tsm: configfs",
        "sev_guest: configfs tsm",
        "vsock:",
        "vmw_vsock_virtio_transport_common: vsock",
        "vmw_vsock_virtio_transport: vsock vmw_vsock_virtio_transport_common",
    ]
    assert set(files) == {f"lib/modules/adyton/{line.partition(':')[0]}.ko" for line in order} | {
        "lib/modules/adyton/order"
    }
    assert files["lib/modules/adyton/tsm.ko"].content.startswith(b"\x7fELF")


def test_a_module_that_lacks_another_ends_the_build() -> None:
    with pytest.raises(ConfigurationError, match="lacks configfs"):
        select_modules(dict([module("tsm", "configfs")]))


def test_a_module_that_can_not_be_decompressed_ends_the_build() -> None:
    with pytest.raises(ConfigurationError, match="tsm can't be decompressed"):
        select_modules({"x/tsm.ko.xz": File(content=b"odd")})


def test_modules_that_depend_on_each_other_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="tsm depends on itself"):
        select_modules(dict([module("tsm", "configfs"), module("configfs", "tsm")]))


def test_the_kernel_is_the_one_of_its_package() -> None:
    kernel = {"boot/vmlinuz-6.12-x": File(content=b"MZ")}
    assert find_kernel(kernel) == ("6.12-x", b"MZ")
    assert is_wanted("boot/vmlinuz-6.12-x")
    assert not is_wanted("boot/System.map-6.12-x")
    for odd in ({}, kernel | {"boot/vmlinuz-2": File(content=b"")}, {"boot/vmlinuz-2": Link(target="x")}):
        with pytest.raises(ConfigurationError, match="no kernel, or several"):
            find_kernel(odd)
