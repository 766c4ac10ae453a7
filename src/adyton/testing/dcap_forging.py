"""What forged SGX and TDX evidence is made with: a vendor, another one, and the ways in which a case differs."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from adyton.tee._dcap_collateral import TeeName
from adyton.tee.evidence import Endorsement
from adyton.testing.dcap import DcapVendor, Edit, QuoteRecipe, overwrite
from adyton.testing.dcap_collateral import CollateralRecipe, FieldsEdit
from adyton.testing.dcap_pki import PkiRecipe, PlatformRecipe
from adyton.testing.forgery import NOW, Case, Forgery

VENDOR: Final = DcapVendor()
OTHER: Final = DcapVendor(recipe=PkiRecipe(platform=PlatformRecipe(ppid=bytes(16))))
"""Another platform under another root, with the same names."""

LATER: Final = (NOW + timedelta(seconds=1), NOW + timedelta(days=1))
"""Dates of what is not valid yet."""
OVER: Final = (NOW - timedelta(days=1), NOW)
"""Dates of what is no longer valid `just_after` now."""


def with_quote(tee: TeeName, refusal: str, **recipe: Any) -> Forgery:
    """A quote by this `QuoteRecipe`."""
    return Forgery(refusal=refusal, make=lambda: VENDOR.case(tee, QuoteRecipe(**recipe)))


def with_collateral(tee: TeeName, refusal: str, **recipe: Any) -> Forgery:
    """Collateral by this `CollateralRecipe`."""
    return Forgery(refusal=refusal, make=lambda: VENDOR.case(tee, None, CollateralRecipe(**recipe)))


def with_pki(tee: TeeName, refusal: str, **recipe: Any) -> Forgery:
    """Certificates and CRLs by this `PkiRecipe`."""
    return Forgery(refusal=refusal, make=lambda: DcapVendor(recipe=PkiRecipe(**recipe)).case(tee))


def without_collateral(tee: TeeName, *instead: Endorsement) -> Case:
    """The genuine quote, with these endorsements only."""
    case = VENDOR.case(tee)
    return replace(case, evidence=replace(case.evidence, endorsements=instead))


def just_after(forgery: Forgery) -> Forgery:
    """Verified a microsecond later, which is the same second for the library."""
    return replace(forgery, make=lambda: replace(forgery.make(), now=NOW + timedelta(microseconds=1)))


def flip(index: int) -> Edit:
    """The edit that changes one bit of that byte."""
    return lambda data: overwrite(index % len(data), bytes([data[index] ^ 1]))(data)


def flip_hex(name: str) -> FieldsEdit:
    """The edit that changes the last byte of a field in hexadecimal."""
    return lambda fields: fields | {name: flip(-1)(bytes.fromhex(fields[name])).hex()}


def in_text(name: str, old: str, new: str) -> FieldsEdit:
    """The edit that replaces a part of a field once."""
    return lambda fields: fields | {name: fields[name].replace(old, new, 1)}


def tcb_date(date: str) -> FieldsEdit:
    """The edit that dates the TCB level of the platform."""
    return lambda info: info | {"tcbLevels": [info["tcbLevels"][0] | {"tcbDate": date}]}
