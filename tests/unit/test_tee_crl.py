"""CRLs from strangers: which one counts, when, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone

import pytest
from certificates import CA, DAY, ISSUER, MICROSECOND, SERIAL, ca, certificate, der_of, key, name, root, with_serial
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from adyton.errors import EvidenceError
from adyton.tee import _x509
from adyton.testing.forgery import NOW
from adyton.testing.simulated import key_usage

ECDSA_SHA384 = bytes.fromhex("06082a8648ce3d040303")


def _element(tag: int, content: bytes) -> bytes:
    """DER of up to 255 bytes."""
    return bytes([tag, *([0x81] if len(content) > 127 else []), len(content)]) + content


def _crl(
    *serials: int,
    issuer: str = "root",
    signer: str | None = None,
    begins: datetime = NOW - DAY,
    ends: datetime = NOW + DAY,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
) -> x509.CertificateRevocationList:
    builder = x509.CertificateRevocationListBuilder().issuer_name(name(issuer)).last_update(begins).next_update(ends)
    for serial in serials:
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW - DAY).build()
        builder = builder.add_revoked_certificate(revoked)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(key(signer or issuer), hashes.SHA384())


def _check(crl: x509.CertificateRevocationList, now: datetime = NOW, **changed: x509.Certificate) -> None:
    _x509.check_not_revoked(changed.get("of", ca()), crl, changed.get("by", root()), now, "the CA")


def _without_next_update() -> bytes:
    crl = _crl(1)
    tbs = crl.tbs_certlist_bytes
    tbs = tbs[2 if tbs[1] < 0x80 else 3 :]
    next_update = b"\x17\x0d" + f"{NOW + DAY:%y%m%d%H%M%S}Z".encode()
    tbs = _element(0x30, tbs.replace(next_update, b""))
    signature = _element(0x03, b"\0" + key("root").sign(tbs, ec.ECDSA(hashes.SHA384())))
    return _element(0x30, tbs + bytes.fromhex("300a") + ECDSA_SHA384 + signature)


def test_a_crl_is_loaded_to_the_end_or_refused() -> None:
    der = _crl(1, 2, 3).public_bytes(Encoding.DER)
    assert len(_x509.load_crl(der, "the CRL")) == 3
    number = _crl(extensions=[(x509.CRLNumber(7), False)]).public_bytes(Encoding.DER)
    for wrong in (
        b"",
        der[:-1],
        der + b"\0",
        der.replace(ECDSA_SHA384, ECDSA_SHA384[:-1] + b"\x7f"),
        number.replace(b"\4\3\2\1\7", b"\4\3\3\1\7"),
        der_of(root()),
    ):
        assert wrong not in (der, number)
        with pytest.raises(EvidenceError, match=r"^the CRL does not parse$"):
            _x509.load_crl(wrong, "the CRL")


def test_a_certificate_that_is_not_listed_is_not_revoked() -> None:
    for crl in (_crl(), _crl(SERIAL - 1, SERIAL + 1), _crl(extensions=[(x509.CRLNumber(7), False)])):
        for now in (NOW - DAY, NOW, NOW + DAY):
            _check(crl, now.astimezone(timezone(timedelta(hours=-8))))


def test_a_certificate_that_is_listed_is_revoked() -> None:
    with pytest.raises(EvidenceError, match="the CA has been revoked: on 2026-11-22"):
        _check(_crl(1, SERIAL, 2))


WRONG_CRLS: dict[str, tuple[str, Callable[[], None]]] = {
    "of another issuer": ("the CRL for the CA is of another issuer", lambda: _check(_crl(issuer="another"))),
    "for another's certificate": (
        "the CRL for the CA is of another issuer",
        lambda: _check(_crl(), of=certificate("a", "another")),
    ),
    "by another key": ("the signature of the CRL for the CA does not verify", lambda: _check(_crl(signer="another"))),
    "by a key that can't sign": (
        "the CRL for the CA can't be verified with its issuer's key",
        lambda: _check(_crl(), by=certificate("root", "root", *ISSUER, keys=("x25519", "root"))),
    ),
    "by who may not": (
        "the issuer of the CRL for the CA may not sign it: its keyUsage lacks cRLSign",
        lambda: _check(_crl(), by=certificate("root", "root", CA, (key_usage("key_cert_sign"), True))),
    ),
    "by who does not say": (
        "the issuer of the CRL for the CA lacks basicConstraints or keyUsage",
        lambda: _check(_crl(), by=certificate("root", "root", CA)),
    ),
    "delta": (
        "the CRL for the CA has a critical extension, of which none is known",
        lambda: _check(_crl(extensions=[(x509.DeltaCRLIndicator(1), True)])),
    ),
    "partial": (
        "the CRL for the CA has a critical extension",
        lambda: _check(_crl(extensions=[(_only_user_certificates(), True)])),
    ),
    "from the future": (
        "the CRL for the CA is from the future",
        lambda: _check(_crl(begins=NOW), NOW - MICROSECOND),
    ),
    "expired": ("the CRL for the CA has expired: on 2026-11-23", lambda: _check(_crl(ends=NOW), NOW + MICROSECOND)),
    "without an end": (
        "the CRL for the CA has expired: on None",
        lambda: _check(_x509.load_crl(_without_next_update(), "the CRL")),
    ),
}


def _only_user_certificates() -> x509.IssuingDistributionPoint:
    return x509.IssuingDistributionPoint(
        full_name=None,
        relative_name=None,
        only_contains_user_certs=True,
        only_contains_ca_certs=False,
        only_some_reasons=None,
        indirect_crl=False,
        only_contains_attribute_certs=False,
    )


@pytest.mark.parametrize("wrong", WRONG_CRLS)
def test_a_crl_that_is_not_the_right_one_proves_nothing(wrong: str) -> None:
    message, check = WRONG_CRLS[wrong]
    with pytest.raises(EvidenceError, match=message):
        check()


@pytest.mark.filterwarnings("error")
def test_serial_number_zero_can_not_be_looked_up_where_warnings_are_errors() -> None:
    vcek = _x509.load_certificate(with_serial(0), "the VCEK", serial_zero=True)
    with pytest.raises(EvidenceError, match="the serial number of the CA can't be looked up"):
        _check(_crl(), of=vcek)
