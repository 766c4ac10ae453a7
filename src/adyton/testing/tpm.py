"""TPM evidence of a fake maker of TPMs, with a root of its own: genuine by default, and wrong where a recipe says so.

vendor = TpmVendor()
case = vendor.case(TpmRecipe(quote=TpmQuoteRecipe(extra_data=...), pinned=True))
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from adyton.tee._x509 import certificate_sha256
from adyton.tee.evidence import Endorsement, EndorsementKind, Evidence
from adyton.tee.tpm.format import VERSION
from adyton.testing.forgery import NOW, Case, Forgery
from adyton.testing.tpm_quotes import (
    ALGORITHMS,
    CURVES,
    QUOTE_FORGERIES,
    SCHEMES,
    Edit,
    KeyName,
    SigningKey,
    TpmQuoteRecipe,
    key,
    overwrite,
    sized,
    unchanged,
)

AK_ATTRIBUTES: Final = 0x0005_0072
"""fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, restricted, sign."""
AK_USAGE: Final = x509.ExtendedKeyUsage([x509.ObjectIdentifier("2.23.133.8.3")])
TPM_NAME: Final = x509.SubjectAlternativeName(
    [x509.DirectoryName(x509.Name([x509.NameAttribute(x509.ObjectIdentifier("2.23.133.2.1"), "id:00000000")]))]
)
"""The maker of a TPM, as its certificates have it, whose subject is empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmRecipe:
    """How to make evidence. `scheme` and `hash` are what the attestation key says that it signs with.

    A key is `pinned`, or has a certificate, of which the vendor signs whatever `certificate_extensions` it is told to.
    `certified` is the key that the certificate is of, and `certified_by` the one that signs it.
    """

    quote: TpmQuoteRecipe = field(default_factory=TpmQuoteRecipe)
    key: KeyName = "rsa"
    scheme: str | None = None
    hash: str = "sha256"
    attributes: int = AK_ATTRIBUTES
    edit_public: Edit = unchanged
    edit_fields: Callable[[dict[str, Any]], object] = dict
    edit: Edit = unchanged
    pinned: bool = False
    certified: KeyName | None = None
    certified_by: KeyName = "ca"
    certificate_extensions: tuple[x509.ExtensionType, ...] = (AK_USAGE, TPM_NAME)
    anchor: bytes | None = None


class TpmVendor:
    """A throwaway root, called `root_name`, with an intermediate CA, and whatever evidence is asked of it."""

    def __init__(self, root_name: str = "Adyton test TPM root") -> None:
        root_key = key("root")
        self.root = _certificate(root_name, root_name, root_key, root_key, CA)
        self.ca = _certificate("Adyton test TPM CA", root_name, key("ca"), root_key, CA)

    def case(self, recipe: TpmRecipe | None = None) -> Case:
        """Evidence by the recipe; genuine if there is none."""
        recipe = recipe or TpmRecipe()
        ak = key(recipe.key)
        public = recipe.edit_public(public_area(ak, recipe.scheme, recipe.hash, recipe.attributes))
        fields = {"version": VERSION, "ak_public": public} | recipe.quote.fields(ak)
        data = recipe.edit(cbor2.dumps(recipe.edit_fields(fields), canonical=True))
        logs = tuple(Endorsement(kind=EndorsementKind.EVENT_LOG, data=log) for log in recipe.quote.logs)
        chain = () if recipe.pinned else self._chain(recipe)
        anchor = spki_sha256(ak) if recipe.pinned else certificate_sha256(self.root)
        evidence = Evidence(tee="tpm", data=data, endorsements=(*chain, *logs))
        return Case(evidence=evidence, anchors=frozenset({recipe.anchor or anchor}))

    def _chain(self, recipe: TpmRecipe) -> tuple[Endorsement, ...]:
        subject = key(recipe.certified or recipe.key)
        issuer = key(recipe.certified_by)
        leaf = _certificate("", "Adyton test TPM CA", subject, issuer, recipe.certificate_extensions)
        return tuple(
            Endorsement(kind=EndorsementKind.CERTIFICATE, data=certificate.public_bytes(Encoding.DER))
            for certificate in (leaf, self.ca, self.root)
        )


