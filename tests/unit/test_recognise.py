"""Which TEE evidence is of, from its bytes."""

from __future__ import annotations

import contextlib

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.errors import EvidenceError
from adyton.tee.evidence import MAX_EVIDENCE_BYTES
from adyton.tee.recognise import recognise
from adyton.tee.registry import TEES
from adyton.testing.simulated import SimulatedVendor

SIMULATED = SimulatedVendor().case().evidence.data


def quote(version: int, key_type: int, tee_type: int) -> bytes:
    return version.to_bytes(2, "little") + key_type.to_bytes(2, "little") + tee_type.to_bytes(4, "little") + bytes(600)


def token(payload: object, tag: int | None = None) -> bytes:
    parts = [b"", {}, payload if isinstance(payload, bytes) else cbor2.dumps(payload), b""]
    return cbor2.dumps(parts if tag is None else cbor2.CBORTag(tag, parts))


KNOWN = {
    "simulated evidence": (SIMULATED, "simulated"),
    "an SGX quote of version 3": (quote(3, 2, 0), "sgx"),
    "an SGX quote of version 5": (quote(5, 2, 0), "sgx"),
    "a TDX quote": (quote(4, 2, 0x81), "tdx"),
    "a TDX quote with a key of P-384": (quote(4, 3, 0x81), "tdx"),
    "an SNP report of version 2": (b"\x02".ljust(1184, b"\0"), "snp"),
    "an SNP report of version 5": (b"\x05".ljust(1184, b"\0"), "snp"),
    "a Nitro document": (token({"module_id": "i-1"}), "nitro"),
    "a Nitro document with its tag": (token({"module_id": "i-1"}, 18), "nitro"),
    "a Nitro document of indefinite length": (token(b"\xbf\x69module_id\x61i\xff"), "nitro"),
    "a PSA token": (token({265: "tag:psacertified.org,2023:psa#tfm"}, 18), "psa"),
    "a PSA token with a MAC": (token({265: "tag:psacertified.org,2023:psa#tfm"}, 17), "psa"),
    "a PSA token of the first profile": (token({-75000: "PSA_IOT_PROFILE_1"}, 18), "psa"),
    "a CCA token": (cbor2.dumps(cbor2.CBORTag(399, {44234: b"", 44241: b""})), "cca"),
    "a CCA token as a collection": (cbor2.dumps(cbor2.CBORTag(907, {44234: [263, b""], 44241: [263, b""]})), "cca"),
    "TPM evidence": (cbor2.dumps({"version": 1, "quoted": b"", "ak_public": b""}), "tpm"),
    "Azure evidence": (cbor2.dumps({"version": 1, "hcl_report": b"", "quote": {"quoted": b""}}), "azure"),
}

UNKNOWN = {
    "nothing": b"",
    "text": b"-----BEGIN CERTIFICATE-----",
    "a quote of no known TEE": quote(4, 2, 0x82),
    "a quote with a key of no known type": quote(4, 4, 0x81),
    "a report of version 0": bytes(1184),
    "a report with a byte more": b"\x02".ljust(1185, b"\0"),
    "an array of three": cbor2.dumps([b"", {}, cbor2.dumps({"module_id": "i-1"})]),
    "a token whose payload is no map": token([1]),
    "a token whose payload is no CBOR": token(b"\xff"),
    "a token whose payload is no byte string": cbor2.dumps([b"", {}, {"module_id": "i-1"}, b""]),
    "a token that says nothing of itself": token({"iss": "me"}, 18),
    "a map of something else": cbor2.dumps({"version": 1}),
    "a number": cbor2.dumps(1),
    "another tag": cbor2.dumps(cbor2.CBORTag(61, [b"", {}, b"", b""])),
}


@pytest.mark.parametrize(("data", "label"), KNOWN.values(), ids=KNOWN)
def test_what_is_recognised(data: bytes, label: str) -> None:
    assert recognise(data) == label


def test_every_tee_can_be_recognised() -> None:
    assert {label for _, label in KNOWN.values()} == set(TEES)


@pytest.mark.parametrize("data", UNKNOWN.values(), ids=UNKNOWN)
def test_what_is_not(data: bytes) -> None:
    with pytest.raises(EvidenceError, match="no evidence of a known format") as refused:
        recognise(data)
    assert all(label in refused.value.mend for label in TEES)


def test_more_than_evidence_may_have_is_not_looked_at() -> None:
    with pytest.raises(EvidenceError, match="evidence of 65537 bytes; 65536 are allowed"):
        recognise(SIMULATED.ljust(MAX_EVIDENCE_BYTES + 1, b"\0"))


@given(st.one_of(st.binary(max_size=200), st.binary(max_size=20).map(token)))
def test_any_bytes_are_recognised_or_refused(data: bytes) -> None:
    with contextlib.suppress(EvidenceError):
        assert recognise(data) in TEES
