"""X.509 from strangers: one test for each thing that the library, or what is around it, is relied upon for."""

from __future__ import annotations

import functools
import hashlib
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from adyton.errors import EvidenceError
from adyton.tee import _x509
from adyton.testing.forgery import NOW
from adyton.testing.simulated import CERTIFIES, NOT_CA, SIGNS, key_usage

CA = (x509.BasicConstraints(ca=True, path_length=None), True)
ISSUER = (CA, CERTIFIES)
LEAF = (NOT_CA, SIGNS)
DAY = timedelta(days=1)
MICROSECOND = timedelta(microseconds=1)
SERIAL = 0x5E
NO_PATH = "the leaf has no valid path to the trusted root"


@functools.cache
def key(name: str) -> Any:
    """A key for each name, of P-384 unless the name says otherwise."""
    made: dict[str, Callable[[], Any]] = {
        "ed25519": ed25519.Ed25519PrivateKey.generate,
        "x25519": x25519.X25519PrivateKey.generate,
        "rsa1024": lambda: rsa.generate_private_key(65537, 1024),
        "rsa2048": lambda: rsa.generate_private_key(65537, 2048),
        "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    }
    return made.get(name, lambda: ec.generate_private_key(ec.SECP384R1()))()


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])


def _certificate(  # noqa: PLR0913
    subject: str = "root",
    issuer: str = "root",
    *extensions: tuple[x509.ExtensionType, bool],
    keys: tuple[str, str] | None = None,
    begins: datetime = NOW - DAY,
    ends: datetime = NOW + DAY,
    serial: int = SERIAL,
    pss: bool = False,
) -> x509.Certificate:
    """`keys` are the subject's and the issuer's, by default those of their names."""
    own, signer = keys or (subject, issuer)
    builder = x509.CertificateBuilder().subject_name(_name(subject)).issuer_name(_name(issuer)).serial_number(serial)
    builder = builder.public_key(key(own).public_key()).not_valid_before(begins).not_valid_after(ends)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    digest = None if signer == "ed25519" else hashes.SHA384()
    scheme = padding.PSS(padding.MGF1(hashes.SHA384()), padding.PSS.DIGEST_LENGTH) if pss else None
    return builder.sign(key(signer), digest, rsa_padding=scheme)


@functools.cache
def root() -> x509.Certificate:
    return _certificate("root", "root", *ISSUER)


@functools.cache
def ca() -> x509.Certificate:
    return _certificate("ca", "root", *ISSUER)


@functools.cache
def leaf() -> x509.Certificate:
    return _certificate("leaf", "ca", *LEAF)


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def _element(tag: int, content: bytes) -> bytes:
    octets = len(content).to_bytes(2)
    return bytes([tag, 0x82]) + octets + content


def _content(der: bytes) -> bytes:
    """Of a DER element that has 128 to 65535 bytes."""
    return der[2 + (der[1] & 0x7F) :]


def _serial(number: int) -> bytes:
    """A certificate with the serial number of one byte, under a signature that is no longer right."""
    return _der(root()).replace(bytes([2, 1, SERIAL]), bytes([2, 1, number]), 1)


# --- load_certificate

EC_KEY = bytes.fromhex("06072a8648ce3d0201")
ECDSA_SHA384 = bytes.fromhex("06082a8648ce3d040303")
BROKEN = (x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, b"\xff"), False)
TWIN = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.16"), b"\5\0")
MALFORMED: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "cut": lambda: _der(root())[:-1],
    "trailing byte": lambda: _der(root()) + b"\0",
    "PEM": lambda: root().public_bytes(Encoding.PEM),
    "key of an unknown kind": lambda: _der(root()).replace(EC_KEY, EC_KEY[:-1] + b"\x7f"),
    "key that is no point": lambda: _der(root()).replace(_spki(root())[-97:], b"\4" + b"\1" * 96),
    "unknown signature algorithm": lambda: _der(root()).replace(ECDSA_SHA384, ECDSA_SHA384[:-1] + b"\x7f"),
    "broken extension": lambda: _der(_certificate("a", "a", *ISSUER, BROKEN)),
    "extension twice": lambda: _der(_certificate("a", "a", *ISSUER, (TWIN, False))).replace(b"\x1d\x10", b"\x1d\x0f"),
    "month 13": lambda: _der(root()).replace(b"\x17\x0d2611", b"\x17\x0d2613"),
    "serial number 0": lambda: _serial(0),
    "negative serial number": lambda: _serial(0xFF),
    "version 5": lambda: _der(root()).replace(b"\xa0\3\2\1\2", b"\xa0\3\2\1\4"),
}


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize("action", ["error", "ignore"])
@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_certificate_is_refused_whatever_warnings_do(name: str, action: Any) -> None:
    der = MALFORMED[name]()
    assert der != _der(root())
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with pytest.raises(EvidenceError, match=r"^the certificate does not parse$"):
            _x509.load_certificate(der, "the certificate")


