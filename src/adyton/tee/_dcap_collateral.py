"""What Intel says of a kind of platform: collateral, one JSON object with the fields of QuoteCollateralV3.

`parse_collateral` believes nothing of it, but refuses what the library `dcap_qvl` would not: documents signed in a role
that is not the signer's, and CRLs out of place. Whether Intel signed them, the library verifies with the quote.

Intel SGX and TDX services, API version 4: TCB info, enclave identity, PCK CRL, root CA CRL.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final, Literal, TypeVar

import dcap_qvl
from cryptography import x509

from adyton.errors import EvidenceError
from adyton.tee._dcap_chain import (
    PckCa,
    Validity,
    check_name,
    parse_chain,
    pck_ca,
    refusals_of_library,
    validity,
)
from adyton.tee._x509 import certificate_sha256, check_issued_by, load_crl

TeeName = Literal["sgx", "tdx"]

SIGNER_NAME: Final = "Intel SGX TCB Signing"
"""The common name of the certificate that signs TCB info and QE identities, and nothing else."""

_FIELDS: Final = (
    "pck_crl_issuer_chain",
    "root_ca_crl",
    "pck_crl",
    "tcb_info_issuer_chain",
    "tcb_info",
    "tcb_info_signature",
    "qe_identity_issuer_chain",
    "qe_identity",
    "qe_identity_signature",
)
_PCK_CHAIN: Final = "pck_certificate_chain"
_TEES: Final[Mapping[tuple[str, str], TeeName]] = MappingProxyType({("SGX", "QE"): "sgx", ("TDX", "TD_QE"): "tdx"})
"""By the ids of TCB info and QE identity."""
_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Platforms:
    """Which platforms collateral is for, or which one a quote is of. FMSPC should have 6 bytes, PCE-ID 2."""

    tee: TeeName
    fmspc: bytes
    pce_id: bytes
    pck_ca: PckCa

    def __str__(self) -> str:
        fmspc, pce_id = self.fmspc[:8].hex(), self.pce_id[:4].hex()  # longer ones are strangers' mistakes
        return f"{self.tee} under the {self.pck_ca} CA, FMSPC {fmspc}, PCE-ID {pce_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Collateral:
    """Well-formed collateral, signed by who should sign it if by anyone: no signature in it is verified yet.

    `evaluation_number` is the lower of TCB info's and QE identity's. `pck_chain` is PEM, for quotes without; most
    collateral has none.
    """

    platforms: Platforms
    evaluation_number: int
    root_sha256: bytes
    validities: tuple[Validity, ...]
    pck_chain: bytes | None
    for_library: dcap_qvl.QuoteCollateralV3

    @property
    def expires(self) -> datetime:
        """When the first of its documents and their issuers' certificates does."""
        return min(each.ends for each in self.validities)

    def check(self, now: datetime) -> None:
        """Refuse it unless all of it is valid now."""
        for each in self.validities:
            each.check(now)

    def with_pck_chain(self, pem: bytes) -> dcap_qvl.QuoteCollateralV3:
        """For the library and a quote that only names its PCK."""
        fields = json.loads(self.for_library.to_json()) | {_PCK_CHAIN: pem.decode("ascii")}
        return dcap_qvl.QuoteCollateralV3.from_json(json.dumps(fields))


@functools.lru_cache(maxsize=32)
def parse_collateral(data: bytes) -> Collateral:
    """Parse any bytes as collateral, or raise `EvidenceError`. Fields other than QuoteCollateralV3's are ignored."""
    fields = _Object(data.decode("utf-8", "replace"), "the collateral")
    tcb_info = _Object(fields.text("tcb_info"), "the TCB info")
    qe_identity = _Object(fields.text("qe_identity"), "the QE identity")
    issuers = _issuers(fields)
    with refusals_of_library("the collateral does not parse"):
        # Only what was read here, so that no two readers differ about duplicates or fields unknown to one of them.
        for_library = dcap_qvl.QuoteCollateralV3.from_json(json.dumps({name: fields.text(name) for name in _FIELDS}))
    return Collateral(
        platforms=_platforms(tcb_info, qe_identity, issuers.ca),
        evaluation_number=min(each.number("tcbEvaluationDataNumber") for each in (tcb_info, qe_identity)),
        root_sha256=certificate_sha256(issuers.root),
        validities=(
            _dates(tcb_info),
            _dates(qe_identity),
            _crl_dates(fields.hex("root_ca_crl"), issuers.root, "the root's CRL"),
            _crl_dates(fields.hex("pck_crl"), issuers.ca, "the PCK CA's CRL"),
            validity(issuers.tcb_signer, "the certificate that signed the TCB info"),
            validity(issuers.qe_signer, "the certificate that signed the QE identity"),
            validity(issuers.ca, "the certificate that signed the PCK CA's CRL"),
            validity(issuers.root, "the certificate of the collateral's root"),
        ),
        pck_chain=fields.pem(_PCK_CHAIN) if fields.has(_PCK_CHAIN) else None,
        for_library=for_library,
    )


