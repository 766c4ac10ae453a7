"""Whatever the other end of a channel sends: only the documented errors escape, and only the genuine is believed."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from channel_parties import (
    CLAIMS,
    CLIENT_SHA256,
    NAMES,
    NONCE,
    VendorDevice,
    answer_to,
    ask,
    attester,
    connection,
    identity,
    local_identity,
    terms,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from mutating import bit_flips, mutations
from vaults import make_vault

from adyton.atls.attestation import Attestation
from adyton.atls.batch import BatchedQuotes, DeviceQuotes, Quote, tree
from adyton.atls.binding import MAX_PATH_STEPS, Binding, Purpose, fold, parent
from adyton.atls.certificates import parse_certificate
from adyton.atls.claims import encode_claims, parse_claims
from adyton.atls.dial import Target
from adyton.atls.question import Question
from adyton.enclave.keeper import Keeper, KeeperClient
from adyton.errors import (
    AdytonError,
    ApplicationError,
    ConfigurationError,
    EvidenceError,
    PolicyError,
    UnsupportedError,
)
from adyton.proto import keeper_pb2
from adyton.proto.attestation_pb2 import AttestRequest, AttestResponse
from adyton.proto.frames import encode_frame
from adyton.testing.forgery import NOW

# --- the encoding

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
BINDINGS = st.builds(
    Binding,
    purpose=st.sampled_from(Purpose),
    nonce=st.binary(max_size=40),
    anchor_sha256=st.binary(max_size=40),
    client_sha256=st.binary(max_size=40),
    claims_sha256=st.binary(max_size=40),
    audience=TEXT,
    kem_sha256=st.binary(max_size=40),
    peer_sha256=st.binary(max_size=40),
)


def decoded(data: bytes) -> Binding:
    """The one binding that is encoded so."""
    assert data.startswith(b"ATLS-BINDING\x00\x01")
    purpose, data = Purpose(data[14]), data[15:]
    parts = []
    while data:
        (length,) = struct.unpack_from(">H", data)
        parts.append(data[2 : 2 + length])
        assert len(parts[-1]) == length
        data = data[2 + length :]
    nonce, anchor, client, kem, claims, peer, audience = parts
    return Binding(
        purpose=purpose,
        nonce=nonce,
        anchor_sha256=anchor,
        client_sha256=client,
        kem_sha256=kem,
        claims_sha256=claims,
        peer_sha256=peer,
        audience=audience.decode(),
    )


@given(BINDINGS)
def test_an_encoding_has_one_meaning(binding: Binding) -> None:
    assert decoded(binding.encode()) == binding


@given(BINDINGS, BINDINGS)
def test_two_bindings_never_share_an_encoding_nor_a_leaf(one: Binding, other: Binding) -> None:
    assert (one.encode() == other.encode()) == (one == other)
    assert (one.leaf() == other.leaf()) == (one == other)


@given(BINDINGS, st.binary(min_size=64, max_size=64), st.binary(min_size=64, max_size=64))
def test_no_binding_is_a_node(binding: Binding, left: bytes, right: bytes) -> None:
    assert binding.leaf() != parent(left, right)


# --- trees


def nodes(count: int, seed: bytes = b"") -> list[bytes]:
    return [hashlib.sha512(seed + index.to_bytes(4, "big")).digest() for index in range(count)]


@pytest.mark.parametrize("count", range(1, 301))
def test_every_node_of_a_tree_folds_to_its_root_and_no_other_does(count: int) -> None:
    leaves = nodes(count)
    root, paths = tree(leaves)
    assert [fold(leaf, path) for leaf, path in zip(leaves, paths, strict=True)] == [root] * count
    assert max(map(len, paths)) == (count - 1).bit_length()
    stranger = nodes(1, b"stranger")[0]
    assert all(fold(stranger, path) != root for path in paths if path)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_batches_of_batches_fold_to_the_root_of_all(sizes: list[int]) -> None:
    below = [tree(nodes(size, bytes([index]))) for index, size in enumerate(sizes)]
    root, above = tree([each for each, _ in below])
    for index, (_, paths) in enumerate(below):
        for leaf, path in zip(nodes(sizes[index], bytes([index])), paths, strict=True):
            assert fold(leaf, path + above[index]) == root


@given(st.binary(max_size=80), st.lists(st.binary(max_size=70), max_size=40))
def test_any_path_is_folded_or_refused(leaf: bytes, path: list[bytes]) -> None:
    fine = len(path) <= MAX_PATH_STEPS and all(len(step) == 65 and step[:1] in (b"L", b"R") for step in path)
    with contextlib.nullcontext() if fine else pytest.raises(EvidenceError):
        assert len(fold(leaf, path)) in (64, len(leaf))


# --- answers

QUESTIONS = {purpose: ask(purpose=purpose) for purpose in (Purpose.INSTANCE, Purpose.FLEET)}
ANSWERS = {purpose: answer_to(question) for purpose, question in QUESTIONS.items()}
JUDGED = {
    purpose: question.judge(ANSWERS[purpose].SerializeToString(), terms(), now=NOW)
    for purpose, question in QUESTIONS.items()
}
TERMS = terms()
PURPOSES = st.sampled_from(list(QUESTIONS))


def judged(question: Question, answer: bytes) -> Attestation | None:
    """None if it is refused; any other error than the documented ones escapes.

    The anchor's certificate is put back, once it is seen that its key is the enclave's: nothing but that key is bound.
    """
    try:
        found = question.judge(answer, TERMS, now=NOW)
    except (EvidenceError, PolicyError, UnsupportedError):
        return None
    anchor = identity().leaf if question.purpose is Purpose.INSTANCE else identity().ca
    assert parse_certificate(found.anchor_certificate)[1] == anchor.key.public_key()
    return replace(found, anchor_certificate=anchor.der)


@settings(max_examples=300)
@given(PURPOSES, st.binary(max_size=300) | st.binary(max_size=300).map(lambda data: b"\x08\x01" + data))
def test_random_bytes_prove_nothing(purpose: Purpose, answer: bytes) -> None:
    assert judged(QUESTIONS[purpose], answer) is None


@settings(max_examples=600)
@given(st.data())
def test_a_changed_answer_proves_what_the_genuine_one_does_or_nothing(data: st.DataObject) -> None:
    purpose = data.draw(PURPOSES)
    genuine = ANSWERS[purpose].SerializeToString()
    changed = data.draw(mutations(genuine) | bit_flips(genuine))
    assert judged(QUESTIONS[purpose], changed) in (None, JUDGED[purpose])


FIELDS = ("claims", "ca_certificate")


@settings(max_examples=600)
@given(st.data())
def test_no_part_of_an_answer_can_be_another(data: st.DataObject) -> None:
    """The message is in order, so this is what reaches the parsers of its parts."""
    purpose = data.draw(PURPOSES)
    answer = AttestResponse()
    answer.CopyFrom(ANSWERS[purpose])
    part = data.draw(st.sampled_from(["claims", "ca_certificate", "evidence", "tee", "batch_path", "version"]))
    unchanged = purpose is Purpose.INSTANCE and part == "ca_certificate"  # nobody looks at it
    if part in FIELDS:
        original = getattr(answer, part)
        setattr(answer, part, data.draw(mutations(original) | st.binary(max_size=100)))
        unchanged |= getattr(answer, part) == original
        if part == "ca_certificate" and not unchanged:  # of which the key counts, and the name
            assert judged(QUESTIONS[purpose], answer.SerializeToString()) in (None, JUDGED[purpose])
            return
    elif part == "evidence":
        original = answer.evidence.data
        answer.evidence.data = data.draw(mutations(original) | bit_flips(original))
        unchanged |= answer.evidence.data == original
    elif part == "tee":
        answer.evidence.tee = data.draw(TEXT | st.sampled_from(["snp", "tdx", "sgx", "nitro", "tpm", "azure", "psa"]))
        unchanged |= answer.evidence.tee == "simulated"
    elif part == "batch_path":
        answer.batch_path.extend(data.draw(st.lists(st.binary(max_size=70), min_size=1, max_size=3)))
    else:
        answer.version = data.draw(st.integers(0, 2**32 - 1))
        unchanged |= answer.version == 1
    found = judged(QUESTIONS[purpose], answer.SerializeToString())
    assert found == (JUDGED[purpose] if unchanged else None)


@settings(max_examples=300)
@given(st.data())
def test_a_certificate_that_a_server_shows_can_be_anything(data: st.DataObject) -> None:
    genuine = identity().leaf.der
    pinned = data.draw(mutations(genuine) | bit_flips(genuine) | st.binary(max_size=100))
    purpose = data.draw(PURPOSES)
    question = ask(purpose=purpose, pinned=pinned)
    with contextlib.suppress(EvidenceError):
        question.encode()
    found = judged(question, ANSWERS[purpose].SerializeToString())
    # Whatever certificate holds the enclave's own key is as good; for FLEET its CA must have signed all that it says.
    if found is not None:
        certificate, key = parse_certificate(pinned)
        assert key == identity().leaf.key.public_key()
        signed = certificate.tbs_certificate_bytes == identity().leaf.certificate.tbs_certificate_bytes
        assert signed or purpose is Purpose.INSTANCE


@given(st.binary(max_size=200) | mutations(CLAIMS) | bit_flips(CLAIMS))
def test_claims_are_read_or_refused(data: bytes) -> None:
    try:
        claims = parse_claims(data)
    except EvidenceError:
        return
    assert claims["v"] == 1
    assert isinstance(claims["name"], str)
    assert len(bytes.fromhex(claims["config_sha256"])) == 32


@given(TEXT, st.binary(min_size=32, max_size=32))
def test_what_an_enclave_claims_is_read(name: str, config_sha256: bytes) -> None:
    claims = parse_claims(encode_claims(name=name, config_sha256=config_sha256))
    assert claims == {"v": 1, "name": name, "config_sha256": config_sha256.hex()}


# --- the enclave's side


REQUEST = AttestRequest(
    version=1, nonce=NONCE, purpose=1, audience=NAMES[0], pinned_sha256=identity().leaf.spki_sha256
).SerializeToString()


@settings(max_examples=400)
@given(st.binary(max_size=200) | mutations(REQUEST) | bit_flips(REQUEST))
def test_a_question_is_answered_or_refused_with_a_status_and_costs_a_quote_only_if_it_is_answered(data: bytes) -> None:
    device = VendorDevice()
    made = attester(DeviceQuotes(device))
    try:
        pending = made.begin(data, connection())
    except ApplicationError:
        assert device.asked == []
        return
    asked = AttestRequest.FromString(data)
    assert (asked.version, len(asked.nonce), asked.audience) == (1, 32, NAMES[0])
    assert asked.purpose in (1, 2)
    assert AttestResponse.FromString(pending.finish(pending.quote.result(10))).claims == CLAIMS


@given(st.text() | st.from_regex(r"[a-z.\[\]:%/0-9-]{0,20}:[0-9]{0,6}"))
def test_a_target_is_parsed_or_refused(text: str) -> None:
    try:
        target = Target.parse(text)
    except ConfigurationError:
        return
    assert target.text == text
    assert bool(target.path) != bool(target.host)
    assert 0 < target.port < 65536 or target.path


# --- the processes of an enclave


class AnyQuote:
    """A source that signs whatever it is asked for."""

    def quote(self, node: bytes) -> Quote:
        return Quote(evidence=VendorDevice().collect_evidence(bytes(64)))


def served(talk: Callable[[socket.socket], object]) -> list[BaseException]:
    """What ended the serving thread, if anything did, while `talk` was at the other end."""
    ended: list[BaseException] = []
    keeper = Keeper(local_identity(), BatchedQuotes(AnyQuote()), make_vault())
    mine, theirs = socket.socketpair()

    def serve() -> None:
        try:
            keeper.serve(theirs)
        except BaseException as problem:
            ended.append(problem)

    thread = threading.Thread(target=serve)
    thread.start()
    with mine:
        talk(mine)
        mine.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):  # what closes before it has read everything
            while mine.recv(65536):
                pass
    thread.join(10)
    assert not thread.is_alive()
    return ended


@given(st.binary(max_size=50))
def test_a_stream_of_anything_ends_a_keepers_thread_quietly(data: bytes) -> None:
    assert served(lambda mine: mine.sendall(b"\xff" + data)) == []


IDENTITY_REQUEST = encode_frame(keeper_pb2.Request(identity=True).SerializeToString())


QUOTE_REQUEST = encode_frame(keeper_pb2.Request(quote=bytes(64)).SerializeToString())


@settings(max_examples=30)
@given(st.lists(st.sampled_from([IDENTITY_REQUEST, QUOTE_REQUEST]), max_size=10))
def test_requests_in_a_row_are_answered_in_order(frames: list[bytes]) -> None:
    answers: list[Any] = []

    def talk(mine: socket.socket) -> None:
        client = KeeperClient(mine)
        answers.extend(client.current() if frame == IDENTITY_REQUEST else client.quote(bytes(64)) for frame in frames)

    assert served(talk) == []
    assert len(answers) == len(frames)


@given(st.binary(max_size=50))
def test_frames_of_anything_end_a_keepers_thread_quietly(payload: bytes) -> None:
    assert served(lambda mine: mine.sendall(encode_frame(payload))) == []


@given(st.binary(max_size=50))
def test_answers_of_anything_are_an_error_of_ours(payload: bytes) -> None:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        theirs.sendall(encode_frame(payload))
        with contextlib.suppress(AdytonError):
            KeeperClient(mine).quote(CLIENT_SHA256 * 2)
