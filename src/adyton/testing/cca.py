"""CCA tokens of platforms and realms that do not exist: genuine, and wrong in each single way that must be refused.

    CcaVendor().case().verify_with(verify_cca)
    CcaVendor().case(platform={2395: 0x4001})       a platform that is being debugged

`FORGERIES` holds one case for each guard; all that is wrong about it is signed and bound like the rest, unless it is a
signature or the binding that is wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

import cbor2
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from adyton.tee.evidence import Endorsement, EndorsementKind, Evidence
from adyton.testing.forgery import Case, Forgery
from adyton.testing.psa import COMPONENT, Changes, changed, endorsed, key_named, sign1, spki

PLATFORM_CLAIMS: Final[Mapping[int, Any]] = MappingProxyType(
    {
        256: b"\x01" + b"\x1d" * 32,
        265: "tag:arm.com,2023:cca_platform#1.0.0",
        2395: 0x3003,
        2396: b"\x11" * 32,
        2399: (COMPONENT, {1: "RMM", 2: b"\x2a" * 48, 5: b"\x5a" * 64}),
        2400: "https://cca-verifier.example",
        2401: b"\xcf" * 4,
        2402: "sha-256",
    }
)
"""What a genuine platform says, but for its nonce."""
REALM_CLAIMS: Final[Mapping[int, Any]] = MappingProxyType(
    {
        10: bytes(range(64)),
        265: "tag:arm.com,2024:realm#2.0.0",
        44235: b"\x77" * 64,
        44236: "sha-384",
        44238: b"\x88" * 48,
        44239: tuple(bytes([register]) * 48 for register in range(4)),
        44240: "sha-256",
        44243: 1,
    }
)
"""What a genuine realm says, but for its key."""
LEGACY_PLATFORM: Final[Changes] = MappingProxyType({265: "http://arm.com/CCA-SSD/1.0.0"})
LEGACY_REALM: Final[Changes] = MappingProxyType({265: ..., 44243: ...})

PLATFORM_KEY: Final = key_named("platform", ec.SECP384R1)
REALM_KEY: Final = key_named("realm", ec.SECP384R1)

Container = Callable[[bytes, bytes], Any]
"""What the platform token and the realm token come in, before it is encoded."""

_COSE_CURVES: Final[Mapping[str, int]] = {"secp256r1": 1, "secp384r1": 2, "secp521r1": 3}


def collection(platform: bytes, realm: bytes) -> Any:
    """The container that RMM writes since CMW."""
    return cbor2.CBORTag(907, {44234: [263, platform], 44241: [263, realm]})


def legacy_container(platform: bytes, realm: bytes) -> Any:
    """The container that it wrote before."""
    return cbor2.CBORTag(399, {44234: platform, 44241: realm})


def raw_point(key: ec.EllipticCurvePublicKey) -> bytes:
    """The key as realms without a profile have it."""
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def cose_key(key: ec.EllipticCurvePublicKey, changes: Changes = MappingProxyType({})) -> bytes:
    """The key as realms with a profile have it, with some of its parameters changed."""
    point = raw_point(key)[1:]
    half = len(point) // 2
    parameters = {1: 2, -1: _COSE_CURVES[key.curve.name], -2: point[:half], -3: point[half:]}
    return cbor2.dumps(changed(parameters, changes))


@dataclass(frozen=True, slots=True, kw_only=True)
class CcaVendor:
    """Makes tokens of one platform and one realm.

    `encode_key` makes the realm's claim of its key, to which the platform's nonce is bound by SHA-256.
    """

    platform_key: ec.EllipticCurvePrivateKey = PLATFORM_KEY
    realm_key: ec.EllipticCurvePrivateKey = REALM_KEY
    encode_key: Callable[[ec.EllipticCurvePublicKey], bytes] = cose_key

    @property
    def endorsement(self) -> Endorsement:
        """The platform's key, as it comes with the evidence."""
        return Endorsement(kind=EndorsementKind.PUBLIC_KEY, data=spki(self.platform_key.public_key()))

    def platform_token(self, changes: Changes = MappingProxyType({})) -> bytes:
        """The platform's token, with its claims so changed."""
        nonce = hashlib.sha256(self.encode_key(self.realm_key.public_key())).digest()
        return sign1(self.platform_key, cbor2.dumps(changed({10: nonce, **PLATFORM_CLAIMS}, changes)))

    def realm_token(self, changes: Changes = MappingProxyType({})) -> bytes:
        """The realm's token, with its claims so changed."""
        key = self.encode_key(self.realm_key.public_key())
        return sign1(self.realm_key, cbor2.dumps(changed({44237: key, **REALM_CLAIMS}, changes)))

    def case(
        self,
        *,
        platform: Changes = MappingProxyType({}),
        realm: Changes = MappingProxyType({}),
        container: Container = collection,
    ) -> Case:
        """Both tokens, with their claims so changed, and the platform's key beside them and pinned."""
        return self.case_of(container(self.platform_token(platform), self.realm_token(realm)))

    def case_of(self, container: object) -> Case:
        """That item as the evidence of this platform."""
        evidence = Evidence(tee="cca", data=cbor2.dumps(container), endorsements=(self.endorsement,))
        return Case(evidence=evidence, anchors=frozenset({hashlib.sha256(self.endorsement.data).digest()}))


