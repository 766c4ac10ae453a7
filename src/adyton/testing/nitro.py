"""A fake AWS: a root, the CAs under it, and attestation documents, genuine and wrong in each single way.

    case = NitroVendor().case(DocumentRecipe(edit_claims=given(user_data=b"...")))
    verify_nitro(case.evidence, anchors=case.anchors, now=case.now)

A recipe's defaults are genuine; what differs from them is what is wrong. `FORGERIES` holds one case for each guard of
the parser, the verifier, and what they share with others: everything else about it is in order, so without that guard
it would pass or fail later.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, Final

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from adyton.tee._cbor import MAX_DEPTH
from adyton.tee.evidence import Evidence
from adyton.tee.nitro.format import ES384
from adyton.testing.forgery import NOW, Case, Forgery
from adyton.testing.simulated import CERTIFIES, NOT_CA, SIGNS, Edit, Extensions, certificate, key_usage, unchanged

Key = ec.EllipticCurvePrivateKey
Claims = dict[str, Any]
EditClaims = Callable[[Claims], Claims]

CA: Final = (x509.BasicConstraints(ca=True, path_length=None), True)
MODULE_ID: Final = "i-0123456789abcdef0-enc0123456789abcdef"
PCRS: Final[Mapping[int, bytes]] = MappingProxyType(
    {index: hashlib.sha384(bytes([index])).digest() if index < 5 else bytes(48) for index in range(16)}
)
_SERIAL: Final = 0x5E
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def new_p384_key() -> Key:
    """What every genuine certificate has."""
    return ec.generate_private_key(ec.SECP384R1())


def sign_es384(key: Key, message: bytes) -> bytes:
    """r and s in 96 bytes, ECDSA with SHA-384; the key may be of a smaller curve, which is no ES384."""
    return _sign_raw(key, message, hashes.SHA384(), 48)


def _sign_raw(key: Key, message: bytes, digest: hashes.HashAlgorithm, size: int) -> bytes:
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(digest)))
    return r.to_bytes(size) + s.to_bytes(size)


def milliseconds(moment: datetime) -> int:
    """As a document's timestamp."""
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def given(**claims: Any) -> EditClaims:
    """The edit that puts these in place of the genuine ones."""
    return lambda genuine: genuine | claims


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateRecipe:
    """How to make one certificate; its dates are relative to the vendor's `now`, its edit is of the finished DER."""

    begins_after: timedelta = timedelta(days=-1)
    ends_after: timedelta = timedelta(days=1)
    extensions: Extensions = (CA, CERTIFIES)
    issuer_name: str | None = None
    new_key: Callable[[], Key] = new_p384_key
    edit: Edit = unchanged


LEAF: Final = CertificateRecipe(
    begins_after=timedelta(seconds=-3), ends_after=timedelta(hours=3), extensions=(NOT_CA, SIGNS)
)
"""What a document's own certificate is like."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PkiRecipe:
    """How to make the certificates above a document's own, from the root downwards."""

    root: CertificateRecipe = CertificateRecipe(ends_after=timedelta(days=8000))
    zone: CertificateRecipe = CertificateRecipe(ends_after=timedelta(days=5))
    instance: CertificateRecipe = CertificateRecipe()


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentRecipe:
    """How to make a document; its edits are done in this order. `edit_parts` gets the four parts of the COSE_Sign1."""

    leaf: CertificateRecipe = LEAF
    edit_claims: EditClaims = dict
    edit_payload: Edit = unchanged
    protected: bytes = cbor2.dumps({1: ES384})
    unprotected: Any = field(default_factory=dict)
    sign: Callable[[Key, bytes], bytes] = sign_es384
    edit_parts: Callable[[list[Any]], Any] = list
    edit: Edit = unchanged


@dataclass(frozen=True, slots=True, kw_only=True)
class _Authority:
    name: x509.Name
    key: Key
    der: bytes


