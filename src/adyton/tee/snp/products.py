"""What differs from one AMD product to the next: its CPUID, its chip's identifier, and how it writes a TCB version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from adyton.errors import EvidenceError

ProductName = Literal["Milan", "Genoa", "Turin"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tcb:
    """A TCB version: the security version, 0 to 255, of each part of the firmware (ABI, section 2.2).

    Only Turin has an `fmc`.
    """

    fmc: int | None = None
    bootloader: int
    tee: int
    snp: int
    microcode: int

    @property
    def parts(self) -> dict[str, int]:
        """Those that the product has, by name."""
        named = {"fmc": self.fmc, "bootloader": self.bootloader, "tee": self.tee, "snp": self.snp}
        return {name: part for name, part in named.items() if part is not None} | {"microcode": self.microcode}

    def __str__(self) -> str:
        return " ".join(f"{name} {part}" for name, part in self.parts.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A product that signs reports; each has a root of its own.

    `models` are the CPUID models of its family. `tcb_bytes` says, of each of the 8 bytes of a TCB version, which part
    it is (None: reserved) and in which certificate extension 1.3.6.1.4.1.3704.1.3.x the same number stands.
    `struct_version` is the certificates' own name for that layout; `hwid_bytes` is the length of the chip's identifier.
    """

    name: ProductName
    family: int
    models: tuple[range, ...]
    struct_version: int
    hwid_bytes: int
    tcb_bytes: tuple[tuple[str | None, int], ...]

    def tcb(self, version: bytes, what: str) -> Tcb:
        """The TCB version in these 8 bytes; reserved ones that are not zero are refused."""
        parts: dict[str, int] = {}
        for value, (part, _) in zip(version, self.tcb_bytes, strict=True):
            if part is not None:
                parts[part] = value
            elif value:
                raise EvidenceError(f"the {what} TCB {version.hex()} has reserved bytes that are not zero")
        return Tcb(**parts)

    def has_cpu(self, family: int, model: int) -> bool:
        """Whether a CPU of that CPUID family and model (both with their extended parts) is of this product."""
        return family == self.family and any(model in models for models in self.models)


_FAMILY_19H: Final = (
    ("bootloader", 1),
    ("tee", 2),
    (None, 4),
    (None, 5),
    (None, 6),
    (None, 7),
    ("snp", 3),
    ("microcode", 8),
)
_FAMILY_1AH: Final = (
    ("fmc", 9),
    ("bootloader", 1),
    ("tee", 2),
    ("snp", 3),
    (None, 5),
    (None, 6),
    (None, 7),
    ("microcode", 8),
)

PRODUCTS: Final[Mapping[str, Product]] = MappingProxyType(
    {
        product.name: product
        for product in (
            Product(
                name="Milan",
                family=0x19,
                models=(range(0x10),),
                struct_version=0,
                hwid_bytes=64,
                tcb_bytes=_FAMILY_19H,
            ),
            Product(
                name="Genoa",
                family=0x19,
                models=(range(0x10, 0x20), range(0xA0, 0xB0)),  # Bergamo and Siena are 0xA0 to 0xAF
                struct_version=0,
                hwid_bytes=64,
                tcb_bytes=_FAMILY_19H,
            ),
            Product(
                name="Turin",
                family=0x1A,
                models=(range(0x20),),
                struct_version=1,
                hwid_bytes=8,
                tcb_bytes=_FAMILY_1AH,
            ),
        )
    }
)
"""All that are known, by the name that AMD's certificates have for them."""