def legacy_case() -> Case:
    """Tokens of the first profile, in the first container."""
    vendor = CcaVendor(encode_key=raw_point)
    return vendor.case(platform=LEGACY_PLATFORM, realm=LEGACY_REALM, container=legacy_container)


def _contained(refusal: str, container: Container) -> Forgery:
    return Forgery(refusal=refusal, make=lambda: CcaVendor().case(container=container))


def _platform(refusal: str, changes: Changes) -> Forgery:
    return Forgery(refusal=refusal, make=lambda: CcaVendor().case(platform=changes))


def _realm(refusal: str, changes: Changes) -> Forgery:
    return Forgery(refusal=refusal, make=lambda: CcaVendor().case(realm=changes))


def _key(refusal: str, changes: Changes) -> Forgery:
    def encode(key: ec.EllipticCurvePublicKey) -> bytes:
        return cose_key(key, changes)

    return Forgery(refusal=refusal, make=lambda: CcaVendor(encode_key=encode).case())


def _legacy_key(refusal: str, encode: Callable[[ec.EllipticCurvePublicKey], bytes]) -> Forgery:
    return Forgery(refusal=refusal, make=lambda: CcaVendor(encode_key=encode).case(realm=LEGACY_REALM))


def _untagged(token: bytes) -> bytes:
    return cbor2.dumps(cbor2.loads(token).value)


def _claimless(token: bytes) -> bytes:
    """The token with an array for its claims, not signed again: parsing comes first."""
    protected, unprotected, _, signature = cbor2.loads(token).value
    return cbor2.dumps(cbor2.CBORTag(18, [protected, unprotected, cbor2.dumps([]), signature]))


def _off_curve(key: ec.EllipticCurvePublicKey) -> bytes:
    return cose_key(key, {-3: bytes(48)})


def _another_realm() -> CcaVendor:
    return CcaVendor(realm_key=key_named("another realm", ec.SECP384R1))


def _of_keys(*names: str) -> Case:
    """A genuine pair, with these keys pinned in place of the platform's."""
    keys = (key_named(name, ec.SECP384R1).public_key() for name in names)
    return endorsed(CcaVendor().case(), *(Endorsement(kind=EndorsementKind.PUBLIC_KEY, data=spki(key)) for key in keys))


_CONTAINER_FORGERIES: Final = {
    "platform token alone": _contained("the CCA token", lambda platform, _: cbor2.loads(platform)),
    "no tag": _contained("the CCA token has no CBOR tag; 399 or 907", lambda *pair: collection(*pair).value),
    "no map": _contained("is not a map of a platform token", lambda *pair: cbor2.CBORTag(399, pair)),
    "the labels only": _contained("is not a map of a platform token", lambda *_: cbor2.CBORTag(399, [44234, 44241])),
    "no realm token": _contained(
        "is not a map of a platform token", lambda platform, _: cbor2.CBORTag(399, {44234: platform})
    ),
    "something more": _contained(
        "and nothing else", lambda *pair: cbor2.CBORTag(399, {**legacy_container(*pair).value, 44258: b""})
    ),
    "a token that is no byte string": _contained(
        "the CCA token has frozendict where its 44241",
        lambda platform, realm: cbor2.CBORTag(399, {44234: platform, 44241: {1: realm}}),
    ),
}