def test_a_certificate_may_have_sixteen_kilobytes() -> None:
    def sized(size: int) -> bytes:
        padded = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), bytes(size))
        return _der(_certificate("root", "root", (padded, False)))

    least = max(len(sized(size)) for size in (16000, 16000, 16000))  # signatures differ by a byte or two
    _x509.load_certificate(sized(16000 + 16384 - least - 4), "the certificate")
    with pytest.raises(EvidenceError, match=r"^the certificate has \d+ bytes; 16384 are allowed$"):
        _x509.load_certificate(sized(16000 + 16384 - least + 4), "the certificate")


def test_what_was_loaded_can_be_used() -> None:
    loaded = _x509.load_certificate(_der(leaf()), "the certificate")
    assert _x509.certificate_sha256(loaded) == hashlib.sha256(_der(leaf())).digest()
    assert _x509.spki(loaded) == _spki(leaf())


@pytest.mark.filterwarnings("error")
def test_serial_number_zero_is_taken_where_it_is_expected_and_nobody_is_warned() -> None:
    before = list(warnings.filters)
    assert _x509.load_certificate(_serial(0), "the VCEK", serial_zero=True).subject == root().subject
    assert _x509.load_certificate(_der(root()), "the VCEK", serial_zero=True) == root()
    with pytest.raises(EvidenceError, match="does not parse"):
        _x509.load_certificate(_serial(0xFF), "the VCEK", serial_zero=True)
    assert warnings.filters == before


@pytest.mark.filterwarnings("error")
def test_many_threads_leave_the_warnings_as_they_were() -> None:
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        done = pool.map(lambda _: _x509.load_certificate(_serial(0), "the VCEK", serial_zero=True), range(500))
        assert len(list(done)) == 500
    assert warnings.filters == before


# --- load_public_key


def test_a_public_key_is_loaded_to_the_end_or_refused() -> None:
    der = _spki(root())
    loaded = _x509.load_public_key(der, "the key")
    assert isinstance(loaded, ec.EllipticCurvePublicKey)
    assert loaded == root().public_key()
    for wrong in (b"", der[:-1], der + b"\0", der.replace(EC_KEY, EC_KEY[:-1] + b"\x7f"), _der(root()), b"0" * 9999):
        with pytest.raises(EvidenceError, match=r"^the key does not parse$"):
            _x509.load_public_key(wrong, "the key")


# --- dates, roles, issuers


def test_dates_count_to_the_microsecond_in_any_time_zone() -> None:
    for zone in (UTC, timezone(timedelta(hours=-8))):
        for now in (NOW - DAY, NOW, NOW + DAY):
            _x509.check_dates(root(), now.astimezone(zone), "the root")
        with pytest.raises(EvidenceError, match="the root is not yet valid: from 2026-11-22"):
            _x509.check_dates(root(), (NOW - DAY - MICROSECOND).astimezone(zone), "the root")
        with pytest.raises(EvidenceError, match="the root has expired: on 2026-11-24"):
            _x509.check_dates(root(), (NOW + DAY + MICROSECOND).astimezone(zone), "the root")


@pytest.mark.parametrize(
    ("extensions", "message"),
    [
        ((CERTIFIES,), "the CA lacks basicConstraints or keyUsage"),
        ((CA,), "the CA lacks basicConstraints or keyUsage"),
        ((), "the CA lacks basicConstraints or keyUsage"),
        ((NOT_CA, CERTIFIES), "the CA is no CA"),
        ((CA, SIGNS), "the CA may not certify: its keyUsage lacks keyCertSign"),
    ],
)
def test_a_ca_is_one_that_says_so_twice(extensions: Any, message: str) -> None:
    _x509.check_ca(root(), "the CA")
    with pytest.raises(EvidenceError, match=message):
        _x509.check_ca(_certificate("a", "a", *extensions), "the CA")


