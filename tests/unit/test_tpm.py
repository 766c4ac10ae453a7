"""TPM quotes: the structures to the byte, every field of the result, and what an attestation key may be."""

from __future__ import annotations

import hashlib
from dataclasses import FrozenInstanceError, replace

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from adyton.errors import EvidenceError
from adyton.tee._tpm_structures import (
    RSA_BITS,
    Scheme,
    parse_attest,
    parse_public,
    parse_signature,
    rsa_key,
)
from adyton.tee._x509 import certificate_sha256
from adyton.tee.evidence import Endorsement, EndorsementKind
from adyton.tee.tpm.format import encode_tpm, parse_tpm
from adyton.tee.tpm.verify import ANCHORS, VerifiedTpm, verify_tpm
from adyton.testing.forgery import Case
from adyton.testing.tees import TeeConformance
from adyton.testing.tpm import FORGERIES, TpmRecipe, TpmVendor, public_area, spki_sha256
from adyton.testing.tpm_quotes import (
    CLOCK_MS,
    FIRMWARE,
    MEASUREMENTS,
    NONCE,
    PCRS,
    RESET_COUNT,
    RESTART_COUNT,
    SIGNER,
    KeyName,
    TpmQuoteRecipe,
    agile_log,
    key,
    pcrs_after,
    sha1_log,
    sized,
)

VENDOR = TpmVendor()


class TestTpm(TeeConformance):
    label = "tpm"
    forgeries = FORGERIES

    def genuine(self) -> Case:
        return VENDOR.case()


class TestPinnedTpm(TeeConformance):
    label = "tpm"
    forgeries = FORGERIES

    def genuine(self) -> Case:
        return VENDOR.case(TpmRecipe(pinned=True, key="p256"))


def _verified(recipe: TpmRecipe | None = None) -> VerifiedTpm:
    case = VENDOR.case(recipe)
    return verify_tpm(case.evidence, anchors=case.anchors, now=case.now)


def _quoting(**recipe: object) -> VerifiedTpm:
    return _verified(TpmRecipe(quote=TpmQuoteRecipe(**recipe)))  # type: ignore[arg-type]


# --- format

ATTEST = (
    b"\xff\x54\x43\x47\x80\x18"
    b"\x00\x22\x00\x0b" + b"\x51" * 32 + b"\x00\x05nonce"
    b"\0\0\0\0\0\0\x04\xd2"  # clock
    b"\0\0\0\x07\0\0\0\x03\x01"  # reset count, restart count, safe
    b"\x20\x16\x05\x11\x00\x16\x28\x00"
    b"\0\0\0\x02"
    b"\x00\x0b\x03\x81\x00\x80"  # sha256: 0, 7, 23
    b"\x00\x04\x02\x02\x01"  # sha1: 1, 8
    b"\x00\x20" + b"\x77" * 32
)


def test_a_quote_has_the_documented_layout() -> None:
    attest = parse_attest(ATTEST)
    assert attest.encoded == ATTEST
    assert (attest.qualified_signer, attest.extra_data) == (b"\x00\x0b" + b"\x51" * 32, b"nonce")
    assert (attest.clock_ms, attest.reset_count, attest.restart_count, attest.clock_safe) == (1234, 7, 3, True)
    assert (attest.firmware_version, attest.pcr_digest) == (0x2016_0511_0016_2800, b"\x77" * 32)
    assert attest.selection == {"sha256": (0, 7, 23), "sha1": (1, 8)}
    assert list(attest.selection) == ["sha256", "sha1"]


def test_a_bank_of_which_nothing_is_quoted_is_not_there() -> None:
    attest = parse_attest(ATTEST.replace(b"\x00\x04\x02\x02\x01", b"\x00\x04\x02\x00\x00"))
    assert attest.selection == {"sha256": (0, 7, 23)}


@pytest.mark.parametrize("length", range(len(ATTEST)))
def test_a_quote_cut_short_anywhere_is_refused(length: int) -> None:
    with pytest.raises(EvidenceError, match="the TPM's quote ends inside its"):
        parse_attest(ATTEST[:length])


