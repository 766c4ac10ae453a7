"""A fake AMD's certificates and CRLs: for each product an ARK, under it an ASK and an ASVK, under those VCEK and VLEK.

A recipe's defaults are genuine; what differs from them is what is wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from adyton.tee.snp.format import Signer
from adyton.tee.snp.products import ProductName
from adyton.testing.forgery import NOW

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
Extensions = tuple[tuple[x509.ExtensionType, bool], ...]
"""Each with whether it is critical."""
Edit = Callable[[bytes], bytes]

BEGIN: Final = NOW - timedelta(days=1000)
END: Final = NOW + timedelta(days=1000)
ASK_SERIAL: Final = 0x20002
HWID: Final = bytes(range(100, 164))
"""Of a chip of Milan or Genoa; one of Turin has the first 8 bytes."""
CSP_ID: Final = "CN=csp.example"

TCB_LEVELS: Final[Mapping[ProductName, Mapping[int, int]]] = {
    "Milan": {1: 4, 2: 1, 4: 0, 5: 0, 6: 0, 7: 0, 3: 23, 8: 200},
    "Genoa": {1: 9, 2: 2, 4: 0, 5: 0, 6: 0, 7: 0, 3: 22, 8: 72},
    "Turin": {9: 1, 1: 3, 2: 1, 3: 4, 5: 0, 6: 0, 7: 0, 8: 130},
}
"""What the certificates are for, by the last arc of the extension, in the order of the bytes in a report."""


def unchanged(data: bytes) -> bytes:
    """The edit that does nothing."""
    return data


def key_usage(*names: str) -> x509.KeyUsage:
    """The extension with these bits set, of those that certificates of CAs have."""
    other = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
    bits = {name: name in names for name in ("digital_signature", "key_cert_sign", "crl_sign")}
    return x509.KeyUsage(**bits, **other, encipher_only=False, decipher_only=False)


CA: Final = (x509.BasicConstraints(ca=True, path_length=None), True)
CERTIFIES: Final = (key_usage("key_cert_sign", "crl_sign"), True)


@functools.cache
def ark_key() -> rsa.RSAPrivateKey:
    """The key of every ARK: to make one takes a second."""
    return rsa.generate_private_key(public_exponent=65537, key_size=4096)


@functools.cache
def ask_key() -> rsa.RSAPrivateKey:
    """The key of every ASK and ASVK."""
    return rsa.generate_private_key(public_exponent=65537, key_size=4096)


@functools.cache
def small_key() -> rsa.RSAPrivateKey:
    """A key that nothing may be issued with."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@functools.cache
def leaf_key() -> ec.EllipticCurvePrivateKey:
    """The key that signs reports."""
    return ec.generate_private_key(ec.SECP384R1())


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """A signature scheme of RSA: the hash, and that of MGF1 and the salt's length in PSS, or None in PKCS #1 v1.5."""

    algorithm: type[hashes.SHA256 | hashes.SHA384] = hashes.SHA384
    mask: type[hashes.SHA256 | hashes.SHA384] = hashes.SHA384
    salt_bytes: int | None = 48

    @property
    def padding(self) -> padding.PSS | padding.PKCS1v15:
        """How the hash is padded."""
        if self.salt_bytes is None:
            return padding.PKCS1v15()
        return padding.PSS(padding.MGF1(self.mask()), self.salt_bytes)


AMDS_SCHEME: Final = Scheme()


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateRecipe:
    """How to make a certificate for `key`, which `signed_by` signs. `edit` is done to what is signed, before it is."""

    subject: tuple[str, ...]
    issuer: str
    key: Key
    signed_by: rsa.RSAPrivateKey
    serial: int
    extensions: Extensions
    begins: datetime = BEGIN
    ends: datetime = END
    scheme: Scheme = AMDS_SCHEME
    edit: Edit = unchanged


def ark(product: str) -> CertificateRecipe:
    """The root of that product."""
    name = f"ARK-{product}"
    return CertificateRecipe(
        subject=(name,),
        issuer=name,
        key=ark_key(),
        signed_by=ark_key(),
        serial=0x20000,
        extensions=(CA, CERTIFIES),
    )


def ask(product: str, signer: Signer) -> CertificateRecipe:
    """The ASK, which issues VCEKs, or the ASVK, which issues VLEKs."""
    return CertificateRecipe(
        subject=(f"SEV-{product}" if signer == "VCEK" else f"SEV-VLEK-{product}",),
        issuer=f"ARK-{product}",
        key=ask_key(),
        signed_by=ark_key(),
        serial=ASK_SERIAL,
        extensions=(CA, CERTIFIES),
    )


