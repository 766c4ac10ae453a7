"""The part of an image that many bundles share: interpreter, libraries, wheels, kernel modules, the first program."""

from __future__ import annotations

from collections.abc import Iterable

from adyton.host.image.architecture import Architecture
from adyton.host.image.bytecode import Compiler
from adyton.host.image.cpio import encode_cpio
from adyton.host.image.elf import MAGIC, trim_elf
from adyton.host.image.modules import select_modules
from adyton.host.image.selection import SITE_PACKAGES, select_libraries, select_standard_library, select_wheel
from adyton.host.image.tree import File, Files, Tree

BUNDLE = "enclave/bundle"
"""Where the application's part has the bundle."""

#: The kernel hands all that follows the interpreter over as one argument. -I: no environment, no user's folders; -S: no
#: site; -B: writes no bytecode; -X utf8. What the standard library has comes first, so that nothing can hide it. Of the
#: bundle the runtime only: this is root, and the application is not.
_INIT = f"""\
#!/usr/bin/python3.11 -ISBXutf8
import sys
import time

began = time.clock_gettime(time.CLOCK_BOOTTIME)
sys.path += ["/{BUNDLE}/runtime", "/{SITE_PACKAGES}"]

from adyton.enclave.guest import pid1

pid1.main(began)
"""
_EMPTY_FOLDERS = ("dev", "enclave/data", "proc", "run", "sys", "tmp")


def encode_system(
    packages: Tree, kernel: Tree, wheels: Iterable[Files], architecture: Architecture, compiler: Compiler
) -> bytes:
    """The archive. `packages`: the files of all packages but the kernel's; `kernel`: those; `wheels`: each one's."""
    files = select_standard_library(packages)
    for wheel in wheels:
        files |= select_wheel(wheel)
    files |= select_libraries(files, packages, architecture)
    files = _trimmed(_without_sources(files, compiler))
    files |= select_modules(kernel)
    files["init"] = File(content=_INIT.encode(), executable=True)
    return encode_cpio(files, folders=_EMPTY_FOLDERS)


def _without_sources(files: Files, compiler: Compiler) -> dict[str, File]:
    """`files` with bytecode in place of each module that compiles.

    Only of the standard library it is without docstrings and assertions: there nobody counts on them.
    """
    sources = {path: file for path, file in files.items() if path.endswith(".py")}
    wheels = {path: file for path, file in sources.items() if path.startswith(f"{SITE_PACKAGES}/")}
    library = {path: file for path, file in sources.items() if path not in wheels}
    bytecode = compiler.compile(wheels, beside=True) | compiler.compile(library, beside=True, optimised=True)
    return {path: file for path, file in files.items() if f"{path}c" not in bytecode} | bytecode


def _trimmed(files: Files) -> dict[str, File]:
    """`files` with the wheels' objects cut to what the loader reads. Debian's are so already."""
    return {
        path: File(content=trim_elf(file.content, path)) if _is_wheels_object(path, file) else file
        for path, file in files.items()
    }


def _is_wheels_object(path: str, file: File) -> bool:
    return path.startswith(f"{SITE_PACKAGES}/") and file.content.startswith(MAGIC)
