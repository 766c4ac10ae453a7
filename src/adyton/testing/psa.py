"""PSA tokens of devices that do not exist: genuine, and wrong in each single way that their verifier must refuse.

    PsaVendor().case().verify_with(verify_psa)
    PsaVendor(SYMMETRIC_KEY).case({2395: 0x4001})       a COSE_Mac0 of a device that is being debugged

`FORGERIES` holds one case for each guard; all that is wrong about it is signed like the rest, unless it is the
signature that is wrong.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from adyton.tee.evidence import Endorsement, EndorsementKind, Evidence
from adyton.testing.forgery import Case, Forgery

Changes = Mapping[Any, Any]
"""Claims by their keys, to be set; `...` leaves one out."""

COMPONENT: Final[Mapping[int, Any]] = MappingProxyType(
    {1: "PRoT", 2: b"\x22" * 32, 4: "1.3.5", 5: b"\x55" * 32, 6: "sha-256"}
)
CLAIMS: Final[Mapping[int, Any]] = MappingProxyType(
    {
        10: bytes(range(64)),
        256: b"\x01" + b"\x1d" * 32,
        265: "tag:psacertified.org,2023:psa#tfm",
        268: b"\xb5" * 8,
        2394: -1,
        2395: 0x3000,
        2396: b"\x11" * 32,
        2398: "1234567890123-12345",
        2399: (COMPONENT, {2: b"\x2a" * 48, 5: b"\x5a" * 64}),
        2400: "https://psa-verifier.example",
    }
)
"""What a genuine token of the profile of RFC 9783 says."""
CLAIMS_2: Final[Mapping[int, Any]] = MappingProxyType(
    {key: value for key, value in CLAIMS.items() if key not in (265, 268)}
    | {265: "http://arm.com/psa/2.0.0", 2397: b"\xb5" * 32}
)
CLAIMS_1: Final[Mapping[int, Any]] = MappingProxyType(
    {
        -75000: "PSA_IOT_PROFILE_1",
        -75001: CLAIMS[2394],
        -75002: CLAIMS[2395],
        -75003: CLAIMS[2396],
        -75004: b"\xb5" * 32,
        -75005: "1234567890123",
        -75006: CLAIMS[2399],
        -75008: CLAIMS[10],
        -75009: CLAIMS[256],
        -75010: CLAIMS[2400],
    }
)
SYMMETRIC_KEY: Final = bytes(range(100, 132))

_SIGNATURES: Final[Mapping[str, tuple[int, hashes.HashAlgorithm]]] = {
    "secp256r1": (-7, hashes.SHA256()),
    "secp384r1": (-35, hashes.SHA384()),
    "secp521r1": (-36, hashes.SHA512()),
}
_MACS: Final[Mapping[int, str]] = {4: "sha256", 5: "sha256", 6: "sha384", 7: "sha512"}


@functools.cache
def key_named(name: str, curve: type[ec.EllipticCurve] = ec.SECP256R1) -> ec.EllipticCurvePrivateKey:
    """A key that is the same in every process, and so nobody's secret."""
    return ec.derive_private_key(int.from_bytes(hashlib.sha256(name.encode()).digest(), "big"), curve())


DEVICE_KEY: Final = key_named("device")


def spki(key: PublicKeyTypes) -> bytes:
    """Its DER SubjectPublicKeyInfo, whose SHA-256 is pinned."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def changed(claims: Mapping[int, Any], changes: Changes) -> dict[Any, Any]:
    """The claims, with those changes made."""
    return {key: value for key, value in {**claims, **changes}.items() if value is not ...}


def sign1(key: ec.EllipticCurvePrivateKey, payload: bytes, header: Mapping[int, Any] | None = None) -> bytes:
    """A tagged COSE_Sign1, with the algorithm of the key's curve in its protected header if `header` is None."""
    algorithm, digest = _SIGNATURES[key.curve.name]
    protected = cbor2.dumps({1: algorithm} if header is None else header)
    signature = key.sign(cbor2.dumps(["Signature1", protected, b"", payload]), ec.ECDSA(digest))
    size = (key.curve.key_size + 7) // 8
    raw = b"".join(half.to_bytes(size, "big") for half in decode_dss_signature(signature))
    return cbor2.dumps(cbor2.CBORTag(18, [protected, {}, payload, raw]))