def test_signatures_of_rsa_are_taken_as_they_are() -> None:
    signature = parse_signature(b"\x00\x16\x00\x0c\x00\x03abc")
    assert (signature.scheme, signature.value) == (Scheme(algorithm="rsapss", hash="sha384"), b"abc")


def test_signatures_of_ecdsa_come_in_two_numbers() -> None:
    signature = parse_signature(b"\x00\x18\x00\x0b\x00\x01\x05\x00\x02\x00\xff")
    assert signature.scheme == Scheme(algorithm="ecdsa", hash="sha256")
    assert signature.value == bytes.fromhex("3007 0201 05 0202 00ff")


def test_a_key_of_rsa_has_the_documented_layout() -> None:
    modulus = (1 << 2047) + 1
    head = b"\x00\x01\x00\x0c" + b"\x00\x05\x00\x72" + b"\x00\x02pp" + b"\x00\x10" + b"\x00\x14\x00\x0b"
    public = parse_public(head + b"\x08\x00" + bytes(4) + sized(modulus.to_bytes(256, "big")))
    assert (public.name_algorithm, public.attributes) == (0x000C, 0x0005_0072)
    assert public.scheme == Scheme(algorithm="rsassa", hash="sha256")
    assert isinstance(public.key, rsa.RSAPublicKey)
    assert public.key.public_numbers() == rsa.RSAPublicNumbers(65537, modulus)
    assert public.spki == public.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(("name", "curve"), [("p256", ec.SECP256R1), ("p384", ec.SECP384R1)])
def test_a_key_on_a_curve_is_the_point_that_was_given(name: KeyName, curve: type[ec.EllipticCurve]) -> None:
    public = parse_public(public_area(key(name), None, "sha384")).key
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert isinstance(public.curve, curve)
    assert public == key(name).public_key()


@pytest.mark.parametrize("bits", [RSA_BITS[0], 3072, RSA_BITS[-1]])
def test_rsa_keys_of_these_sizes_are_taken(bits: int) -> None:
    assert rsa_key((1 << bits - 1) + 1, 65537).key_size == bits


@pytest.mark.parametrize("bits", [2, 2047, 4097, 400_000])
def test_rsa_keys_of_other_sizes_are_not(bits: int) -> None:
    with pytest.raises(EvidenceError, match=f"of RSA with {bits} bits; 2048 to 4096 are allowed"):
        rsa_key((1 << bits - 1) + 1, 65537)


def test_evidence_is_deterministic_cbor() -> None:
    data = encode_tpm(quoted=b"q", signature=b"s", ak_public=b"k", pcrs={"sha256": {7: b"7", 0: b"0"}})
    pcrs = b"\x64pcrs" + b"\xa1\x66sha256" + b"\xa2\x00\x410\x07\x417"
    tail = b"\x66quoted\x41q" + b"\x67version\x01" + b"\x69ak_public\x41k" + b"\x69signature\x41s"
    assert data == b"\xa5" + pcrs + tail


def test_evidence_in_another_encoding_says_the_same() -> None:
    case = VENDOR.case()
    items = cbor2.loads(case.evidence.data)
    other = b"\xbf" + b"".join(cbor2.dumps(name) + cbor2.dumps(items[name]) for name in reversed(items)) + b"\xff"
    changed = replace(case, evidence=replace(case.evidence, data=other))
    assert other != case.evidence.data
    assert changed.verify_with(verify_tpm) == case.verify_with(verify_tpm)


def test_parsed_evidence_holds_what_was_encoded() -> None:
    evidence = parse_tpm(VENDOR.case().evidence.data)
    assert evidence.quote.pcrs == PCRS
    assert evidence.quote.attest.qualified_signer == SIGNER
    assert evidence.ak.key == key("rsa").public_key()
    with pytest.raises(TypeError):
        evidence.quote.pcrs["sha256"][0] = b""  # type: ignore[index]


# --- verify


