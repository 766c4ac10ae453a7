"""SNP reports that are genuine under a fake AMD, and wrong in each single way that their verifier must refuse.

    SnpVendor("Turin").case().verify_with(verify_snp)
    SnpVendor().case(SnpRecipe(version=3, report=put(0x30, bytes([2]))))      of VMPL 2

`FORGERIES` holds one case for each guard, or more: what is wrong is signed and certified as if it were right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Final, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from adyton.tee.snp.products import ProductName
from adyton.testing import snp_pki as pki
from adyton.testing.forgery import NOW, Forgery
from adyton.testing.snp_pki import CrlRecipe
from adyton.testing.snp_vendor import Change, SnpRecipe, SnpVendor, Stapled, certificate, crl, put

__all__ = ["FORGERIES", "SnpRecipe", "SnpVendor", "put"]

_SECOND: Final = timedelta(seconds=1)


def _made(refusal: str, product: ProductName = "Genoa", /, **recipe: Any) -> Forgery:
    return Forgery(refusal=refusal, make=lambda: SnpVendor(product).case(SnpRecipe(**recipe)))


def _with(**fields: Any) -> Change:
    """A certificate with these fields of its recipe."""
    return lambda recipe: replace(recipe, **fields)


def _amd(arc: str, value: bytes | None) -> Change:
    """A leaf with this value of AMD's extension, or without it."""
    return lambda recipe: pki.changed(recipe, arc, value)


# --- the report

_RESERVED: Final = (
    *((5, offset) for offset in (0x4C, 0x4F, 0x18B, 0x19F, 0x1EB, 0x1EF, 0x208, 0x29F)),
    *((3, offset) for offset in (0x1F8, 0x207)),
    *((2, offset) for offset in (0x188, 0x18A)),
)
"""A version, and the first and last of a range of bytes that are reserved in it."""
_RESERVED_IN_SIGNATURE: Final = (0x2D0, 0x2E7, 0x318, 0x32F, 0x330, 0x49F)
_NOT_KNOWN: Final = "has bits that are not known; 8 and up are zero"
_POLICY_RESERVED: Final = "has reserved bits set; 26 and up are zero"

_FORMAT_FORGERIES: Final = {
    "empty": _made("has 0 bytes, not 1184", edit=lambda _: b""),
    "a byte short": _made("has 1183 bytes", edit=lambda data: data[:-1]),
    "a zero too many": _made("has 1185 bytes", edit=lambda data: data + b"\0"),
    **{f"version {each}": _made(f"is of version {each}; known are 2, 3, 5", version=each) for each in (1, 4, 6)},
    "another algorithm": _made("signed with algorithm 2, not 1", report=put(0x34, b"\x02")),
    "a VMPL that is none": _made("is of VMPL 0x4; a guest's own are of 0 to 3", report=put(0x30, b"\x04")),
    "asked for by the host": _made("is of VMPL 0xffffffff", report=put(0x30, b"\xff" * 4)),
    **{
        f"version {version}, byte {offset:#x}": _made("are not zero", version=version, report=put(offset, b"\x01"))
        for version, offset in _RESERVED
    },
    **{f"byte {offset:#x}": _made("are not zero", edit=put(offset, b"\x01")) for offset in _RESERVED_IN_SIGNATURE},
    "policy bit 17": _made("lacks bit 17", report=put(0x0A, b"\x01")),
    "policy bit 26": _made(_POLICY_RESERVED, report=put(0x0B, b"\x04")),
    "policy bit 63": _made(_POLICY_RESERVED, report=put(0x0F, b"\x80")),
    "platform info bit 8": _made(_NOT_KNOWN, report=put(0x41, b"\x01")),
    "platform info bit 63": _made(_NOT_KNOWN, report=put(0x47, b"\x80")),
    "signing key 2": _made("signing key is 2", report=put(0x48, b"\x08")),
    "no signing key": _made("signing key is 7", report=put(0x48, b"\x1c")),
    "key info bit 5": _made("signing key is 8", report=put(0x48, b"\x20")),
    "key info bit 31": _made("signing key is 536870912", report=put(0x4B, b"\x80")),
}


# --- who signed it

_NO_VCEK: Final = "there is no VCEK certificate with the SNP report"
_NO_PARSE: Final = "a certificate with the SNP report does not parse"
_BAD_SIGNATURE: Final = "the SNP report's signature does not verify with the key of the VCEK"


def _two_levels_of_one_name(tbs: bytes) -> bytes:
    level = bytes.fromhex("2b060104019c780103")  # all but the last arc
    return tbs.replace(level + b"\x02", level + b"\x01", 1)