_MESSAGE_FORGERIES: Final = {
    "record without its type": _contained(
        "has an entry that is no CMW of the type 263", lambda *pair: cbor2.CBORTag(907, legacy_container(*pair).value)
    ),
    "record of another type": _contained(
        "no CMW", lambda platform, realm: cbor2.CBORTag(907, {44234: [263, platform], 44241: [601, realm]})
    ),
    "record in a map": _contained(
        "no CMW", lambda platform, realm: cbor2.CBORTag(907, {44234: [263, platform], 44241: {0: 263, 1: realm}})
    ),
    "record with an indicator": _contained(
        "no CMW", lambda platform, realm: cbor2.CBORTag(907, {44234: [263, platform], 44241: [263, realm, 4]})
    ),
    "platform token untagged": _contained(
        "the CCA platform token has no CBOR tag; 18 is wanted",
        lambda platform, realm: collection(_untagged(platform), realm),
    ),
    "realm token untagged": _contained(
        "the CCA realm token has no CBOR tag", lambda platform, realm: collection(platform, _untagged(realm))
    ),
    "platform token no message": _contained(
        "the CCA platform token is no COSE_Sign1", lambda _, realm: collection(cbor2.dumps(cbor2.CBORTag(18, 1)), realm)
    ),
    "platform token without claims": _contained(
        "the claims set of the CCA platform token is not a map",
        lambda platform, realm: collection(_claimless(platform), realm),
    ),
    "realm token without claims": _contained(
        "the claims set of the CCA realm token is not a map",
        lambda platform, realm: collection(platform, _claimless(realm)),
    ),
    "tokens swapped": _contained(
        "the CCA platform token has the profile 'tag:arm.com,2024:realm",
        lambda platform, realm: collection(realm, platform),
    ),
}

_CLAIM_FORGERIES: Final = {
    "platform profile unknown": _platform("which is not known", {265: "tag:arm.com,2026:cca_platform#2.0.0"}),
    "platform profile of PSA": _platform("which is not known", {265: "tag:psacertified.org,2023:psa#tfm"}),
    "no platform profile": _platform("the CCA platform token has nothing where its 265", {265: ...}),
    "platform challenge of 31 bytes": _platform("the CCA platform token has 31 bytes under 10", {10: bytes(31)}),
    "no platform components": _platform("the CCA platform token has no software components", {2399: []}),
    "no platform config": _platform("has nothing where its 2401", {2401: ...}),
    "no platform hash": _platform("has nothing where its 2402", {2402: ...}),
    "platform hash unprintable": _platform("text under 2402", {2402: "\0"}),
    "realm profile unknown": _realm(
        "the CCA realm token has the profile 'tag:arm.com,2026", {265: "tag:arm.com,2026:realm#2.0.0"}
    ),
    "realm profile no text": _realm("the CCA realm token has int where its 265", {265: 1}),
    "no realm key": _realm("has nothing where its 44237", {44237: ...}),
    "challenge of 32 bytes": _realm("the CCA realm token has 32 bytes under 10; 64 are wanted", {10: bytes(32)}),
    "personalization value of 63 bytes": _realm("has 63 bytes under 44235; 64", {44235: bytes(63)}),
    "initial measurement of 20 bytes": _realm("has 20 bytes under 44238; 32 or 48 or 64", {44238: bytes(20)}),
    "extensible measurements no array": _realm("has bytes where its 44239", {44239: bytes(48)}),
    "three extensible measurements": _realm("has 3 extensible measurements, not 4", {44239: [bytes(48)] * 3}),
    "five extensible measurements": _realm("has 5 extensible measurements", {44239: [bytes(48)] * 5}),
    "extensible measurement of 20 bytes": _realm("has 20 bytes under 1;", {44239: [bytes(48), bytes(20)] * 2}),
    "no realm hash": _realm("has nothing where its 44236", {44236: ...}),
    "no hash of the key": _realm("has nothing where its 44240", {44240: ...}),
    "key hashed by SHA-1": _realm("hashed by 'sha-1'; sha-256, sha-384, sha-512 are known", {44240: "sha-1"}),
    "no MEC policy in profile 2": _realm("has nothing where its 44243", {44243: ...}),
    "MEC policy 2": _realm("has the MEC policy 2;", {44243: 2}),
    "MEC policy -1": _realm("has the MEC policy -1;", {44243: -1}),
}