def parse_time(text: str, what: str) -> datetime:
    """A time as Intel writes it: "2026-11-23T12:00:00Z"."""
    try:
        if _TIME.fullmatch(text):
            return datetime.fromisoformat(text)
    except ValueError:
        pass
    raise EvidenceError(f"{what} has {text[:64]!a} where a time should be")


class _Object:
    """A JSON object from strangers, asked for fields by name and kind."""

    __slots__ = ("_fields", "what")

    def __init__(self, text: str, what: str) -> None:
        self.what = what
        try:
            fields = json.loads(text, object_pairs_hook=self._once)
        except (ValueError, RecursionError) as error:
            raise EvidenceError(f"{what} is not well-formed JSON") from error
        if not isinstance(fields, dict):
            raise EvidenceError(f"{what} is no JSON object")
        self._fields = fields

    def _once(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            raise EvidenceError(f"{self.what} has a field twice")
        return fields

    def has(self, name: str) -> bool:
        return self._fields.get(name) is not None

    def text(self, name: str) -> str:
        return self._of_kind(name, str)

    def number(self, name: str) -> int:
        return self._of_kind(name, int)

    def hex(self, name: str) -> bytes:
        try:
            return bytes.fromhex(self.text(name))
        except ValueError as error:
            raise EvidenceError(f"{self.what} has a {name} that is not hexadecimal") from error

    def pem(self, name: str) -> bytes:
        return self.text(name).encode("ascii", "replace")

    def _of_kind(self, name: str, kind: type[_T]) -> _T:
        value = self._fields.get(name)
        if type(value) is not kind:
            raise EvidenceError(f"{self.what} has no {name} of type {kind.__name__}")
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class _Issuers:
    tcb_signer: x509.Certificate
    qe_signer: x509.Certificate
    ca: x509.Certificate
    root: x509.Certificate


def _issuers(fields: _Object) -> _Issuers:
    """The signers of the documents, each directly under one root and in the role that its common name gives it.

    The library takes any certificate under the root for a signer, even a platform's PCK; names are all that tells them
    apart.
    """
    tcb_signer, root = parse_chain(fields.pem("tcb_info_issuer_chain"), "the issuer chain of the TCB info", 2)
    qe_signer, qe_root = parse_chain(fields.pem("qe_identity_issuer_chain"), "the issuer chain of the QE identity", 2)
    ca, ca_root = parse_chain(fields.pem("pck_crl_issuer_chain"), "the issuer chain of the PCK CA's CRL", 2)
    if not root == qe_root == ca_root:
        raise EvidenceError("the issuer chains of the collateral end in different roots")
    check_name(tcb_signer, SIGNER_NAME, "the signer of the TCB info")
    check_name(qe_signer, SIGNER_NAME, "the signer of the QE identity")
    check_issued_by(ca, root, "the issuer of the PCK CA's CRL")
    return _Issuers(tcb_signer=tcb_signer, qe_signer=qe_signer, ca=ca, root=root)


def _platforms(tcb_info: _Object, qe_identity: _Object, ca: x509.Certificate) -> Platforms:
    ids = tcb_info.text("id"), qe_identity.text("id")
    if ids not in _TEES:
        raise EvidenceError(f"the collateral has TCB info of {ids[0][:32]!a} with a QE identity of {ids[1][:32]!a}")
    if (tcb_info.number("version"), tcb_info.number("tcbType")) != (3, 0):
        raise EvidenceError("the TCB info is not of version 3 and type 0, which say how TCB levels compare")
    return Platforms(
        tee=_TEES[ids],
        fmspc=tcb_info.hex("fmspc"),
        pce_id=tcb_info.hex("pceId"),
        pck_ca=pck_ca(ca, "the issuer of the PCK CA's CRL"),
    )


def _dates(document: _Object) -> Validity:
    begins, ends = (parse_time(document.text(name), document.what) for name in ("issueDate", "nextUpdate"))
    return Validity(what=document.what, begins=begins, ends=ends)


def _crl_dates(der: bytes, issuer: x509.Certificate, what: str) -> Validity:
    crl = load_crl(der, what)
    if crl.issuer != issuer.subject:
        raise EvidenceError(f"{what} is another issuer's")
    if crl.next_update_utc is None:
        raise EvidenceError(f"{what} does not say until when it is valid")
    return Validity(what=what, begins=crl.last_update_utc, ends=crl.next_update_utc)