def mac0(key: bytes, payload: bytes, header: Mapping[int, Any] | None = None) -> bytes:
    """A tagged COSE_Mac0, of HMAC 256/256 if `header` is None. HMAC 256/64 is made too, so that it can be refused."""
    header = {1: 5} if header is None else header
    protected = cbor2.dumps(header)
    algorithm = header.get(1, 5)
    tag = hmac.digest(key, cbor2.dumps(["MAC0", protected, b"", payload]), _MACS[algorithm])
    return cbor2.dumps(cbor2.CBORTag(17, [protected, {}, payload, tag[:8] if algorithm == 4 else tag]))


class PsaVendor:
    """Makes tokens of one device, whose attestation key is an EC key, or bytes that the verifier has too."""

    def __init__(self, key: ec.EllipticCurvePrivateKey | bytes | None = None) -> None:
        self.key = DEVICE_KEY if key is None else key

    @property
    def endorsement(self) -> Endorsement:
        """The key, as it comes with the evidence."""
        if isinstance(self.key, bytes):
            return Endorsement(kind=EndorsementKind.SYMMETRIC_KEY, data=self.key)
        return Endorsement(kind=EndorsementKind.PUBLIC_KEY, data=spki(self.key.public_key()))

    def token(self, payload: bytes, header: Mapping[int, Any] | None = None) -> bytes:
        """A token with that payload."""
        if isinstance(self.key, bytes):
            return mac0(self.key, payload, header)
        return sign1(self.key, payload, header)

    def case(
        self,
        changes: Changes = MappingProxyType({}),
        *,
        claims: Mapping[int, Any] = CLAIMS,
        header: Mapping[int, Any] | None = None,
    ) -> Case:
        """A token with `claims` so changed, its key beside it and pinned."""
        return self.case_of(self.token(cbor2.dumps(changed(claims, changes)), header))

    def case_of(self, token: bytes) -> Case:
        """Those bytes as the evidence of this device."""
        evidence = Evidence(tee="psa", data=token, endorsements=(self.endorsement,))
        return Case(evidence=evidence, anchors=frozenset({hashlib.sha256(self.endorsement.data).digest()}))


def endorsed(case: Case, *endorsements: Endorsement) -> Case:
    """The case with these endorsements instead of its own, all of them pinned."""
    anchors = frozenset(hashlib.sha256(item.data).digest() for item in endorsements)
    return replace(case, evidence=replace(case.evidence, endorsements=endorsements), anchors=anchors)


def _claims(refusal: str, changes: Changes, claims: Mapping[int, Any] = CLAIMS) -> Forgery:
    return Forgery(refusal=refusal, make=lambda: PsaVendor().case(changes, claims=claims))


def _component(refusal: str, changes: Changes) -> Forgery:
    return _claims(refusal, {2399: [COMPONENT, changed(COMPONENT, changes)]})


def _data(refusal: str, edit: Callable[[bytes], bytes]) -> Forgery:
    return Forgery(refusal=refusal, make=lambda: PsaVendor().case_of(edit(PsaVendor().case().evidence.data)))


def _key(refusal: str, key: ec.EllipticCurvePrivateKey | bytes, algorithm: int | None = None) -> Forgery:
    header = None if algorithm is None else {1: algorithm}
    return Forgery(refusal=refusal, make=lambda: PsaVendor(key).case(header=header))


def _retagged(tag: int | None) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        parts = cbor2.loads(data).value
        return cbor2.dumps(parts if tag is None else cbor2.CBORTag(tag, parts))

    return edit


def _of_key(key: PublicKeyTypes | bytes) -> Case:
    data = key if isinstance(key, bytes) else spki(key)
    return endorsed(PsaVendor().case(), Endorsement(kind=EndorsementKind.PUBLIC_KEY, data=data))


def _compressed(key: ec.EllipticCurvePublicKey) -> bytes:
    """The DER SubjectPublicKeyInfo with the point in its short form: 59 bytes for P-256, as long as a symmetric key."""
    point = key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    return bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200") + point


@functools.cache
def _rsa_key() -> rsa.RSAPublicKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()


