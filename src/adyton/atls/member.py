"""The certificate of an enrolled caller: issued by the server's own CA, with what the server knows of it inside.

It is good for a client and for nothing else: a member that could pose as the enclave's server would be between the
enclave and everybody who trusts its CA. So it has no serverAuth, and no name that a server goes by.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from adyton.atls.certificates import Issued, sign_leaf, spki_sha256, validity

DOMAIN: Final = "member.atls.internal"
RECORD_OID: Final = x509.ObjectIdentifier("2.25.249881775399317189410828553300435563392")
"""The extension with the server's record: the UUID bbfd7ab8-a2c5-463c-8249-68f565387380 under 2.25 (ITU-T X.667)."""

LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""A label of a DNS name, in small letters."""


def member_label(rule: str) -> str:
    """A DNS label for the rule of a policy: its name where that is one, else "rule-" and a digest of it."""
    return rule if LABEL.fullmatch(rule) else f"rule-{hashlib.sha256(rule.encode()).hexdigest()[:32]}"


def issue_member(
    ca: Issued, key: ec.EllipticCurvePublicKey, *, rule: str, record: bytes, now: datetime, lifetime: timedelta
) -> x509.Certificate:
    """A certificate for that key, not beyond the CA's end. `record` is what `read_member` gives back."""
    label = member_label(rule)
    names = [
        x509.DNSName(f"{label}.{DOMAIN}"),
        x509.UniformResourceIdentifier(f"spiffe://atls.internal/member/{label}"),
    ]
    return sign_leaf(
        ca,
        key,
        subject=f"ATLS member {spki_sha256(key)[:8].hex()}",
        names=names,
        usage=ExtendedKeyUsageOID.CLIENT_AUTH,
        validity=validity(ca, now, lifetime),
        more=[x509.UnrecognizedExtension(RECORD_OID, record)],
    )


def read_member(certificate: x509.Certificate, authorities: Collection[x509.Certificate]) -> bytes | None:
    """The record in a member's certificate that one of these CAs has issued; None for any other certificate.

    Anybody can put such an extension into a certificate under the open client CA, so the signature comes first. Dates
    are not looked at.
    """
    if not any(_issued_by(certificate, authority) for authority in authorities):
        return None
    try:
        extension = certificate.extensions.get_extension_for_oid(RECORD_OID).value
    except (x509.ExtensionNotFound, ValueError):
        return None
    return extension.value if isinstance(extension, x509.UnrecognizedExtension) else None


def _issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