_SIGNATURE_FORGERIES: Final = {
    "no certificates": _made(_NO_VCEK, stapled=lambda _: ()),
    "no leaf": _made(_NO_VCEK, stapled=lambda stapled: stapled[1:]),
    "a VCEK, said to be a VLEK": _made("there is no VLEK certificate", report=put(0x48, b"\x04")),
    "a leaf of another name": _made(_NO_VCEK, leaf=_with(subject=("SEV-VCEK2",))),
    "a leaf of two names": _made(_NO_VCEK, leaf=_with(subject=("SEV-VCEK", "SEV-VCEK2"))),
    "a leaf of no name": _made(_NO_VCEK, leaf=_with(subject=())),
    "a certificate that is none": _made(_NO_PARSE, stapled=lambda stapled: (*stapled, certificate(b"\x30\0"))),
    "an extension twice": _made(_NO_PARSE, leaf=_with(edit=_two_levels_of_one_name)),
    "another curve": _made("not of P-384", leaf_key=lambda: ec.generate_private_key(ec.SECP256R1())),
    "another kind of key": _made("not of P-384", leaf=lambda recipe: replace(recipe, key=pki.small_key())),
    "signed by another key": _made(_BAD_SIGNATURE, leaf=lambda recipe: replace(recipe, key=_new_key())),
    "changed after it was signed": _made(_BAD_SIGNATURE, edit=put(0x90, b"\xff")),
    "an R of zero": _made(_BAD_SIGNATURE, edit=put(0x2A0, bytes(48))),
    "an S of zero": _made(_BAD_SIGNATURE, edit=put(0x2E8, bytes(48))),
    "a signature of zeros": _made(_BAD_SIGNATURE, edit=put(0x2A0, bytes(512))),
}


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


# --- who issued whose certificate, and when

Part = Literal["leaf", "ask", "ark"]
_NOT_ISSUED: Final = "was not signed with its issuer's key, by RSASSA-PSS with SHA-384 and a salt of 48 bytes"
_CRITICAL: Final = (pki.extension("99", b"\x05\0"), True)
_NO_CA: Final = (x509.BasicConstraints(ca=False, path_length=None), True)
_NO_KEY_CERT_SIGN: Final = (pki.key_usage("digital_signature", "crl_sign"), True)


_OTHER_SCHEMES: Final = {
    "no salt": pki.Scheme(salt_bytes=0),
    "a short salt": pki.Scheme(salt_bytes=47),
    "a long salt": pki.Scheme(salt_bytes=49),
    "another mask": pki.Scheme(mask=hashes.SHA256),
    "SHA-256": pki.Scheme(algorithm=hashes.SHA256, mask=hashes.SHA256),
    "PKCS #1 v1.5": pki.Scheme(salt_bytes=None),
}


def _issued(part: Part, what: str) -> Iterator[tuple[str, Forgery]]:
    """The leaf or the ASK, issued in another way than AMD does."""
    another = pki.ark_key if part == "leaf" else pki.ask_key
    yield "another key", _made(what, **{part: lambda recipe: replace(recipe, signed_by=another())})
    for name, scheme in _OTHER_SCHEMES.items():
        yield name, _made(what, **{part: _with(scheme=scheme)})


def _issuer(part: Part, below: Part, what: str) -> Iterator[tuple[str, Forgery]]:
    """The ASK or the ARK, not such that it may issue anything."""
    for name, said, extensions in (
        ("no basicConstraints", "lacks basicConstraints or keyUsage", (pki.CERTIFIES,)),
        ("no keyUsage", "lacks basicConstraints or keyUsage", (pki.CA,)),
        ("no CA", "is no CA", (_NO_CA, pki.CERTIFIES)),
        ("no keyCertSign", "may not certify", (pki.CA, _NO_KEY_CERT_SIGN)),
    ):
        yield name, _made(f"the issuer of the {what} {said}", **{part: _with(extensions=extensions)})
    said = f"the {what} was issued with a key that is not RSA of 4096 bits"
    small: dict[str, Change] = {
        part: lambda recipe: replace(recipe, key=pki.small_key()),
        below: lambda recipe: replace(recipe, signed_by=pki.small_key()),
    }
    yield "a small key", _made(said, **small)
    yield "another kind of key", _made(said, **{part: _with(key=ed25519.Ed25519PrivateKey.generate())})


