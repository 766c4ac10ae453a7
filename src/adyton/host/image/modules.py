"""The kernel, and the few modules of it that a guest may need, with their order of loading."""

from __future__ import annotations

import lzma
from collections.abc import Iterator

from adyton.errors import ConfigurationError
from adyton.host.image.elf import parse_elf
from adyton.host.image.tree import File, Tree

FOLDER = "lib/modules/adyton"
"""Where modules lie in the image, NAME.ko, beside `order`: lines `name: dependency …`, each after what it needs."""

#: What is not built into Debian's cloud kernel. Some exist on one architecture only.
_WANTED = (
    "nsm",  # Nitro's evidence
    "sev_guest",  # SEV-SNP's
    "tdx_guest",  # TDX's
    "tpm_tis",  # a TPM's, on AArch64
    "tsm",  # the folder of the kernel through which both are asked, and Arm CCA
    "virtio_blk",  # the disk of a state folder
    "virtio_net",
    "virtio_rng",
    "vmw_vsock_virtio_transport",  # Nitro's only way out
)
_SUFFIX = ".ko.xz"
_BOOT = "boot/vmlinuz-"
_MOST_BYTES = 16 * 1024 * 1024


def is_wanted(path: str) -> bool:
    """Whether a file of the kernel's package is looked at."""
    return path.startswith(_BOOT) or path.endswith(_SUFFIX)


def find_kernel(package: Tree) -> tuple[str, bytes]:
    """The kernel's version and its image, of its package's files. Raises ConfigurationError if there is not one."""
    found = [(path.removeprefix(_BOOT), entry) for path, entry in package.items() if path.startswith(_BOOT)]
    if len(found) != 1 or not isinstance(found[0][1], File):
        raise ConfigurationError("the kernel's package has no kernel, or several")
    return found[0][0], found[0][1].content


def select_modules(package: Tree) -> dict[str, File]:
    """The modules, decompressed (their signatures stay valid), and the file of their order."""
    compressed = {
        path.rpartition("/")[2].removesuffix(_SUFFIX).replace("-", "_"): entry.content
        for path, entry in package.items()
        if path.endswith(_SUFFIX) and isinstance(entry, File)
    }
    modules: dict[str, tuple[bytes, tuple[str, ...]]] = {}
    for name in _WANTED:
        if name in compressed:
            _collect(name, compressed, modules)
    order = "".join(f"{name}: {' '.join(_before(name, modules))}".rstrip() + "\n" for name in modules)
    files = {f"{FOLDER}/{name}.ko": File(content=content) for name, (content, _) in modules.items()}
    return files | {f"{FOLDER}/order": File(content=order.encode())}


def _collect(
    name: str,
    compressed: dict[str, bytes],
    into: dict[str, tuple[bytes, tuple[str, ...]]],
    dependents: tuple[str, ...] = (),
) -> None:
    """Add a module after those that it depends on. `dependents`: those for which it is added."""
    if name in into:
        return
    if name in dependents:
        raise ConfigurationError(f"the kernel's module {name} depends on itself")
    if name not in compressed:
        raise ConfigurationError(f"the kernel's package lacks {name}, on which another of its modules depends")
    content = _decompress(name, compressed[name])
    depends = parse_elf(content, name).module_facts().get("depends", "")
    dependencies = tuple(each.replace("-", "_") for each in depends.split(",") if each)
    for each in dependencies:
        _collect(each, compressed, into, (*dependents, name))
    into[name] = (content, dependencies)


def _before(name: str, modules: dict[str, tuple[bytes, tuple[str, ...]]]) -> Iterator[str]:
    """What is loaded before a module, in that order, without repeats."""
    seen: dict[str, None] = {}
    for each in modules[name][1]:
        seen |= dict.fromkeys((*_before(each, modules), each))
    return iter(seen)


def _decompress(name: str, data: bytes) -> bytes:
    try:
        content = lzma.LZMADecompressor().decompress(data, _MOST_BYTES)
    except lzma.LZMAError as problem:
        raise ConfigurationError(f"the kernel's module {name} can't be decompressed") from problem
    if len(content) == _MOST_BYTES:
        raise ConfigurationError(f"the kernel's module {name} is larger than {_MOST_BYTES} bytes")
    return content
