"""The two architectures that an image is built for, and what Debian, ELF and the wheels call them."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from adyton.errors import UnsupportedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One architecture by its names. `elf_machine` is e_machine of its objects."""

    name: str
    debian: str
    elf_machine: int

    @property
    def library_folders(self) -> tuple[str, ...]:
        """Where the dynamic loader looks for libraries without being told, and Debian puts them."""
        return f"lib/{self.name}-linux-gnu", f"usr/lib/{self.name}-linux-gnu"

    @property
    def kernel(self) -> str:
        """The package that depends on the kernel of an image, whichever revision it is now."""
        return f"linux-image-6.12-cloud-{self.debian}"


ARCHITECTURES = {
    each.name: each
    for each in (
        Architecture(name="aarch64", debian="arm64", elf_machine=183),
        Architecture(name="x86_64", debian="amd64", elf_machine=62),
    )
}


def find_architecture(name: str) -> Architecture:
    """The architecture of that name, which is the kernel's for it. Raises UnsupportedError."""
    if name not in ARCHITECTURES:
        raise UnsupportedError(f"no image is built for {name!r}", mend=f"known: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def host_architecture() -> Architecture:
    """The one of this machine. Raises UnsupportedError."""
    return find_architecture(platform.machine())