def leaf(product: ProductName, signer: Signer) -> CertificateRecipe:
    """The VCEK or VLEK."""
    return CertificateRecipe(
        subject=(f"SEV-{signer}",),
        issuer=ask(product, signer).subject[0],
        key=leaf_key(),
        signed_by=ask_key(),
        serial=0,
        extensions=_leaf_extensions(product, signer),
    )


def _leaf_extensions(product: ProductName, signer: Signer) -> Extensions:
    values = {"1": integer(1 if product == "Turin" else 0), "2": ia5(f"{product}-B0" if signer == "VCEK" else product)}
    values |= {f"3.{arc}": integer(level) for arc, level in TCB_LEVELS[product].items()}
    if signer == "VCEK":
        values["4"] = HWID[:8] if product == "Turin" else HWID
    else:
        values["5"] = ia5(CSP_ID)
    return tuple((extension(arc, value), False) for arc, value in values.items())


def extension(arc: str, value: bytes) -> x509.UnrecognizedExtension:
    """AMD's extension 1.3.6.1.4.1.3704.1.`arc`."""
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(f"1.3.6.1.4.1.3704.1.{arc}"), value)


def integer(value: int) -> bytes:
    """0 to 255 as a DER INTEGER."""
    return der(0x02, value.to_bytes(1 + (value > 0x7F)))


def ia5(text: str) -> bytes:
    """A DER IA5String, or what would be one."""
    return der(0x16, text.encode())


def der(tag: int, content: bytes) -> bytes:
    """One DER element."""
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(octets)]) + octets + content


def changed(recipe: CertificateRecipe, arc: str, value: bytes | None) -> CertificateRecipe:
    """The leaf with another value of one of AMD's extensions, or without it."""
    kept = tuple(each for each in recipe.extensions if not each[0].oid.dotted_string.endswith(f".3704.1.{arc}"))
    return replace(recipe, extensions=kept if value is None else (*kept, (extension(arc, value), False)))


@functools.lru_cache(maxsize=128)
def certificate(recipe: CertificateRecipe) -> bytes:
    """The certificate in DER."""
    draft = _draft(recipe)
    to_sign = draft.tbs_certificate_bytes
    after = draft.public_bytes(Encoding.DER).partition(to_sign)[2]
    algorithm = after[: after[1] + 2]
    if recipe.serial == 0:
        to_sign = to_sign.replace(integer(_NO_ZERO), integer(0), 1)
    to_sign = recipe.edit(to_sign)
    signature = recipe.signed_by.sign(to_sign, recipe.scheme.padding, recipe.scheme.algorithm())
    return der(0x30, to_sign + algorithm + der(0x03, b"\0" + signature))


_NO_ZERO: Final = 0x5E
"""A serial number to be replaced: the library makes no certificate with 0."""


def _draft(recipe: CertificateRecipe) -> x509.Certificate:
    """The certificate as the library makes it, signed with another key, as that is faster."""
    builder = x509.CertificateBuilder().subject_name(name(*recipe.subject)).issuer_name(name(recipe.issuer))
    builder = builder.public_key(recipe.key.public_key()).serial_number(recipe.serial or _NO_ZERO)
    builder = builder.not_valid_before(recipe.begins).not_valid_after(recipe.ends)
    for each, critical in recipe.extensions:
        builder = builder.add_extension(each, critical)
    return builder.sign(small_key(), recipe.scheme.algorithm(), rsa_padding=recipe.scheme.padding)


def name(*common_names: str) -> x509.Name:
    """A name as AMD writes it, or one with more than one common name."""
    amd = x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Advanced Micro Devices")
    return x509.Name([amd, *(x509.NameAttribute(x509.NameOID.COMMON_NAME, each) for each in common_names)])


@dataclass(frozen=True, slots=True, kw_only=True)
class CrlRecipe:
    """How to make a CRL: by default the ARK's, current, and with nobody on it."""

    issuer: str | None = None
    revoked: tuple[int, ...] = ()
    begins: datetime = BEGIN
    ends: datetime = END
    signed_by: Callable[[], rsa.RSAPrivateKey] = ark_key
    scheme: Scheme = AMDS_SCHEME
    extensions: Extensions = ((x509.CRLNumber(2), False),)


def crl(recipe: CrlRecipe, product: str) -> bytes:
    """The CRL in DER; the recipe says what is not as usual for that product."""
    builder = x509.CertificateRevocationListBuilder().issuer_name(name(recipe.issuer or f"ARK-{product}"))
    builder = builder.last_update(recipe.begins).next_update(recipe.ends)
    for serial in recipe.revoked:
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(BEGIN).build()
        builder = builder.add_revoked_certificate(revoked)
    for each, critical in recipe.extensions:
        builder = builder.add_extension(each, critical)
    signed = builder.sign(recipe.signed_by(), recipe.scheme.algorithm(), rsa_padding=recipe.scheme.padding)
    return signed.public_bytes(Encoding.DER)
