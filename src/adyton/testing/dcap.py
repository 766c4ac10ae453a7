"""SGX and TDX quotes of a fake Intel, with collateral: genuine by default, and wrong where a recipe says so.

vendor = DcapVendor()
case = vendor.case("tdx", QuoteRecipe(version=5, body_type=4))
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from adyton.tee._dcap_collateral import TeeName
from adyton.tee._x509 import certificate_sha256
from adyton.tee.evidence import Endorsement, EndorsementKind, Evidence
from adyton.testing.dcap_collateral import (
    QE_ISV_SVN,
    QE_MRSIGNER,
    TEE_TCB_SVN,
    CollateralRecipe,
    collateral,
)
from adyton.testing.dcap_pki import PkiRecipe, pki, raw_public_key, sign_raw
from adyton.testing.forgery import Case

Edit = Callable[[bytes], bytes]

QE_VENDOR_ID: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
REPORT_DATA: Final = bytes(range(64))
SEPT_VE_DISABLE: Final = 1 << 28
GENUINE_PKI: Final = PkiRecipe()


def unchanged(data: bytes) -> bytes:
    """The edit that does nothing."""
    return data


def overwrite(start: int, new: bytes) -> Edit:
    """The edit that puts `new` where it says."""
    return lambda data: data[:start] + new + data[start + len(new) :]


def sgx_body() -> bytes:
    """A genuine SGX report body (384 bytes), whose fields all differ."""
    body = bytearray(384)
    body[0:16] = bytes((3, 3, 25, 27, 4, 255, 0, 6)) + bytes(8)
    body[16:20] = (1).to_bytes(4, "little")
    body[32:48] = b"\x21" * 16
    body[48:56] = (0x85).to_bytes(8, "little")
    body[56:64] = (0xE7).to_bytes(8, "little")
    body[64:96] = b"\x22" * 32
    body[128:160] = b"\x23" * 32
    body[192:256] = b"\x24" * 64
    body[256:262] = b"\x05\0\x06\0\x07\0"
    body[304:320] = b"\x25" * 16
    body[320:384] = REPORT_DATA
    return bytes(body)


def td_body(body_type: int) -> bytes:
    """A genuine TD report body of type 2, 3 or 4, whose fields all differ."""
    parts = [
        TEE_TCB_SVN,
        b"\x31" * 48,
        bytes(48 + 8),
        SEPT_VE_DISABLE.to_bytes(8, "little"),
        (0x618E7).to_bytes(8, "little"),
        *(bytes([0x32 + i]) * 48 for i in range(8)),
        REPORT_DATA,
    ]
    if body_type >= 3:
        parts += [TEE_TCB_SVN, bytes(48)]
    if body_type >= 4:
        sizes = (1, 32, 48, 48, 8, 16, 16, 12, 48, 8)
        parts += [bytes([0x41 + i]) * size for i, size in enumerate(sizes)]
    return b"".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteRecipe:
    """How to make a quote; its edits are done in this order. Body and QE report are signed as they were edited.

    `version` is by default 3 of SGX and 4 of TDX; `body_type` counts in version 5 of TDX only.
    """

    version: int | None = None
    body_type: int = 2
    edit_body: Edit = unchanged
    edit_signed_part: Edit = unchanged
    auth_data: bytes = bytes(range(32))
    edit_qe_report: Edit = unchanged
    pck_data_type: int = 5
    edit_pck_data: Edit = unchanged
    edit_certification: Edit = unchanged
    edit_signature_data: Edit = unchanged
    edit: Edit = unchanged


@dataclass(frozen=True, slots=True, kw_only=True)
class DcapVendor:
    """A fake Intel and one platform, with the quoting enclave that makes its quotes."""

    recipe: PkiRecipe = GENUINE_PKI
    attestation_key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1()), compare=False
    )

    def case(
        self,
        tee: TeeName,
        quote: QuoteRecipe | None = None,
        *collaterals: CollateralRecipe,
        endorsements: Sequence[Endorsement] = (),
    ) -> Case:
        """A quote with a collateral for each recipe, of which there is one if none is given."""
        made = [self.collateral(tee, recipe) for recipe in collaterals or (CollateralRecipe(),)]
        evidence = Evidence(tee=tee, data=self.quote(tee, quote), endorsements=(*made, *endorsements))
        return Case(evidence=evidence, anchors=frozenset({self.anchor}))

    @property
    def anchor(self) -> bytes:
        """SHA-256 of the root."""
        return certificate_sha256(pki(self.recipe).root.certificate)

    def collateral(self, tee: TeeName, recipe: CollateralRecipe | None = None) -> Endorsement:
        """Collateral by the recipe; genuine if there is none."""
        fields = collateral(tee, pki(self.recipe), recipe or CollateralRecipe())
        return Endorsement(kind=EndorsementKind.DCAP_COLLATERAL, data=json.dumps(fields).encode())

    def quote(self, tee: TeeName, recipe: QuoteRecipe | None = None) -> bytes:
        """A quote by the recipe; genuine if there is none."""
        recipe = recipe or QuoteRecipe()
        version = recipe.version or (3 if tee == "sgx" else 4)
        signed = recipe.edit_signed_part(_signed_part(tee, version, recipe))
        head = sign_raw(self.attestation_key, signed) + raw_public_key(self.attestation_key)
        certification = recipe.edit_certification(self._certification(tee, recipe))
        if version > 3:
            certification = (6).to_bytes(2, "little") + _prefixed(4, certification)
        data = recipe.edit_signature_data(head + certification)
        return recipe.edit(signed + _prefixed(4, data))

    def _certification(self, tee: TeeName, recipe: QuoteRecipe) -> bytes:
        """The QE report with its signature, its auth data, and the PCK chain or what names it."""
        report = recipe.edit_qe_report(self._qe_report(tee, recipe.auth_data))
        data = recipe.edit_pck_data(pki(self.recipe).pck_chain.encode() + b"\0")
        return (
            report
            + sign_raw(pki(self.recipe).pck.key, report)
            + _prefixed(2, recipe.auth_data)
            + recipe.pck_data_type.to_bytes(2, "little")
            + _prefixed(4, data)
        )

    def _qe_report(self, tee: TeeName, auth_data: bytes) -> bytes:
        report = bytearray(384)
        report[48] = 0x15
        report[56] = 0xE7
        report[64:96] = b"\x51" * 32
        report[128:160] = QE_MRSIGNER
        report[256:260] = bytes((1 if tee == "sgx" else 2, 0, QE_ISV_SVN, 0))
        report[320:352] = hashlib.sha256(raw_public_key(self.attestation_key) + auth_data).digest()
        return bytes(report)


def _signed_part(tee: TeeName, version: int, recipe: QuoteRecipe) -> bytes:
    tee_type = 0 if tee == "sgx" else 0x81
    header = version.to_bytes(2, "little") + b"\x02\0" + tee_type.to_bytes(4, "little") + b"\x09\0\x0d\0"
    body = recipe.edit_body(sgx_body() if tee == "sgx" else td_body(recipe.body_type if version > 4 else 2))
    descriptor = b""
    if version > 4:
        body_type = 1 if tee == "sgx" else recipe.body_type
        descriptor = body_type.to_bytes(2, "little") + len(body).to_bytes(4, "little")
    return header + QE_VENDOR_ID + bytes(range(20)) + descriptor + body


def _prefixed(size: int, content: bytes) -> bytes:
    return len(content).to_bytes(size, "little") + content