def _valid(part: Part, what: str) -> Iterator[tuple[str, Forgery]]:
    """Any of the three, at the wrong time, or with what is not understood."""
    yield "from the future", _made(f"the {what} is not yet valid", **{part: _with(begins=NOW + _SECOND)})
    yield "expired", _made(f"the {what} has expired", **{part: _with(ends=NOW - _SECOND)})
    said = f"the {what} has a critical extension that is not known"
    yield "critical", _made(said, **{part: lambda recipe: replace(recipe, extensions=(*recipe.extensions, _CRITICAL))})


def _dropped(index: int) -> Callable[[Stapled], Stapled]:
    return lambda stapled: stapled[:index] + stapled[index + 1 :]


_NO_ROOT: Final = "does not end in a root that is trusted"

_CHAIN_FORGERIES: Final = {
    "no ASK": _made("the certificate that issued the leaf is not with", stapled=_dropped(1)),
    "an ASK of another name": _made("the certificate that issued the leaf is not with", leaf=_with(issuer="SEV-Milan")),
    **{f"leaf, {name}": each for name, each in _issued("leaf", f"the leaf {_NOT_ISSUED}")},
    **{f"ASK, {name}": each for name, each in _issuer("ask", "leaf", "leaf")},
    "no ARK": _made(_NO_ROOT, stapled=_dropped(2)),
    "an ARK of another name": _made(_NO_ROOT, ask=_with(issuer="ARK-Milan")),
    "an ARK that is no anchor": Forgery(
        refusal=_NO_ROOT, make=lambda: replace(SnpVendor().case(), anchors=SnpVendor("Milan").case().anchors)
    ),
    **{f"ASK, {name}": each for name, each in _issued("ask", f"the ASK {_NOT_ISSUED}")},
    **{f"ARK, {name}": each for name, each in _issuer("ark", "ask", "ASK")},
    **{f"leaf, {name}": each for name, each in _valid("leaf", "leaf")},
    **{f"ASK, {name}": each for name, each in _valid("ask", "ASK")},
    **{f"ARK, {name}": each for name, each in _valid("ark", "ARK")},
}


# --- whether the ASK has been revoked

_PARTIAL: Final = x509.IssuingDistributionPoint(
    full_name=None,
    relative_name=None,
    only_contains_user_certs=True,
    only_contains_ca_certs=False,
    only_some_reasons=None,
    indirect_crl=False,
    only_contains_attribute_certs=False,
)
_NO_CRL_SIGN: Final = (pki.CA, (pki.key_usage("key_cert_sign"), True))


def _crl(refusal: str, **recipe: Any) -> Forgery:
    """That CRL after a good one."""
    return _made(refusal, crls=(CrlRecipe(), CrlRecipe(**recipe)))


_REVOCATION_FORGERIES: Final = {
    "revoked": _crl("the ASK has been revoked", revoked=(0x10001, pki.ASK_SERIAL)),
    "an old CRL": _crl("the CRL for the ASK has expired", ends=NOW - _SECOND),
    "a future CRL": _crl("the CRL for the ASK is from the future", begins=NOW + _SECOND),
    "a CRL of its users only": _crl("has a critical extension", extensions=((_PARTIAL, True),)),
    "a CRL by another key": _crl(f"the ARK's CRL {_NOT_ISSUED}", signed_by=pki.ask_key),
    **{
        f"a CRL, {name}": _crl(f"the ARK's CRL {_NOT_ISSUED}", scheme=scheme) for name, scheme in _OTHER_SCHEMES.items()
    },
    "a CRL that is none": _made(
        "a CRL with the SNP report does not parse", stapled=lambda all_: (*all_, crl(b"\x30\0"))
    ),
    "an ARK that may not sign it": _made("lacks cRLSign", ark=_with(extensions=_NO_CRL_SIGN), crls=(CrlRecipe(),)),
}


# --- what the certificates are for


def _renamed(product: str) -> dict[str, Change]:
    """Certificates of a product of that name."""
    return {
        "ark": lambda _: pki.ark(product),
        "ask": lambda _: pki.ask(product, "VCEK"),
        "leaf": lambda recipe: pki.changed(replace(recipe, issuer=f"SEV-{product}"), "2", pki.ia5(product)),
    }


def _cpu(name: str, product: ProductName, family: int, model: int) -> tuple[str, Forgery]:
    said = f"is of a CPU of family {family:#x} and model {model:#x}: no {product}"
    return name, _made(said, product, report=put(0x188, bytes((family, model))))


