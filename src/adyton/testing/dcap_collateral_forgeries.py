"""Forged collateral for SGX and TDX: malformed, of the wrong kind, in the wrong role, or of another platform."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from adyton.tee._dcap_collateral import TeeName
from adyton.testing.dcap import DcapVendor, Edit
from adyton.testing.dcap_collateral import FieldsEdit, changed, without
from adyton.testing.dcap_forging import (
    OTHER,
    OVER,
    VENDOR,
    in_text,
    just_after,
    tcb_date,
    with_collateral,
    without_collateral,
)
from adyton.testing.dcap_pki import (
    CA_NAMES,
    PCK_NAME,
    SIGNER_NAME,
    YEARS,
    Authority,
    Dates,
    Pki,
    PkiRecipe,
    crl_without_next_update,
    issue,
    pem,
    pki,
)
from adyton.testing.forgery import Case, Forgery


def collateral_forgeries(tee: TeeName) -> dict[str, Forgery]:
    """By what is wrong, in the order in which it is found."""
    return _documents(tee) | _signed_documents(tee) | _roles(tee) | _roots(tee) | _fit(tee)


@functools.cache
def _issued(name: str, dates: Dates = YEARS, *, ca: bool = False) -> Authority:
    """One more certificate directly under the vendor's root."""
    return issue(name, dates, pki(VENDOR.recipe).root, ca=ca)


def _stapled(tee: TeeName, refusal: str, edit: Edit) -> Forgery:
    """With collateral whose bytes were edited."""

    def make() -> Case:
        genuine = VENDOR.collateral(tee)
        return without_collateral(tee, replace(genuine, data=edit(genuine.data)))

    return Forgery(refusal=refusal, make=make)


def _documents(tee: TeeName) -> dict[str, Forgery]:
    """Collateral that is malformed or of another kind, whoever signed it."""

    def changed_by(refusal: str, **fields: Any) -> Forgery:
        return with_collateral(tee, refusal, edit=changed(**fields))

    def endless(fields: dict[str, Any]) -> dict[str, Any]:
        return fields | {"root_ca_crl": crl_without_next_update(pki(VENDOR.recipe).root).hex()}

    return {
        "collateral is no JSON": _stapled(tee, "the collateral is not well-formed JSON", lambda data: data[:-1]),
        "collateral too deep": _stapled(tee, "the collateral is not well-formed JSON", lambda _: b"[" * 100_000),
        "collateral is no object": _stapled(tee, "the collateral is no JSON object", lambda data: b"[" + data + b"]"),
        "field twice": _stapled(tee, "the collateral has a field twice", lambda data: b'{"pck_crl":"",' + data[1:]),
        "field missing": with_collateral(
            tee, "the collateral has no qe_identity of type str", edit=without("qe_identity")
        ),
        "field of another type": changed_by("the collateral has no pck_crl of type str", pck_crl=7),
        "CRL malformed": changed_by("the root's CRL does not parse", root_ca_crl="30"),
        "CRL without an end": with_collateral(tee, "does not say until when it is valid", edit=endless),
        "root's CRL missing": with_collateral(
            tee, "the root's CRL is another issuer's", edit=_copy("pck_crl", "root_ca_crl")
        ),
        "PCK CA's CRL missing": with_collateral(
            tee, "the PCK CA's CRL is another issuer's", edit=_copy("root_ca_crl", "pck_crl")
        ),
        "half a surrogate pair": changed_by("the collateral does not parse: ", tcb_info_signature="\ud800"),
    }


def _signed_documents(tee: TeeName) -> dict[str, Forgery]:
    """TCB info and QE identity that the right one signed, and that say what can't be."""

    def tcb_info(refusal: str, **fields: Any) -> Forgery:
        return with_collateral(tee, refusal, edit_tcb_info=changed(**fields))

    offset = "2026-11-13T12:00:00+00:00"
    return {
        "TCB info with a field twice": with_collateral(
            tee, "the TCB info has a field twice", edit=in_text("tcb_info", "{", '{"tcbType":0,')
        ),
        "FMSPC not in hexadecimal": tcb_info("the TCB info has a fmspc that is not hexadecimal", fmspc="00A06F00C0D"),
        "evaluation number true": tcb_info("no tcbEvaluationDataNumber of type int", tcbEvaluationDataNumber=True),
        "TCB info of version 4": tcb_info("not of version 3 and type 0", version=4),
        "TCB info of type 1": tcb_info("not of version 3 and type 0", tcbType=1),
        "QE identity of the QVE": with_collateral(tee, "a QE identity of 'QVE'", edit_qe_identity=changed(id="QVE")),
        "time with an offset": tcb_info(f"the TCB info has {offset!r} where a time should be", issueDate=offset),
        "time that is none": tcb_info(
            "'2026-13-13T12:00:00Z' where a time should be", nextUpdate="2026-13-13T12:00:00Z"
        ),
        "TCB date in another form": with_collateral(
            tee,
            "the TCB level has '2026-08-12t00:00:00Z' where a time",
            edit_tcb_info=tcb_date("2026-08-12t00:00:00Z"),
        ),
    }


