"""Simulated evidence under throwaway roots: genuine, and wrong in each single way that its verifier must refuse.

    case = SimulatedVendor(now=now).case(EvidenceRecipe(report_data=...))
    verify_simulated(case.evidence, anchors=case.anchors, now=case.now)

A recipe's defaults are genuine; what differs from them is what is wrong. `FORGERIES` holds one case for each guard of
the parser and the verifier: everything else about it is in order, so without that guard it would pass or fail later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from adyton.tee.evidence import (
    MAX_ENDORSEMENT_BYTES,
    MAX_ENDORSEMENTS,
    MAX_EVIDENCE_BYTES,
    Endorsement,
    EndorsementKind,
    Evidence,
)
from adyton.tee.simulated.format import (
    HEAD_BYTES,
    encode_signed_part,
    encode_simulated,
    signature_input,
    simulated_measurement,
)
from adyton.tee.simulated.signature import P256_ORDER
from adyton.testing.forgery import NOW, Case, Forgery

SigningKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
Extensions = tuple[tuple[x509.ExtensionType, bool], ...]
"""Each with whether it is critical."""
Edit = Callable[[bytes], bytes]


_KEY_USAGE_BITS: Final = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
)


def key_usage(*names: str) -> x509.KeyUsage:
    """The extension with these bits set, by cryptography's names, and no others."""
    bits = {bit: bit in names for bit in _KEY_USAGE_BITS}
    return x509.KeyUsage(**bits, encipher_only=False, decipher_only=False)


CA: Final = (x509.BasicConstraints(ca=True, path_length=0), True)
NOT_CA: Final = (x509.BasicConstraints(ca=False, path_length=None), True)
CERTIFIES: Final = (key_usage("key_cert_sign", "crl_sign"), True)
SIGNS: Final = (key_usage("digital_signature"), True)


def new_p256_key() -> SigningKey:
    """What a genuine leaf and a genuine root have."""
    return ec.generate_private_key(ec.SECP256R1())


def sign_canonically(key: SigningKey, signed_part: bytes) -> bytes:
    """As the platform signs; with a key of another kind, in the way that comes nearest."""
    return _sign(key, signature_input(signed_part))


def unchanged(data: bytes) -> bytes:
    """The edit that does nothing."""
    return data


@dataclass(frozen=True, slots=True, kw_only=True)
class RootRecipe:
    """How to make a vendor's root; its dates are relative to the vendor's `now`."""

    common_name: str = "Adyton test root"
    begins_after: timedelta = timedelta(days=-1)
    ends_after: timedelta = timedelta(days=3652)
    extensions: Extensions = (CA, CERTIFIES)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceRecipe:
    """How to make evidence; its dates are relative to the vendor's `now`, and its edits are done in this order."""

    report_data: bytes = bytes(64)
    measurement: bytes = simulated_measurement(bytes(32))
    issued_after: timedelta = timedelta(0)
    new_leaf_key: Callable[[], SigningKey] = new_p256_key
    leaf_issuer_name: str | None = None
    leaf_begins_after: timedelta = timedelta(minutes=-5)
    leaf_ends_after: timedelta = timedelta(hours=24)
    leaf_extensions: Extensions = (NOT_CA, SIGNS)
    edit_leaf_before_issue: Edit = unchanged
    edit_leaf: Edit = unchanged
    edit_before_signing: Edit = unchanged
    sign: Callable[[SigningKey, bytes], bytes] = sign_canonically
    edit: Edit = unchanged


