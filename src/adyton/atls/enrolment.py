"""What a caller and a server hash and check when the caller enrols. Decides, and does no I/O.

A caller that has attested a server attests itself on the same connection. Both sides build the binding from what they
hold themselves: the server's challenge, the client's key on this connection, the server's CA. Only the role, the claims
and the key to be certified come from the caller, and its evidence has to name all three.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import DecodeError

from adyton.atls.binding import MAX_CLAIMS_BYTES, VERSION, Binding, Purpose
from adyton.atls.certificates import spki_sha256
from adyton.atls.claims import parse_claims
from adyton.atls.member import LABEL
from adyton.atls.question import MAX_MESSAGE_BYTES, Terms
from adyton.errors import ApplicationError, EvidenceError, PolicyError, StatusCode
from adyton.policy.appraisal import Appraisal
from adyton.proto.attestation_pb2 import EnrolRequest
from adyton.proto.messages import parse_message


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What both sides know of the connection that a caller enrols on.

    `challenge` is the server's 32 bytes; `client_sha256` and `ca_sha256` are SHA-256 of the DER SubjectPublicKeyInfo of
    the client's key on this connection, and of that of the server's CA, which the caller has attested.
    """

    challenge: bytes
    client_sha256: bytes
    ca_sha256: bytes

    def binding(self, *, role: str, key: ec.EllipticCurvePublicKey, claims: bytes) -> Binding:
        """What the caller's evidence has to be bound to, and what its key signs."""
        return Binding(
            purpose=Purpose.ENROL,
            nonce=self.challenge,
            anchor_sha256=spki_sha256(key),
            client_sha256=self.client_sha256,
            claims_sha256=hashlib.sha256(claims).digest(),
            peer_sha256=self.ca_sha256,
            audience=role,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """What a caller asks for, parsed and not believed."""

    role: str
    claims: bytes
    key: ec.EllipticCurvePublicKey
    ca_sha256: bytes
    request: EnrolRequest

    @classmethod
    def parse(cls, data: bytes) -> Application:
        """Read an EnrolRequest. Raises `ApplicationError`, whose message may be sent to the caller."""
        if len(data) > MAX_MESSAGE_BYTES:
            raise _refused(StatusCode.INVALID_ARGUMENT, f"an EnrolRequest has {MAX_MESSAGE_BYTES} bytes at most")
        try:
            request = parse_message(EnrolRequest, data)
        except DecodeError as problem:
            raise _refused(StatusCode.INVALID_ARGUMENT, "not an EnrolRequest") from problem
        if request.version != VERSION:
            raise _refused(StatusCode.UNIMPLEMENTED, f"this enclave speaks version {VERSION} of ATLS")
        if not LABEL.fullmatch(request.role):
            raise _refused(StatusCode.INVALID_ARGUMENT, "a role is a DNS label in small letters")
        if len(request.claims) > MAX_CLAIMS_BYTES:
            raise _refused(StatusCode.INVALID_ARGUMENT, f"claims have {MAX_CLAIMS_BYTES} bytes at most")
        return cls(
            role=request.role,
            claims=request.claims,
            key=_parse_key(request.public_key),
            ca_sha256=request.ca_sha256,
            request=request,
        )

    def judge(self, standing: Standing, terms: Terms, *, now: datetime) -> Appraisal:
        """What the evidence proves of the caller on this connection.

        `EvidenceError`: not genuine, or the key did not sign. `PolicyError`: not acceptable, or made for another
        connection, challenge, server, key or role. `UnsupportedError`: a TEE that is unknown here.
        """
        binding = standing.binding(role=self.role, key=self.key, claims=self.claims)
        try:
            self.key.verify(self.request.signature, binding.encode(), ec.ECDSA(hashes.SHA256()))
        except InvalidSignature as problem:
            raise EvidenceError("the key to be certified did not sign this enrolment") from problem
        appraisal = terms.appraise(self.request.evidence, binding, self.request.batch_path, now=now)
        _check_configuration(parse_claims(self.claims), terms)
        return appraisal


def _check_configuration(claims: Mapping[str, Any], terms: Terms) -> None:
    config_sha256 = bytes.fromhex(claims["config_sha256"])
    if findings := tuple(terms.policy.channel.findings(config_sha256=config_sha256, ca_sha256=None)):
        raise PolicyError("the policy accepts no such caller", findings=findings)


def _parse_key(der: bytes) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_der_public_key(der)
    except Exception as problem:
        raise _refused(StatusCode.INVALID_ARGUMENT, "the key to be certified can't be read") from problem
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _refused(StatusCode.INVALID_ARGUMENT, "the key to be certified is not for P-256")
    return key


def _refused(status: StatusCode, message: str) -> ApplicationError:
    return ApplicationError(status, message)