class NitroVendor:
    """A throwaway root with two CAs under it, and whatever document is asked of them."""

    def __init__(self, recipe: PkiRecipe | None = None, *, now: datetime = NOW) -> None:
        recipe = recipe or PkiRecipe()
        self.now = now
        root = self._issue("aws.nitro-enclaves", recipe.root, None)
        zone = self._issue("zone", recipe.zone, root)
        self._instance = self._issue("instance", recipe.instance, zone)
        self.root_key = root.key
        self.cabundle = (root.der, zone.der, self._instance.der)

    def case(self, recipe: DocumentRecipe | None = None) -> Case:
        """A document made by the recipe, with its root pinned; genuine at `now` if there is no recipe."""
        evidence = Evidence(tee="nitro", data=self._document(recipe or DocumentRecipe()))
        return Case(evidence=evidence, anchors=_pin(self.cabundle[0]), now=self.now)

    def _document(self, recipe: DocumentRecipe) -> bytes:
        leaf = self._issue("enclave", recipe.leaf, self._instance)
        payload = recipe.edit_payload(cbor2.dumps(recipe.edit_claims(self._claims(leaf.der))))
        signature = recipe.sign(leaf.key, cbor2.dumps(["Signature1", recipe.protected, b"", payload]))
        parts = [recipe.protected, recipe.unprotected, payload, signature]
        return recipe.edit(cbor2.dumps(recipe.edit_parts(parts)))

    def _claims(self, leaf: bytes) -> Claims:
        return {
            "module_id": MODULE_ID,
            "digest": "SHA384",
            "timestamp": milliseconds(self.now),
            "pcrs": dict(PCRS),
            "certificate": leaf,
            "cabundle": self.cabundle,
            "public_key": None,
            "user_data": b"user data",
            "nonce": None,
        }

    def _issue(self, common_name: str, recipe: CertificateRecipe, issuer: _Authority | None) -> _Authority:
        key = recipe.new_key()
        name = _name(common_name)
        issuer_name = issuer.name if issuer else name
        builder = x509.CertificateBuilder().subject_name(name).public_key(key.public_key()).serial_number(_SERIAL)
        builder = builder.issuer_name(_name(recipe.issuer_name) if recipe.issuer_name else issuer_name)
        builder = builder.not_valid_before(self.now + recipe.begins_after)
        builder = builder.not_valid_after(self.now + recipe.ends_after)
        for extension, critical in recipe.extensions:
            builder = builder.add_extension(extension, critical)
        issued = builder.sign(issuer.key if issuer else key, hashes.SHA384())
        return _Authority(name=name, key=key, der=recipe.edit(issued.public_bytes(serialization.Encoding.DER)))


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])


def _pin(der: bytes) -> frozenset[bytes]:
    return frozenset({hashlib.sha256(der).digest()})


def stapled(vendor: NitroVendor) -> Case:
    """A document whose cabundle begins with something else than its root, which comes stapled."""
    bundle = (b"no certificate", *vendor.cabundle[1:])
    case = vendor.case(DocumentRecipe(edit_claims=given(cabundle=bundle)))
    return replace(case, evidence=replace(case.evidence, endorsements=(certificate(vendor.cabundle[0]),)))


@functools.cache
def _vendor() -> NitroVendor:
    return NitroVendor()


def _document(refusal: str, **recipe: Any) -> Forgery:
    return Forgery(refusal=refusal, make=lambda: _vendor().case(DocumentRecipe(**recipe)))


def _claims(refusal: str, **claims: Any) -> Forgery:
    return _document(refusal, edit_claims=given(**claims))


def _lacking(key: str) -> Forgery:
    def leave_out(claims: Claims) -> Claims:
        return {name: value for name, value in claims.items() if name != key}

    return _document(f"has nothing where its '{key}' should be", edit_claims=leave_out)


def _pcrs(refusal: str, changed: Mapping[Any, Any]) -> Forgery:
    return _claims(refusal, pcrs=dict(PCRS) | dict(changed))


def _lacking_pcr(index: int) -> Forgery:
    return _claims(f"lacks PCR {index}", pcrs={other: value for other, value in PCRS.items() if other != index})


def _bundle(refusal: str, edit: Callable[[tuple[bytes, ...]], Any]) -> Forgery:
    return _document(refusal, edit_claims=lambda claims: claims | {"cabundle": edit(claims["cabundle"])})


def _leaf(refusal: str, **changed: Any) -> Forgery:
    return _document(refusal, leaf=replace(LEAF, **changed))


