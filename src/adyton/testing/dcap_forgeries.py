"""SGX and TDX evidence that is wrong in each single way that its verifier must refuse.

One vendor makes what differs in quote or collateral only; wrong certificates and CRLs need a PKI of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from adyton.tee._dcap_collateral import TeeName
from adyton.tee.evidence import Endorsement, EndorsementKind
from adyton.testing.dcap import SEPT_VE_DISABLE, Edit, QuoteRecipe, overwrite
from adyton.testing.dcap_collateral import changed
from adyton.testing.dcap_collateral_forgeries import collateral_forgeries
from adyton.testing.dcap_forging import (
    LATER,
    OTHER,
    OVER,
    VENDOR,
    flip,
    flip_hex,
    in_text,
    just_after,
    tcb_date,
    with_collateral,
    with_pki,
    with_quote,
)
from adyton.testing.dcap_pki import Part, pem, pki
from adyton.testing.forgery import Case, Forgery


def _format(tee: TeeName) -> dict[str, Forgery]:
    known = {"sgx": "3", "tdx": "4, 5"}[tee]
    qe_report = {"sgx": 128, "tdx": 134}[tee]
    return {
        "version unknown": with_quote(
            tee, f"the version of the {tee.upper()} quote is 9; known are: {known}", version=9
        ),
        "attestation key of P-384": with_quote(
            tee, "the attestation key type of", edit_signed_part=overwrite(2, b"\3")
        ),
        "TEE type of neither": with_quote(tee, "the TEE type of", edit_signed_part=overwrite(4, b"\1")),
        "followed by a byte": with_quote(tee, "followed by bytes that are not zero", edit=lambda data: data + b"\0\1"),
        "signature data too long": with_quote(
            tee, "quote goes on after its end", edit_signature_data=lambda data: data + b"\0"
        ),
        "signature data cut": with_quote(tee, "ends inside its ", edit_signature_data=lambda data: data[:-1]),
        "QE report after the hash": with_quote(tee, "something after the hash", edit_qe_report=overwrite(383, b"\1")),
        "QE auth data too long": with_quote(
            tee, "ends inside its QE auth data", edit_signature_data=overwrite(qe_report + 448, b"\xff\xff")
        ),
        "PCK data of another type": with_quote(tee, "the PCK data type of", pck_data_type=4),
        "PCK only named": with_quote(
            tee, "only names its PCK (PCK data of type 3), and no collateral", pck_data_type=3
        ),
    }


def _chain(tee: TeeName) -> dict[str, Forgery]:
    def text(edit: Edit, refusal: str) -> Forgery:
        return with_quote(tee, refusal, edit_pck_data=edit)

    def certificates(*parts: str) -> Edit:
        return lambda _: pem(*(getattr(pki(VENDOR.recipe), part).certificate for part in parts)).encode()

    def untrusted() -> Case:
        return replace(VENDOR.case(tee), anchors=frozenset({OTHER.anchor}))

    return {
        "root untrusted": Forgery(refusal="does not end in a root that is trusted", make=untrusted),
        "text before the chain": text(lambda chain: b"Certificates:\n" + chain, "not PEM of certificates and nothing"),
        "text in the chain": text(lambda chain: chain.replace(b"\n-----BEGIN", b"\n\n-----BEGIN"), "not PEM of"),
        "text after the chain": text(lambda chain: chain + b"\n", "not PEM of certificates and nothing else"),
        "other PEM in the chain": text(lambda chain: chain.replace(b" CERTIFICATE", b" X509 CRL"), "not PEM of"),
        "base64 malformed": text(lambda chain: chain.replace(b"\nMII", b"\nM=I", 1), "its base64 is malformed"),
        "PCK certificate malformed": text(lambda chain: chain.replace(b"\nMII", b"\nMIA", 1), "a certificate in"),
        "no PCK CA": text(certificates("pck", "root"), "has 2 certificates, not 3"),
        "a certificate too many": text(certificates("pck", "ca", "ca", "root"), "has 4 certificates, not 3"),
        "CA of another name": with_pki(tee, "is 'Intel', none of Intel's PCK CAs", ca_name="Intel"),
        "PCK without its extension": with_pki(
            tee, "the extension of the PCK certificate does not parse", certified=False
        ),
    }


def _dates(tee: TeeName) -> dict[str, Forgery]:
    certificates = {
        "pck_dates": "the PCK certificate",
        "ca_dates": "the certificate of its CA",
        "root_dates": "the certificate of its root",
        "signer_dates": "the certificate that signed the TCB info",
        "root_crl_dates": "the root's CRL",
        "pck_crl_dates": "the PCK CA's CRL",
    }
    documents = {"tcb_info_dates": "the TCB info", "qe_identity_dates": "the QE identity"}
    forgeries = {}
    for make, parts in ((with_pki, certificates), (with_collateral, documents)):
        for field, part in parts.items():
            forgeries[f"{part} from the future"] = make(tee, f"{part} is not yet valid: from", **{field: LATER})
            forgeries[f"{part} over"] = just_after(make(tee, f"{part} has expired: on", **{field: OVER}))
    return forgeries


def _signatures(tee: TeeName) -> dict[str, Forgery]:
    """What the library finds in the quote, and refuses in words of its own."""
    start = {"sgx": 128, "tdx": 134}[tee]

    def quote(refusal: str, **recipe: Any) -> Forgery:
        return with_quote(tee, f"the quote is not genuine: Verification failed: {refusal}", **recipe)

    return {
        "body changed": quote("ISV enclave report signature is invalid", edit=flip(300)),
        "user data changed": quote("ISV enclave report signature is invalid", edit=flip(30)),
        "signature changed": quote("ISV enclave report signature is invalid", edit_signature_data=flip(20)),
        "attestation key changed": quote("QE report hash mismatch", edit_signature_data=flip(80)),
        "QE auth data changed": quote("QE report hash mismatch", edit_signature_data=flip(start + 452)),
        "QE auth data of 31 bytes": quote("Invalid QE auth data length", auth_data=bytes(31)),
        "QE report changed": quote("Signature is invalid for qe_report", edit_signature_data=flip(start + 64)),
        "QE of another vendor": quote("Unknown QE vendor ID", edit_signed_part=flip(12)),
        "QE by another signer": quote("QE MRSIGNER mismatch", edit_qe_report=flip(128)),
        "QE in debug mode": quote(
            "QE report validation failed Caused by: Debug mode", edit_qe_report=overwrite(48, b"\x17")
        ),
        "QE too old": quote("QE ISVSVN 1 is below minimum required 8", edit_qe_report=overwrite(258, b"\1")),
        "PCK by another CA": Forgery(refusal="Failed to verify certificate chain", make=lambda: _foreign_pck(tee)),
    }


def _collateral_signatures(tee: TeeName) -> dict[str, Forgery]:
    """The same of collateral: signatures, revocation, and TCB levels."""

    def collateral(refusal: str, **recipe: Any) -> Forgery:
        return with_collateral(tee, f"the quote is not genuine: Verification failed: {refusal}", **recipe)

    def revoked(part: Part) -> Forgery:
        return with_pki(tee, "CertRevoked", revoked=frozenset({part}))

    return {
        "TCB info changed": collateral("Signature is invalid for tcb_info", edit=in_text("tcb_info", "17", "18")),
        "TCB info's signature changed": collateral(
            "Signature is invalid for tcb_info", edit=flip_hex("tcb_info_signature")
        ),
        "QE identity changed": collateral(
            "Signature is invalid for qe_identity", edit=in_text("qe_identity", "8c", "8d")
        ),
        "QE identity's signature changed": collateral(
            "Signature is invalid for qe_identity", edit=flip_hex("qe_identity_signature")
        ),
        "QE identity of version 4": collateral(
            "Unsupported QE Identity id/version", edit_qe_identity=changed(version=4)
        ),
        "root's CRL changed": with_collateral(tee, "InvalidCrlSignatureForPublicKey", edit=flip_hex("root_ca_crl")),
        "PCK CA's CRL changed": with_collateral(tee, "InvalidCrlSignatureForPublicKey", edit=flip_hex("pck_crl")),
        "root revoked": revoked("root"),
        "PCK CA revoked": revoked("ca"),
        "TCB signer revoked": revoked("signer"),
        "PCK revoked": revoked("pck"),
        "TCB without a level": collateral("No matching TCB level found", edit_tcb_info=changed(tcbLevels=[])),
        "TCB revoked": collateral("TCB status is invalid: Revoked", status="Revoked"),
        "QE revoked": collateral("TCB status is invalid: Revoked", qe_status="Revoked"),
        "QE of a status that is not for one": with_collateral(
            tee, "the quoting enclave's TCB status is ConfigurationNeeded, which", qe_status="ConfigurationNeeded"
        ),
    }


def _foreign_pck(tee: TeeName) -> Case:
    """All is signed with the PCK, which another's CA certified; CA and root above it are the trusted ones."""
    mine, theirs = pki(VENDOR.recipe), pki(OTHER.recipe)
    chain = pem(theirs.pck.certificate, mine.ca.certificate, mine.root.certificate).encode()
    case = VENDOR.case(tee)
    data = OTHER.quote(tee, QuoteRecipe(edit_pck_data=lambda _: chain))
    return replace(case, evidence=replace(case.evidence, data=data))