def _copy(source: str, target: str) -> FieldsEdit:
    return lambda fields: fields | {target: fields[source]}


def _roles(tee: TeeName) -> dict[str, Forgery]:
    """Collateral signed under the root, but not by who should sign it, or no longer."""

    def old_ca(fields: dict[str, Any]) -> dict[str, Any]:
        old = _issued(CA_NAMES["platform"], OVER, ca=True).certificate
        return fields | {"pck_crl_issuer_chain": pem(old, pki(VENDOR.recipe).root.certificate)}

    return {
        "TCB info signed by a PCK": with_collateral(
            tee, "TCB info has 3 certificates, not 2", tcb_signer=lambda made: made.pck, edit=_chain_of_pck
        ),
        "TCB info signed in another role": with_collateral(
            tee, "signer of the TCB info is 'Intel SGX PCK Certificate', not", tcb_signer=lambda _: _issued(PCK_NAME)
        ),
        "QE identity signed in another role": with_collateral(
            tee, "signer of the QE identity is 'Intel SGX PCK Certificate', not", qe_signer=lambda _: _issued(PCK_NAME)
        ),
        "QE identity's signer over": just_after(
            with_collateral(
                tee, "that signed the QE identity has expired", qe_signer=lambda _: _issued(SIGNER_NAME, OVER)
            )
        ),
        "PCK CRL's issuer over": just_after(
            with_collateral(tee, "that signed the PCK CA's CRL has expired", edit=old_ca)
        ),
    }


def _roots(tee: TeeName) -> dict[str, Forgery]:
    """Collateral of which a part, or all, is under another root or another's CA."""

    def chain(refusal: str, name: str, make: Callable[[Pki], str]) -> Forgery:
        return with_collateral(tee, refusal, edit=lambda fields: fields | {name: make(pki(VENDOR.recipe))})

    def elsewhere() -> Case:
        case = without_collateral(tee, OTHER.collateral(tee))
        return replace(case, anchors=frozenset({VENDOR.anchor, OTHER.anchor}))

    return {
        "PCK CRL's issuer under another root": chain(
            "the issuer of the PCK CA's CRL was not issued by",
            "pck_crl_issuer_chain",
            lambda made: pem(pki(OTHER.recipe).ca.certificate, made.root.certificate),
        ),
        "PCK CRL's issuer is no PCK CA": Forgery(
            refusal="the issuer of the PCK CA's CRL is 'Intel', none of Intel's PCK CAs", make=lambda: _other_ca(tee)
        ),
        "chains to two roots": chain(
            "end in different roots",
            "qe_identity_issuer_chain",
            lambda made: pem(made.signer.certificate, pki(OTHER.recipe).root.certificate),
        ),
        "collateral of another root": Forgery(refusal="under another root than the PCK", make=elsewhere),
    }


def _chain_of_pck(fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {"tcb_info_issuer_chain": pki(VENDOR.recipe).pck_chain}


def _other_ca(tee: TeeName) -> Case:
    """The quote's own chain is in order; only the collateral's CRL is by a CA of another name."""
    return without_collateral(tee, DcapVendor(recipe=PkiRecipe(ca_name="Intel")).collateral(tee))


def _fit(tee: TeeName) -> dict[str, Forgery]:
    """Collateral of another kind of platform than the quote's."""
    missing = f"no collateral for {tee} under the platform CA, FMSPC 00a06f00c0de, PCE-ID 0000, "
    other: TeeName = "tdx" if tee == "sgx" else "sgx"

    def fields(fields_: dict[str, Any], refusal: str) -> Forgery:
        return with_collateral(tee, missing + refusal, edit_tcb_info=changed(**fields_))

    def of(vendor: DcapVendor, of_tee: TeeName, refusal: str) -> Forgery:
        return Forgery(refusal=missing + refusal, make=lambda: without_collateral(tee, vendor.collateral(of_tee)))

    return {
        "no collateral": Forgery(refusal=missing + "and none at all", make=lambda: without_collateral(tee)),
        "another FMSPC": fields({"fmspc": "00A06F00C0DF"}, f"only for {tee} under the platform CA, FMSPC 00a06f00c0df"),
        "another PCE-ID": fields(
            {"pceId": "0100"}, f"only for {tee} under the platform CA, FMSPC 00a06f00c0de, PCE-ID 0100"
        ),
        "another CA": of(
            DcapVendor(recipe=PkiRecipe(pck_ca="processor")), tee, f"only for {tee} under the processor CA"
        ),
        "another TEE": of(VENDOR, other, f"only for {other} under the platform CA"),
    }