class SimulatedVendor:
    """A throwaway root, and whatever evidence is asked of it."""

    def __init__(self, recipe: RootRecipe | None = None, *, now: datetime = NOW) -> None:
        recipe = recipe or RootRecipe()
        self.now = now
        self._key = new_p256_key()
        name = _name(recipe.common_name)
        dates = (now + recipe.begins_after, now + recipe.ends_after)
        self.root = _builder(name, name, self._key, dates, recipe.extensions).sign(self._key, hashes.SHA256())

    def case(self, recipe: EvidenceRecipe | None = None) -> Case:
        """Evidence made by the recipe, with its root stapled and pinned; genuine at `now` if there is no recipe."""
        root = self.root.public_bytes(serialization.Encoding.DER)
        data = self._data(recipe or EvidenceRecipe())
        return Case(
            evidence=Evidence(tee="simulated", data=data, endorsements=(certificate(root),)),
            anchors=frozenset({hashlib.sha256(root).digest()}),
            now=self.now,
        )

    def _data(self, recipe: EvidenceRecipe) -> bytes:
        leaf_key = recipe.new_leaf_key()
        signed_part = encode_signed_part(
            report_data=recipe.report_data,
            measurement=recipe.measurement,
            issued_at=self.now + recipe.issued_after,
            leaf_certificate_der=recipe.edit_leaf(self._leaf_der(recipe, leaf_key)),
        )
        signed_part = recipe.edit_before_signing(signed_part)
        return recipe.edit(encode_simulated(signed_part, recipe.sign(leaf_key, signed_part)))

    def _leaf_der(self, recipe: EvidenceRecipe, key: SigningKey) -> bytes:
        issuer = _name(recipe.leaf_issuer_name) if recipe.leaf_issuer_name else self.root.subject
        dates = (self.now + recipe.leaf_begins_after, self.now + recipe.leaf_ends_after)
        builder = _builder(_name("leaf"), issuer, key, dates, recipe.leaf_extensions)
        issued = builder.sign(self._key, hashes.SHA256())
        to_sign = recipe.edit_leaf_before_issue(issued.tbs_certificate_bytes)
        if to_sign == issued.tbs_certificate_bytes:
            return issued.public_bytes(serialization.Encoding.DER)
        return _der(0x30, to_sign + _ECDSA_SHA256_DER + _der(0x03, b"\0" + _sign(self._key, to_sign)))


_ECDSA_SHA256_DER: Final = bytes.fromhex("300a06082a8648ce3d040302")


def _der(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(octets)]) + octets + content


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: SigningKey, dates: tuple[datetime, datetime], extensions: Extensions
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(_SERIAL).not_valid_before(dates[0]).not_valid_after(dates[1])
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder


_SERIAL: Final = 0x5E


def _sign(key: SigningKey, message: bytes) -> bytes:
    """With an ECDSA key of any curve, until s is one that the verifier takes for low."""
    while True:
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return key.sign(message)
        signature = key.sign(message, ec.ECDSA(hashes.SHA256()))
        if decode_dss_signature(signature)[1] <= P256_ORDER // 2:
            return signature


def _sign_with_stranger(_key: SigningKey, signed_part: bytes) -> bytes:
    return sign_canonically(new_p256_key(), signed_part)


def _sign_without_domain(key: SigningKey, signed_part: bytes) -> bytes:
    return _sign(key, signed_part)


def _sign_high_s(key: SigningKey, signed_part: bytes) -> bytes:
    r, s = decode_dss_signature(sign_canonically(key, signed_part))
    return encode_dss_signature(r, P256_ORDER - s)


def certificate(der: bytes) -> Endorsement:
    """Those bytes, stapled as a certificate."""
    return Endorsement(kind=EndorsementKind.CERTIFICATE, data=der)


def leaf_der(data: bytes) -> bytes:
    """The leaf certificate inside well-formed evidence."""
    begin = HEAD_BYTES + 2
    return data[begin : begin + int.from_bytes(data[HEAD_BYTES:begin])]


def _overwrite(start: int, new: bytes) -> Edit:
    return lambda data: data[:start] + new + data[start + len(new) :]


def _leaf_field(length: int, content: bytes) -> Edit:
    return lambda signed_part: signed_part[:HEAD_BYTES] + length.to_bytes(2) + content


def _signature_field(length: int, content: bytes) -> Edit:
    return lambda data: data[: HEAD_BYTES + 2 + len(leaf_der(data))] + length.to_bytes(2) + content


def _serial_zero(certificate: bytes) -> bytes:
    return certificate.replace(bytes([2, 1, _SERIAL]), bytes([2, 1, 0]), 1)


_SIGNS_NOT_CRITICAL: Final = (SIGNS[0], False)
_UNKNOWN_CRITICAL: Final = (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\0"), True)
_BROKEN: Final = (x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, b"\xff"), False)
_NO_ISSUER: Final = "no valid chain to any of the 1 trusted roots"
_NO_PARSE: Final = "leaf certificate of the simulated evidence does not parse"


