"""AWS KMS as the source of sealing keys of an AWS Nitro enclave, which has none of its own.

The enclave makes an RSA key, has the hypervisor sign its public half into an attestation document, and sends that with
each request. KMS verifies the document, compares its PCRs with the key's policy, and answers with the data key,
encrypted to the enclave: the host, through which all of it goes and whose credentials let it in, learns nothing.

Who must be honest: AWS. What must be the enclave's own, measured with its code: `KmsSettings`, for whoever may choose
the key, the endpoint or the roots knows the data keys. And the key's policy, which the enclave can't see, is its
owner's to write. It must let nobody but attested enclaves (kms:RecipientAttestation:PCR0, or others) kms:Decrypt, or
they read what is sealed; nor kms:GenerateDataKey*, kms:Encrypt or kms:ReEncrypt*, or they make a key that they know,
and the enclave takes what they sealed with it.
AWS: https://docs.aws.amazon.com/kms/latest/developerguide/cryptographic-attestation.html
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from adyton.enclave.key_sources._cms import MAX_ENVELOPE_BYTES, open_envelope
from adyton.enclave.key_sources._https import Connect, vsock_proxy
from adyton.enclave.key_sources._kms_service import KmsAnswer, KmsService, KmsSettings
from adyton.enclave.key_sources._sigv4 import AwsCredentials, environment_credentials
from adyton.errors import (
    AdytonError,
    EvidenceError,
    KeyUnavailableError,
    SealedDataError,
    UnsealError,
    UnsupportedError,
)
from adyton.tee.nitro.device import NitroDevice
from adyton.tee.nitro.format import parse_nitro
from adyton.tee.sealing import KEY_BYTES, Binding, FreshnessRegister, SealingKey, SealPolicy

if TYPE_CHECKING:
    from adyton.enclave.application import EnclaveContext

__all__ = ("CONTEXT_KEY", "MAX_BLOB_BYTES", "AwsCredentials", "AwsKms", "KmsSettings")

CONTEXT_KEY: Final = "adyton:enclave"
"""The key of the encryption context, which a policy can name: kms:EncryptionContext:adyton:enclave."""
MAX_BLOB_BYTES: Final = 6144
"""As much as KMS takes (CiphertextBlob)."""

_REQUEST: Final = struct.Struct(">BH")
_REQUEST_VERSION: Final = 1
_KEY_STATE: Final = "look at the key in AWS KMS, its state and its region"
_CREDENTIALS: Final = "look at the credentials that the host gives, and at the enclave's clock"
_MENDS: Final = {
    "NotFoundException": _KEY_STATE,
    "DisabledException": _KEY_STATE,
    "KMSInvalidStateException": _KEY_STATE,
    "UnrecognizedClientException": _CREDENTIALS,
    "InvalidSignatureException": _CREDENTIALS,
    "ExpiredTokenException": _CREDENTIALS,
}


class AwsKms:
    """A `KeySource`. The request: a version byte (1), the length of KMS' CiphertextBlob in two bytes, the blob.

    `credentials` is called for each attempt, so that it can renew them; it may raise `KeyUnavailableError`. `connect`
    makes the connection, which in an enclave is one to a proxy on vsock; by default TCP to the endpoint. `clock` is
    what requests are dated with; KMS takes five minutes amiss. Raises `UnsupportedError` where there is no NSM.
    """

    name: Final = "aws-kms"
    policies: Final = frozenset({SealPolicy.EXTERNAL})

    def __init__(
        self,
        *,
        device: NitroDevice,
        settings: KmsSettings,
        credentials: Callable[[], AwsCredentials],
        connect: Connect | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        device.check_present()
        self._device = device
        self._settings = settings
        self._service = KmsService(settings, credentials, connect, clock)
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        subject = hashlib.sha256(settings.key_arn.encode("ascii")).digest()
        self._binding = Binding(policy=SealPolicy.EXTERNAL, subject=subject)

    @classmethod
    def of(cls, context: EnclaveContext, *, connect: Connect = vsock_proxy) -> AwsKms:
        """That of `[sealing.kms]` in enclave.toml, with the credentials of the enclave's environment."""
        if not isinstance(context.device, NitroDevice):
            tee = context.device.tee if context.device else "this process"
            raise UnsupportedError(f"AWS KMS gives keys to Nitro enclaves, which {tee} is not")
        kms = context.settings.sealing.kms
        roots = context.application_directory / kms.roots
        settings = KmsSettings(
            key_arn=kms.key,
            enclave=context.settings.name,
            endpoint=kms.endpoint,
            roots_pem=roots.read_text("ascii", "backslashreplace"),
        )
        return cls(device=context.device, settings=settings, credentials=environment_credentials, connect=connect)

    def current(self, policy: SealPolicy) -> Binding:
        """As `KeySource` says; the subject is the SHA-256 of the KMS key's ARN."""
        if policy is not SealPolicy.EXTERNAL:
            raise UnsupportedError(f"AWS KMS has no keys for {policy.name.lower()}: its own policy says who gets one")
        return self._binding

    def new_key(self, policy: SealPolicy) -> SealingKey:
        """As `KeySource` says, fresh each time; and `UnsealError` if KMS' policy does not let this enclave in."""
        binding = self.current(policy)
        answer = self._ask("GenerateDataKey", KeySpec="AES_256")
        blob = _decoded(answer, "CiphertextBlob", at_most=MAX_BLOB_BYTES)
        key = self._opened(answer)
        if len(key) != KEY_BYTES:
            raise KeyUnavailableError(f"AWS KMS gives a key of {len(key)} bytes, not {KEY_BYTES}")
        request = _REQUEST.pack(_REQUEST_VERSION, len(blob)) + blob
        return SealingKey(key=key, binding=binding, request=request, tcb="AWS KMS")

    def same_key(self, binding: Binding, request: bytes) -> bytes:
        """As `KeySource` says. An answer that does not open says nothing of the data: `KeyUnavailableError`."""
        self._check_binding(binding)
        key = self._opened(self._ask("Decrypt", CiphertextBlob=_base64(_blob(request))))
        if len(key) != KEY_BYTES:
            raise SealedDataError(f"what AWS KMS decrypts is no sealing key: it has {len(key)} bytes")
        return key

    def register(self, binding: Binding, label: bytes) -> FreshnessRegister | None:  # noqa: ARG002
        """None: KMS remembers nothing for an enclave."""
        return None

    def _check_binding(self, binding: Binding) -> None:
        if binding.subject != self._binding.subject:
            raise UnsealError(f"the data was sealed under another key of AWS KMS than {self._settings.key_arn}")
        for name in ("policy", "product", "version"):
            if getattr(binding, name) != getattr(self._binding, name):
                raise UnsealError(f"the data was sealed for another {name} than AWS KMS has keys for")

    def _ask(self, operation: str, **members: str) -> Mapping[str, Any]:
        """KMS' answer, which has no plaintext and is of our key."""
        document, pcr0 = self._document()
        request = {
            "KeyId": self._settings.key_arn,
            "EncryptionContext": {CONTEXT_KEY: self._settings.enclave},
            "Recipient": {"AttestationDocument": _base64(document), "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256"},
            **members,
        }
        answer = self._service.ask(operation, request)
        if answer.status != 200:
            raise _refusal(answer, operation, pcr0)
        if answer.members.get("Plaintext"):
            raise KeyUnavailableError("AWS KMS sent the key in the clear: somebody else may have it, so it is not used")
        if answer.members.get("KeyId") != self._settings.key_arn:
            raise KeyUnavailableError("AWS KMS answers with another key than the one that was asked for")
        return answer.members

    def _document(self) -> tuple[bytes, bytes]:
        """An attestation document of our RSA key, and its PCR0."""
        spki = self._key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        try:
            document = self._device.collect_document(spki)
            return document, parse_nitro(document).pcrs[0]
        except EvidenceError as problem:
            raise KeyUnavailableError(f"no attestation document: {problem.message}") from problem

    def _opened(self, answer: Mapping[str, Any]) -> bytes:
        envelope = _decoded(answer, "CiphertextForRecipient", at_most=MAX_ENVELOPE_BYTES)
        try:
            return open_envelope(envelope, self._key)
        except ValueError as problem:
            message = f"AWS KMS' answer is damaged, or for another enclave: {problem}"
            raise KeyUnavailableError(message) from problem


