"""What a VCEK or VLEK certificate says of its key, in extensions 1.3.6.1.4.1.3704.1.x (KDS, tables 8 and 11).

A VCEK is derived from one chip's secret and a TCB version; a VLEK from a secret that AMD gives to a cloud provider, who
loads it into all of its chips, and a TCB version.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography import x509

from adyton.errors import EvidenceError
from adyton.tee.snp.format import SnpReport
from adyton.tee.snp.products import Product

_ARC: Final = "1.3.6.1.4.1.3704.1"
_STRUCT_VERSION: Final = f"{_ARC}.1"
_PRODUCT_NAME: Final = f"{_ARC}.2"
_LEVELS: Final = {number: f"{_ARC}.3.{number}" for number in range(1, 10)}
_HWID: Final = f"{_ARC}.4"
_CSP_ID: Final = f"{_ARC}.5"

_DER_BYTES: Final = {bytes((2, 1, value) if value < 0x80 else (2, 2, 0, value)): value for value in range(0x100)}
"""The DER INTEGERs from 0 to 255; no other encoding counts."""
_IA5_STRING: Final = 0x16
_CHIP_ID_BYTES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """The extensions; of those that are not there, the name is empty and the others are None.

    `product_name` is a product's, perhaps with a stepping: "Genoa" or "Genoa-B1". `levels` are the numbers in a TCB
    version, by the last arc of their extension. `hwid` is a chip's, in a VCEK; `csp_id` a cloud provider's, in a VLEK.
    """

    product_name: str
    struct_version: int | None
    levels: dict[int, int]
    hwid: bytes | None
    csp_id: str | None


def parse_leaf(certificate: x509.Certificate) -> Leaf:
    """Read the extensions. All are DER but the hardware ID, which is the bytes alone."""
    found = {
        extension.oid.dotted_string: extension.value.value
        for extension in certificate.extensions
        if isinstance(extension.value, x509.UnrecognizedExtension)
    }
    return Leaf(
        product_name=_text(found[_PRODUCT_NAME], "product name") if _PRODUCT_NAME in found else "",
        struct_version=_byte(found[_STRUCT_VERSION], "structure version") if _STRUCT_VERSION in found else None,
        levels={number: _byte(found[oid], "patch level") for number, oid in _LEVELS.items() if oid in found},
        hwid=found.get(_HWID),
        csp_id=_text(found[_CSP_ID], "provider") if _CSP_ID in found else None,
    )


def _byte(der: bytes, what: str) -> int:
    if der not in _DER_BYTES:
        raise EvidenceError(f"the leaf's {what} is {der[:16].hex()}, no DER INTEGER from 0 to 255")
    return _DER_BYTES[der]


def _text(der: bytes, what: str) -> str:
    text = der[2:]
    if len(text) > 0x7F or der[:2] != bytes((_IA5_STRING, len(text))):
        raise EvidenceError(f"the leaf's {what} is {der[:16].hex()}, no short DER IA5String")
    if not text.isascii() or not text.decode().isprintable():
        raise EvidenceError(f"the leaf's {what} is {text[:16].hex()}, which can't be printed")
    return text.decode()


def check_tcb(leaf: Leaf, report: SnpReport, product: Product) -> None:
    """Refuse a leaf that is not for the report's TCB version, and in the product's layout."""
    if leaf.struct_version != product.struct_version:
        wanted = f"{product.name} has {product.struct_version}"
        raise EvidenceError(f"the {report.signer} has the structure version {leaf.struct_version}; {wanted}")
    levels = [leaf.levels.get(number) for _, number in product.tcb_bytes]
    if levels != list(report.reported_tcb):
        got = ", ".join(map(str, levels))
        wanted = ", ".join(map(str, report.reported_tcb))
        raise EvidenceError(f"the {report.signer} is for another TCB than the report's: {got}, not {wanted}")


def check_owner(leaf: Leaf, report: SnpReport, product: Product) -> None:
    """Refuse a VCEK of another chip than the report's, and a VLEK of no cloud provider."""
    if report.signer == "VCEK":
        _check_chip(leaf, report, product)
        return
    if leaf.csp_id is None:
        raise EvidenceError("the VLEK is of no cloud provider")
    if leaf.hwid is not None:
        raise EvidenceError(f"the VLEK is of a chip, {leaf.hwid[:8].hex()}…")


def _check_chip(leaf: Leaf, report: SnpReport, product: Product) -> None:
    if report.mask_chip_key:  # the firmware then writes zeros where the signature would be (ABI, section 7.3)
        raise EvidenceError("the SNP report says that it is not signed with a VCEK (MASK_CHIP_KEY), and is")
    if leaf.csp_id is not None:
        raise EvidenceError(f"the VCEK is of a cloud provider, {leaf.csp_id[:64]!r}")
    if leaf.hwid is None or len(leaf.hwid) != product.hwid_bytes:
        raise EvidenceError(f"the VCEK has no hardware ID of {product.hwid_bytes} bytes, as {product.name} has")
    if not any(report.chip_id):
        raise EvidenceError(
            "the SNP report does not say which chip signed it: its chip_id is zero",
            mend="have the host unset MASK_CHIP_ID, or use a VLEK",
        )
    if leaf.hwid.ljust(_CHIP_ID_BYTES, b"\0") != report.chip_id:
        got, wanted = leaf.hwid[:8].hex(), report.chip_id[:8].hex()
        raise EvidenceError(f"the VCEK is of another chip than the report: {got}…, not {wanted}…")