def _made(refusal: str, **recipe: Any) -> Forgery:
    """Evidence of that recipe, under a root of its own."""
    return Forgery(refusal=refusal, make=lambda: SimulatedVendor().case(EvidenceRecipe(**recipe)))


def _rooted(refusal: str, **recipe: Any) -> Forgery:
    """Genuine evidence under a root of that recipe."""
    return Forgery(refusal=refusal, make=lambda: SimulatedVendor(RootRecipe(**recipe)).case())


def _changed(refusal: str, change: Callable[[Case], Case]) -> Forgery:
    """A genuine case, changed afterwards."""
    return Forgery(refusal=refusal, make=lambda: change(SimulatedVendor().case()))


def _relabelled(case: Case) -> Case:
    return replace(case, evidence=replace(case.evidence, tee="another"))


def _stapled(case: Case, *endorsements: Endorsement) -> Case:
    return replace(case, evidence=replace(case.evidence, endorsements=endorsements))


def _with_big_endorsement(case: Case) -> Case:
    big = Endorsement(kind=EndorsementKind.EVENT_LOG, data=bytes(MAX_ENDORSEMENT_BYTES + 1))
    return _stapled(case, *case.evidence.endorsements, big)


def _under_stranger(case: Case) -> Case:
    """Stapled are its own root and another of the same name; the other is pinned."""
    stranger = SimulatedVendor().case()
    both = _stapled(case, *case.evidence.endorsements, *stranger.evidence.endorsements)
    return replace(both, anchors=stranger.anchors)


def _unpinned(case: Case) -> Case:
    return replace(case, anchors=SimulatedVendor().case().anchors)


def _root_as_crl(case: Case) -> Case:
    return _stapled(case, *(replace(each, kind=EndorsementKind.CRL) for each in case.evidence.endorsements))


def _under(case: Case, root: bytes) -> Case:
    return replace(_stapled(case, certificate(root)), anchors=frozenset({hashlib.sha256(root).digest()}))


_BOUNDS_FORGERIES: Final = {
    "another label": _changed("evidence labelled 'another' was given to the verifier of 'simulated'", _relabelled),
    "larger than any evidence": _made("65537 bytes; 65536 are allowed", edit=lambda d: d.ljust(MAX_EVIDENCE_BYTES + 1)),
    "too many endorsements": _changed(
        "33 endorsements; 32 are allowed", lambda c: _stapled(c, *c.evidence.endorsements * (MAX_ENDORSEMENTS + 1))
    ),
    "an endorsement too large": _changed("an endorsement of more than 524288 bytes", _with_big_endorsement),
    "no anchors": _changed("no anchors are trusted", lambda c: replace(c, anchors=frozenset())),
}

_FORMAT_FORGERIES: Final = {
    "too long": _made("more than 8192", edit=lambda d: d.ljust(8193)),
    "empty": _made("ends after 0 bytes, inside its header", edit=lambda _: b""),
    "header cut": _made("inside its header", edit=lambda d: d[: HEAD_BYTES - 1]),
    "magic": _made("magic bytes", edit_before_signing=_overwrite(0, b"a")),
    "version": _made("of version 2", edit_before_signing=_overwrite(16, b"\0\2")),
    "flags": _made("flags 0x8000", edit_before_signing=_overwrite(18, b"\x80\0")),
    "year 10000": _made(
        "after the year 9999", edit_before_signing=_overwrite(HEAD_BYTES - 8, (253402300800).to_bytes(8))
    ),
    "no leaf": _made("before its leaf", edit=lambda d: d[: HEAD_BYTES + 1]),
    "leaf empty": _made("leaf certificate of 0 bytes; 1 to 2048", edit_before_signing=_leaf_field(0, b"")),
    "leaf too long": _made("leaf certificate of 2049 bytes", edit_before_signing=_leaf_field(2049, bytes(2049))),
    "leaf cut": _made("ends inside its leaf", edit=lambda d: d[: HEAD_BYTES + 99]),
    "no signature": _made("ends before its signature", edit=lambda d: _signature_field(0, b"")(d)[:-1]),
    "signature too short": _made("signature of 7 bytes; 8 to 72", edit=_signature_field(7, bytes(7))),
    "signature too long": _made("signature of 73 bytes", edit=_signature_field(73, bytes(73))),
    "signature cut": _made("ends inside its signature", edit=lambda d: d[:-1]),
    "trailing byte": _made("after its end, for 1 bytes", edit=lambda d: d + b"\0"),
}