def _pki(refusal: str, part: str, **changed: Any) -> Forgery:
    recipe = replace(PkiRecipe(), **{part: replace(getattr(PkiRecipe(), part), **changed)})
    return Forgery(refusal=refusal, make=lambda: NitroVendor(recipe).case())


def _later(after: timedelta, forgery: Forgery) -> Forgery:
    """The same, verified so long after its time."""

    def make() -> Case:
        case = forgery.make()
        return replace(case, now=case.now + after)

    return replace(forgery, make=make)


def _under_stranger() -> Case:
    return replace(_vendor().case(), anchors=NitroVendor().case().anchors)


def _with_bundle_of_stranger() -> Case:
    return replace(_vendor().case(), evidence=NitroVendor().case(_WITH_GENUINE_BUNDLE).evidence)


def _with_pinned_garbage() -> Case:
    case = _bundle("", lambda bundle: (b"\x30\0", *bundle[1:])).make()
    return replace(case, anchors=_pin(b"\x30\0"))


def _with_pinned_leaf() -> Case:
    vendor = NitroVendor(PkiRecipe(root=LEAF))
    edit = given(certificate=vendor.cabundle[0], cabundle=vendor.cabundle[:1])
    return vendor.case(DocumentRecipe(edit_claims=edit, sign=lambda _, data: sign_es384(vendor.root_key, data)))


def _with_large_root() -> Case:
    return stapled(NitroVendor(PkiRecipe(root=CertificateRecipe(extensions=(CA, CERTIFIES, _padding(17000))))))


def _padding(size: int, *, critical: bool = False) -> tuple[x509.ExtensionType, bool]:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), bytes(size)), critical


def _nested(depth: int) -> Any:
    return [_nested(depth - 1)] if depth else 0


def _with_key_twice(payload: bytes) -> bytes:
    return bytes([payload[0] + 1]) + payload[1:] + cbor2.dumps("nonce") + cbor2.dumps(None)


def _sign_with_wide_s(key: Key, message: bytes) -> bytes:
    signature = sign_es384(key, message)
    return signature[:48] + bytes(2) + signature[48:]


def _serial_zero(der: bytes) -> bytes:
    return der.replace(bytes([2, 1, _SERIAL]), bytes([2, 1, 0]), 1)


_MICROSECOND: Final = timedelta(microseconds=1)
_WITH_GENUINE_BUNDLE: Final = DocumentRecipe(edit_claims=lambda claims: claims | {"cabundle": _vendor().cabundle})
_BROKEN: Final = (x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, b"\xff"), False)
_MALFORMED: Final = "the Nitro document is not well-formed CBOR"
_NO_SIGN1: Final = "the Nitro document is no COSE_Sign1: "
_NO_PATH: Final = "the certificate of the Nitro document has no valid path to the trusted root"
_NO_PARSE: Final = "the certificate of the Nitro document does not parse"

_MESSAGE_FORGERIES: Final = {
    "empty": _document(_MALFORMED, edit=lambda _: b""),
    "cut": _document(_MALFORMED, edit=lambda d: d[:-1]),
    "trailing byte": _document("the Nitro document goes on after its end, for 1 bytes", edit=lambda d: d + b"\0"),
    "tag": _document(_MALFORMED, unprotected={4: cbor2.CBORTag(55799, 0)}),
    "too deep": _document(_MALFORMED, unprotected={4: _nested(MAX_DEPTH)}),
    "key of another kind": _document(_MALFORMED, unprotected={2.5: 0}),
    "array of five": _document(_NO_SIGN1 + "it is not an array of four", edit_parts=lambda parts: [*parts, None]),
    "no array": _document(_NO_SIGN1 + "it is not an array of four", edit_parts=lambda parts: dict(enumerate(parts))),
    "signature is text": _document(_NO_SIGN1 + "a part that should", sign=lambda _, __: "text"),
    "unprotected header is no map": _document(_NO_SIGN1 + "its unprotected header", unprotected=[]),
    "protected header is no map": _document(_NO_SIGN1 + "its protected header", protected=cbor2.dumps([1, ES384])),
    "protected header cut": _document("protected header of the Nitro document is not well", protected=b"\xa1\x01"),
    "critical parameter": _document("critical header parameters", protected=cbor2.dumps({1: ES384, 2: [4], 4: b""})),
    "algorithm twice": _document("the same parameter in", unprotected={1: ES384}),
    "algorithm is ES512": _document(
        "not signed with ES384",
        leaf=replace(LEAF, new_key=lambda: ec.generate_private_key(ec.SECP521R1())),
        protected=cbor2.dumps({1: -36}),
        sign=lambda key, data: _sign_raw(key, data, hashes.SHA512(), 66),
    ),
    "algorithm is no integer": _document("no known algorithm", protected=cbor2.dumps({1: float(ES384)})),
}

