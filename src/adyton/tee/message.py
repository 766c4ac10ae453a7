"""Evidence ↔ bytes, the message of proto/evidence.proto. Total and bounded; nothing is verified here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from google.protobuf.message import DecodeError

from adyton.errors import EvidenceError
from adyton.proto import evidence_pb2
from adyton.proto.messages import parse_message
from adyton.tee.evidence import (
    MAX_ENDORSEMENT_BYTES,
    MAX_ENDORSEMENTS,
    MAX_EVIDENCE_BYTES,
    Endorsement,
    EndorsementKind,
    Evidence,
)

_KINDS: Final[Mapping[str, EndorsementKind]] = MappingProxyType(
    {kind.value: kind for kind in EndorsementKind if kind is not EndorsementKind.SYMMETRIC_KEY}
)
"""What travels. A shared key stays with the verifier who has it."""


def encode_evidence(evidence: Evidence) -> bytes:
    """The message of `evidence`; `ValueError` if there is a symmetric key in it, which no message carries."""
    message = evidence_pb2.Evidence(tee=evidence.tee, data=evidence.data)
    for each in evidence.endorsements:
        if each.kind not in _KINDS:
            raise ValueError(f"an endorsement of the kind {each.kind.value} is not sent")
        message.endorsements.add(kind=each.kind.value, data=each.data)
    return message.SerializeToString(deterministic=True)


def decode_evidence(data: bytes) -> Evidence:
    """The evidence of a message; `EvidenceError` if it is none, or larger than evidence may be.

    Endorsements of a kind unknown here are left out, so that older readers live with newer writers: none is believed
    for being there, so none is missed. They count towards the bounds all the same.
    """
    try:
        message = parse_message(evidence_pb2.Evidence, data)
    except DecodeError as error:
        raise EvidenceError("the message of evidence does not parse") from error
    if (
        len(message.data) > MAX_EVIDENCE_BYTES
        or len(message.endorsements) > MAX_ENDORSEMENTS
        or any(len(each.data) > MAX_ENDORSEMENT_BYTES for each in message.endorsements)
    ):
        raise EvidenceError("the message of evidence is larger than evidence may be")
    known = ((_KINDS.get(each.kind), each.data) for each in message.endorsements)
    endorsements = tuple(Endorsement(kind=kind, data=data) for kind, data in known if kind is not None)
    return Evidence(tee=message.tee, data=message.data, endorsements=endorsements)