_LEAF_FORGERIES: Final = {
    "leaf is no certificate": _made(_NO_PARSE, edit_leaf=lambda _: b"\x30\0"),
    "leaf has a trailing byte": _made(_NO_PARSE, edit_leaf=lambda d: d + b"\0"),
    "leaf has a broken extension": _made(_NO_PARSE, leaf_extensions=(NOT_CA, SIGNS, _BROKEN)),
    "leaf has serial number 0": _made(_NO_PARSE, edit_leaf_before_issue=_serial_zero),
    "leaf key of another curve": _made("not of P-256", new_leaf_key=lambda: ec.generate_private_key(ec.SECP256K1())),
    "leaf key of another kind": _made("not of P-256", new_leaf_key=ed25519.Ed25519PrivateKey.generate),
    "leaf without basicConstraints": _made("lacks basicConstraints or keyUsage", leaf_extensions=(SIGNS,)),
    "leaf without keyUsage": _made("lacks basicConstraints or keyUsage", leaf_extensions=(NOT_CA,)),
    "leaf is a CA": _made("is a CA", leaf_extensions=(CA, SIGNS)),
    "leaf keyUsage not critical": _made("keyUsage is not critical", leaf_extensions=(NOT_CA, _SIGNS_NOT_CRITICAL)),
    "leaf may not sign": _made("lacks digitalSignature", leaf_extensions=(NOT_CA, CERTIFIES)),
    "leaf not yet valid": _made("is not yet valid", leaf_begins_after=timedelta(seconds=1)),
    "leaf expired": _changed(
        "has expired", lambda case: replace(case, now=case.now + timedelta(hours=24, microseconds=1))
    ),
}

_CHAIN_FORGERIES: Final = {
    "root not stapled": _changed("no trusted root came with", _stapled),
    "root stapled but not pinned": _changed("no trusted root came with", _unpinned),
    "root stapled as something else": _changed("no trusted root came with", _root_as_crl),
    "pinned root is no certificate": _changed("a trusted root does not parse", lambda case: _under(case, b"\x30\0")),
    "another root of the same name": _changed(_NO_ISSUER, _under_stranger),
    "issuer of another name": _made(_NO_ISSUER, leaf_issuer_name="somebody"),
    "leaf with an unknown critical extension": _made(_NO_ISSUER, leaf_extensions=(NOT_CA, SIGNS, _UNKNOWN_CRITICAL)),
    "leaf stapled as root and pinned": _changed(
        "itself given as a root", lambda case: _under(case, leaf_der(case.evidence.data))
    ),
    "root not yet valid": _rooted(_NO_ISSUER, begins_after=timedelta(seconds=1)),
    "root expired": _rooted(_NO_ISSUER, ends_after=timedelta(seconds=-1)),
    "root is no CA": _rooted(_NO_ISSUER, extensions=(NOT_CA, CERTIFIES)),
    "root without basicConstraints": _rooted(_NO_ISSUER, extensions=(CERTIFIES,)),
    "root without keyUsage": _rooted(_NO_ISSUER, extensions=(CA,)),
    "root may not certify": _rooted(_NO_ISSUER, extensions=(CA, SIGNS)),
}

_SIGNATURE_FORGERIES: Final = {
    "signature by another key": _made("does not verify", sign=_sign_with_stranger),
    "signature without the domain": _made("does not verify", sign=_sign_without_domain),
    "signature is no DER": _made("does not verify", edit=_signature_field(64, bytes(64))),
    "signature with high s": _made("canonical form", sign=_sign_high_s),
    "report_data changed": _made("does not verify", edit=_overwrite(20, b"\1")),
    "measurement changed": _made("does not verify", edit=_overwrite(84, b"\1" * 48)),
    "from the future": _made("from the future", issued_after=timedelta(minutes=5, seconds=1)),
}

FORGERIES: Final[Mapping[str, Forgery]] = MappingProxyType(
    _BOUNDS_FORGERIES | _FORMAT_FORGERIES | _LEAF_FORGERIES | _CHAIN_FORGERIES | _SIGNATURE_FORGERIES
)
"""By what is wrong, in the order of the verifier's steps."""