_PRODUCT_FORGERIES: Final = {
    "an unknown product": _made("the root 'ARK-Rome' is of no product that is known", **_renamed("Rome")),
    "a VCEK by the ASVK": _made(
        "the VCEK was issued by 'SEV-VLEK-Genoa', not by 'SEV-Genoa'",
        ask=lambda _: pki.ask("Genoa", "VLEK"),
        leaf=_with(issuer="SEV-VLEK-Genoa"),
    ),
    "a VLEK by the ASK": _made(
        "the VLEK was issued by 'SEV-Genoa', not by 'SEV-VLEK-Genoa'",
        signer="VLEK",
        ask=lambda _: pki.ask("Genoa", "VCEK"),
        leaf=_with(issuer="SEV-Genoa"),
    ),
    "an ASK of another product": _made(
        "the VCEK was issued by 'SEV-Milan'", ask=_with(subject=("SEV-Milan",)), leaf=_with(issuer="SEV-Milan")
    ),
    "a leaf of another product": _made(
        "is for the product 'Milan-B0', not for Genoa", leaf=_amd("2", pki.ia5("Milan-B0"))
    ),
    "a leaf of no product": _made("is for the product '', not for Genoa", leaf=_amd("2", None)),
    "a leaf of a longer name": _made("is for the product 'Genoana'", leaf=_amd("2", pki.ia5("Genoana"))),
    **dict(
        (
            _cpu("a CPU above Milan's", "Milan", 0x19, 0x10),
            _cpu("a CPU below Genoa's", "Genoa", 0x19, 0x0F),
            _cpu("a CPU above Genoa's", "Genoa", 0x19, 0x20),
            _cpu("a CPU below Siena's", "Genoa", 0x19, 0x9F),
            _cpu("a CPU above Siena's", "Genoa", 0x19, 0xB0),
            _cpu("a CPU of another family", "Genoa", 0x1A, 0x11),
            _cpu("a CPU above Turin's", "Turin", 0x1A, 0x20),
            _cpu("a CPU of Genoa under Turin's root", "Turin", 0x19, 0x11),
        )
    ),
}


def _levels(product: ProductName) -> Iterator[tuple[str, Forgery]]:
    """Certificates for another TCB than the report's."""
    for arc, level in pki.TCB_LEVELS[product].items():
        said = "is for another TCB than the report's"
        yield f"{product}, level 3.{arc} differs", _made(said, product, leaf=_amd(f"3.{arc}", pki.integer(level + 1)))
        yield f"{product}, no level 3.{arc}", _made(said, product, leaf=_amd(f"3.{arc}", None))


_NO_INTEGER: Final = "no DER INTEGER from 0 to 255"
_NO_IA5: Final = "no short DER IA5String"
_UNPRINTABLE: Final = "which can't be printed"
_NO_HWID: Final = "the VCEK has no hardware ID of 64 bytes, as Genoa has"
_OTHER_CHIP: Final = "the VCEK is of another chip than the report"

