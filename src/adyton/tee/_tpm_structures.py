"""The three TPM 2.0 structures of a quote: bytes → frozen dataclasses. Total, bounded, no I/O; nothing is trusted yet.

TPM 2.0 Library, revision 1.59, Part 2: TPMS_ATTEST (section 10.12.12), TPMT_SIGNATURE (11.3.4), TPMT_PUBLIC (12.2.4).
All are big endian, and nothing may follow them. Of the many keys and schemes that they can hold, only those are let in
that a quote may be signed with today; so SHA-1 is out.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from adyton.errors import EvidenceError
from adyton.tee._binary import Reader
from adyton.tee._event_log import BANKS

MAGIC: Final = 0xFF544347
"""TPM_GENERATED_VALUE: no restricted key signs anything from outside its TPM that begins so (Part 2, section 6.2)."""
ST_ATTEST_QUOTE: Final = 0x8018
RSA_BITS: Final = range(2048, 4096 + 1)
RSA_EXPONENT: Final = 65537

SchemeName = Literal["rsassa", "rsapss", "ecdsa"]
HashName = Literal["sha256", "sha384", "sha512"]
TpmPublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

_CLOCK: Final = struct.Struct(">QIIBQ")
"""A TPMS_CLOCK_INFO, and the firmware version that comes after it."""
_RSA: Final = 0x0001
_NULL: Final = 0x0010
_ECC: Final = 0x0023
_KEY_KINDS: Final[Mapping[SchemeName, int]] = {"rsassa": _RSA, "rsapss": _RSA, "ecdsa": _ECC}
_SCHEMES: Final[Mapping[int, SchemeName]] = {0x0014: "rsassa", 0x0016: "rsapss", 0x0018: "ecdsa"}
_HASHES: Final[Mapping[int, HashName]] = {0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}
_CURVES: Final[Mapping[int, ec.EllipticCurve]] = {0x0003: ec.SECP256R1(), 0x0004: ec.SECP384R1()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """How to sign: the algorithm, and the hash that it takes, which is the one of the quote's PCR digest too."""

    algorithm: SchemeName
    hash: HashName


@dataclass(frozen=True, slots=True, kw_only=True)
class Attest:
    """What a TPM attests in a quote. `encoded` is what it signed.

    `selection` has the PCRs of each bank, in the order of `pcr_digest`. `clock_ms` counts the milliseconds that the TPM
    has had power; only if `clock_safe` is it sure that the TPM did not show the same time before. For a key of the
    storage hierarchy the TPM adds a secret number, always the same, to `reset_count`, `restart_count` and
    `firmware_version`.
    """

    encoded: bytes
    qualified_signer: bytes
    extra_data: bytes
    clock_ms: int
    reset_count: int
    restart_count: int
    clock_safe: bool
    firmware_version: int
    selection: Mapping[str, tuple[int, ...]]
    pcr_digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmSignature:
    """A signature in the encoding that `cryptography` takes: RSA's as it is, ECDSA's in DER."""

    scheme: Scheme
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmPublic:
    """The public area of a signing key. `name_algorithm` is a TPM_ALG_ID, `attributes` a TPMA_OBJECT.

    `spki` is the key's DER SubjectPublicKeyInfo.
    """

    name_algorithm: int
    attributes: int
    scheme: Scheme
    key: TpmPublicKey
    spki: bytes


def parse_attest(data: bytes) -> Attest:
    """Parse a TPMS_ATTEST that holds a quote."""
    reader = Reader(data, "the TPM's quote", order="big")
    magic, kind = reader.number(4, "magic"), reader.number(2, "type")
    if magic != MAGIC:
        raise EvidenceError(f"the TPM's quote begins with 0x{magic:08x}, not with TPM_GENERATED: no TPM made it")
    if kind != ST_ATTEST_QUOTE:
        raise EvidenceError(f"the TPM attests something of type 0x{kind:04x}, not a quote, 0x{ST_ATTEST_QUOTE:04x}")
    qualified_signer, extra_data = _sized(reader, "qualified signer"), _sized(reader, "extra data")
    clock_ms, reset_count, restart_count, safe, firmware_version = _CLOCK.unpack(reader.take(_CLOCK.size, "clock"))
    if safe > 1:
        raise EvidenceError(f"the TPM's quote has a TPMI_YES_NO of {safe}")
    attest = Attest(
        encoded=data,
        qualified_signer=qualified_signer,
        extra_data=extra_data,
        clock_ms=clock_ms,
        reset_count=reset_count,
        restart_count=restart_count,
        clock_safe=safe == 1,
        firmware_version=firmware_version,
        selection=_selection(reader),
        pcr_digest=_sized(reader, "PCR digest"),
    )
    reader.end()
    return attest


def _sized(reader: Reader, field: str) -> bytes:
    """The buffer of any TPM2B structure. The evidence as a whole has bounds, and a part of it can't exceed them."""
    return reader.take(reader.number(2, f"{field}'s size"), field)


