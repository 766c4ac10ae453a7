"""The part of an image that is the bundle's: its files as they are, and their bytecode. Of no architecture."""

from __future__ import annotations

from collections.abc import Mapping

from adyton.host.image.bytecode import Compiler
from adyton.host.image.cpio import encode_cpio
from adyton.host.image.system import BUNDLE
from adyton.host.image.tree import File


def encode_application(bundle: Mapping[str, bytes], compiler: Compiler) -> bytes:
    """The archive. `bundle`: path → content, as in the bundle."""
    files = {f"{BUNDLE}/{path}": File(content=content) for path, content in bundle.items()}
    sources = {path: file for path, file in files.items() if path.endswith(".py")}
    return encode_cpio(files | compiler.compile(sources, beside=False))
