"""The certificates of DCAP: chains in PEM, from when to when what counts, and the chain of a platform's PCK.

Nothing is verified here but what `dcap-qvl` leaves out; signatures and revocation are its work.
"""

from __future__ import annotations

import base64
import functools
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Final, Literal

import dcap_qvl
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from adyton.errors import EvidenceError
from adyton.tee._x509 import certificate_sha256, load_certificate

PckCa = Literal["platform", "processor"]

_CA_NAMES: Final[Mapping[str, PckCa]] = MappingProxyType(
    {"Intel SGX PCK Platform CA": "platform", "Intel SGX PCK Processor CA": "processor"}
)
_MAX_SHOWN_CHARACTERS: Final = 200

_CERTIFICATE: Final = (
    rb"-----BEGIN CERTIFICATE-----\r?\n((?:[A-Za-z0-9+/=]{1,76}\r?\n)+)-----END CERTIFICATE-----(?:\r?\n)?"
)
_ONE: Final = re.compile(_CERTIFICATE)
_CHAIN: Final = re.compile(rb"(?:" + _CERTIFICATE + rb")+\0*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Validity:
    """From when to when a document counts, both included."""

    what: str
    begins: datetime
    ends: datetime

    def check(self, now: datetime) -> None:
        """Refuse a `now` outside, to the microsecond."""
        if now < self.begins:
            raise EvidenceError(f"{self.what} is not yet valid: from {self.begins}, now it is {now}")
        if now > self.ends:
            raise EvidenceError(f"{self.what} has expired: on {self.ends}, now it is {now}")


def validity(certificate: x509.Certificate, what: str) -> Validity:
    """The certificate's dates."""
    return Validity(what=what, begins=certificate.not_valid_before_utc, ends=certificate.not_valid_after_utc)


@dataclass(frozen=True, slots=True, kw_only=True)
class PckChain:
    """The chain of a platform's PCK certificate, not verified. FMSPC (6 bytes) and PCE-ID (2) are the certificate's."""

    pem: bytes
    root_der: bytes
    root_sha256: bytes
    pck_ca: PckCa
    fmspc: bytes
    pce_id: bytes
    validities: tuple[Validity, ...]

    def check(self, anchors: Collection[bytes], now: datetime) -> None:
        """Refuse a chain whose root is none of the anchors, or of which a certificate is not valid now."""
        if self.root_sha256 not in anchors:
            raise EvidenceError("the chain of the PCK certificate does not end in a root that is trusted")
        for each in self.validities:
            each.check(now)


@functools.lru_cache(maxsize=64)
def parse_pck_chain(pem: bytes) -> PckChain:
    """Parse the PCK's certificate, one of Intel's two CAs, and the root (PCK Certificate Profile, section 1.2)."""
    what = "the chain of the PCK certificate"
    certificates = parse_chain(pem, what, 3)
    _, ca, root = certificates
    with refusals_of_library("the extension of the PCK certificate does not parse"):
        extension = dcap_qvl.parse_pck_extension_from_pem(pem)
        fmspc, pce_id = extension.fmspc, extension.pce_id
    names = ("the PCK certificate", "the certificate of its CA", "the certificate of its root")
    return PckChain(
        pem=pem,
        root_der=root.public_bytes(Encoding.DER),
        root_sha256=certificate_sha256(root),
        pck_ca=pck_ca(ca, "the issuer of the PCK certificate"),
        fmspc=fmspc,
        pce_id=pce_id,
        validities=tuple(validity(each, name) for each, name in zip(certificates, names, strict=True)),
    )


def parse_chain(pem: bytes, what: str, count: int) -> tuple[x509.Certificate, ...]:
    """Parse exactly `count` certificates in PEM (RFC 7468, strict), with zeros at the end or without, as in quotes.

    Nothing else may stand before, between or after them: readers differ in what they skip.
    """
    if not _CHAIN.fullmatch(pem):
        raise EvidenceError(f"{what} is not PEM of certificates and nothing else")
    encoded = _ONE.findall(pem)
    if len(encoded) != count:
        raise EvidenceError(f"{what} has {len(encoded)} certificates, not {count}")
    try:
        ders = [base64.b64decode(b"".join(each.split()), validate=True) for each in encoded]
    except ValueError as error:
        raise EvidenceError(f"{what} is not PEM of certificates: its base64 is malformed") from error
    return tuple(load_certificate(der, f"a certificate in {what}") for der in ders)


def pck_ca(certificate: x509.Certificate, what: str) -> PckCa:
    """Which of Intel's two CAs for PCK certificates this is, by its name."""
    names = _common_names(certificate)
    if len(names) != 1 or names[0] not in _CA_NAMES:
        raise EvidenceError(f"{what} is {_shown(names)}, none of Intel's PCK CAs")
    return _CA_NAMES[names[0]]


def check_name(certificate: x509.Certificate, name: str, what: str) -> None:
    """Refuse a certificate whose subject has not exactly this common name."""
    names = _common_names(certificate)
    if names != [name]:
        raise EvidenceError(f"{what} is {_shown(names)}, not {name!r}")


def _common_names(certificate: x509.Certificate) -> list[str]:
    return [str(each.value) for each in certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]


def _shown(names: list[str]) -> str:
    return ascii(", ".join(names)[:64])


@contextmanager
def refusals_of_library(what: str) -> Iterator[None]:
    """Turn what `dcap_qvl` raises into `EvidenceError`: "what: its own words". A panic in Rust is no `Exception`."""
    try:
        yield
    except ValueError as error:
        raise EvidenceError(f"{what}: {_printable(str(error))}") from error
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":
            raise
        raise EvidenceError(f"{what}: the library failed on it") from error


def _printable(text: str) -> str:
    """The words of a library about an attacker's bytes: in a line, in ASCII, and not too long."""
    return ascii(" ".join(text.split()))[1:-1][:_MAX_SHOWN_CHARACTERS]
