"""A fake vendor's evidence and the key that signed it, from which the emulated hardware makes more, over other data."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Final

REPORT_DATA: Final = hashlib.sha512(b"report_data").digest()
"""What a template's evidence is about; in it and in what was signed exactly once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """`key`: PKCS #8. `message`: what it signed, with SHA-256 or -384. `signature_at`: where in the evidence r begins.

    r and s have `number_bytes` each, and are little endian in AMD's reports. `provider` is the name of configfs-tsm, or
    "nsm"; `staples` what the host gives with the report.
    """

    provider: str
    key: bytes
    evidence: bytes
    message: bytes
    signature_at: int
    number_bytes: int
    digest_bits: int
    little_endian: bool = False
    staples: bytes = b""

    def __post_init__(self) -> None:
        assert self.evidence.count(REPORT_DATA) == self.message.count(REPORT_DATA) == 1

    def encode(self) -> bytes:
        """For the bundle."""
        return json.dumps(asdict(self), default=bytes.hex).encode()

    @classmethod
    def parse(cls, data: bytes) -> Template:
        """The inverse."""
        fields = json.loads(data)
        binary = ("key", "evidence", "message", "staples")
        return cls(**fields | {name: bytes.fromhex(fields[name]) for name in binary})

    def evidence_over(self, report_data: bytes) -> bytes:
        """Evidence over those 64 bytes, signed anew."""
        from cryptography.hazmat.primitives import hashes, serialization  # not above: PID 1 imports this
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

        key = serialization.load_der_private_key(self.key, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        algorithm = ec.ECDSA({256: hashes.SHA256, 384: hashes.SHA384}[self.digest_bits]())
        numbers = decode_dss_signature(key.sign(self.message.replace(REPORT_DATA, report_data), algorithm))
        order = "little" if self.little_endian else "big"
        signature = b"".join(each.to_bytes(self.number_bytes, order) for each in numbers)  # type: ignore[arg-type]
        evidence = self.evidence.replace(REPORT_DATA, report_data)
        return evidence[: self.signature_at] + signature + evidence[self.signature_at + len(signature) :]