def test_every_field_of_the_result_is_what_was_quoted() -> None:
    case = VENDOR.case()
    verified = verify_tpm(case.evidence, anchors=case.anchors, now=case.now)
    quoted = cbor2.loads(case.evidence.data)["quoted"]
    joined = b"".join(PCRS["sha256"][index] for index in range(24))
    assert (verified.report_data, verified.quote.extra_data) == (NONCE, NONCE)
    assert verified.measurement == verified.quote.pcr_digest == hashlib.sha256(joined).digest()
    assert (verified.quote.pcrs, verified.quote.events) == (PCRS, {})
    assert (verified.quote.firmware_version, verified.tcb) == (FIRMWARE, "TPM firmware 0x2016051100162800")
    assert (verified.quote.clock_ms, verified.quote.clock_safe) == (CLOCK_MS, True)
    assert (verified.quote.reset_count, verified.quote.restart_count) == (RESET_COUNT, RESTART_COUNT)
    assert verified.ak_sha256 == spki_sha256(key("rsa"))
    assert verified.platform == verified.ak_sha256.hex()
    assert (verified.ak_provenance, verified.anchor_sha256) == ("certificate", certificate_sha256(VENDOR.root))
    assert verified.evidence_sha256 == verified.quote.sha256 == hashlib.sha256(quoted).digest()
    with pytest.raises(FrozenInstanceError):
        verified.quote.pcr_digest = b""  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "scheme", "hash_"),
    [
        ("rsa", "rsassa", "sha256"),
        ("rsa", "rsassa", "sha384"),
        ("rsa", "rsapss", "sha256"),
        ("rsa", "rsapss", "sha512"),
        ("p256", "ecdsa", "sha256"),
        ("p384", "ecdsa", "sha384"),
        ("p384", "ecdsa", "sha512"),
    ],
)
@pytest.mark.parametrize("pinned", [True, False])
def test_keys_of_every_scheme_are_believed(name: KeyName, scheme: str, hash_: str, pinned: bool) -> None:
    quote = TpmQuoteRecipe(scheme=scheme, hash=hash_)
    verified = _verified(TpmRecipe(key=name, scheme=scheme, hash=hash_, quote=quote, pinned=pinned))
    assert verified.ak_sha256 == spki_sha256(key(name))
    assert verified.measurement == hashlib.new(hash_, b"".join(PCRS["sha256"].values())).digest()
    if pinned:
        assert (verified.ak_provenance, verified.anchor_sha256) == ("pinned", verified.ak_sha256)


def test_a_pinned_key_needs_no_time() -> None:
    case = VENDOR.case(TpmRecipe(pinned=True))
    for year in (1, 9999):
        replace(case, now=case.now.replace(year=year)).verify_with(verify_tpm)


def test_a_certificate_counts_while_it_is_valid() -> None:
    case = VENDOR.case()
    for year, refusal in ((2025, "is not yet valid"), (2037, "has expired")):
        with pytest.raises(EvidenceError, match=refusal):
            replace(case, now=case.now.replace(year=year)).verify_with(verify_tpm)


def test_certificates_may_come_in_any_order_among_others() -> None:
    case = VENDOR.case()
    other = VENDOR.case(TpmRecipe(key="p384")).evidence.endorsements[0]
    stapled = (*reversed(case.evidence.endorsements), other)
    changed = replace(case, evidence=replace(case.evidence, endorsements=stapled))
    assert changed.verify_with(verify_tpm) == case.verify_with(verify_tpm)


@pytest.mark.parametrize("usages", [["2.23.133.8.3"], ["2.23.133.8.1"], ["1.3.6.1.5.5.7.3.2", "2.23.133.8.3"], []])
def test_a_certificate_is_for_attestation_or_for_anything(usages: list[str]) -> None:
    extensions = [x509.ExtendedKeyUsage([x509.ObjectIdentifier(usage) for usage in usages])] if usages else []
    assert _verified(TpmRecipe(certificate_extensions=tuple(extensions))).ak_provenance == "certificate"


def test_the_intermediate_ca_may_be_the_anchor() -> None:
    case = VENDOR.case(TpmRecipe(anchor=certificate_sha256(VENDOR.ca)))
    verified = verify_tpm(case.evidence, anchors=case.anchors, now=case.now)
    assert verified.anchor_sha256 == certificate_sha256(VENDOR.ca)


