"""Real quotes and event logs: of Google's vTPMs, a simulated TPM, a keylime agent, Windows, and many machines."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)
from real_vectors import content, ids, manifest, needs_vectors

from adyton.errors import EvidenceError
from adyton.tee._event_log import BANKS, EventLog, authenticated, parse_event_log, replay
from adyton.tee._tpm_structures import parse_attest, parse_public
from adyton.tee.evidence import Endorsement, EndorsementKind, Evidence
from adyton.tee.tpm.format import encode_tpm
from adyton.tee.tpm.verify import AK_USAGES, VerifiedTpm, verify_tpm
from adyton.testing.tpm import AK_ATTRIBUTES

pytestmark = needs_vectors

NOW = datetime(2026, 1, 1, tzinfo=UTC)
"""Any time will do where the key is pinned."""

GOOGLE = [name for name in ids("tpm", "evidence-bundle") if name.endswith(".pb")]
TRUSTEE = "tpm/trustee_tpm_evidence.json"
WINDOWS = "tpm/go-attestation_windows_gcp_shielded_vm.json"
KEYLIME = ids("tpm", "evidence")
LOGS = ids("tpm", "eventlog")
BOGUS = "tpm/keylime/binary_bios_measurements-bogus"


def _verify(data: bytes, ak: bytes, *endorsements: tuple[EndorsementKind, bytes]) -> VerifiedTpm:
    """With that key, a SubjectPublicKeyInfo, pinned."""
    stapled = tuple(Endorsement(kind=kind, data=each) for kind, each in endorsements)
    evidence = Evidence(tee="tpm", data=data, endorsements=stapled)
    return verify_tpm(evidence, anchors=frozenset({hashlib.sha256(ak).digest()}), now=NOW)


def _spki(public: bytes) -> bytes:
    return parse_public(public).spki


def test_every_vector_is_used() -> None:
    assert {*GOOGLE, TRUSTEE, WINDOWS, *KEYLIME, *LOGS} == set(ids("tpm"))
    assert len(KEYLIME) == 7


# --- go-tpm-tools: protobuf with a quote for each of three banks, an event log, and the key's certificate


def _protobuf(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message of varints and byte strings."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(data):
        field, kind = divmod(varint(), 8)
        if kind == 0:
            yield field, varint()
        else:
            size = varint()
            yield field, data[position : position + size]
            position += size


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attestation:
    ak: bytes
    quotes: tuple[tuple[bytes, bytes, dict[str, dict[int, bytes]]], ...]
    log: bytes
    certificate: bytes


def _google(name: str) -> _Attestation:
    fields = list(_protobuf(content(name)))
    one = dict(fields)
    quotes = []
    for quote in (dict(_protobuf(value)) for field, value in fields if field == 2):
        pcrs = list(_protobuf(quote[3]))
        bank = BANKS[dict(pcrs)[1]][0]
        values = [dict(_protobuf(value)) for field, value in pcrs if field == 2]
        quotes.append((quote[1], quote[2], {bank: {value.get(1, 0): value[2] for value in values}}))
    return _Attestation(ak=one[1], quotes=tuple(quotes), log=one[3], certificate=one[6])


@pytest.mark.parametrize("name", GOOGLE)
@pytest.mark.parametrize("index", range(3))
def test_google_quotes_are_genuine_in_every_bank_and_their_log_replays(name: str, index: int) -> None:
    attestation, measured = _google(name), manifest()[name]["measured"]["quotes"]
    assert len(attestation.quotes) == len(measured) == 3
    quoted, signature, pcrs = attestation.quotes[index]
    data = encode_tpm(quoted=quoted, signature=signature, ak_public=attestation.ak, pcrs=pcrs)
    verified = _verify(data, _spki(attestation.ak), (EndorsementKind.EVENT_LOG, attestation.log))
    (bank,) = verified.quote.pcrs
    assert bank == BANKS[int(measured[index]["bank"], 16)][0]
    assert verified.report_data.hex() == measured[index]["extra"]
    assert verified.quote.pcrs == pcrs
    assert set(verified.quote.events) == set(measured[index]["replay_ok"])
    assert all(tuple(event.digests) == (bank,) for found in verified.quote.events.values() for event in found)
    assert verified.evidence_sha256 == hashlib.sha256(quoted).digest()


@pytest.mark.parametrize("name", GOOGLE)
def test_google_keys_have_the_attributes_that_were_measured(name: str) -> None:
    ak, measured = parse_public(_google(name).ak), manifest()[name]["measured"]["ak"]
    assert ak.attributes == int(measured["attrs"], 16) == AK_ATTRIBUTES
    assert (ak.scheme.algorithm, ak.scheme.hash, ak.key.key_size) == ("rsassa", "sha256", measured["bits"])


@pytest.mark.filterwarnings("ignore:Attribute's length must be:UserWarning")  # the issuer's common name has 79
@pytest.mark.parametrize("name", GOOGLE)
def test_google_certifies_the_keys_under_a_root_that_did_not_come_with_them(name: str) -> None:
    attestation = _google(name)
    certificate = x509.load_der_x509_certificate(attestation.certificate)
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert spki == _spki(attestation.ak)
    assert not AK_USAGES.isdisjoint(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    quoted, signature, pcrs = attestation.quotes[1]
    data = encode_tpm(quoted=quoted, signature=signature, ak_public=attestation.ak, pcrs=pcrs)
    stapled = Endorsement(kind=EndorsementKind.CERTIFICATE, data=attestation.certificate)
    evidence = Evidence(tee="tpm", data=data, endorsements=(stapled,))
    with pytest.raises(EvidenceError, match="does not end in a root that is trusted"):
        verify_tpm(evidence, anchors=frozenset({bytes(32)}), now=certificate.not_valid_before_utc)


# --- Confidential Containers: a quote of a simulator, whose key came as SubjectPublicKeyInfo only


def _public_area(spki: bytes) -> bytes:
    """What the TPMT_PUBLIC of that key would be: its attributes are not told, so the common ones are assumed."""
    key = load_der_public_key(spki)
    assert isinstance(key, rsa.RSAPublicKey)
    head = b"\x00\x01\x00\x0b" + AK_ATTRIBUTES.to_bytes(4, "big") + b"\x00\x00\x00\x10\x00\x14\x00\x0b"
    modulus = key.public_numbers().n.to_bytes(256, "big")
    return head + b"\x08\x00" + bytes(4) + b"\x01\x00" + modulus


def test_the_quote_of_trustee_is_genuine() -> None:
    items, measured = json.loads(content(TRUSTEE)), manifest()[TRUSTEE]["measured"]
    quote, spki = items["tpm_quote"], base64.b64decode(items["ak_public"])
    data = encode_tpm(
        quoted=base64.b64decode(quote["message"]),
        signature=base64.b64decode(quote["signature"]),
        ak_public=_public_area(spki),
        pcrs={"sha256": {index: bytes.fromhex(value) for index, value in enumerate(quote["pcrs"])}},
    )
    verified = _verify(data, spki)
    assert verified.report_data.hex() == measured["extra"]
    assert [[11, sorted(verified.quote.pcrs["sha256"])]] == measured["sel"]
    assert verified.ak_provenance == "pinned"


# --- keylime: files of tpm2-tools


def _tpm2_tools_pcrs(data: bytes) -> dict[str, dict[int, bytes]]:
    """The memory of a TPML_PCR_SELECTION and of the lists of digests that tpm2_quote writes (little endian)."""
    assert int.from_bytes(data[:4], "little") == 1  # of 16 selections, one is used
    bank = BANKS[int.from_bytes(data[4:6], "little")][0]
    bitmap = int.from_bytes(data[7 : 7 + data[6]], "little")
    lists = data[4 + 16 * 8 :]
    count = int.from_bytes(lists[4:8], "little")
    digests = [lists[8 + 66 * index :][2:34] for index in range(count)]
    indices = [index for index in range(24) if bitmap >> index & 1]
    return {bank: dict(zip(indices, digests, strict=True))}


def _keylime() -> dict[str, bytes]:
    return {name.removeprefix("tpm/keylime/"): content(name) for name in KEYLIME}


def _keylime_evidence(files: Mapping[str, bytes]) -> bytes:
    return encode_tpm(
        quoted=files["quote.out"],
        signature=files["quotesig.out"],
        ak_public=files["ak.pub"][2:],
        pcrs=_tpm2_tools_pcrs(files["quotepcr.out"]),
    )


def test_the_quote_of_keylime_is_genuine() -> None:
    files, measured = _keylime(), manifest()["tpm/keylime/quote.out"]["measured"]
    key = load_pem_public_key(files["akpub.pem"])
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    verified = _verify(_keylime_evidence(files), spki)
    assert verified.report_data.hex() == measured["extra"]
    assert [[11, sorted(verified.quote.pcrs["sha256"])]] == measured["sel"]
    assert verified.ak_sha256 == hashlib.sha256(spki).digest()


def test_the_name_of_keylimes_key_is_the_hash_of_its_public_area() -> None:
    files = _keylime()
    assert files["ak.name"] == b"\x00\x0b" + hashlib.sha256(files["ak.pub"][2:]).digest()
    assert parse_public(files["ak.pub"][2:]).name_algorithm == 0x000B
    assert parse_attest(files["quote.out"]).qualified_signer[:2] == files["ak.name"][:2]


def test_keylimes_endorsement_key_is_not_its_attestation_key() -> None:
    files = _keylime()
    key = load_pem_public_key(files["ekpub.pem"])
    with pytest.raises(EvidenceError, match="the attestation key is not pinned"):
        _verify(_keylime_evidence(files), key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


# --- go-attestation: Windows on a virtual machine of 2019, all in SHA-1


def _windows() -> dict[str, Any]:
    items: dict[str, Any] = json.loads(content(WINDOWS))
    return items


def test_the_quote_of_windows_is_refused_for_its_sha1() -> None:
    # The manifest has it as authentic, and so it is; but this key signs with SHA-1, which anybody can collide.
    items = _windows()
    measured = manifest()[WINDOWS]["measured"]
    assert (measured["hash"], measured["sig"]) == ("0x4", True)
    public = base64.b64decode(items["AK"]["Public"])
    data = encode_tpm(
        quoted=base64.b64decode(items["Quote"]["Quote"]),
        signature=base64.b64decode(items["Quote"]["Signature"]),
        ak_public=public,
        pcrs={"sha1": {pcr["Index"]: base64.b64decode(pcr["Digest"]) for pcr in items["Log"]["PCRs"]}},
    )
    with pytest.raises(EvidenceError, match="is made with the hash 0x0004; SHA-256, SHA-384 and SHA-512 are allowed"):
        _verify(data, b"")


def test_the_attestation_of_windows_is_a_quote_and_its_key_was_certified_by_another_kind() -> None:
    items = _windows()
    attest = parse_attest(base64.b64decode(items["Quote"]["Quote"]))
    assert [[4, list(attest.selection["sha1"])]] == manifest()[WINDOWS]["measured"]["sel"]
    with pytest.raises(EvidenceError, match=f"of type {manifest()[WINDOWS]['measured']['create_type']}"):
        parse_attest(base64.b64decode(items["AK"]["CreateAttestation"]))


def test_the_log_of_windows_replays_to_its_pcrs() -> None:
    items, measured = _windows(), manifest()[WINDOWS]["measured"]
    log = parse_event_log(base64.b64decode(items["Log"]["Raw"]))
    pcrs = {pcr["Index"]: base64.b64decode(pcr["Digest"]) for pcr in items["Log"]["PCRs"]}
    assert len(log.events) == measured["events"]
    matches = {str(index): pcrs[index] == value for index, value in replay(log, "sha1").items()}
    assert matches == measured["replay"]


# --- event logs


def _log(name: str) -> EventLog:
    data = content(name)
    return parse_event_log(base64.b64decode(data) if name.endswith(".b64") else data)


@pytest.mark.parametrize("name", [name for name in LOGS if name != BOGUS])
def test_event_logs_parse_and_replay_as_measured(name: str) -> None:
    log, measured = _log(name), manifest()[name].get("measured", {})
    # The last event of this one is Windows' trust point, of the register 0xffffffff, which the measurement took for the
    # end of the log.
    trust_points = [event for event in log.events if event.register == 0xFFFFFFFF]
    assert len(trust_points) == (1 if name.endswith("option_rom_eventlog") else 0)
    assert len(log.events) - len(trust_points) == measured.get("events", 101)
    for algorithm, registers in measured.get("regs", {}).items():
        values = replay(log, BANKS[int(algorithm)][0])
        assert {str(register): value.hex()[:16] for register, value in values.items()} == registers
    if algorithms := measured.get("algs"):
        assert log.banks == tuple(BANKS[int(algorithm, 16)][0] for algorithm in algorithms)


@pytest.mark.parametrize("name", [name for name in LOGS if name != BOGUS])
def test_some_of_each_log_is_authenticated_data(name: str) -> None:
    log = _log(name)
    # A log of nothing but a StartupLocality event has nothing that was measured.
    assert any(authenticated(event) for event in log.events) or name.endswith("short_no_action_eventlog")


def test_a_file_that_is_no_log_is_refused() -> None:
    # The manifest has it as parsed, by a reader that took the text for one event of 1.9 GB.
    with pytest.raises(EvidenceError, match="the event log ends inside its event's data: 1919248394 bytes"):
        _log(BOGUS)
