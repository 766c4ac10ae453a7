"""X.509 from strangers: one test for each thing that the library, or what is around it, is relied upon for."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from certificates import (
    CA,
    DAY,
    ISSUER,
    LEAF,
    MICROSECOND,
    ca,
    certificate,
    der_of,
    leaf,
    name,
    root,
    with_serial,
)
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from adyton.errors import EvidenceError
from adyton.tee import _x509
from adyton.testing.forgery import NOW
from adyton.testing.simulated import CERTIFIES, NOT_CA, SIGNS, key_usage

NO_PATH = "the leaf has no valid path to the trusted root"

# --- load_certificate

EC_KEY = bytes.fromhex("06072a8648ce3d0201")
ECDSA_SHA384 = bytes.fromhex("06082a8648ce3d040303")
BROKEN = (x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, b"\xff"), False)
TWIN = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.16"), b"\5\0")
MALFORMED: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "cut": lambda: der_of(root())[:-1],
    "trailing byte": lambda: der_of(root()) + b"\0",
    "PEM": lambda: root().public_bytes(Encoding.PEM),
    "key of an unknown kind": lambda: der_of(root()).replace(EC_KEY, EC_KEY[:-1] + b"\x7f"),
    "key that is no point": lambda: der_of(root()).replace(_spki(root())[-97:], b"\4" + b"\1" * 96),
    "unknown signature algorithm": lambda: der_of(root()).replace(ECDSA_SHA384, ECDSA_SHA384[:-1] + b"\x7f"),
    "broken extension": lambda: der_of(certificate("a", "a", *ISSUER, BROKEN)),
    "extension twice": lambda: der_of(certificate("a", "a", *ISSUER, (TWIN, False))).replace(b"\x1d\x10", b"\x1d\x0f"),
    "month 13": lambda: der_of(root()).replace(b"\x17\x0d2611", b"\x17\x0d2613"),
    "serial number 0": lambda: with_serial(0),
    "negative serial number": lambda: with_serial(0xFF),
    "version 5": lambda: der_of(root()).replace(b"\xa0\3\2\1\2", b"\xa0\3\2\1\4"),
}


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize("action", ["error", "ignore"])
@pytest.mark.parametrize("wrong", MALFORMED)
def test_a_malformed_certificate_is_refused_whatever_warnings_do(wrong: str, action: Any) -> None:
    der = MALFORMED[wrong]()
    assert der != der_of(root())
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with pytest.raises(EvidenceError, match=r"^the certificate does not parse$"):
            _x509.load_certificate(der, "the certificate")


def test_a_certificate_may_have_sixteen_kilobytes() -> None:
    def sized(size: int) -> bytes:
        padded = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), bytes(size))
        return der_of(certificate("root", "root", (padded, False)))

    least = max(len(sized(size)) for size in (16000, 16000, 16000))  # signatures differ by a byte or two
    _x509.load_certificate(sized(16000 + 16384 - least - 4), "the certificate")
    with pytest.raises(EvidenceError, match=r"^the certificate has \d+ bytes; 16384 are allowed$"):
        _x509.load_certificate(sized(16000 + 16384 - least + 4), "the certificate")


def test_what_was_loaded_can_be_used() -> None:
    loaded = _x509.load_certificate(der_of(leaf()), "the certificate")
    assert _x509.certificate_sha256(loaded) == hashlib.sha256(der_of(leaf())).digest()
    assert _x509.spki(loaded) == _spki(leaf())


@pytest.mark.filterwarnings("error")
def test_serial_number_zero_is_taken_where_it_is_expected_and_nobody_is_warned() -> None:
    before = list(warnings.filters)
    assert _x509.load_certificate(with_serial(0), "the VCEK", serial_zero=True).subject == root().subject
    assert _x509.load_certificate(der_of(root()), "the VCEK", serial_zero=True) == root()
    with pytest.raises(EvidenceError, match="does not parse"):
        _x509.load_certificate(with_serial(0xFF), "the VCEK", serial_zero=True)
    assert warnings.filters == before


@pytest.mark.filterwarnings("error")
def test_many_threads_leave_the_warnings_as_they_were() -> None:
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        done = pool.map(lambda _: _x509.load_certificate(with_serial(0), "the VCEK", serial_zero=True), range(500))
        assert len(list(done)) == 500
    assert warnings.filters == before


# --- load_public_key


def test_a_public_key_is_loaded_to_the_end_or_refused() -> None:
    der = _spki(root())
    loaded = _x509.load_public_key(der, "the key")
    assert isinstance(loaded, ec.EllipticCurvePublicKey)
    assert loaded == root().public_key()
    for wrong in (b"", der[:-1], der + b"\0", der.replace(EC_KEY, EC_KEY[:-1] + b"\x7f"), der_of(root()), b"0" * 9999):
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
        _x509.check_ca(certificate("a", "a", *extensions), "the CA")


@pytest.mark.parametrize(
    ("signer", "pss"), [("root", False), ("rsa2048", False), ("rsa2048", True), ("ed25519", False)]
)
def test_issued_by_is_by_signature_of_any_algorithm(signer: str, pss: bool) -> None:
    issued = certificate("a", "root", keys=("a", signer), pss=pss)
    _x509.check_issued_by(issued, certificate(keys=(signer, signer)), "the certificate")
    with pytest.raises(EvidenceError, match="the certificate was not issued by the certificate above it"):
        _x509.check_issued_by(issued, certificate(keys=("other", "other")), "the certificate")


def test_issued_by_is_by_name_too() -> None:
    with pytest.raises(EvidenceError, match="was not issued by"):
        _x509.check_issued_by(certificate("a", "ca", keys=("a", "root")), root(), "the certificate")


def test_a_key_that_can_not_sign_has_issued_nothing() -> None:
    with pytest.raises(EvidenceError, match="was not issued by"):
        _x509.check_issued_by(ca(), certificate(keys=("x25519", "root")), "the certificate")


def test_an_algorithm_outside_of_what_was_signed_counts_for_nothing() -> None:
    der = der_of(ca())
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
    stranger = certificate("stranger", "stranger")
    assert list(_path()) == [leaf(), ca(), root()]
    assert list(_path(leaf(), stranger, root(), ca(), leaf(), ca())) == [leaf(), ca(), root()]
    assert list(_path(certificate("a", "root", *LEAF), stranger))[1:] == [root()]


def test_the_root_need_not_be_its_own_issuer() -> None:
    assert list(_path(leaf(), ca(), under=ca())) == [leaf(), ca()]


def test_what_the_leaf_is_for_is_not_looked_at() -> None:
    for extensions in ((), ISSUER, ((x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), True),)):
        _path(certificate("leaf", "ca", *extensions))
    for kind in ("rsa1024", "ed25519", "x25519", "secp256k1"):
        _path(certificate("leaf", "ca", *LEAF, keys=(kind, "ca")))


def test_the_root_itself_is_no_leaf() -> None:
    with pytest.raises(EvidenceError, match="the leaf is itself the trusted root"):
        _path(leaf(), ca(), under=leaf())


UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\5\0")
POLICY = x509.PolicyConstraints(require_explicit_policy=0, inhibit_policy_mapping=None)
PERMITTED = x509.NameConstraints([x509.DirectoryName(name("another"))], None)
WRONG_PATHS: dict[str, Callable[[], object]] = {
    "no issuer": lambda: _path(leaf(), root()),
    "issuer of another name": lambda: _path(certificate("leaf", "another", *LEAF, keys=("leaf", "ca"))),
    "issuer's key is another": lambda: _path(certificate("leaf", "ca", *LEAF, keys=("leaf", "another"))),
    "root of the same name": lambda: _path(under=certificate("root", "root", *ISSUER, keys=("another", "another"))),
    "CA expired": lambda: _path(leaf(), certificate("ca", "root", *ISSUER, ends=NOW - timedelta(seconds=1))),
    "CA not yet valid": lambda: _path(leaf(), certificate("ca", "root", *ISSUER, begins=NOW + timedelta(seconds=1))),
    "CA without extensions": lambda: _path(leaf(), certificate("ca", "root")),
    "CA without basicConstraints": lambda: _path(leaf(), certificate("ca", "root", CERTIFIES)),
    "CA without keyUsage": lambda: _path(leaf(), certificate("ca", "root", CA)),
    "CA that is none": lambda: _path(leaf(), certificate("ca", "root", NOT_CA, CERTIFIES)),
    "CA with nothing to be below": lambda: _path(
        certificate("leaf", "sub", *LEAF),
        certificate("sub", "ca", *ISSUER),
        certificate("ca", "root", (x509.BasicConstraints(ca=True, path_length=0), True), CERTIFIES),
    ),
    "root with nothing to be below": lambda: _path(
        under=certificate("root", "root", (x509.BasicConstraints(ca=True, path_length=0), True), CERTIFIES)
    ),
    "root without basicConstraints": lambda: _path(under=certificate("root", "root", CERTIFIES)),
    "root that is no CA": lambda: _path(under=certificate("root", "root", NOT_CA, CERTIFIES)),
    "leaf with unknown critical": lambda: _path(certificate("leaf", "ca", *LEAF, (UNKNOWN, True))),
    "CA with unknown critical": lambda: _path(leaf(), certificate("ca", "root", *ISSUER, (UNKNOWN, True))),
    "root with unknown critical": lambda: _path(under=certificate("root", "root", *ISSUER, (UNKNOWN, True))),
    "critical policy constraints": lambda: _path(leaf(), certificate("ca", "root", *ISSUER, (POLICY, True))),
    "names that are not permitted": lambda: _path(leaf(), certificate("ca", "root", *ISSUER, (PERMITTED, True))),
    "weak RSA": lambda: _path(
        certificate("leaf", "ca", *LEAF, keys=("leaf", "rsa1024")),
        certificate("ca", "root", *ISSUER, keys=("rsa1024", "root")),
    ),
    "rare curve": lambda: _path(
        certificate("leaf", "ca", *LEAF, keys=("leaf", "secp256k1")),
        certificate("ca", "root", *ISSUER, keys=("secp256k1", "root")),
    ),
}


@pytest.mark.parametrize("wrong", WRONG_PATHS)
def test_the_library_refuses(wrong: str) -> None:
    with pytest.raises(EvidenceError, match=NO_PATH):
        WRONG_PATHS[wrong]()


@pytest.mark.parametrize("part", ["leaf", "ca", "root"])
def test_an_unknown_extension_that_is_not_critical_is_no_matter(part: str) -> None:
    changed = {
        "leaf": lambda: _path(certificate("leaf", "ca", *LEAF, (UNKNOWN, False))),
        "ca": lambda: _path(leaf(), certificate("ca", "root", *ISSUER, (UNKNOWN, False))),
        "root": lambda: _path(under=certificate("root", "root", *ISSUER, (UNKNOWN, False))),
    }
    assert len(changed[part]()) == 3


@pytest.mark.parametrize("part", ["ca", "root"])
def test_key_cert_sign_is_asked_of_every_issuer_which_the_library_does_not(part: str) -> None:
    signing = certificate(part, "root", CA, (key_usage("digital_signature", "crl_sign"), True))
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
        "leaf": certificate("leaf", "ca", *LEAF, ends=NOW if part == "leaf" else NOW + DAY),
        "ca": certificate("ca", "root", *ISSUER, ends=NOW if part == "ca" else NOW + DAY),
        "root": certificate("root", "root", *ISSUER, ends=NOW if part == "root" else NOW + DAY),
    }
    _path(chain["leaf"], chain["ca"], under=chain["root"])
    with pytest.raises(EvidenceError, match=message):
        _path(chain["leaf"], chain["ca"], under=chain["root"], now=NOW + MICROSECOND)


@pytest.mark.parametrize("now", [datetime.min, datetime.max])
def test_the_ends_of_time_are_times_like_any_other(now: datetime) -> None:
    for zone in (UTC, timezone(timedelta(hours=9)), timezone(timedelta(hours=-9))):
        with pytest.raises(EvidenceError, match=r"the leaf (has expired|is not yet valid)"):
            _path(now=now.replace(tzinfo=zone))


@pytest.mark.parametrize("issuers", [9, 10])
def test_a_path_may_have_nine_issuers(issuers: int) -> None:
    names = ["root", *(f"ca {index}" for index in range(issuers - 1)), "leaf"]
    pairs = list(zip(names[1:], names, strict=False))
    *between, end = [certificate(name, above, *(LEAF if name == "leaf" else ISSUER)) for name, above in pairs]
    if issuers == _x509.MAX_PATH_ISSUERS:
        assert len(_path(end, *between)) == issuers + 1
        return
    with pytest.raises(EvidenceError, match=NO_PATH):
        _path(end, *between)


def test_many_certificates_of_one_name_do_not_take_long() -> None:
    loop = [certificate("ca", "ca", *ISSUER, serial=serial) for serial in range(1, 32)]
    begun = time.perf_counter()
    with pytest.raises(EvidenceError, match=NO_PATH):
        _path(leaf(), *loop)
    assert time.perf_counter() - begun < 2