@pytest.mark.parametrize(
    ("signer", "pss"), [("root", False), ("rsa2048", False), ("rsa2048", True), ("ed25519", False)]
)
def test_issued_by_is_by_signature_of_any_algorithm(signer: str, pss: bool) -> None:
    issued = _certificate("a", "root", keys=("a", signer), pss=pss)
    _x509.check_issued_by(issued, _certificate(keys=(signer, signer)), "the certificate")
    with pytest.raises(EvidenceError, match="the certificate was not issued by the certificate above it"):
        _x509.check_issued_by(issued, _certificate(keys=("other", "other")), "the certificate")


def test_issued_by_is_by_name_too() -> None:
    with pytest.raises(EvidenceError, match="was not issued by"):
        _x509.check_issued_by(_certificate("a", "ca", keys=("a", "root")), root(), "the certificate")


def test_a_key_that_can_not_sign_has_issued_nothing() -> None:
    with pytest.raises(EvidenceError, match="was not issued by"):
        _x509.check_issued_by(ca(), _certificate(keys=("x25519", "root")), "the certificate")


def test_an_algorithm_outside_of_what_was_signed_counts_for_nothing() -> None:
    der = _der(ca())
    at = der.rindex(ECDSA_SHA384)
    swapped = der[:at] + ECDSA_SHA384[:-1] + b"\2" + der[at + len(ECDSA_SHA384) :]
    with pytest.raises(EvidenceError, match="was not issued by"):
        _x509.check_issued_by(_x509.load_certificate(swapped, "the certificate"), root(), "the certificate")


def test_the_pinned_one_is_found_among_others() -> None:
    anchors = {_x509.certificate_sha256(ca()), bytes(32)}
    assert _x509.pinned([root(), ca(), leaf()], anchors, "the chain") == ca()
    for none in ([], [root(), leaf()]):
        with pytest.raises(EvidenceError, match="the chain does not end in a root that is trusted"):
            _x509.pinned(none, anchors, "the chain")


# --- verify_path


def _path(
    of: x509.Certificate | None = None,
    *between: x509.Certificate,
    under: x509.Certificate | None = None,
    now: datetime = NOW,
) -> Sequence[x509.Certificate]:
    return _x509.verify_path(of or leaf(), between or [ca()], under or root(), now, "the leaf")


def test_a_path_is_found_leaf_first_whatever_else_is_there() -> None:
    stranger = _certificate("stranger", "stranger")
    assert list(_path()) == [leaf(), ca(), root()]
    assert list(_path(leaf(), stranger, root(), ca(), leaf(), ca())) == [leaf(), ca(), root()]
    assert list(_path(_certificate("a", "root", *LEAF), stranger))[1:] == [root()]


def test_the_root_need_not_be_its_own_issuer() -> None:
    assert list(_path(leaf(), ca(), under=ca())) == [leaf(), ca()]


def test_what_the_leaf_is_for_is_not_looked_at() -> None:
    for extensions in ((), ISSUER, (x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), True)):
        given = (extensions,) if len(extensions) == 2 and isinstance(extensions[1], bool) else extensions
        _path(_certificate("leaf", "ca", *given))
    for kind in ("rsa1024", "ed25519", "x25519", "secp256k1"):
        _path(_certificate("leaf", "ca", *LEAF, keys=(kind, "ca")))


def test_the_root_itself_is_no_leaf() -> None:
    with pytest.raises(EvidenceError, match="the leaf is itself the trusted root"):
        _path(leaf(), ca(), under=leaf())


UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\5\0")
POLICY = x509.PolicyConstraints(require_explicit_policy=0, inhibit_policy_mapping=None)
PERMITTED = x509.NameConstraints([x509.DirectoryName(_name("another"))], None)
WRONG_PATHS: dict[str, Callable[[], object]] = {
    "no issuer": lambda: _path(leaf(), root()),
    "issuer of another name": lambda: _path(_certificate("leaf", "another", *LEAF, keys=("leaf", "ca"))),
    "issuer's key is another": lambda: _path(_certificate("leaf", "ca", *LEAF, keys=("leaf", "another"))),
    "root of the same name": lambda: _path(under=_certificate("root", "root", *ISSUER, keys=("another", "another"))),
    "leaf expired CA": lambda: _path(leaf(), _certificate("ca", "root", *ISSUER, ends=NOW - timedelta(seconds=1))),
    "CA not yet valid": lambda: _path(leaf(), _certificate("ca", "root", *ISSUER, begins=NOW + timedelta(seconds=1))),
    "CA without extensions": lambda: _path(leaf(), _certificate("ca", "root")),
    "CA without basicConstraints": lambda: _path(leaf(), _certificate("ca", "root", CERTIFIES)),
    "CA without keyUsage": lambda: _path(leaf(), _certificate("ca", "root", CA)),
    "CA that is none": lambda: _path(leaf(), _certificate("ca", "root", NOT_CA, CERTIFIES)),
    "CA with nothing to be below": lambda: _path(
        _certificate("leaf", "sub", *LEAF),
        _certificate("sub", "ca", *ISSUER),
        _certificate("ca", "root", (x509.BasicConstraints(ca=True, path_length=0), True), CERTIFIES),
    ),
    "root with nothing to be below": lambda: _path(
        under=_certificate("root", "root", (x509.BasicConstraints(ca=True, path_length=0), True), CERTIFIES)
    ),
    "root without basicConstraints": lambda: _path(under=_certificate("root", "root", CERTIFIES)),
    "root that is no CA": lambda: _path(under=_certificate("root", "root", NOT_CA, CERTIFIES)),
    "leaf with unknown critical": lambda: _path(_certificate("leaf", "ca", *LEAF, (UNKNOWN, True))),
    "CA with unknown critical": lambda: _path(leaf(), _certificate("ca", "root", *ISSUER, (UNKNOWN, True))),
    "root with unknown critical": lambda: _path(under=_certificate("root", "root", *ISSUER, (UNKNOWN, True))),
    "critical policy constraints": lambda: _path(leaf(), _certificate("ca", "root", *ISSUER, (POLICY, True))),
    "names that are not permitted": lambda: _path(leaf(), _certificate("ca", "root", *ISSUER, (PERMITTED, True))),
    "weak RSA": lambda: _path(
        _certificate("leaf", "ca", *LEAF, keys=("leaf", "rsa1024")),
        _certificate("ca", "root", *ISSUER, keys=("rsa1024", "root")),
    ),
    "rare curve": lambda: _path(
        _certificate("leaf", "ca", *LEAF, keys=("leaf", "secp256k1")),
        _certificate("ca", "root", *ISSUER, keys=("secp256k1", "root")),
    ),
    "RSA-PSS": lambda: _path(
        _certificate("leaf", "root", *LEAF, keys=("leaf", "rsa2048"), pss=True),
        under=_certificate("root", "root", *ISSUER, keys=("rsa2048", "rsa2048")),
    ),
}


@pytest.mark.parametrize("name", WRONG_PATHS)
def test_the_library_refuses(name: str) -> None:
    with pytest.raises(EvidenceError, match=NO_PATH):
        WRONG_PATHS[name]()


@pytest.mark.parametrize("part", ["leaf", "ca", "root"])
def test_an_unknown_extension_that_is_not_critical_is_no_matter(part: str) -> None:
    changed = {
        "leaf": lambda: _path(_certificate("leaf", "ca", *LEAF, (UNKNOWN, False))),
        "ca": lambda: _path(leaf(), _certificate("ca", "root", *ISSUER, (UNKNOWN, False))),
        "root": lambda: _path(under=_certificate("root", "root", *ISSUER, (UNKNOWN, False))),
    }
    assert len(changed[part]()) == 3


@pytest.mark.parametrize("part", ["ca", "root"])
def test_key_cert_sign_is_asked_of_every_issuer_which_the_library_does_not(part: str) -> None:
    signing = _certificate(part, "root", CA, (key_usage("digital_signature", "crl_sign"), True))
    with pytest.raises(EvidenceError, match="an issuer of the leaf may not certify: its keyUsage lacks keyCertSign"):
        _path(leaf(), signing) if part == "ca" else _path(under=signing)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("leaf", "the leaf has expired"),
        ("ca", "an issuer of the leaf has expired"),
        ("root", "the root of the leaf has expired"),
    ],
)
def test_fractions_of_a_second_count_which_the_library_drops(part: str, message: str) -> None:
    chain = {
        "leaf": _certificate("leaf", "ca", *LEAF, ends=NOW if part == "leaf" else NOW + DAY),
        "ca": _certificate("ca", "root", *ISSUER, ends=NOW if part == "ca" else NOW + DAY),
        "root": _certificate("root", "root", *ISSUER, ends=NOW if part == "root" else NOW + DAY),
    }
    _path(chain["leaf"], chain["ca"], under=chain["root"])
    with pytest.raises(EvidenceError, match=message):
        _path(chain["leaf"], chain["ca"], under=chain["root"], now=NOW + MICROSECOND)


