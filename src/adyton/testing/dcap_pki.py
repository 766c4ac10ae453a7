"""A fake Intel: a root of its own, the PCK CA and the TCB signer under it, a platform's PCK certificate, and the CRLs.

A recipe's defaults are genuine; what differs from them is what is wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from adyton.tee._dcap_chain import PckCa
from adyton.testing.forgery import NOW

Part = Literal["root", "ca", "signer", "pck"]
Dates = tuple[datetime, datetime]

YEARS: Final = (NOW - timedelta(days=1000), NOW + timedelta(days=1000))
DAYS: Final = (NOW - timedelta(days=10), NOW + timedelta(days=20))
"""As long as Intel's certificates are valid, and its other documents."""
SIGNER_NAME: Final = "Intel SGX TCB Signing"
PCK_NAME: Final = "Intel SGX PCK Certificate"
CA_NAMES: Final[dict[PckCa, str]] = {
    "platform": "Intel SGX PCK Platform CA",
    "processor": "Intel SGX PCK Processor CA",
}

_SGX_EXTENSION: Final = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
_SGX_OID_DER: Final = bytes.fromhex("2a864886f84d010d01")


def sign_raw(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """r and s in 64 bytes (ECDSA over P-256 with SHA-256), as in quotes and in Intel's documents."""
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32) + s.to_bytes(32)


def raw_public_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """x and y in 64 bytes."""
    numbers = key.public_key().public_numbers()
    return numbers.x.to_bytes(32) + numbers.y.to_bytes(32)


def pem(*certificates: x509.Certificate) -> str:
    """The certificates one after the other, as Intel writes chains: leaf first."""
    return "".join(each.public_bytes(Encoding.PEM).decode() for each in certificates)


def certificate_name(common_name: str) -> x509.Name:
    """A name as short as it can be."""
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """A certificate with its key."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformRecipe:
    """What the PCK certificate says about its platform (Intel SGX PCK Certificate and CRL Profile Specification, 1.3).

    `flags` are dynamic platform, cached keys and SMT, in certificates of the platform CA only.
    """

    fmspc: bytes = bytes.fromhex("00a06f00c0de")
    pce_id: bytes = bytes(2)
    pce_svn: int = 13
    cpu_svn: bytes = bytes((3, 3, 2, 2, 4, 1, 0, 5)) + bytes(8)
    ppid: bytes = bytes(range(16))
    sgx_type: int = 1
    platform_instance_id: bytes | None = bytes(range(16, 32))
    flags: tuple[bool, bool, bool] | None = (True, False, True)


GENUINE_PLATFORM: Final = PlatformRecipe()
PROCESSOR_PLATFORM: Final = PlatformRecipe(sgx_type=0, platform_instance_id=None, flags=None)
"""A machine with one processor, under the processor CA."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PkiRecipe:
    """How to make certificates and CRLs.

    `certified` says whether the PCK certificate says anything about the platform; `revoked` whom the CRLs name.
    """

    pck_ca: PckCa = "platform"
    platform: PlatformRecipe = GENUINE_PLATFORM
    certified: bool = True
    ca_name: str | None = None
    root_dates: Dates = YEARS
    ca_dates: Dates = YEARS
    signer_dates: Dates = YEARS
    pck_dates: Dates = YEARS
    root_crl_dates: Dates = YEARS
    pck_crl_dates: Dates = DAYS
    revoked: frozenset[Part] = frozenset()


