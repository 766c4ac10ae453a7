"""Evidence as a message of the wire."""

from __future__ import annotations

import pytest

from adyton.errors import EvidenceError
from adyton.proto import evidence_pb2
from adyton.tee.evidence import (
    MAX_ENDORSEMENT_BYTES,
    MAX_ENDORSEMENTS,
    MAX_EVIDENCE_BYTES,
    Endorsement,
    EndorsementKind,
    Evidence,
)
from adyton.tee.message import decode_evidence, encode_evidence

TRAVELLING = [kind for kind in EndorsementKind if kind is not EndorsementKind.SYMMETRIC_KEY]
SECRET = Endorsement(kind=EndorsementKind.SYMMETRIC_KEY, data=b"shared")


def test_a_message_has_the_documented_fields() -> None:
    crl = Endorsement(kind=EndorsementKind.CRL, data=b"list")
    data = encode_evidence(Evidence(tee="snp", data=b"report", endorsements=(crl,)))
    assert data == b"\n\x03snp\x12\x06report\x1a\x1c\n\x14application/pkix-crl\x12\x04list"


def test_evidence_arrives_as_it_was_sent() -> None:
    endorsements = tuple(Endorsement(kind=kind, data=kind.name.encode()) for kind in (*TRAVELLING, *TRAVELLING))
    for sent in (Evidence(tee="tdx", data=b"quote", endorsements=endorsements), Evidence(tee="", data=b"")):
        assert decode_evidence(encode_evidence(sent)) == sent


def test_endorsements_of_an_unknown_kind_are_left_out() -> None:
    message = evidence_pb2.Evidence(tee="tdx", data=b"quote")
    for kind in ("application/of-the-future", EndorsementKind.CRL.value, "", EndorsementKind.SYMMETRIC_KEY.value):
        message.endorsements.add(kind=kind, data=b"something")
    crl = Endorsement(kind=EndorsementKind.CRL, data=b"something")
    assert decode_evidence(message.SerializeToString()).endorsements == (crl,)


def test_a_shared_key_is_not_sent() -> None:
    with pytest.raises(ValueError, match=r"of the kind application/vnd\.adyton\.symmetric-key is not sent"):
        encode_evidence(Evidence(tee="psa", data=b"token", endorsements=(SECRET,)))


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05tdx", b"\x0a\x02\xff\xfe", b"\x1a\x03\x0a\x01\xff"])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(EvidenceError, match="the message of evidence does not parse"):
        decode_evidence(data)


def of_size(kind: str, data: int = 0, endorsements: int = 0, endorsement: int = 0) -> bytes:
    message = evidence_pb2.Evidence(tee="tdx", data=bytes(data))
    for _ in range(endorsements):
        message.endorsements.add(kind=kind, data=bytes(endorsement))
    return message.SerializeToString()


@pytest.mark.parametrize(
    "sizes",
    [(MAX_EVIDENCE_BYTES + 1,), (0, MAX_ENDORSEMENTS + 1), (0, 1, MAX_ENDORSEMENT_BYTES + 1)],
    ids=["evidence", "endorsements", "endorsement"],
)
@pytest.mark.parametrize("kind", ["unknown", EndorsementKind.CRL.value])
def test_what_no_verifier_would_take_is_refused(sizes: tuple[int, ...], kind: str) -> None:
    with pytest.raises(EvidenceError, match="the message of evidence is larger than evidence may be"):
        decode_evidence(of_size(kind, *sizes))


def test_what_is_at_the_bounds_is_taken() -> None:
    crl = EndorsementKind.CRL.value
    assert len(decode_evidence(of_size(crl, MAX_EVIDENCE_BYTES, MAX_ENDORSEMENTS, 1)).endorsements) == MAX_ENDORSEMENTS
    assert decode_evidence(of_size(crl, 0, 1, MAX_ENDORSEMENT_BYTES)).endorsements
