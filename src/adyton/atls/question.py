"""What a client asks of a connection, and how it judges the answer. Decides, and does no I/O.

Everything that the evidence has to be bound to is rebuilt from what the client holds itself; only the claims come from
the other end, and they are hashed exactly as they came.
"""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from google.protobuf.message import DecodeError

from adyton.atls.attestation import Attestation, BindingLevel
from adyton.atls.binding import MAX_CLAIMS_BYTES, NONCE_BYTES, VERSION, Binding, Purpose, carried, fold, report_data
from adyton.atls.certificates import check_issued, parse_certificate, spki_sha256
from adyton.atls.claims import parse_claims
from adyton.errors import EvidenceError, PolicyError
from adyton.policy.appraisal import Appraisal, Hook, evaluate
from adyton.policy.document import Policy
from adyton.policy.insecurity import Insecurity
from adyton.proto import evidence_pb2
from adyton.proto.attestation_pb2 import AttestRequest, AttestResponse
from adyton.proto.messages import parse_message
from adyton.tee.message import decode_evidence

MAX_MESSAGE_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On what terms a client accepts a server: its policy, the insecurities that it agrees to, its own last word.

    `bind_ca`: the evidence has to name the enclave's CA, also where the policy pins none.
    """

    policy: Policy
    allow: frozenset[Insecurity] = frozenset()
    refuse: Hook | None = None
    bind_ca: bool = False

    @property
    def purpose(self) -> Purpose:
        """What has to be bound: the enclave's CA if that is asked for, else the certificate that it showed."""
        asked = self.bind_ca or self.policy.channel.ca_sha256 is not None
        return Purpose.FLEET if asked else Purpose.INSTANCE

    def appraise(
        self, message: evidence_pb2.Evidence, binding: Binding, batch_path: Sequence[bytes], *, now: datetime
    ) -> Appraisal:
        """The appraisal of evidence that has to be over that binding, as a leaf of a batch. Raises as `evaluate`."""
        expected = report_data(fold(binding.leaf(), batch_path))
        evidence = decode_evidence(message.SerializeToString())
        return evaluate(
            evidence,
            self.policy,
            now=now,
            report_data=carried(evidence.tee, expected),
            allow=self.allow,
            refuse=self.refuse,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question over one connection.

    `pinned` is the DER certificate that the connection was made under; `client_sha256` the SHA-256 of the public key
    that the client has on this connection and on no other, or empty at level `key`.
    """

    purpose: Purpose
    nonce: bytes
    audience: str
    pinned: bytes
    client_sha256: bytes

    def encode(self) -> bytes:
        """The AttestRequest."""
        return AttestRequest(
            version=VERSION,
            nonce=self.nonce,
            purpose=int(self.purpose),
            audience=self.audience,
            pinned_sha256=spki_sha256(parse_certificate(self.pinned)[1]),
        ).SerializeToString()

    def again(self) -> Question:
        """The same question over the same connection, with a fresh nonce."""
        return dataclasses.replace(self, nonce=secrets.token_bytes(NONCE_BYTES))

    def judge(self, answer: bytes, terms: Terms, *, now: datetime) -> Attestation:
        """What the AttestResponse proves of this connection.

        `EvidenceError`: it is not genuine, or not of this protocol. `PolicyError`: it is not acceptable, or was made
        for another connection. `UnsupportedError`: a TEE that is unknown here.
        """
        response = _parse(answer)
        anchor = self._anchor(response)
        anchor_sha256 = spki_sha256(parse_certificate(anchor)[1])
        binding = Binding(
            purpose=self.purpose,
            nonce=self.nonce,
            anchor_sha256=anchor_sha256,
            client_sha256=self.client_sha256,
            claims_sha256=hashlib.sha256(response.claims).digest(),
            audience=self.audience,
        )
        appraisal = terms.appraise(response.evidence, binding, response.batch_path, now=now)
        claims = parse_claims(response.claims)
        ca_sha256 = anchor_sha256 if self.purpose is Purpose.FLEET else None
        config_sha256 = bytes.fromhex(claims["config_sha256"])
        if findings := tuple(terms.policy.channel.findings(config_sha256=config_sha256, ca_sha256=ca_sha256)):
            raise PolicyError("the policy accepts no such connection", findings=findings)
        return Attestation(
            appraisal=appraisal,
            level=BindingLevel.CONNECTION if self.client_sha256 else BindingLevel.KEY,
            audience=self.audience,
            claims=claims,
            anchor_certificate=anchor,
        )

    def _anchor(self, response: AttestResponse) -> bytes:
        """The DER certificate whose key the evidence has to name."""
        if self.purpose is Purpose.INSTANCE:
            return self.pinned
        ca, _ = parse_certificate(response.ca_certificate)
        leaf, _ = parse_certificate(self.pinned)
        check_issued(ca, by=ca)
        check_issued(leaf, by=ca)
        return response.ca_certificate


def _parse(answer: bytes) -> AttestResponse:
    if len(answer) > MAX_MESSAGE_BYTES:
        raise EvidenceError(f"an answer of {len(answer)} bytes; {MAX_MESSAGE_BYTES} are allowed")
    try:
        response = parse_message(AttestResponse, answer)
    except DecodeError as problem:
        raise EvidenceError("the answer is not an AttestResponse") from problem
    if response.version != VERSION:
        raise EvidenceError(f"the answer is of version {response.version} of ATLS; {VERSION} is known here")
    if len(response.claims) > MAX_CLAIMS_BYTES:
        raise EvidenceError(f"claims of {len(response.claims)} bytes; {MAX_CLAIMS_BYTES} are allowed")
    return response