def test_a_root_that_makes_tpms_as_programs_says_so_in_the_record() -> None:
    case = TpmVendor("Adyton virtual TPM root: trusts this host").case()
    verified = verify_tpm(case.evidence, anchors=case.anchors, now=case.now)
    assert verified.tcb == "a virtual TPM, which its host controls; firmware 0x2016051100162800"


def test_a_certificate_is_no_anchor_for_itself() -> None:
    case = VENDOR.case()
    anchors = frozenset({hashlib.sha256(case.evidence.endorsements[0].data).digest()})
    with pytest.raises(EvidenceError, match=r"has no valid path|is itself the trusted root"):
        replace(case, anchors=anchors).verify_with(verify_tpm)


def test_no_root_is_trusted_by_default() -> None:
    assert frozenset() == ANCHORS


@pytest.mark.parametrize("extra_data", [b"", bytes(64)])
def test_the_nonce_may_be_of_any_length(extra_data: bytes) -> None:
    assert _quoting(extra_data=extra_data).report_data == extra_data


def test_an_unsafe_clock_is_a_fact() -> None:
    assert _quoting(clock_safe=False).quote.clock_safe is False


def test_several_banks_are_digested_in_the_order_of_the_quote() -> None:
    pcrs = pcrs_after(MEASUREMENTS, "sha384", "sha1")
    joined = b"".join(pcrs[bank][index] for bank in ("sha384", "sha1") for index in range(24))
    verified = _quoting(pcrs=pcrs)
    assert verified.quote.pcrs == pcrs
    assert verified.measurement == hashlib.sha256(joined).digest()


def test_a_quote_of_no_pcr_is_a_quote() -> None:
    assert _quoting(pcrs={}).measurement == hashlib.sha256().digest()


def test_refused_pcrs_are_listed() -> None:
    with pytest.raises(EvidenceError, match="the PCR values are of sha256:0,1,2, the quote is of none"):
        _quoting(pcrs={"sha256": {index: bytes(32) for index in range(3)}}, quoted_pcrs={})


# --- the event log


def test_events_are_those_of_the_pcrs_that_the_log_gives() -> None:
    pcrs = pcrs_after(MEASUREMENTS, "sha256")
    pcrs["sha256"][4] = bytes(32)
    events = _quoting(pcrs=pcrs, logs=(agile_log(MEASUREMENTS, ["sha1", "sha256", "sha384"]),)).quote.events
    assert {index: [event.data for event in found] for index, found in events.items()} == {
        0: [b"firmware", bytes(4)],
        7: [bytes(4)],
    }
    assert all(tuple(event.digests) == ("sha256",) for found in events.values() for event in found)


def test_a_log_in_another_bank_confirms_nothing() -> None:
    assert _quoting(logs=(sha1_log(MEASUREMENTS),)).quote.events == {}
    with_sha1 = _quoting(pcrs=pcrs_after(MEASUREMENTS, "sha1"), logs=(sha1_log(MEASUREMENTS),))
    assert set(with_sha1.quote.events) == {0, 4, 7}


def test_no_flipped_bit_of_a_log_gives_a_digest_that_was_not_measured() -> None:
    case = VENDOR.case(TpmRecipe(pinned=True, quote=TpmQuoteRecipe(logs=(agile_log(MEASUREMENTS),))))
    (stapled,) = case.evidence.endorsements
    measured = {hashlib.sha256(data).digest() for _, _, data in MEASUREMENTS}
    for index in range(len(stapled.data)):
        data = bytearray(stapled.data)
        data[index] ^= 1 << index % 8
        log = Endorsement(kind=EndorsementKind.EVENT_LOG, data=bytes(data))
        evidence = replace(case.evidence, endorsements=(log,))
        try:
            verified = verify_tpm(evidence, anchors=case.anchors, now=case.now)
        except EvidenceError:
            continue
        events = [event for found in verified.quote.events.values() for event in found]
        assert {event.digests["sha256"] for event in events} <= measured