def _td(refusal: str, **recipe: Any) -> Forgery:
    return with_quote("tdx", f"the quote is not genuine: Verification failed: {refusal}", **recipe)


def _attributes(refusal: str, value: int) -> Forgery:
    return _td(refusal, edit_body=overwrite(120, value.to_bytes(8, "little")))


_SGX_ONLY: Final = {
    "TCB level of no date": with_collateral(
        "sgx", "Verification failed: Failed to parse platform TCB date", edit_tcb_info=tcb_date("yesterday")
    ),
    "TDX's version": with_quote("sgx", "the version of the SGX quote is 4; known are: 3", version=4),
    "debug": with_quote("sgx", "Debug mode is enabled", edit_body=overwrite(48, b"\x07")),
}

_TDX_ONLY: Final = {
    "TCB level of no date": with_collateral(
        "tdx", "Invalid TCB level tcbDate Caused by: Failed", edit_tcb_info=tcb_date("yesterday")
    ),
    "SGX's version": with_quote("tdx", "the version of the TDX quote is 3; known are: 4, 5", version=3),
    "body type unknown": with_quote(
        "tdx", "body type of the TDX quote is 5; known are: 2, 3, 4", version=5, body_type=5
    ),
    "body type of SGX": with_quote(
        "tdx", "body type of the TDX quote is 1", version=5, edit_signed_part=overwrite(48, b"\1")
    ),
    "body larger than its type": with_quote(
        "tdx", "body size of the TDX quote is 585; known are: 584", version=5, edit_body=lambda body: body + b"\0"
    ),
    "certification of another type": with_quote(
        "tdx", "the certification type of the signature data", edit_signature_data=overwrite(128, b"\5")
    ),
    "bytes inside the certification": with_quote(
        "tdx",
        "the certification in the signature data of the TDX quote goes on",
        edit_certification=lambda data: data + b"\0",
    ),
    "debug": _attributes("Debug mode is enabled", SEPT_VE_DISABLE | 1),
    "without SEPT_VE_DISABLE": _attributes("SEPT_VE_DISABLE is not enabled", 0),
    "migratable": _attributes("TD migration is enabled", SEPT_VE_DISABLE | 1 << 29),
    "with SERVTD_EXT": _attributes("SERVTD_EXT is enabled", SEPT_VE_DISABLE | 1 << 17),
    "reserved attribute": _attributes("Reserved bits in TD attributes are set", SEPT_VE_DISABLE | 1 << 1),
    "with a service TD": _td("Invalid MR service TD", version=5, body_type=3, edit_body=overwrite(600, b"\1")),
    "module by another signer": _td("TDX module identity check Caused by: TDX module MRSIGNER", edit_body=flip(64)),
    "module with attributes": _td("TDX module identity check Caused by: TDX module SEAMATTR", edit_body=flip(112)),
    "module unknown": _td("TDX module TCB level check Caused by: No TDX module", edit_body=overwrite(1, b"\2")),
    "module too old": _td("TDX module TCB level check Caused by: TDX module ISVSVN 2", edit_body=overwrite(0, b"\2")),
    "module revoked": with_collateral("tdx", "TCB status is invalid: Revoked", module_status="Revoked"),
    "event log malformed": Forgery(
        refusal="the event log ends inside its event's type",
        make=lambda: VENDOR.case(
            "tdx", endorsements=(Endorsement(kind=EndorsementKind.EVENT_LOG, data=b"\1\0\0\0\1"),)
        ),
    ),
}


def _forgeries(tee: TeeName, more: dict[str, Forgery]) -> Mapping[str, Forgery]:
    parts = (_format, _chain, _dates, collateral_forgeries, _signatures, _collateral_signatures)
    common = {name: forgery for part in parts for name, forgery in part(tee).items()}
    return MappingProxyType(common | more)


SGX_FORGERIES: Final = _forgeries("sgx", _SGX_ONLY)
"""By what is wrong, in the order of the verifier's steps; at the end, what only SGX has."""
TDX_FORGERIES: Final = _forgeries("tdx", _TDX_ONLY)
"""By what is wrong, in the order of the verifier's steps; at the end, what only TDX has."""
