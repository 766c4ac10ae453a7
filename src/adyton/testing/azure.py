"""Azure's evidence of a fake paravisor, on a fake AMD's or a fake Intel's hardware: genuine, or wrong by a recipe.

vendor = AzureVendor()
case = vendor.case(AzureRecipe(hardware="tdx", quote=TpmQuoteRecipe(extra_data=...)))
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import cbor2
from cryptography.hazmat.primitives.asymmetric import rsa

from adyton.tee.azure.format import AK_ID, VERSION, HardwareTee
from adyton.tee.evidence import Endorsement, EndorsementKind, Evidence
from adyton.testing.dcap import DcapVendor, QuoteRecipe
from adyton.testing.forgery import Case, Forgery
from adyton.testing.snp import SnpRecipe, SnpVendor
from adyton.testing.tpm_quotes import (
    QUOTE_FORGERIES,
    Edit,
    KeyName,
    SigningKey,
    TpmQuoteRecipe,
    key,
    overwrite,
    unchanged,
)

HCL_BYTES: Final = 2600
"""What the NV index holds."""

_HASHES: Final = {1: "sha256", 2: "sha384", 3: "sha512"}
_KINDS: Final[Mapping[HardwareTee, int]] = {"snp": 2, "tdx": 4}
_SNP_REPORT_DATA: Final = 0x50
_SNP_VMPL: Final = 0x30
_TD_REPORT_DATA: Final = 520
_TDREPORT_BYTES: Final = 1024
_TDREPORT_REPORT_DATA: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureRecipe:
    """How to make evidence; its edits are done in this order, and the hardware binds what comes of the first two.

    `claims_hash` is the HCL report's number of it. `ak` is what the claims name, `signer` what signs the quote.
    """

    hardware: HardwareTee = "snp"
    ak: KeyName = "rsa"
    signer: KeyName | None = None
    quote: TpmQuoteRecipe = field(default_factory=TpmQuoteRecipe)
    edit_runtime: Callable[[dict[str, Any]], object] = dict
    edit_claims: Edit = unchanged
    claims_hash: int = 1
    edit_report_data: Edit = unchanged
    vmpl: int = 0
    edit_hardware: Edit = unchanged
    edit_claims_later: Edit = unchanged
    edit_hcl: Edit = unchanged
    edit_fields: Callable[[dict[str, Any]], object] = dict


class AzureVendor:
    """A fake AMD and a fake Intel, and a paravisor on their hardware."""

    def __init__(self) -> None:
        self._amd, self._intel = SnpVendor("Milan"), DcapVendor()

    def case(self, recipe: AzureRecipe | None = None) -> Case:
        """Evidence by the recipe; genuine, and on SEV-SNP, if there is none."""
        recipe = recipe or AzureRecipe()
        claims = recipe.edit_claims(json.dumps(recipe.edit_runtime(runtime(key(recipe.ak)))).encode())
        digest = hashlib.new(_HASHES.get(recipe.claims_hash, "sha256"), claims).digest()
        bound = recipe.edit_report_data(digest.ljust(64, b"\0"))
        hardware = self._snp(recipe, bound) if recipe.hardware == "snp" else self._tdx(bound)
        report = hardware.evidence.data if recipe.hardware == "snp" else _tdreport(bound)
        held = recipe.edit_hardware(report)
        hcl = hcl_report(recipe.hardware, held, recipe.edit_claims_later(claims), recipe.claims_hash)
        fields: dict[str, Any] = {"version": VERSION, "hcl_report": recipe.edit_hcl(hcl)}
        fields["quote"] = recipe.quote.fields(key(recipe.signer or recipe.ak))
        if recipe.hardware == "tdx":
            fields["td_quote"] = hardware.evidence.data
        logs = tuple(Endorsement(kind=EndorsementKind.EVENT_LOG, data=log) for log in recipe.quote.logs)
        data = cbor2.dumps(recipe.edit_fields(fields), canonical=True)
        evidence = Evidence(tee="azure", data=data, endorsements=(*hardware.evidence.endorsements, *logs))
        return replace(hardware, evidence=evidence)

    def _snp(self, recipe: AzureRecipe, bound: bytes) -> Case:
        def edit(report: bytes) -> bytes:
            with_level = overwrite(_SNP_VMPL, recipe.vmpl.to_bytes(4, "little"))(report)
            return overwrite(_SNP_REPORT_DATA, bound)(with_level)

        return self._amd.case(SnpRecipe(version=3, report=edit))

    def _tdx(self, bound: bytes) -> Case:
        return self._intel.case("tdx", QuoteRecipe(edit_body=overwrite(_TD_REPORT_DATA, bound)))


def _tdreport(bound: bytes) -> bytes:
    return overwrite(_TDREPORT_REPORT_DATA, bound)(b"\x81" + bytes(_TDREPORT_BYTES - 1))


def runtime(ak: SigningKey) -> dict[str, Any]:
    """The claims of a paravisor whose vTPM has that attestation key."""
    if not isinstance(ak, rsa.RSAPrivateKey):
        raise TypeError("the attestation key of a paravisor's vTPM is of RSA")
    numbers = ak.public_key().public_numbers()
    keys = [
        {"kid": AK_ID, "key_ops": ["sign"], "kty": "RSA", "e": _base64url(numbers.e), "n": _base64url(numbers.n)},
        {"kid": "HCLEkPub", "key_ops": ["encrypt"], "kty": "RSA", "e": "AQAB", "n": "AQAB"},
    ]
    configuration = {"console-enabled": True, "secure-boot": True, "tpm-enabled": True, "vmUniqueId": "01234567"}
    return {"keys": keys, "vm-configuration": configuration, "user-data": "00" * 64}


def _base64url(number: int) -> str:
    data = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def hcl_report(hardware: HardwareTee, report: bytes, claims: bytes, claims_hash: int = 1) -> bytes:
    """What the NV index 0x01400001 holds."""
    size = 20 + len(claims)
    head = b"HCLA" + _u32s(2, 1216 + size, 2, 0, 0, 0, 0)
    request = _u32s(size, 1, _KINDS[hardware], claims_hash, len(claims))
    return (head + report.ljust(1184, b"\0") + request + claims).ljust(HCL_BYTES, b"\0")


def _u32s(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(4, "little") for number in numbers)


def _hcl(offset: int, new: bytes) -> AzureRecipe:
    return AzureRecipe(edit_hcl=overwrite(offset, new))


def _claims(edit: Edit) -> AzureRecipe:
    return AzureRecipe(edit_claims=edit)


def _runtime(edit: Callable[[dict[str, Any]], object]) -> AzureRecipe:
    return AzureRecipe(edit_runtime=edit)


def _fields(edit: Callable[[dict[str, Any]], object]) -> AzureRecipe:
    return AzureRecipe(edit_fields=edit)


def _jwk(**changed: object) -> AzureRecipe:
    def edit(claims: dict[str, Any]) -> dict[str, Any]:
        return claims | {"keys": [claims["keys"][0] | changed, claims["keys"][1]]}

    return _runtime(edit)


def _quote_fields(edit: Callable[[dict[str, Any]], object]) -> AzureRecipe:
    return _fields(lambda fields: fields | {"quote": edit(fields["quote"])})


_RECIPES: Final[Mapping[str, tuple[str, AzureRecipe]]] = {
    **{name: (refusal, AzureRecipe(quote=recipe)) for name, (refusal, recipe) in QUOTE_FORGERIES.items()},
    "evidence that is an array": ("the Azure evidence is not a map", _fields(lambda fields: list(fields.values()))),
    "a field that nobody knows": ("the unknown field 'more'", _fields(lambda fields: fields | {"more": 1})),
    "another version": ("the Azure evidence is of version 2", _fields(lambda fields: fields | {"version": 2})),
    "no quote": ("the quote of the vTPM is not a map", _quote_fields(lambda _: None)),
    "a quote with a key of its own": (
        "the unknown field 'ak_public'",
        _quote_fields(lambda fields: fields | {"ak_public": b""}),
    ),
    "a TD quote beside an SNP report": ("has a TD quote", _fields(lambda fields: fields | {"td_quote": b""})),
    "TDX without a TD quote": (
        "has nothing where its 'td_quote' should be",
        AzureRecipe(
            hardware="tdx",
            edit_fields=lambda fields: {name: value for name, value in fields.items() if name != "td_quote"},
        ),
    ),
    "an HCL report cut short": ("ends after 1235 bytes", AzureRecipe(edit_hcl=lambda data: data[:1235])),
    "something else than an HCL report": ("not with HCLA", _hcl(0, b"HCLB")),
    "an HCL report of another version": ("of the unknown version 3", _hcl(4, b"\x03")),
    "an HCL report with another request": ("its request of 2", _hcl(1220, b"\x02")),
    "a report of virtualisation-based security": ("a hardware report of type 1", _hcl(1224, b"\x01")),
    "claims bound by another hash": ("by the unknown hash 4", AzureRecipe(claims_hash=4)),
    "an HCL report of another size than it says": ("contradict each other", _hcl(8, b"\0\0")),
    "a request of another size than it says": ("contradict each other", _hcl(1216, b"\0\0")),
    "claims cut short": ("contradict each other", AzureRecipe(edit_hcl=lambda data: data[:1500])),
    "something after the claims": ("goes on after its claims", _hcl(-1, b"\x01")),
    "claims that are no JSON": ("no valid JSON", _claims(lambda claims: claims[:-1])),
    "claims with a name twice": ("no valid JSON", _claims(lambda claims: claims[:-1] + b', "user-data": ""}')),
    "claims with a number that is none": ("no valid JSON", _runtime(lambda claims: claims | {"n": float("nan")})),
    "claims that are no text": ("no valid JSON", _claims(lambda claims: claims[:-2] + b'\xff"}')),
    "claims that are too deep": ("no valid JSON", _claims(lambda _: b"[" * 30_000)),
    "claims that are a list": ("no JSON object", _runtime(lambda claims: [claims])),
    "claims without list of keys": (
        "have 0 keys HCLAkPub",
        _runtime(lambda claims: claims | {"keys": claims["keys"][0]}),
    ),
    "claims with a key that is none": (
        "have 0 keys HCLAkPub",
        _runtime(lambda claims: claims | {"keys": ["HCLAkPub"]}),
    ),
    "claims with two attestation keys": (
        "have 2 keys HCLAkPub",
        _runtime(lambda claims: claims | {"keys": claims["keys"] + claims["keys"][:1]}),
    ),
    "an attestation key of another type": ("is not of RSA", _jwk(kty="EC")),
    "an attestation key without modulus": ("the key HCLAkPub has no n", _jwk(n=None)),
    "an attestation key in another encoding": ("the n of the key HCLAkPub is no base64url number", _jwk(n="!!!!")),
    "a weak attestation key": ("of RSA with 1024 bits", AzureRecipe(ak="weak")),
    "an attestation key of another exponent": ("exponent is not 65537", AzureRecipe(ak="exponent 3")),
    "a report of the guest's own": ("the SNP report is of VMPL 2", AzureRecipe(vmpl=2)),
    "other claims than the report binds": (
        "is not the hash of the runtime claims",
        AzureRecipe(edit_claims_later=lambda claims: claims.replace(b"00", b"01", 1)),
    ),
    "report data that binds more than the claims": (
        "is not the hash of the runtime claims",
        AzureRecipe(edit_report_data=overwrite(63, b"\x01")),
    ),
    "other claims than the TD quote binds": (
        "is not the hash of the runtime claims",
        AzureRecipe(hardware="tdx", edit_claims_later=lambda claims: claims.replace(b"00", b"01", 1)),
    ),
    "another TDREPORT than the TD quote's": (
        "the report data of the TDREPORT",
        AzureRecipe(hardware="tdx", edit_hardware=overwrite(_TDREPORT_REPORT_DATA, b"\x01\x01\x01\x01")),
    ),
    "a quote of another TPM": (
        "the signature of the TPM's quote does not verify",
        AzureRecipe(signer="exponent 3"),
    ),
    "a quote by another kind of key": (
        "signed with ecdsa and sha256, which is not its key's scheme",
        AzureRecipe(signer="p256"),
    ),
}


@functools.cache
def _vendor() -> AzureVendor:
    return AzureVendor()


def _case(recipe: AzureRecipe) -> Case:
    return _vendor().case(recipe)


FORGERIES: Final[Mapping[str, Forgery]] = {
    name: Forgery(refusal=refusal, make=functools.partial(_case, recipe))
    for name, (refusal, recipe) in _RECIPES.items()
}
"""What is wrong → a case of it, for each guard of Azure's own, and for those of quotes."""