class Pki:
    """All that one recipe gives. Two of them have different keys, and nothing in common but names."""

    def __init__(self, recipe: PkiRecipe) -> None:
        self.recipe = recipe
        self.root = issue("Intel SGX Root CA", recipe.root_dates, ca=True)
        self.ca = issue(recipe.ca_name or CA_NAMES[recipe.pck_ca], recipe.ca_dates, self.root, ca=True)
        self.signer = issue(SIGNER_NAME, recipe.signer_dates, self.root)
        extensions = [sgx_extension(recipe.platform)] if recipe.certified else []
        self.pck = issue(PCK_NAME, recipe.pck_dates, self.ca, extensions)

    @property
    def pck_chain(self) -> str:
        """PEM of the PCK certificate, the CA above it, and the root."""
        return pem(self.pck.certificate, self.ca.certificate, self.root.certificate)

    def root_crl(self) -> x509.CertificateRevocationList:
        """The root's: of CAs and signers."""
        return self.crl(self.root, self.recipe.root_crl_dates, "root", "ca", "signer")

    def pck_crl(self) -> x509.CertificateRevocationList:
        """The PCK CA's: of PCK certificates."""
        return self.crl(self.ca, self.recipe.pck_crl_dates, "pck")

    def crl(self, issuer: Authority, dates: Dates, *parts: Part) -> x509.CertificateRevocationList:
        """A CRL by that issuer, of those of the parts that the recipe revokes."""
        builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.certificate.subject)
        builder = builder.last_update(dates[0]).next_update(dates[1])
        builder = builder.add_extension(x509.CRLNumber(1), critical=False)
        builder = builder.add_extension(_authority_key(issuer.key), critical=False)
        for part in sorted(self.recipe.revoked.intersection(parts)):
            revoked = getattr(self, part).certificate
            entry = x509.RevokedCertificateBuilder().serial_number(revoked.serial_number).revocation_date(dates[0])
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(issuer.key, hashes.SHA256())


def crl_without_next_update(issuer: Authority) -> bytes:
    """DER of a CRL that does not say when the next one comes, which the library refuses to make."""
    moment = NOW.strftime("%y%m%d%H%M%SZ").encode()
    algorithm = _der(0x30, bytes.fromhex("06082a8648ce3d040302"))
    to_sign = _der(0x30, _integer(1) + algorithm + issuer.certificate.subject.public_bytes() + _der(0x17, moment))
    signature = issuer.key.sign(to_sign, ec.ECDSA(hashes.SHA256()))
    return _der(0x30, to_sign + algorithm + _der(0x03, b"\0" + signature))


@functools.cache
def pki(recipe: PkiRecipe) -> Pki:
    """The PKI of that recipe, made once."""
    return Pki(recipe)


def issue(
    name: str,
    dates: Dates = YEARS,
    issuer: Authority | None = None,
    extensions: Sequence[x509.UnrecognizedExtension] = (),
    *,
    ca: bool = False,
) -> Authority:
    """A new key and its certificate by the issuer, or by itself if there is none."""
    key = ec.generate_private_key(ec.SECP256R1())
    signer = issuer.key if issuer else key
    subject = certificate_name(name)
    builder = x509.CertificateBuilder().subject_name(subject).public_key(key.public_key())
    builder = builder.issuer_name(issuer.certificate.subject if issuer else subject)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(dates[0]).not_valid_after(dates[1])
    builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    builder = builder.add_extension(_usage(ca=ca), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    builder = builder.add_extension(_authority_key(signer), critical=False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return Authority(key=key, certificate=builder.sign(signer, hashes.SHA256()))


def _authority_key(key: ec.EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def sgx_extension(platform: PlatformRecipe) -> x509.UnrecognizedExtension:
    """Intel's extension of a PCK certificate: a sequence of pairs of an OID and a value."""
    components = [_pair((2, i + 1), _integer(svn)) for i, svn in enumerate(platform.cpu_svn)]
    tcb = [*components, _pair((2, 17), _integer(platform.pce_svn)), _pair((2, 18), _octets(platform.cpu_svn))]
    pairs = [
        _pair((1,), _octets(platform.ppid)),
        _pair((2,), _der(0x30, b"".join(tcb))),
        _pair((3,), _octets(platform.pce_id)),
        _pair((4,), _octets(platform.fmspc)),
        _pair((5,), _der(0x0A, bytes([platform.sgx_type]))),
    ]
    if platform.platform_instance_id is not None:
        pairs.append(_pair((6,), _octets(platform.platform_instance_id)))
    if platform.flags is not None:
        flags = [_pair((7, i + 1), _der(0x01, b"\xff" if flag else b"\0")) for i, flag in enumerate(platform.flags)]
        pairs.append(_pair((7,), _der(0x30, b"".join(flags))))
    return x509.UnrecognizedExtension(_SGX_EXTENSION, _der(0x30, b"".join(pairs)))


def _pair(below: tuple[int, ...], value: bytes) -> bytes:
    return _der(0x30, _der(0x06, _SGX_OID_DER + bytes(below)) + value)


def _integer(value: int) -> bytes:
    return _der(0x02, value.to_bytes(value.bit_length() // 8 + 1))


def _octets(value: bytes) -> bytes:
    return _der(0x04, value)


def _der(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(octets)]) + octets + content
