"""Collateral of the fake Intel: TCB info and QE identity that its TCB signer signed, with chains and CRLs.

`Documents` are signed as they are when `collateral` is called: change them, and the signature is over the change.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import Encoding

from adyton.tee._dcap_collateral import TeeName
from adyton.testing.dcap_pki import DAYS, Authority, Dates, Pki, PlatformRecipe, pem, sign_raw

FieldsEdit = Callable[[dict[str, Any]], dict[str, Any]]

QE_MRSIGNER: Final = bytes.fromhex("8c" * 32)
QE_ISV_SVN: Final = 8
TDX_MODULE_SVN: Final = 6
OLD_TDX_MODULE_SVN: Final = 4
"""Out of date."""
TDX_MODULE_MAJOR: Final = 1
TEE_TCB_SVN: Final = bytes((TDX_MODULE_SVN, TDX_MODULE_MAJOR, 3)) + bytes(13)
"""Of a TD under this vendor's newest TDX module."""

_ADVISORY: Final = "INTEL-SA-00001"


def unchanged(document: dict[str, Any]) -> dict[str, Any]:
    """The edit that does nothing."""
    return document


def changed(**fields: Any) -> FieldsEdit:
    """The edit that sets these fields."""
    return lambda document: document | fields


def without(*names: str) -> FieldsEdit:
    """The edit that leaves these fields out."""
    return lambda document: {name: value for name, value in document.items() if name not in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class CollateralRecipe:
    """How to make collateral; its edits are done in this order, the first two before signing.

    `tcb_signer` and `qe_signer` say who signs, by default the PKI's TCB signer.
    """

    status: str = "UpToDate"
    qe_status: str = "UpToDate"
    module_status: str = "UpToDate"
    evaluation_number: int = 17
    tcb_info_dates: Dates = DAYS
    qe_identity_dates: Dates = DAYS
    edit_tcb_info: FieldsEdit = unchanged
    edit_qe_identity: FieldsEdit = unchanged
    tcb_signer: Callable[[Pki], Authority] = lambda pki: pki.signer
    qe_signer: Callable[[Pki], Authority] = lambda pki: pki.signer
    edit: FieldsEdit = unchanged


def collateral(tee: TeeName, pki: Pki, recipe: CollateralRecipe) -> dict[str, Any]:
    """The fields of QuoteCollateralV3, as JSON has them."""
    tcb_info = _signed(recipe.edit_tcb_info(_tcb_info(tee, pki.recipe.platform, recipe)), recipe.tcb_signer(pki))
    qe_identity = _signed(recipe.edit_qe_identity(_qe_identity(tee, recipe)), recipe.qe_signer(pki))
    fields = {
        "pck_crl_issuer_chain": pem(pki.ca.certificate, pki.root.certificate),
        "root_ca_crl": pki.root_crl().public_bytes(Encoding.DER).hex(),
        "pck_crl": pki.pck_crl().public_bytes(Encoding.DER).hex(),
        "tcb_info_issuer_chain": pem(recipe.tcb_signer(pki).certificate, pki.root.certificate),
        "tcb_info": tcb_info[0],
        "tcb_info_signature": tcb_info[1],
        "qe_identity_issuer_chain": pem(recipe.qe_signer(pki).certificate, pki.root.certificate),
        "qe_identity": qe_identity[0],
        "qe_identity_signature": qe_identity[1],
    }
    return recipe.edit(fields)


def _signed(document: Mapping[str, Any], signer: Authority) -> tuple[str, str]:
    text = json.dumps(document, separators=(",", ":"))
    return text, sign_raw(signer.key, text.encode()).hex()


def utc(moment: datetime) -> str:
    """A time as Intel writes it."""
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _tcb_info(tee: TeeName, platform: PlatformRecipe, recipe: CollateralRecipe) -> dict[str, Any]:
    info = {
        "id": tee.upper(),
        "version": 3,
        "issueDate": utc(recipe.tcb_info_dates[0]),
        "nextUpdate": utc(recipe.tcb_info_dates[1]),
        "fmspc": platform.fmspc.hex().upper(),
        "pceId": platform.pce_id.hex(),
        "tcbType": 0,
        "tcbEvaluationDataNumber": recipe.evaluation_number,
    }
    if tee == "tdx":
        module = {"mrsigner": bytes(48).hex(), "attributes": bytes(8).hex(), "attributesMask": "FF" * 8}
        newest = level({"isvsvn": TDX_MODULE_SVN}, recipe.module_status)
        levels = [newest, level({"isvsvn": OLD_TDX_MODULE_SVN}, "OutOfDate", "2024-03-13T00:00:00Z")]
        identity = {"id": f"TDX_{TDX_MODULE_MAJOR:02}", **module, "tcbLevels": levels}
        info |= {"tdxModule": module, "tdxModuleIdentities": [identity]}
    return info | {"tcbLevels": [level(platform_tcb(tee, platform), recipe.status)]}


def platform_tcb(tee: TeeName, platform: PlatformRecipe) -> dict[str, Any]:
    """The TCB that the platform has, as a level of the TCB info names it."""
    tcb: dict[str, Any] = {"sgxtcbcomponents": _components(platform.cpu_svn), "pcesvn": platform.pce_svn}
    return tcb | {"tdxtcbcomponents": _components(TEE_TCB_SVN)} if tee == "tdx" else tcb


def _components(svns: bytes) -> list[dict[str, int]]:
    return [{"svn": svn} for svn in svns]


def level(tcb: dict[str, Any], status: str, date: str = "2026-08-12T00:00:00Z") -> dict[str, Any]:
    """A TCB level, with an advisory unless it is up to date."""
    advisories = {} if status == "UpToDate" else {"advisoryIDs": [_ADVISORY]}
    return {"tcb": tcb, "tcbDate": date, "tcbStatus": status} | advisories


def _qe_identity(tee: TeeName, recipe: CollateralRecipe) -> dict[str, Any]:
    return {
        "id": "QE" if tee == "sgx" else "TD_QE",
        "version": 2,
        "issueDate": utc(recipe.qe_identity_dates[0]),
        "nextUpdate": utc(recipe.qe_identity_dates[1]),
        "tcbEvaluationDataNumber": recipe.evaluation_number,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11" + "00" * 15,
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": QE_MRSIGNER.hex(),
        "isvprodid": 1 if tee == "sgx" else 2,
        "tcbLevels": [level({"isvsvn": QE_ISV_SVN}, recipe.qe_status)],
    }