_ENDORSEMENT_FORGERIES: Final = {
    "another structure": _made("the structure version 1; Genoa has 0", leaf=_amd("1", pki.integer(1))),
    "no structure": _made("the structure version None; Genoa has 0", leaf=_amd("1", None)),
    "Turin of Genoa's structure": _made(
        "the structure version 0; Turin has 1", "Turin", leaf=_amd("1", pki.integer(0))
    ),
    **dict(_levels("Genoa")),
    **dict(_levels("Turin")),
    "a long integer": _made(_NO_INTEGER, leaf=_amd("3.3", bytes((2, 2, 0, 22)))),
    "a negative integer": _made(_NO_INTEGER, "Turin", leaf=_amd("3.8", bytes((2, 1, 130)))),
    "an integer above 255": _made(_NO_INTEGER, leaf=_amd("3.3", bytes((2, 2, 1, 22)))),
    "an integer with a tail": _made(_NO_INTEGER, leaf=_amd("3.3", bytes((2, 1, 22, 0)))),
    "an enumerated integer": _made(_NO_INTEGER, leaf=_amd("3.3", bytes((10, 1, 22)))),
    "an integer that is empty": _made(_NO_INTEGER, leaf=_amd("3.4", b"")),
    "a long structure version": _made(_NO_INTEGER, leaf=_amd("1", bytes((2, 2, 0, 0)))),
    "a name in UTF-8": _made(_NO_IA5, leaf=_amd("2", pki.der(0x0C, b"Genoa"))),
    "a name with a tail": _made(_NO_IA5, leaf=_amd("2", pki.ia5("Genoa") + b"-")),
    "a name that is cut": _made(_NO_IA5, leaf=_amd("2", pki.ia5("Genoa-")[:-1])),
    "a long name": _made(_NO_IA5, leaf=_amd("2", b"\x16\x90Genoa-".ljust(0x92, b"B"))),
    "a name above 255 bytes": _made(_NO_IA5, leaf=_amd("2", pki.ia5("Genoa-".ljust(300, "B")))),
    "a name that is not ASCII": _made(_UNPRINTABLE, leaf=_amd("2", pki.der(0x16, b"Genoa-\xff"))),
    "a name with a line feed": _made(_UNPRINTABLE, leaf=_amd("2", pki.ia5("Genoa-\n"))),
    "a provider in UTF-8": _made(_NO_IA5, signer="VLEK", leaf=_amd("5", pki.der(0x0C, b"CN=csp"))),
    "a provider with an escape": _made(_UNPRINTABLE, signer="VLEK", leaf=_amd("5", pki.ia5("CN=\x1b[2J"))),
    "an unsigned report, signed": _made("that it is not signed with a VCEK (MASK_CHIP_KEY)", report=put(0x48, b"\x02")),
    "a VCEK of a provider": _made("the VCEK is of a cloud provider, 'CN=x'", leaf=_amd("5", pki.ia5("CN=x"))),
    "a VCEK of no chip": _made(_NO_HWID, leaf=_amd("4", None)),
    "a hardware ID cut": _made(_NO_HWID, report=put(0x1DF, b"\0"), leaf=_amd("4", pki.HWID[:63])),
    "a hardware ID in DER": _made(_NO_HWID, leaf=_amd("4", pki.der(0x04, pki.HWID))),
    "a hardware ID of Genoa's length": _made(
        "no hardware ID of 8 bytes, as Turin has", "Turin", leaf=_amd("4", pki.HWID[:8].ljust(64, b"\0"))
    ),
    "a masked chip": _made(
        "does not say which chip signed it", report=put(0x1A0, bytes(64)), leaf=_amd("4", bytes(64))
    ),
    "another chip": _made(_OTHER_CHIP, leaf=_amd("4", pki.HWID[::-1])),
    "a chip that differs at its end": _made(_OTHER_CHIP, report=put(0x1DF, b"\0")),
    "a Turin with a long chip ID": _made(_OTHER_CHIP, "Turin", report=put(0x1DF, b"\x01")),
    "a VLEK of no provider": _made("the VLEK is of no cloud provider", signer="VLEK", leaf=_amd("5", None)),
    "a VLEK of a chip": _made("the VLEK is of a chip, 6465666768696a6b", signer="VLEK", leaf=_amd("4", pki.HWID)),
}


# --- the TCB versions


def _disordered(product: ProductName, parts: Mapping[str, int]) -> Iterator[tuple[str, Forgery]]:
    """Each of the parts, which is at that byte, just lower than it may be."""
    levels = list(pki.TCB_LEVELS[product].values())
    for part, index in parts.items():
        lower = bytes([levels[index] - 1])
        said = "the reported TCB is above the committed one"
        yield f"{product}, committed {part}", _made(said, product, report=put(0x1E0 + index, lower))
        said = "the committed TCB is above the current one"
        yield f"{product}, current {part}", _made(said, product, report=put(0x38 + index, lower))


def _reserved(which: str, product: ProductName, offset: int, **recipe: Any) -> Forgery:
    said = f"the {which} TCB"
    return _made(said, product, report=put(offset, b"\x01"), **recipe)


_TCB_FORGERIES: Final = {
    "reported reserved": _reserved("reported", "Genoa", 0x182, leaf=_amd("3.4", pki.integer(1))),
    "committed reserved": _reserved("committed", "Genoa", 0x1E5),
    "current reserved": _reserved("current", "Genoa", 0x3A),
    "launch reserved": _reserved("launch", "Genoa", 0x1F2),
    "Turin, reported reserved": _reserved("reported", "Turin", 0x184, leaf=_amd("3.5", pki.integer(1))),
    "Turin, launch reserved": _reserved("launch", "Turin", 0x1F6),
    **dict(_disordered("Genoa", {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7})),
    **dict(_disordered("Turin", {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7})),
}

FORGERIES: Final[Mapping[str, Forgery]] = MappingProxyType(
    _FORMAT_FORGERIES
    | _SIGNATURE_FORGERIES
    | _CHAIN_FORGERIES
    | _REVOCATION_FORGERIES
    | _PRODUCT_FORGERIES
    | _ENDORSEMENT_FORGERIES
    | _TCB_FORGERIES
)
"""By what is wrong, in the order of the verifier's steps."""