@pytest.mark.parametrize("now", [datetime.min, datetime.max])
def test_the_ends_of_time_are_times_like_any_other(now: datetime) -> None:
    for zone in (UTC, timezone(timedelta(hours=9)), timezone(timedelta(hours=-9))):
        with pytest.raises(EvidenceError, match="the leaf (has expired|is not yet valid)"):
            _path(now=now.replace(tzinfo=zone))
    always = {"begins": datetime(1950, 1, 1, tzinfo=UTC), "ends": datetime.max.replace(tzinfo=UTC)}
    long_lived = [_certificate("leaf", "root", *LEAF, **always), _certificate("root", "root", *ISSUER, **always)]
    with pytest.raises(EvidenceError, match=NO_PATH):
        now = datetime.max.replace(tzinfo=timezone(timedelta(hours=-9)))
        _x509.verify_path(long_lived[0], [], long_lived[1], now, "the leaf")


@pytest.mark.parametrize("issuers", [9, 10])
def test_a_path_may_have_nine_issuers(issuers: int) -> None:
    names = ["root", *(f"ca {index}" for index in range(issuers - 1)), "leaf"]
    pairs = list(zip(names[1:], names, strict=False))
    *between, end = [_certificate(name, above, *(LEAF if name == "leaf" else ISSUER)) for name, above in pairs]
    if issuers == _x509.MAX_PATH_ISSUERS:
        assert len(_path(end, *between)) == issuers + 1
        return
    with pytest.raises(EvidenceError, match=NO_PATH):
        _path(end, *between)


def test_many_certificates_of_one_name_do_not_take_long() -> None:
    loop = [_certificate("ca", "ca", *ISSUER, serial=serial) for serial in range(1, 32)]
    begun = time.perf_counter()
    with pytest.raises(EvidenceError, match=NO_PATH):
        _path(leaf(), *loop)
    assert time.perf_counter() - begun < 2


# --- CRLs


def _crl(  # noqa: PLR0913
    *serials: int,
    issuer: str = "root",
    signer: str | None = None,
    begins: datetime = NOW - DAY,
    ends: datetime = NOW + DAY,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
) -> x509.CertificateRevocationList:
    builder = x509.CertificateRevocationListBuilder().issuer_name(_name(issuer)).last_update(begins).next_update(ends)
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
    tbs = _content(crl.tbs_certlist_bytes)
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
        _der(root()),
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
        lambda: _check(_crl(), of=_certificate("a", "another")),
    ),
    "by another key": ("the signature of the CRL for the CA does not verify", lambda: _check(_crl(signer="another"))),
    "by a key that can't sign": (
        "the CRL for the CA can't be verified with its issuer's key",
        lambda: _check(_crl(), by=_certificate("root", "root", *ISSUER, keys=("x25519", "root"))),
    ),
    "by who may not": (
        "the issuer of the CRL for the CA may not sign it: its keyUsage lacks cRLSign",
        lambda: _check(_crl(), by=_certificate("root", "root", CA, (key_usage("key_cert_sign"), True))),
    ),
    "by who does not say": (
        "the issuer of the CRL for the CA lacks basicConstraints or keyUsage",
        lambda: _check(_crl(), by=_certificate("root", "root", CA)),
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


@pytest.mark.parametrize("name", WRONG_CRLS)
def test_a_crl_that_is_not_the_right_one_proves_nothing(name: str) -> None:
    message, check = WRONG_CRLS[name]
    with pytest.raises(EvidenceError, match=message):
        check()


@pytest.mark.filterwarnings("error")
def test_serial_number_zero_can_not_be_looked_up_where_warnings_are_errors() -> None:
    vcek = _x509.load_certificate(_serial(0), "the VCEK", serial_zero=True)
    with pytest.raises(EvidenceError, match="the serial number of the CA can't be looked up"):
        _check(_crl(), of=vcek)