def _refusal(answer: KmsAnswer, operation: str, pcr0: bytes) -> AdytonError:
    match answer.error:
        case "AccessDeniedException":
            allow = f"allow the host's role kms:{operation} where kms:RecipientAttestation:PCR0 is that"
            return UnsealError(
                f"AWS KMS' policy does not let this enclave in, whose measurement (PCR0) is {pcr0.hex()}",
                mend=allow if any(pcr0) else "an enclave in debug mode has no measurement; start it without",
            )
        case "InvalidCiphertextException" | "IncorrectKeyException":
            return SealedDataError(f"AWS KMS does not know what it is to decrypt: {answer.error}")
        case error:
            return KeyUnavailableError(f"AWS KMS refuses: {error}", mend=_MENDS.get(error, ""))


def _blob(request: bytes) -> bytes:
    """KMS' part of a request. `SealedDataError` if it is none of ours."""
    blob = request[_REQUEST.size :]
    if not 0 < len(blob) <= MAX_BLOB_BYTES or request[: _REQUEST.size] != _REQUEST.pack(_REQUEST_VERSION, len(blob)):
        raise SealedDataError("the sealed data's request is none that was made for AWS KMS")
    return blob


def _decoded(answer: Mapping[str, Any], name: str, *, at_most: int) -> bytes:
    try:
        decoded = base64.b64decode(answer[name], validate=True)
    except (KeyError, TypeError, ValueError):
        decoded = b""
    if not 0 < len(decoded) <= at_most:
        raise KeyUnavailableError(f"AWS KMS' answer has no {name}, or none that it can have")
    return decoded


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