def _selection(reader: Reader) -> Mapping[str, tuple[int, ...]]:
    """A TPML_PCR_SELECTION. A bank of which nothing is selected is as good as not there."""
    selection: dict[str, tuple[int, ...]] = {}
    for _ in range(reader.number(4, "number of selections")):
        bank, selected = _selected(reader)
        if bank in selection:
            raise EvidenceError(f"the TPM's quote selects PCRs of the bank {bank} twice")
        selection[bank] = selected
    return MappingProxyType({bank: selected for bank, selected in selection.items() if selected})


def _selected(reader: Reader) -> tuple[str, tuple[int, ...]]:
    """A TPMS_PCR_SELECTION."""
    algorithm, size = reader.number(2, "bank"), reader.number(1, "bitmap's size")
    if algorithm not in BANKS:
        raise EvidenceError(f"the TPM's quote selects PCRs of the unknown bank 0x{algorithm:04x}")
    bitmap = int.from_bytes(reader.take(size, "bitmap"), "little")
    return BANKS[algorithm][0], tuple(index for index in range(8 * size) if bitmap >> index & 1)


def parse_signature(data: bytes) -> TpmSignature:
    """Parse a TPMT_SIGNATURE."""
    reader = Reader(data, "the TPM's signature", order="big")
    scheme = _scheme(reader, "the TPM's signature")
    if scheme.algorithm == "ecdsa":
        r, s = (int.from_bytes(_sized(reader, half), "big") for half in ("r", "s"))
        value = encode_dss_signature(r, s)
    else:
        value = _sized(reader, "value")
    reader.end()
    return TpmSignature(scheme=scheme, value=value)


def _scheme(reader: Reader, what: str) -> Scheme:
    """The beginning that a TPMT_SIGNATURE, TPMT_RSA_SCHEME and TPMT_ECC_SCHEME have in common."""
    algorithm, hash_ = reader.number(2, "scheme"), reader.number(2, "hash algorithm")
    if algorithm not in _SCHEMES:
        raise EvidenceError(f"{what} is of the scheme 0x{algorithm:04x}; RSASSA, RSAPSS and ECDSA are allowed")
    if hash_ not in _HASHES:
        raise EvidenceError(f"{what} is made with the hash 0x{hash_:04x}; SHA-256, SHA-384 and SHA-512 are allowed")
    return Scheme(algorithm=_SCHEMES[algorithm], hash=_HASHES[hash_])


@functools.lru_cache(maxsize=16)
def parse_public(data: bytes) -> TpmPublic:
    """Parse the TPMT_PUBLIC of a key that signs with one scheme only, as every restricted signing key does."""
    reader = Reader(data, "the attestation key", order="big")
    kind, name_algorithm = reader.number(2, "type"), reader.number(2, "name algorithm")
    attributes = reader.number(4, "attributes")
    _sized(reader, "policy")
    symmetric = reader.number(2, "symmetric algorithm")
    if symmetric != _NULL:
        raise EvidenceError(
            f"the attestation key has the symmetric algorithm 0x{symmetric:04x}, so it is no signing key"
        )
    scheme = _scheme(reader, "the attestation key")
    if _KEY_KINDS[scheme.algorithm] != kind:
        raise EvidenceError(f"the attestation key is of type 0x{kind:04x}, which does not sign with {scheme.algorithm}")
    key = _rsa_key(reader) if kind == _RSA else _ecc_key(reader)
    reader.end()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return TpmPublic(name_algorithm=name_algorithm, attributes=attributes, scheme=scheme, key=key, spki=spki)


def _rsa_key(reader: Reader) -> rsa.RSAPublicKey:
    bits, exponent = reader.number(2, "size in bits"), reader.number(4, "exponent")
    modulus = int.from_bytes(_sized(reader, "modulus"), "big")
    if modulus.bit_length() != bits:
        raise EvidenceError(f"the attestation key says that it has {bits} bits and has {modulus.bit_length()}")
    return rsa_key(modulus, exponent or RSA_EXPONENT)


def rsa_key(modulus: int, exponent: int) -> rsa.RSAPublicKey:
    """An RSA key of a size that is neither weak nor slow, and with the one exponent that TPMs use."""
    if modulus.bit_length() not in RSA_BITS:
        allowed = f"{RSA_BITS[0]} to {RSA_BITS[-1]}"
        raise EvidenceError(f"the attestation key is of RSA with {modulus.bit_length()} bits; {allowed} are allowed")
    if exponent != RSA_EXPONENT:
        raise EvidenceError(f"the attestation key's exponent is not {RSA_EXPONENT}")
    return rsa.RSAPublicNumbers(exponent, modulus).public_key()


def _ecc_key(reader: Reader) -> ec.EllipticCurvePublicKey:
    curve, kdf = reader.number(2, "curve"), reader.number(2, "key derivation")
    if curve not in _CURVES:
        raise EvidenceError(f"the attestation key is on the curve 0x{curve:04x}; P-256 and P-384 are allowed")
    if kdf != _NULL:
        raise EvidenceError(f"the attestation key derives keys, with 0x{kdf:04x}, so it is no signing key")
    x, y = (int.from_bytes(_sized(reader, coordinate), "big") for coordinate in ("x", "y"))
    try:
        return ec.EllipticCurvePublicNumbers(x, y, _CURVES[curve]).public_key()
    except ValueError as error:
        raise EvidenceError("the attestation key is not a point of its curve") from error
