"""What a client makes of the rest of an answer to Attest: its form, its claims, the CA that it names."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from channel_parties import (
    CLAIMS,
    CONFIG_SHA256,
    answer_to,
    ask,
    binding_of,
    evidence_over,
    forged,
    identity,
    judged,
    refused,
    subjects,
    terms,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from adyton.atls.binding import Purpose, report_data
from adyton.atls.certificates import Issued, issue_leaf, make_ca
from adyton.atls.question import MAX_MESSAGE_BYTES
from adyton.errors import EvidenceError
from adyton.proto.attestation_pb2 import AttestResponse
from adyton.tee.evidence import Evidence
from adyton.testing.forgery import NOW

INSTANCE, FLEET = ask(), ask(purpose=Purpose.FLEET)


# --- the message


@pytest.mark.parametrize(("version", "said"), [(None, "version 0"), (0, "version 0"), (2, "version 2")])
def test_another_version_is_refused(version: int | None, said: str) -> None:
    assert said in refused(forged(INSTANCE, version=version))


@pytest.mark.parametrize("answer", [b"\xff", b"\x12\xff", b"\x08"], ids=["a tag", "a length", "cut off"])
def test_what_is_no_message_is_refused(answer: bytes) -> None:
    assert refused(answer) == "the answer is not an AttestResponse"


def test_an_empty_answer_is_refused() -> None:
    assert "version 0" in refused(b"")


def test_an_answer_that_is_too_long_is_not_parsed() -> None:
    assert MAX_MESSAGE_BYTES == 1 << 20
    assert refused(b"\xff" * (MAX_MESSAGE_BYTES + 1)).startswith("an answer of 1048577 bytes")


def test_evidence_larger_than_evidence_may_be_is_refused() -> None:
    refused(forged(INSTANCE, Evidence(tee="simulated", data=bytes(64 * 1024 + 1))))


def test_what_is_not_known_in_an_answer_is_not_believed() -> None:
    # Fields 6 and 7 are for a KEM key and manifests; no reader of this version looks at them, and nothing binds them.
    genuine = answer_to(INSTANCE).SerializeToString()
    with_more = genuine + b"\x32\x20" + b"\x99" * 32 + b"\x3a\x02ok" + b"\xf2\x07\x03xyz"
    assert len(AttestResponse.FromString(with_more).SerializeToString()) == len(with_more)  # it is in there
    assert judged(with_more) == judged(genuine)


def test_a_ca_in_answer_to_a_question_about_the_instance_is_not_looked_at() -> None:
    answer = forged(INSTANCE, ca_certificate=make_ca(NOW).der)
    assert judged(answer).anchor_certificate == identity().leaf.der


def claims_answer(claims: bytes) -> bytes:
    """An answer with these claims, whose evidence is bound to them."""
    evidence = evidence_over(report_data(binding_of(INSTANCE, claims).leaf()))
    return forged(INSTANCE, evidence, claims=claims)


@pytest.mark.parametrize(
    "claims",
    [
        CLAIMS.replace(b"an enclave", b"an Enclave"),
        CLAIMS.replace(b":1", b": 1"),
        CLAIMS + b"\n",
        CLAIMS.replace(b"cf", b"ce"),
        b"",
    ],
    ids=["another name", "a space", "a line's end", "another digest", "none"],
)
def test_claims_are_hashed_exactly_as_they_came(claims: bytes) -> None:
    assert subjects(forged(INSTANCE, claims=claims)) == {"report_data"}


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        (CLAIMS[:-1] + b',"name":"x"}', "have a key twice"),
        (CLAIMS[:-1] + b',"x":' + b"[" * 7000 + b"]}", "not a JSON object"),
        (CLAIMS.replace(b"an enclave", b"\xff"), "not a JSON object"),
        (CLAIMS.replace(b":1", b":2"), "not of version 1"),
        (b"", "not a JSON object"),
        (CLAIMS.ljust(8193), "claims of 8193 bytes"),
    ],
    ids=["a key twice", "deep", "not UTF-8", "version 2", "none", "8 KiB + 1"],
)
def test_claims_that_are_bound_and_malformed_are_refused(claims: bytes, said: str) -> None:
    assert said in refused(claims_answer(claims))


def test_claims_of_8_kib_are_read() -> None:
    judged(claims_answer(CLAIMS.ljust(8192)))


# --- the CA


def test_a_ca_that_has_not_issued_the_pinned_certificate_is_refused() -> None:
    other = make_ca(NOW)
    evidence = evidence_over(report_data(replace(binding_of(FLEET), anchor_sha256=other.spki_sha256).leaf()))
    assert "not one of the CA that it names" in refused(forged(FLEET, evidence, ca_certificate=other.der), FLEET)


def test_an_enclaves_ca_does_not_vouch_for_a_leaf_that_somebody_else_shows() -> None:
    strangers = make_ca(NOW)
    shown = issue_leaf(strangers, identity().leaf.key.public_key(), ["atls.internal"], NOW, timedelta(hours=1))
    pinned = replace(FLEET, pinned=replace(identity().leaf, certificate=shown).der)
    answer = answer_to(FLEET).SerializeToString()
    assert "not one of the CA that it names" in refused(answer, pinned)


def test_a_ca_of_the_same_name_with_another_key_is_refused() -> None:
    genuine, key = identity().ca.certificate, ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateBuilder().subject_name(genuine.subject).issuer_name(genuine.subject)
    builder = builder.public_key(key.public_key()).serial_number(genuine.serial_number)
    builder = builder.not_valid_before(NOW).not_valid_after(NOW + timedelta(days=1))
    for extension in genuine.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    other = Issued(key=key, certificate=builder.sign(key, hashes.SHA256()))
    evidence = evidence_over(report_data(replace(binding_of(FLEET), anchor_sha256=other.spki_sha256).leaf()))
    assert "not one of the CA" in refused(forged(FLEET, evidence, ca_certificate=other.der), FLEET)


NO_CA = {"none": None, "empty": b"", "text": b"no certificate", "the leaf": identity().leaf.der}


@pytest.mark.parametrize("der", NO_CA.values(), ids=NO_CA)
def test_without_its_ca_a_question_about_it_is_not_answered(der: bytes | None) -> None:
    refused(forged(FLEET, ca_certificate=der), FLEET)


@pytest.mark.parametrize("pinned", [b"", b"no certificate"])
def test_a_question_about_no_certificate_cannot_be_asked(pinned: bytes) -> None:
    with pytest.raises(EvidenceError):
        ask(pinned=pinned).encode()


# --- the policy's [channel]


def test_a_policy_may_pin_the_configuration_and_the_ca() -> None:
    answer = answer_to(FLEET).SerializeToString()
    pins = f'config_sha256 = ["{CONFIG_SHA256.hex()}"]\nca_sha256 = ["{identity().ca.spki_sha256.hex()}"]'
    judged(answer, FLEET, accepted=terms(pins))
    wrong = pins.replace(CONFIG_SHA256.hex(), "00" * 32).replace(identity().ca.spki_sha256.hex(), "11" * 32)
    assert subjects(answer, FLEET, accepted=terms(wrong)) == {"channel.config_sha256", "channel.ca_sha256"}


def test_evidence_that_names_no_ca_is_refused_where_one_is_pinned() -> None:
    pins = f'ca_sha256 = ["{identity().ca.spki_sha256.hex()}"]'
    assert subjects(answer_to(INSTANCE).SerializeToString(), accepted=terms(pins)) == {"channel.ca_sha256"}


def test_a_moment_without_a_time_zone_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="time zone"):
        INSTANCE.judge(answer_to(INSTANCE).SerializeToString(), terms(), now=datetime(2026, 1, 1))
