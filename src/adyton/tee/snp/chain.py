"""AMD's certificates: ARK → ASK → VCEK, and ARK → ASVK → VLEK. "The ASK" is either of the two in the middle.

`x509.verification` does not take RSASSA-PSS, so the path is validated here: it always has these three certificates.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509.oid import ExtensionOID, NameOID

from adyton.errors import EvidenceError
from adyton.tee._x509 import (
    check_ca,
    check_dates,
    check_not_revoked,
    load_certificate,
    load_crl,
    pinned,
)
from adyton.tee.snp.format import SnpReport

RSA_BITS: Final = 4096
SHA384: Final = hashes.SHA384()
PSS: Final = padding.PSS(mgf=padding.MGF1(SHA384), salt_length=48)
"""With SHA-384, how AMD signs all of its certificates and CRLs (RFC 4055, section 3.1), whatever they say of it."""

_CRITICAL_IN_CA: Final = frozenset({ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Certificates of which each was issued by the next; `ark` is an anchor."""

    leaf: x509.Certificate
    ask: x509.Certificate
    ark: x509.Certificate


def load_certificates(ders: Iterable[bytes]) -> tuple[x509.Certificate, ...]:
    """Parse them all; which of them matter turns out later. AMD's leaves have the serial number 0, each of them."""
    return tuple(load_certificate(der, "a certificate with the SNP report", serial_zero=True) for der in ders)


def find_leaf(certificates: Iterable[x509.Certificate], report: SnpReport) -> x509.Certificate:
    """The VCEK or VLEK certificate, whichever the report says, whose key signed the report."""
    return _first(
        (certificate for certificate in certificates if common_name(certificate) == f"SEV-{report.signer}"),
        lambda leaf: _check_signed(report, leaf.public_key()),
        f"there is no {report.signer} certificate with the SNP report",
    )


def find_chain(leaf: x509.Certificate, certificates: Collection[x509.Certificate], anchors: Collection[bytes]) -> Chain:
    """The leaf, the certificate that issued it, and the anchor that issued that one."""
    ask = _first(
        (issuer for issuer in certificates if issuer.subject == leaf.issuer),
        lambda issuer: _check_issued(leaf, issuer, "the leaf"),
        "the certificate that issued the leaf is not with the SNP report",
    )
    return Chain(leaf=leaf, ask=ask, ark=find_root(ask, certificates, anchors))


def find_root(
    ask: x509.Certificate, certificates: Iterable[x509.Certificate], anchors: Collection[bytes]
) -> x509.Certificate:
    """The anchor that issued the ASK. Its own signature says nothing: it is trusted for being an anchor."""
    ark = pinned((root for root in certificates if root.subject == ask.issuer), anchors, "the chain of the SNP report")
    _check_issued(ask, ark, "the ASK")
    return ark


def _first(
    candidates: Iterable[x509.Certificate], check: Callable[[x509.Certificate], None], missing: str
) -> x509.Certificate:
    """The first that passes the check; if none does, what was wrong with the last."""
    refused = EvidenceError(missing)
    for candidate in candidates:
        try:
            check(candidate)
        except EvidenceError as error:
            refused = error
        else:
            return candidate
    raise refused


def _check_signed(report: SnpReport, key: object) -> None:
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise EvidenceError(f"the key of the {report.signer} is not of P-384")
    signature = encode_dss_signature(report.signature_r, report.signature_s)
    try:
        key.verify(signature, report.signed_part, ec.ECDSA(SHA384))
    except InvalidSignature:
        raise EvidenceError(f"the SNP report's signature does not verify with the key of the {report.signer}") from None


def _check_issued(certificate: x509.Certificate, issuer: x509.Certificate, what: str) -> None:
    check_ca(issuer, f"the issuer of {what}")
    _check_signature(certificate.signature, certificate.tbs_certificate_bytes, issuer, what)


def _check_signature(signature: bytes, signed: bytes, issuer: x509.Certificate, what: str) -> None:
    key = issuer.public_key()
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size != RSA_BITS:
        raise EvidenceError(f"{what} was issued with a key that is not RSA of {RSA_BITS} bits")
    try:
        key.verify(signature, signed, PSS, SHA384)
    except InvalidSignature:
        message = f"{what} was not signed with its issuer's key, by RSASSA-PSS with SHA-384 and a salt of 48 bytes"
        raise EvidenceError(message) from None


def check_validity(chain: Chain, now: datetime) -> None:
    """All three are valid at `now`, and say nothing critical that is not looked at here."""
    for certificate, what, known in (
        (chain.leaf, "the leaf", frozenset[x509.ObjectIdentifier]()),
        (chain.ask, "the ASK", _CRITICAL_IN_CA),
        (chain.ark, "the ARK", _CRITICAL_IN_CA),
    ):
        check_dates(certificate, now, what)
        if any(extension.critical and extension.oid not in known for extension in certificate.extensions):
            raise EvidenceError(f"{what} has a critical extension that is not known")


def check_revocation(ask: x509.Certificate, ark: x509.Certificate, crls: Iterable[bytes], now: datetime) -> bool:
    """Refuse an ASK that a CRL of the ARK lists; return whether there was such a CRL.

    A CRL of the ARK must be in order, and complete; others are ignored. The leaf is never looked up: the serial number
    of every leaf is 0, so AMD can't revoke one. What ends a VCEK's life is a higher TCB version.
    """
    checked = False
    for der in crls:
        crl = load_crl(der, "a CRL with the SNP report")
        if crl.issuer != ark.subject:
            continue
        _check_signature(crl.signature, crl.tbs_certlist_bytes, ark, "the ARK's CRL")
        check_not_revoked(ask, crl, ark, now, "the ASK")
        checked = True
    return checked


def common_name(certificate: x509.Certificate) -> str:
    """The subject's common name; empty unless there is exactly one."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""