_KEY_FORGERIES: Final = {
    "point of P-256 without a profile": Forgery(
        refusal="the key of the CCA realm token is a point of 65 bytes, not of 97",
        make=lambda: CcaVendor(realm_key=key_named("realm"), encode_key=raw_point).case(realm=LEGACY_REALM),
    ),
    "COSE_Key without a profile": _legacy_key("is a point of 107 bytes", cose_key),
    "point with a profile": Forgery(
        refusal="the key of the CCA realm token is not a map",
        make=lambda: CcaVendor(encode_key=lambda key: cbor2.dumps(raw_point(key))).case(),
    ),
    "key type OKP": _key("is not of the type EC2", {1: 1}),
    "no key type": _key("has nothing where its 1 should be", {1: ...}),
    "curve secp256k1": _key("of the COSE curve 8; 1, 2 and 3 are known", {-1: 8}),
    "no curve": _key("has nothing where its -1 should be", {-1: ...}),
    "key for another algorithm": _key("for another algorithm than its curve's, -35", {3: -7}),
    "key for signing only": _key("is not for verifying", {4: [1]}),
    "key operations no array": _key("has int where its 4 should be", {4: 2}),
    "x too short": _key("has 47 bytes under -2; 48 are wanted", {-2: bytes(47)}),
    "y as a bit": _key("has bool where its -3 should be", {-3: True}),
}

_SIGNATURE_FORGERIES: Final = {
    "platform key not pinned": Forgery(
        refusal="no endorsement of type application/vnd.adyton.spki",
        make=lambda: replace(CcaVendor().case(), anchors=_of_keys("realm").anchors),
    ),
    "platform key does not parse": Forgery(
        refusal="the pinned attestation key does not parse",
        make=lambda: endorsed(CcaVendor().case(), Endorsement(kind=EndorsementKind.PUBLIC_KEY, data=b"\x30\x00")),
    ),
    "platform token signed by the realm": Forgery(
        refusal="the signature of the CCA platform token does not verify", make=lambda: _of_keys("realm")
    ),
    "platform claims changed": _contained(
        "the signature of the CCA platform token does not verify",
        lambda platform, realm: collection(platform.replace(b"\xcf" * 4, b"\xce" * 4), realm),
    ),
    "realm of another platform": _contained(
        "not bound to the realm: its nonce is not the sha-256 of its key",
        lambda platform, _: collection(platform, _another_realm().realm_token()),
    ),
    "static challenge": _platform("not bound to the realm", {10: b"\xab" * 32}),
    "bound by the hash of the measurements": Forgery(
        refusal="not bound to the realm", make=lambda: CcaVendor().case(platform={10: _key_sha384()})
    ),
    "key not on its curve": Forgery(
        refusal="the key of the CCA realm token is no point of secp384r1",
        make=lambda: CcaVendor(encode_key=_off_curve).case(),
    ),
    "realm token signed by another": _contained(
        "the signature of the CCA realm token does not verify",
        lambda platform, _: collection(
            platform, _another_realm().realm_token({44237: cose_key(REALM_KEY.public_key())})
        ),
    ),
    "realm claims changed": _contained(
        "the signature of the CCA realm token does not verify",
        lambda platform, realm: collection(platform, realm.replace(b"\x88" * 48, b"\x89" * 48)),
    ),
}


def _key_sha384() -> bytes:
    return hashlib.sha384(cose_key(REALM_KEY.public_key())).digest()


FORGERIES: Final[Mapping[str, Forgery]] = MappingProxyType(
    _CONTAINER_FORGERIES | _MESSAGE_FORGERIES | _CLAIM_FORGERIES | _KEY_FORGERIES | _SIGNATURE_FORGERIES
)
"""By what is wrong, in the order of the verifier's steps."""