def public_area(signing_key: SigningKey, scheme: str | None, hash_: str, attributes: int = AK_ATTRIBUTES) -> bytes:
    """The TPMT_PUBLIC of a key; its scheme is RSASSA or ECDSA if none is named."""
    is_rsa = isinstance(signing_key, rsa.RSAPrivateKey)
    named = SCHEMES[scheme or ("rsassa" if is_rsa else "ecdsa")].to_bytes(2, "big")
    head = (b"\x00\x01" if is_rsa else b"\x00\x23") + b"\x00\x0b" + attributes.to_bytes(4, "big") + sized(b"")
    head += b"\x00\x10" + named + ALGORITHMS[hash_].to_bytes(2, "big")
    if isinstance(signing_key, rsa.RSAPrivateKey):
        numbers = signing_key.public_key().public_numbers()
        exponent = 0 if numbers.e == 65537 else numbers.e
        modulus = numbers.n.to_bytes(signing_key.key_size // 8, "big")
        return head + signing_key.key_size.to_bytes(2, "big") + exponent.to_bytes(4, "big") + sized(modulus)
    point = signing_key.public_key().public_numbers()
    size = (signing_key.key_size + 7) // 8
    curve = CURVES[signing_key.curve.name].to_bytes(2, "big")
    return head + curve + b"\x00\x10" + sized(point.x.to_bytes(size, "big")) + sized(point.y.to_bytes(size, "big"))


def spki_sha256(signing_key: SigningKey) -> bytes:
    """What an attestation key is pinned by."""
    der = signing_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).digest()


_CERTIFIES: Final = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)
CA: Final = (x509.BasicConstraints(ca=True, path_length=None), _CERTIFIES)


def _certificate(
    subject: str,
    issuer: str,
    subject_key: SigningKey,
    issuer_key: SigningKey,
    extensions: tuple[x509.ExtensionType, ...],
) -> x509.Certificate:
    key_id = x509.SubjectKeyIdentifier.from_public_key(subject_key.public_key())
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(subject_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=3652))
        .add_extension(key_id, critical=False)
        .add_extension(issuer_id, critical=False)
    )
    for extension in extensions:
        critical = isinstance(extension, (x509.BasicConstraints, x509.SubjectAlternativeName))
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(issuer_key, hashes.SHA256())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])


def _quote(recipe: TpmQuoteRecipe) -> TpmRecipe:
    return TpmRecipe(quote=recipe)


def _public(edit: Edit, **changed: Any) -> TpmRecipe:
    return TpmRecipe(edit_public=edit, **changed)


def _fields(edit: Callable[[dict[str, Any]], object]) -> TpmRecipe:
    return TpmRecipe(edit_fields=edit)


def _certified(*extensions: x509.ExtensionType) -> TpmRecipe:
    return TpmRecipe(certificate_extensions=extensions)


_ATTRIBUTES: Final = {"fixedTPM": 1, "fixedParent": 4, "sensitiveDataOrigin": 5, "restricted": 16, "sign": 18}
_SHA512: Final = TpmQuoteRecipe(hash="sha512")