_PAYLOAD_FORGERIES: Final = {
    "payload too long": _bundle("bytes; 16384 are allowed", lambda bundle: [*bundle, *bundle[1:2] * 40]),
    "payload cut": _document("payload of the Nitro document is not well-formed", edit_payload=lambda d: d[:-1]),
    "payload goes on": _document("the payload of the Nitro document goes on", edit_payload=lambda d: d + b"\0"),
    "key twice": _document("payload of the Nitro document is not well-formed", edit_payload=_with_key_twice),
    "payload is no map": _document("payload of the Nitro document is not a map", edit_payload=lambda _: b"\x80"),
    "unknown key": _claims("has the unknown key 'nitrotpm_pcrs'", nitrotpm_pcrs={}),
    "no digest": _lacking("digest"),
    "another digest": _claims("PCRs of another digest", digest="SHA256"),
    "no module_id": _lacking("module_id"),
    "module_id is no text": _claims("has bytes where its 'module_id'", module_id=b"i-0"),
    "module_id empty": _claims("module_id of 0 characters; 1 to 128", module_id=""),
    "module_id too long": _claims("module_id of 129 characters", module_id="i" * 129),
    "module_id with a control character": _claims("not printable ASCII", module_id="i-0\n"),
    "module_id is not ASCII": _claims("not printable ASCII", module_id="\u03b1"),
    "no timestamp": _lacking("timestamp"),
    "timestamp is no number": _claims("has bool where its 'timestamp'", timestamp=True),
    "timestamp 0": _claims("timestamp that is not after 1970", timestamp=0),
    "timestamp in the year 10000": _claims("before the year 10000", timestamp=253402300800000),
    "no pcrs": _claims("has no map of PCRs", pcrs=[bytes(48)] * 3),
    "PCR 32": _pcrs("has the PCR 32; they are from 0 to 31", {32: bytes(48)}),
    "PCR of a name": _pcrs("has the PCR '3'", {"3": bytes(48)}),
    "PCR of 20 bytes": _pcrs("PCR 3 of the Nitro document is not of", {3: bytes(20)}),
    "PCR is no bytes": _pcrs("PCR 3 of the Nitro document is not of", {3: "0" * 48}),
    "no PCR 0": _lacking_pcr(0),
    "no PCR 1": _lacking_pcr(1),
    "no PCR 2": _lacking_pcr(2),
    "no certificate": _lacking("certificate"),
    "certificate empty": _claims("has a certificate of 0 bytes; 1 to 1024 are allowed", certificate=b""),
    "certificate too long": _leaf("has a certificate of", extensions=(NOT_CA, SIGNS, _padding(1000))),
    "no cabundle": _lacking("cabundle"),
    "cabundle is no array": _claims("has bytes where its 'cabundle'", cabundle=b""),
    "cabundle empty": _claims("has an empty cabundle", cabundle=[]),
    "cabundle with text": _bundle("in its cabundle that is no byte string", lambda bundle: [*bundle, "text"]),
    "cabundle with an empty entry": _bundle("in its cabundle of 0 bytes", lambda bundle: [*bundle, b""]),
    "cabundle with a long entry": _pki("in its cabundle of", "zone", extensions=(CA, CERTIFIES, _padding(1000))),
    "public_key empty": _claims("has a public_key of 0 bytes; 1 to 1024", public_key=b""),
    "public_key too long": _claims("has a public_key of 1025 bytes", public_key=bytes(1025)),
    "user_data is no bytes": _claims("has str where its 'user_data'", user_data="text"),
    "user_data too long": _claims("has a user_data of 1025 bytes; 0 to 1024", user_data=bytes(1025)),
    "nonce too long": _claims("has a nonce of 1025 bytes", nonce=bytes(1025)),
}

