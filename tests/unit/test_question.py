"""What a client makes of an answer to Attest: evidence that is genuine and not for this connection."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from channel_parties import (
    CLIENT_SHA256,
    CONFIG_SHA256,
    MEASUREMENT,
    NONCE,
    VENDOR,
    answer_to,
    ask,
    binding_of,
    bound_to,
    evidence_over,
    forged,
    identity,
    judged,
    refused,
    subjects,
    terms,
)

from adyton.atls.attestation import BindingLevel
from adyton.atls.batch import tree
from adyton.atls.binding import Purpose, host_report_data, parent, report_data
from adyton.atls.question import Question, Terms
from adyton.errors import EvidenceError, UnsupportedError
from adyton.policy.document import Policy
from adyton.policy.insecurity import Insecurity
from adyton.proto.attestation_pb2 import AttestRequest
from adyton.tee.simulated.format import HEAD_BYTES
from adyton.testing.simulated import FORGERIES, EvidenceRecipe, SimulatedVendor

INSTANCE, FLEET = ask(), ask(purpose=Purpose.FLEET)
BOTH = pytest.mark.parametrize("question", [INSTANCE, FLEET], ids=["INSTANCE", "FLEET"])


# --- the genuine answer


@BOTH
def test_the_enclaves_own_answer_is_believed(question: Question) -> None:
    attestation = judged(answer_to(question).SerializeToString(), question)
    assert attestation.level is BindingLevel.CONNECTION
    assert attestation.audience == question.audience
    assert attestation.claims == {"v": 1, "name": "an enclave", "config_sha256": CONFIG_SHA256.hex()}
    assert attestation.appraisal.measurement == MEASUREMENT
    assert attestation.appraisal.report_data_compared
    anchor = identity().leaf if question is INSTANCE else identity().ca
    assert attestation.anchor_certificate == anchor.der


def test_without_a_client_key_the_level_is_that_of_the_servers_key() -> None:
    question = ask(client_sha256=b"")
    assert judged(answer_to(question).SerializeToString(), question).level is BindingLevel.KEY


def test_the_record_says_what_was_proved() -> None:
    attestation = judged(answer_to(INSTANCE).SerializeToString())
    record = attestation.record()
    assert json.loads(json.dumps(record)) == record
    assert record == {
        **attestation.appraisal.record(),
        "level": "connection",
        "audience": "atls.internal",
        "claims": {"v": 1, "name": "an enclave", "config_sha256": CONFIG_SHA256.hex()},
    }


@BOTH
def test_the_question_says_what_is_asked_and_nothing_secret(question: Question) -> None:
    assert AttestRequest.FromString(question.encode()) == AttestRequest(
        version=1,
        nonce=NONCE,
        purpose=int(question.purpose),
        audience="atls.internal",
        pinned_sha256=identity().leaf.spki_sha256,
    )


def test_asked_again_only_the_nonce_is_another() -> None:
    again = INSTANCE.again()
    assert again.nonce not in (NONCE, INSTANCE.again().nonce)
    assert len(again.nonce) == 32
    assert replace(again, nonce=NONCE) == INSTANCE


@pytest.mark.parametrize(
    ("channel", "bind_ca", "purpose"),
    [
        ("", False, Purpose.INSTANCE),
        ("", True, Purpose.FLEET),
        (f'config_sha256 = ["{"00" * 32}"]', False, Purpose.INSTANCE),
        (f'ca_sha256 = ["{"00" * 32}"]', False, Purpose.FLEET),
    ],
)
def test_a_ca_is_asked_for_where_a_policy_pins_one(channel: str, bind_ca: bool, purpose: Purpose) -> None:
    assert terms(channel, bind_ca=bind_ca).purpose is purpose


# --- bound to something else


OTHERS: dict[str, dict[str, Any]] = {
    "a replay: another nonce": {"nonce": bytes(32)},
    "another client's connection": {"client_sha256": b"\x23" * 32},
    "a connection without a client's key": {"client_sha256": b""},
    "another server's key": {"anchor_sha256": b"\x11" * 32},
    "the client's key in place of the server's": {"anchor_sha256": CLIENT_SHA256},
    "other claims": {"claims_sha256": bytes(32)},
    "no claims": {"claims_sha256": hashlib.sha256(b"").digest()},
    "another name": {"audience": "translator.example"},
    "a KEM key": {"kem_sha256": b"\x01" * 32},
    "a peer": {"peer_sha256": b"\x01" * 32},
}


@BOTH
@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_genuine_evidence_for_something_else_is_refused(change: dict[str, Any], question: Question) -> None:
    assert subjects(bound_to(question, **change), question) == {"report_data"}


@pytest.mark.parametrize(("asked", "answered"), list(itertools.permutations(Purpose, 2)))
def test_evidence_for_one_purpose_is_none_for_another(asked: Purpose, answered: Purpose) -> None:
    question = ask(purpose=asked)
    ca = None if asked is Purpose.INSTANCE else identity().ca.der
    binding = replace(binding_of(question), purpose=answered)
    kind = FLEET if asked is not Purpose.INSTANCE else INSTANCE
    answer = forged(kind, evidence_over(report_data(binding.leaf())), ca_certificate=ca)
    assert subjects(answer, question) == {"report_data"}


def test_evidence_that_names_the_ca_does_not_stand_for_the_leaf_nor_the_other_way_round() -> None:
    leaf, ca = identity().leaf.spki_sha256, identity().ca.spki_sha256
    assert subjects(bound_to(INSTANCE, anchor_sha256=ca)) == {"report_data"}
    assert subjects(bound_to(FLEET, anchor_sha256=leaf), FLEET) == {"report_data"}


def test_evidence_for_a_client_without_a_key_is_none_for_one_with_a_key_nor_the_other_way_round() -> None:
    keyless = ask(client_sha256=b"")
    assert subjects(answer_to(keyless).SerializeToString()) == {"report_data"}
    assert subjects(answer_to(INSTANCE).SerializeToString(), keyless) == {"report_data"}


@pytest.mark.parametrize(
    "data",
    [
        bytes(64),
        b"\xff" * 64,
        binding_of(INSTANCE).leaf(),
        hashlib.sha256(report_data(binding_of(INSTANCE).leaf())).digest() + bytes(32),
        report_data(binding_of(INSTANCE).leaf())[:32] + bytes(32),
        report_data(binding_of(INSTANCE).leaf())[::-1],
        host_report_data(binding_of(INSTANCE).leaf()),
        host_report_data(report_data(binding_of(INSTANCE).leaf())),
        report_data(report_data(binding_of(INSTANCE).leaf())),
    ],
    ids=["zeros", "ones", "the leaf", "hashed", "half", "reversed", "host", "host's own", "twice"],
)
def test_other_report_data_is_refused(data: bytes) -> None:
    assert subjects(forged(INSTANCE, evidence_over(data))) == {"report_data"}


@pytest.mark.parametrize("count", [0, 1, 32, 63], ids=lambda count: f"{count} bytes")
def test_shorter_report_data_is_no_evidence_of_this_tee(count: int) -> None:
    genuine = report_data(binding_of(INSTANCE).leaf())

    def shortened(data: bytes) -> bytes:
        return data[:20] + genuine[:count] + data[84:]

    with_less = VENDOR.case(EvidenceRecipe(report_data=genuine, measurement=MEASUREMENT, edit_before_signing=shortened))
    assert len(with_less.evidence.data) > HEAD_BYTES
    refused(forged(INSTANCE, with_less.evidence))


# --- batches


def batch_answer(question: Question, others: int = 3, edit: Any = lambda path: path) -> bytes:
    """An answer out of a batch, whose path is edited."""
    nodes = [binding_of(question).leaf(), *(bytes([index]) * 64 for index in range(others))]
    root, paths = tree(nodes)
    return forged(question, evidence_over(report_data(root)), batch_path=list(edit(list(paths[0]))))


@BOTH
def test_an_answer_out_of_a_batch_is_believed(question: Question) -> None:
    judged(batch_answer(question), question)


@pytest.mark.parametrize(
    "edit",
    [
        lambda path: path[:-1],
        lambda path: [],
        lambda path: [*path, path[0]],
        lambda path: path[::-1],
        lambda path: [b"L" + path[0][1:], *path[1:]],
        lambda path: [path[0], *path],
    ],
    ids=["shorter", "none", "longer", "reversed", "the other side", "twice the first"],
)
def test_another_path_leads_to_another_quote(edit: Any) -> None:
    assert subjects(batch_answer(INSTANCE, edit=edit)) == {"report_data"}


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ([b"R" + bytes(64)] * 33, "a batch path of 33 steps"),
        ([b"R" + bytes(63)], "a step of the batch path"),
        ([b"R" + bytes(65)], "a step of the batch path"),
        ([b"X" + bytes(64)], "a step of the batch path"),
        ([b""], "a step of the batch path"),
    ],
)
def test_a_path_that_is_none_is_malformed(path: list[bytes], said: str) -> None:
    assert said in refused(forged(INSTANCE, batch_path=path))


def test_a_node_is_not_taken_for_a_leaf_nor_a_leaf_for_a_node() -> None:
    leaf, other = binding_of(INSTANCE).leaf(), bytes(64)
    node = parent(leaf, other)
    # Without its path; and as if the leaf's own hash had been that of a node, or the node's that of a leaf.
    assert subjects(forged(INSTANCE, evidence_over(report_data(node)))) == {"report_data"}
    as_node = hashlib.sha512(b"\x01" + binding_of(INSTANCE).encode()).digest()
    as_leaf = hashlib.sha512(b"\x00" + leaf + other).digest()
    assert subjects(forged(INSTANCE, evidence_over(report_data(as_node)))) == {"report_data"}
    assert subjects(forged(INSTANCE, evidence_over(report_data(as_leaf)), batch_path=[b"R" + other])) == {"report_data"}


# --- stale, forged, simulated


def test_stale_evidence_beside_a_fresh_question_is_refused() -> None:
    # The nonce is right: the hardware has signed it, only not lately.
    old = evidence_over(report_data(binding_of(INSTANCE).leaf()), issued_after=timedelta(seconds=-301))
    still = evidence_over(report_data(binding_of(INSTANCE).leaf()), issued_after=timedelta(seconds=-299))
    assert subjects(forged(INSTANCE, old)) == {"max_age_seconds"}
    judged(forged(INSTANCE, still))


def test_evidence_of_an_earlier_answer_is_refused_with_its_own_path_and_claims_too() -> None:
    earlier = answer_to(ask(nonce=bytes(32)))
    assert subjects(earlier.SerializeToString()) == {"report_data"}


def test_other_code_in_the_same_hardware_is_refused() -> None:
    data = report_data(binding_of(INSTANCE).leaf())
    other = VENDOR.case(EvidenceRecipe(report_data=data, measurement=bytes(48))).evidence
    assert subjects(forged(INSTANCE, other)) == {"measurement"}


def test_evidence_under_another_root_is_not_genuine() -> None:
    data = report_data(binding_of(INSTANCE).leaf())
    other = SimulatedVendor().case(EvidenceRecipe(report_data=data, measurement=MEASUREMENT)).evidence
    refused(forged(INSTANCE, other))


SENT = [name for name in FORGERIES if name != "another label"]


@pytest.mark.parametrize("name", SENT)
def test_forged_evidence_is_refused_for_that_and_before_any_rule_is_asked(name: str) -> None:
    case = FORGERIES[name].make()
    policy = replace(terms().policy, anchors={"simulated": case.anchors})
    answer = forged(INSTANCE, case.evidence)
    with pytest.raises(EvidenceError):
        INSTANCE.judge(answer, Terms(policy=policy, allow=frozenset(Insecurity)), now=case.now)


def test_evidence_of_a_kind_that_is_not_known_is_refused() -> None:
    evidence = replace(evidence_over(report_data(binding_of(INSTANCE).leaf())), tee="another")
    with pytest.raises(UnsupportedError, match="no verifier for evidence of 'another'"):
        judged(forged(INSTANCE, evidence))


def test_simulated_evidence_needs_the_callers_word() -> None:
    answer = answer_to(INSTANCE).SerializeToString()
    assert subjects(answer, accepted=terms(allow=frozenset())) == {"insecurity"}
    assert subjects(answer, accepted=terms(allow=frozenset(Insecurity) - {Insecurity.SIMULATED})) == {"insecurity"}


def test_simulated_evidence_is_nothing_to_a_policy_for_production() -> None:
    rule = '[[nitro]]\nname = "n"\npcrs = { 0 = "any", 1 = "any", 2 = "any" }\nplatforms = "any"\nmax_age_seconds = 300'
    production = Terms(policy=Policy.parse(f"version = 1\n{rule}".encode()), allow=frozenset(Insecurity))
    answer = answer_to(INSTANCE).SerializeToString()
    assert subjects(answer, accepted=production) == {"tee"}


def test_the_callers_own_look_can_only_refuse() -> None:
    answer = answer_to(INSTANCE).SerializeToString()
    judged(answer, accepted=terms(refuse=lambda _verified: ()))
    assert subjects(answer, accepted=terms(refuse=lambda _verified: ["no"])) == {"refuse"}
    wrong = bound_to(INSTANCE, nonce=bytes(32))
    assert subjects(wrong, accepted=terms(refuse=lambda _verified: ())) == {"report_data"}