_FORMAT_FORGERIES: Final = {
    "empty": _data("not well-formed CBOR", lambda _: b""),
    "untagged": _data("has no CBOR tag; 18 or 17 is wanted", _retagged(None)),
    "tagged as a CWT only": _data("the PSA token", _retagged(61)),
    "no COSE message": _data("no COSE_Sign1", lambda _: cbor2.dumps(cbor2.CBORTag(18, [b"", {}, b""]))),
    "claims are no map": Forgery(
        refusal="the claims set of the PSA token is not a map",
        make=lambda: PsaVendor().case_of(PsaVendor().token(cbor2.dumps(list(CLAIMS.items())))),
    ),
}

_CLAIM_FORGERIES: Final = {
    **{
        f"no claim {key}": _claims(f"has nothing where its {key} should be", {key: ...})
        for key in (10, 256, 265, 2394, 2395, 2396, 2399)
    },
    "no claim -75004 in profile 1": _claims("has nothing where its -75004", {-75004: ...}, CLAIMS_1),
    "nonce in an array": _claims("has tuple where its 10 should be", {10: [bytes(32)]}),
    "nonce of 33 bytes": _claims("has 33 bytes under 10; 32 or 48 or 64 are wanted", {10: bytes(33)}),
    "instance id of 32 bytes": _claims("has 32 bytes under 256; 33 are wanted", {256: b"\x01" * 32}),
    "instance id of another type": _claims("UEID type 2, not 1", {256: b"\x02" * 33}),
    "profile unknown": _claims("profile 'tag:psacertified.org,2023:psa#x'", {265: "tag:psacertified.org,2023:psa#x"}),
    "profile of CCA": _claims("which is not known", {265: "http://arm.com/CCA-SSD/1.0.0"}),
    "profile 1 under the new key": _claims("under 265, which is not known", {265: "PSA_IOT_PROFILE_1"}),
    "boot seed of 7 bytes": _claims("has 7 bytes under 268; 8 to 32 are wanted", {268: bytes(7)}),
    "boot seed of 33 bytes": _claims("has 33 bytes under 268", {268: bytes(33)}),
    "boot seed of 8 bytes in profile 1": _claims("has 8 bytes under -75004; 32", {-75004: bytes(8)}, CLAIMS_1),
    "client id 0": _claims("client id 0;", {2394: 0}),
    "client id true": _claims("has bool where its 2394", {2394: True}),
    "client id too high": _claims("client id 2147483648;", {2394: 1 << 31}),
    "client id too low": _claims("client id -2147483649;", {2394: -(1 << 31) - 1}),
    "lifecycle between two states": _claims("lifecycle state 0x3100", {2395: 0x3100}),
    "lifecycle below all": _claims("lifecycle state -0x001", {2395: -1}),
    "implementation id of 31 bytes": _claims("has 31 bytes under 2396; 32 are wanted", {2396: bytes(31)}),
    "reference without version": _claims("reference '1234567890123'", {2398: "1234567890123"}),
    "reference no text": _claims("has int where its 2398", {2398: 1234567890123}),
    "reference in profile 1": _claims("which is no EAN-13", {-75005: "1234567890123-1"}, CLAIMS_1),
    "components no array": _claims("where its 2399 should be, of type tuple", {2399: COMPONENT}),
    "no components": _claims("has no software components", {2399: []}),
    "no software measurements in profile 1": _claims(
        "has nothing where its -75006", {-75006: ..., -75007: 1}, CLAIMS_1
    ),
    "service empty": _claims("under 2400 that is not of 1 to 256 printable", {2400: ""}),
    "service too long": _claims("under 2400 that is not of 1 to 256 printable", {2400: "x" * 257}),
    "service with a line break": _claims("under 2400 that is not of 1 to 256 printable", {2400: "a\nb"}),
    "component no map": _claims("software component 0 of the PSA token is not a map", {2399: [1]}),
    "component type no text": _component("component 1 of the PSA token has bytes where its 1", {1: b"BL"}),
    "component not measured": _component("component 1 of the PSA token has nothing where its 2", {2: ...}),
    "component measured by SHA-1": _component("has 20 bytes under 2; 32 or 48 or 64", {2: bytes(20)}),
    "component version no text": _component("has int where its 4", {4: 1}),
    "component without signer": _component("has nothing where its 5", {5: ...}),
    "component signer of 16 bytes": _component("has 16 bytes under 5", {5: bytes(16)}),
    "component algorithm no text": _component("has int where its 6", {6: -16}),
}