_ROOT_FORGERIES: Final = {
    "root of a stranger": Forgery(refusal="does not end in a root that is trusted", make=_under_stranger),
    "root is no certificate": Forgery(refusal="root of the Nitro document does not", make=_with_pinned_garbage),
    "root too large": Forgery(refusal="bytes; 16384 are allowed", make=_with_large_root),
    "root with serial number 0": _pki("the root of the Nitro document does not parse", "root", edit=_serial_zero),
}

_CHAIN_FORGERIES: Final = {
    "leaf is no certificate": _leaf(_NO_PARSE, edit=lambda _: b"\x30\0"),
    "leaf with a trailing byte": _leaf(_NO_PARSE, edit=lambda d: d + b"\0"),
    "leaf with a broken extension": _leaf(_NO_PARSE, extensions=(NOT_CA, SIGNS, _BROKEN)),
    "CA is no certificate": _bundle("certificate in the cabundle of the Nitro document does not", lambda b: [*b, b"0"]),
    "leaf not yet valid": _leaf("the Nitro document is not yet valid", begins_after=timedelta(seconds=1)),
    "leaf expired": _later(_MICROSECOND, _leaf("the Nitro document has expired", ends_after=timedelta(0))),
    "CA expired": _later(_MICROSECOND, _pki("an issuer of the certificate", "zone", ends_after=timedelta(0))),
    "root expired": _later(_MICROSECOND, _pki("the root of the certificate", "root", ends_after=timedelta(0))),
    "leaf by a CA of the same name": Forgery(refusal=_NO_PATH, make=_with_bundle_of_stranger),
    "leaf by a CA of another name": _leaf(_NO_PATH, issuer_name="somebody"),
    "CA missing": _bundle(_NO_PATH, lambda bundle: bundle[:2]),
    "leaf with an unknown critical extension": _leaf(_NO_PATH, extensions=(NOT_CA, SIGNS, _padding(2, critical=True))),
    "CA is none": _pki(_NO_PATH, "zone", extensions=(NOT_CA, CERTIFIES)),
    "CA without basicConstraints": _pki(_NO_PATH, "zone", extensions=(CERTIFIES,)),
    "CA without keyUsage": _pki(_NO_PATH, "zone", extensions=(CA,)),
    "CA may not certify": _pki("its keyUsage lacks keyCertSign", "zone", extensions=(CA, SIGNS)),
    "root may not certify": _pki("its keyUsage lacks keyCertSign", "root", extensions=(CA, SIGNS)),
    "CA with too many below": _pki(_NO_PATH, "zone", extensions=((x509.BasicConstraints(True, 0), True), CERTIFIES)),
    "leaf is the root": Forgery(refusal="is itself the trusted root", make=_with_pinned_leaf),
}

_SIGNATURE_FORGERIES: Final = {
    "leaf is a CA": _leaf("the certificate of the Nitro document is a CA", extensions=(CA, SIGNS)),
    "leaf without basicConstraints": _leaf("lacks basicConstraints or keyUsage", extensions=(SIGNS,)),
    "leaf without keyUsage": _leaf("lacks basicConstraints or keyUsage", extensions=(NOT_CA,)),
    "leaf may not sign": _leaf("lacks digitalSignature", extensions=(NOT_CA, (key_usage("key_agreement"), True))),
    "leaf of another curve": _leaf("which is not the key's", new_key=lambda: ec.generate_private_key(ec.SECP256R1())),
    "signature too long": _document("has 98 bytes, not 96", sign=_sign_with_wide_s),
    "signature by another key": _document("does not verify", sign=lambda _, d: sign_es384(new_p384_key(), d)),
    "user_data changed": _document("does not verify", edit=lambda d: d.replace(b"user data", b"USER DATA")),
    "from the future": _claims("is from the future", timestamp=milliseconds(NOW + timedelta(minutes=5)) + 1),
    "older than its leaf": _claims("before its certificate", timestamp=milliseconds(NOW + LEAF.begins_after) - 1),
}

FORGERIES: Final[Mapping[str, Forgery]] = MappingProxyType(
    _MESSAGE_FORGERIES | _PAYLOAD_FORGERIES | _ROOT_FORGERIES | _CHAIN_FORGERIES | _SIGNATURE_FORGERIES
)
"""By what is wrong, in the order of the verifier's steps."""
