"""A fake AMD: reports of chips that do not exist, with the certificates that make them genuine.

A recipe's defaults are genuine; what differs from them is what is wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from adyton.tee.evidence import Endorsement, EndorsementKind, Evidence
from adyton.tee.snp.format import Signer
from adyton.tee.snp.products import ProductName
from adyton.testing import snp_pki as pki
from adyton.testing.forgery import Case
from adyton.testing.snp_pki import CertificateRecipe, CrlRecipe, Edit, unchanged

Change = Callable[[CertificateRecipe], CertificateRecipe]
Stapled = tuple[Endorsement, ...]

CPUID: Final[Mapping[ProductName, bytes]] = {
    "Milan": bytes((0x19, 0x01, 1)),
    "Genoa": bytes((0x19, 0x11, 1)),
    "Turin": bytes((0x1A, 0x02, 1)),
}
"""Family, model, stepping."""


def same(made: Any) -> Any:
    """The change that changes nothing."""
    return made


def put(offset: int, new: bytes) -> Edit:
    """Overwrite what is there."""
    return lambda data: data[:offset] + new + data[offset + len(new) :]


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpRecipe:
    """How to make a case.

    `report` is done to the report before it is signed, `edit` afterwards, and `stapled` to the endorsements (leaf, ASK,
    ARK, CRLs) at the end. The leaf is for `leaf_key`, which signs the report.
    """

    version: int = 5
    signer: Signer = "VCEK"
    report: Edit = unchanged
    edit: Edit = unchanged
    leaf_key: Callable[[], ec.EllipticCurvePrivateKey] = pki.leaf_key
    ark: Change = same
    ask: Change = same
    leaf: Change = same
    crls: tuple[CrlRecipe, ...] = ()
    stapled: Callable[[Stapled], Stapled] = same


class SnpVendor:
    """A fake AMD, and a chip of one of its products."""

    def __init__(self, product: ProductName = "Genoa") -> None:
        self.product = product

    def case(self, recipe: SnpRecipe | None = None) -> Case:
        """A case made by the recipe; genuine if there is none."""
        recipe = recipe or SnpRecipe()
        key = recipe.leaf_key()
        ark = pki.certificate(recipe.ark(pki.ark(self.product)))
        ask = pki.certificate(recipe.ask(pki.ask(self.product, recipe.signer)))
        leaf = pki.certificate(recipe.leaf(replace(pki.leaf(self.product, recipe.signer), key=key)))
        stapled = [certificate(der) for der in (leaf, ask, ark)]
        stapled += [crl(pki.crl(each, self.product)) for each in recipe.crls]
        signed = recipe.report(self.signed_part(recipe.version, recipe.signer))
        data = recipe.edit(signed + signature(key, signed))
        return Case(
            evidence=Evidence(tee="snp", data=data, endorsements=recipe.stapled(tuple(stapled))),
            anchors=frozenset({hashlib.sha256(ark).digest()}),
        )

    def signed_part(self, version: int, signer: Signer) -> bytes:
        """A report but for its signature; bytes whose value is free are the lower half of their offset."""
        tcb = bytes(pki.TCB_LEVELS[self.product].values())
        part = bytes(0x2A0)
        for offset, field in (
            (0x00, version.to_bytes(4, "little") + (7).to_bytes(4, "little")),
            (0x08, bytes((31, 1, 0b11))),
            (0x10, bytes(range(0x10, 0x30))),
            (0x30, bytes(4) + b"\x01"),
            (0x38, _raised(tcb, 3) + b"\x25"),
            (0x48, b"\x01" if signer == "VCEK" else b"\x04"),
            (0x50, bytes(offset & 0xFF for offset in range(0x50, 0x180))),
            (0x180, tcb + (CPUID[self.product] if version >= 3 else b"")),
            (0x1A0, self._chip_id() if signer == "VCEK" else b""),
            (0x1E0, _raised(tcb, 2) + bytes((29, 55, 1, 0, 28, 54, 1, 0)) + _raised(tcb, 1)),
            (0x1F8, bytes((3, *bytes(7), 7)) if version >= 5 else b""),
        ):
            part = put(offset, field)(part)
        return part

    def _chip_id(self) -> bytes:
        return pki.HWID[:8] if self.product == "Turin" else pki.HWID


def _raised(tcb: bytes, by: int) -> bytes:
    """The TCB version with a higher microcode."""
    return tcb[:7] + bytes([tcb[7] + by])


def signature(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """The signature as it stands in a report, 512 bytes."""
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA384())))
    return (r.to_bytes(72, "little") + s.to_bytes(72, "little")).ljust(512, b"\0")


def certificate(der: bytes) -> Endorsement:
    """Those bytes, stapled as a certificate."""
    return Endorsement(kind=EndorsementKind.CERTIFICATE, data=der)


def crl(der: bytes) -> Endorsement:
    """Those bytes, stapled as a CRL."""
    return Endorsement(kind=EndorsementKind.CRL, data=der)