_KEY_FORGERIES: Final = {
    "no key": Forgery(
        refusal="no endorsement of type application/vnd.adyton.spki has a SHA-256 among the 1 anchors",
        make=lambda: replace(PsaVendor().case(), evidence=replace(PsaVendor().case().evidence, endorsements=())),
    ),
    "key not pinned": Forgery(
        refusal="has a SHA-256 among",
        make=lambda: replace(PsaVendor().case(), anchors=PsaVendor(key_named("another")).case().anchors),
    ),
    "key of another kind": Forgery(
        refusal="no endorsement of type application/vnd.adyton.spki",
        make=lambda: endorsed(PsaVendor().case(), replace(PsaVendor().endorsement, kind=EndorsementKind.SYMMETRIC_KEY)),
    ),
    "signature taken for a MAC": _data("no endorsement of type application/vnd.adyton.symmetric-key", _retagged(17)),
    "MAC taken for a signature": Forgery(
        refusal="no endorsement of type application/vnd.adyton.spki",
        make=lambda: PsaVendor(SYMMETRIC_KEY).case_of(_retagged(18)(mac0(SYMMETRIC_KEY, cbor2.dumps(dict(CLAIMS))))),
    ),
}

_SIGNATURE_FORGERIES: Final = {
    "pinned key does not parse": Forgery(
        refusal="the pinned attestation key does not parse", make=lambda: _of_key(b"\x30\x00")
    ),
    "pinned key of RSA": Forgery(refusal="which is not the key's", make=lambda: _of_key(_rsa_key())),
    "pinned key of a stranger": Forgery(
        refusal="the signature of the PSA token does not verify",
        make=lambda: _of_key(key_named("another").public_key()),
    ),
    "pinned keys of two strangers": Forgery(
        refusal="the signature of the PSA token does not verify",
        make=lambda: endorsed(
            PsaVendor().case(), *(PsaVendor(key_named(name)).endorsement for name in ("another", "a third"))
        ),
    ),
    "no algorithm": Forgery(refusal="no known algorithm", make=lambda: PsaVendor().case(header={})),
    "algorithm of another curve": _key("which is not the key's", DEVICE_KEY, -35),
    "claims changed": _data("does not verify", lambda data: data.replace(b"\x11" * 32, b"\x12" * 32)),
    "MAC by another key": Forgery(
        refusal="the MAC of the PSA token does not verify",
        make=lambda: endorsed(PsaVendor(SYMMETRIC_KEY).case(), PsaVendor(bytes(32)).endorsement),
    ),
    "MAC of no algorithm": Forgery(
        refusal="no known MAC algorithm", make=lambda: PsaVendor(SYMMETRIC_KEY).case(header={})
    ),
    "MAC cut to 64 bits": _key("no known MAC algorithm", SYMMETRIC_KEY, 4),
    "MAC algorithm 5.0": Forgery(
        refusal="no known MAC algorithm", make=lambda: PsaVendor(SYMMETRIC_KEY).case_of(_mac_of_odd_algorithm())
    ),
    "MAC key too short": _key("symmetric key has 31 bytes; 32 to 64 are wanted", bytes(31)),
    "MAC key too long": _key("symmetric key has 65 bytes", bytes(65)),
    "MAC by a public key": Forgery(
        refusal="symmetric key has 91 bytes", make=lambda: PsaVendor(spki(DEVICE_KEY.public_key())).case()
    ),
    "MAC by a short public key": Forgery(
        refusal="the pinned symmetric key is a DER structure",
        make=lambda: PsaVendor(_compressed(DEVICE_KEY.public_key())).case(),
    ),
}


def _mac_of_odd_algorithm() -> bytes:
    """Under the algorithm 5.0, which finds the entry of 5 in a table, and is none that COSE has."""
    return mac0(SYMMETRIC_KEY, cbor2.dumps(dict(CLAIMS)), {1: 5.0})


FORGERIES: Final[Mapping[str, Forgery]] = MappingProxyType(
    _FORMAT_FORGERIES | _CLAIM_FORGERIES | _KEY_FORGERIES | _SIGNATURE_FORGERIES
)
"""By what is wrong, in the order of the verifier's steps."""