_RECIPES: Final[Mapping[str, tuple[str, TpmRecipe]]] = {
    **{name: (refusal, _quote(recipe)) for name, (refusal, recipe) in QUOTE_FORGERIES.items()},
    "evidence with a byte more": ("goes on after its end", TpmRecipe(edit=lambda data: data + b"\0")),
    "evidence that is an array": ("the TPM evidence is not a map", _fields(lambda fields: list(fields.values()))),
    "a field that nobody knows": ("the unknown field 'more'", _fields(lambda fields: fields | {"more": 1})),
    "a version that is true": ("of type int", _fields(lambda fields: fields | {"version": True})),
    "another version": ("the TPM evidence is of version 2", _fields(lambda fields: fields | {"version": 2})),
    "no key": (
        "has nothing where its 'ak_public' should be",
        _fields(lambda fields: {name: value for name, value in fields.items() if name != "ak_public"}),
    ),
    "a key with a byte more": (
        "the attestation key goes on after its end",
        _public(lambda data: data + b"\0"),
    ),
    "a key that encrypts": ("the symmetric algorithm 0x0006", _public(overwrite(10, b"\x00\x06"))),
    "a key without scheme": ("the attestation key is of the scheme 0x0010", _public(overwrite(12, b"\x00\x10"))),
    "a key that signs with SHA-1": (
        "the attestation key is made with the hash 0x0004",
        TpmRecipe(hash="sha1"),
    ),
    "a key of P-256 that signs with RSASSA": (
        "is of type 0x0023, which does not sign with rsassa",
        TpmRecipe(key="p256", scheme="rsassa", quote=TpmQuoteRecipe(named_scheme="rsassa")),
    ),
    "a key of another size than it says": ("says that it has 3072 bits", _public(overwrite(16, b"\x0c\x00"))),
    "a weak key": ("of RSA with 1024 bits", TpmRecipe(key="weak")),
    "a key of another exponent": ("exponent is not 65537", TpmRecipe(key="exponent 3")),
    "a key on another curve": (
        "on the curve 0x0005",
        TpmRecipe(key="p521", hash="sha512", quote=_SHA512),
    ),
    "a key that derives keys": ("derives keys, with 0x0020", _public(overwrite(18, b"\x00\x20"), key="p256")),
    "a key beside its curve": ("not a point of its curve", _public(overwrite(-32, bytes(32)), key="p256")),
    **{
        f"a key without {name}": (f"lacks the attribute {name}", TpmRecipe(attributes=AK_ATTRIBUTES & ~(1 << bit)))
        for name, bit in _ATTRIBUTES.items()
    },
    "a key that decrypts too": ("has the attribute decrypt", TpmRecipe(attributes=AK_ATTRIBUTES | 1 << 17)),
    "a key named by another hash": ("no name of the attestation key's algorithm", _public(overwrite(2, b"\x00\x0c"))),
    "a signature that is not by the key's scheme": (
        "signed with rsapss and sha256, which is not its key's scheme",
        _quote(TpmQuoteRecipe(scheme="rsapss")),
    ),
    "a signature that is not by the key's hash": (
        "signed with rsassa and sha384, which is not its key's scheme",
        _quote(TpmQuoteRecipe(hash="sha384")),
    ),
    "a certificate of another key": (
        "none of the certificates is its own",
        TpmRecipe(certified="p256"),
    ),
    "a root that nobody trusts": (
        "does not end in a root that is trusted",
        TpmRecipe(anchor=bytes(32)),
    ),
    "a certificate that its issuer did not sign": (
        "has no valid path to the trusted root",
        TpmRecipe(certified_by="p256"),
    ),
    "an ECDSA signature of something else": (
        "the signature of the TPM's quote does not verify",
        TpmRecipe(key="p256", quote=TpmQuoteRecipe(edit_signature=lambda data: data[:-1] + bytes([data[-1] ^ 1]))),
    ),
    "a CA's key": ("is a CA's", _certified(*CA, AK_USAGE)),
    "a certificate of a web server": (
        "for another use than attestation",
        _certified(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])),
    ),
}


@functools.cache
def _vendor() -> TpmVendor:
    return TpmVendor()


def _case(recipe: TpmRecipe) -> Case:
    return _vendor().case(recipe)


FORGERIES: Final[Mapping[str, Forgery]] = {
    name: Forgery(refusal=refusal, make=functools.partial(_case, recipe))
    for name, (refusal, recipe) in _RECIPES.items()
}
"""What is wrong → a case of it, for each guard of the parser and the verifier, and of what they share with Azure's."""
