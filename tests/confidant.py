"""An enclave for attackers to attack, as `attacked_servers` has them without one: an application for any launcher.

Told to, it gives away its TLS key, and turns: then its code does what code could that an attacker has got into, with
the rights of the enclave's user. It runs from a bundle, so it imports nothing of the tests.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cbor2
import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

import adyton
from adyton.atls.certificates import key_pem
from adyton.atls.identity import IdentitySource, chain_pem
from adyton.tee.evidence import Endorsement, EndorsementKind, Evidence
from adyton.tee.tpm.device import TpmDevice

SERVICE = "tests.Confidant"
ANSWER = b"genuine: "
_P256_POINT_BYTES = 68
_PCR_EXTEND = struct.Struct(">HIIIIIHBHIH32s")


class Confidant(adyton.GrpcApplication):
    """One method for clients, `Tell`; `Heard`, `Leak` and `Turn` are for tests."""

    def __init__(self) -> None:
        super().__init__()
        self._heard: list[bytes] = []

    def add_servicers(self, server: grpc.Server) -> None:
        methods = {"Tell": self._tell, "Heard": self._hear, "Leak": self._leak, "Turn": turn}
        handlers: dict[str, Any] = {name: grpc.unary_unary_rpc_method_handler(each) for name, each in methods.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    def _attester(self, identity: IdentitySource, quotes: Any) -> Any:
        self._identity = identity
        return super()._attester(identity, quotes)

    def _tell(self, request: bytes, context: Any) -> bytes:
        self._heard.append(request)
        return ANSWER + request

    def _hear(self, request: bytes, context: Any) -> bytes:
        """Every request that was told."""
        return b"".join(each + b"\n" for each in self._heard)

    def _leak(self, request: bytes, context: Any) -> bytes:
        """The server's key and its certificates, in PEM."""
        identity = self._identity.current()
        return key_pem(identity.leaf.key) + chain_pem(identity)


def turn(trick: bytes, context: Any) -> bytes:
    """Play a trick by its name, from now on."""
    TRICKS[trick.decode()]()
    return b""


def quote_in_software(forge: Callable[[Evidence], Evidence]) -> None:
    """Give what `forge` makes of the TPM's evidence instead of that."""
    collect = TpmDevice._collect

    def forged(device: TpmDevice, report_data: bytes) -> Evidence:
        return forge(collect(device, report_data))

    TpmDevice._collect = forged  # type: ignore[method-assign,assignment]


def by_another_key(evidence: Evidence) -> Evidence:
    """The same, with another PCR 0, signed by a key that no TPM has; the certificates are the TPM's."""
    return replace(evidence, data=signed_anew(ec.generate_private_key(ec.SECP256R1()), cbor2.loads(evidence.data)))


def by_a_key_that_certifies_itself(evidence: Evidence) -> Evidence:
    """The same, with a certificate that is the genuine one to the letter, but for its key and its signature."""
    key = ec.generate_private_key(ec.SECP256R1())
    genuine = x509.load_der_x509_certificate(next(evidence.endorsed(EndorsementKind.CERTIFICATE)))
    builder = x509.CertificateBuilder(genuine.issuer, genuine.subject, key.public_key(), genuine.serial_number)
    builder = builder.not_valid_before(genuine.not_valid_before_utc).not_valid_after(genuine.not_valid_after_utc)
    for each in genuine.extensions:
        builder = builder.add_extension(each.value, each.critical)
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
    endorsements = (Endorsement(kind=EndorsementKind.CERTIFICATE, data=certificate), *evidence.endorsements)
    return replace(evidence, data=signed_anew(key, cbor2.loads(evidence.data)), endorsements=endorsements)


def signed_anew(key: ec.EllipticCurvePrivateKey, fields: dict[str, Any]) -> bytes:
    """The fields of TPM evidence as if that key were the attestation key, and PCR 0 another."""
    pcrs: dict[int, bytes] = dict(fields["pcrs"]["sha256"]) | {0: bytes(32)}
    digest = hashlib.sha256(b"".join(pcrs[index] for index in sorted(pcrs))).digest()
    quoted = fields["quoted"][: -len(digest)] + digest
    r, s = (sized(number) for number in decode_dss_signature(key.sign(quoted, ec.ECDSA(hashes.SHA256()))))
    point = key.public_key().public_numbers()
    forged: Mapping[str, Any] = {
        "quoted": quoted,
        "signature": fields["signature"][:4] + r + s,
        "ak_public": fields["ak_public"][:-_P256_POINT_BYTES] + sized(point.x) + sized(point.y),
        "pcrs": {"sha256": pcrs},
    }
    return cbor2.dumps({**fields, **forged}, canonical=True)


def sized(number: int) -> bytes:
    """A number of P-256 in a TPM2B."""
    return struct.pack(">H", 32) + number.to_bytes(32, "big")


def extend_pcr_0() -> None:
    """What code inside can do to a register: add to it (TPM2_PCR_Extend, with an empty password)."""
    body = (0x8002, _PCR_EXTEND.size, 0x182, 0, 9, 0x40000009, 0, 0, 0, 1, 0x000B, bytes(32))
    with Path("/dev/tpmrm0").open("r+b", buffering=0) as tpm:
        tpm.write(_PCR_EXTEND.pack(*body))
        answer = tpm.read(4096)
    assert answer[6:10] == bytes(4), answer.hex()


TRICKS: dict[str, Callable[[], None]] = {
    "another key": lambda: quote_in_software(by_another_key),
    "a key that certifies itself": lambda: quote_in_software(by_a_key_that_certifies_itself),
    "extend PCR 0": extend_pcr_0,
}
