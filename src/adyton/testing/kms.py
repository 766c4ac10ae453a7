"""A KMS on this machine, for keys that only attested Nitro enclaves get, and the enclaves that ask it.

    vendor = NitroVendor(now=datetime.now(UTC))
    with KmsServer(anchors=vendor.case().anchors, credentials=CREDENTIALS) as kms:
        kms.add_key(ARN, allowed=[pcr0])
        settings = KmsSettings(key_arn=ARN, enclave="name", endpoint=kms.url, roots_pem=kms.roots_pem)
        AwsKms(device=nitro_enclave(vendor, pcr0), settings=settings, credentials=lambda: CREDENTIALS)

It speaks KMS' protocol over TLS of its own root, and believes nothing: the signature, the attestation document, the
key's policy and the ciphertext are checked for what they are, and it refuses with KMS' own errors. `edits` has it
answer what KMS never would.
"""

from __future__ import annotations

import base64
import hmac
import json
import os
import re
import ssl
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, Self

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_der_public_key

from adyton.enclave.key_sources import _sigv4
from adyton.enclave.key_sources.aws_kms import AwsCredentials
from adyton.errors import EvidenceError
from adyton.tee.evidence import Evidence
from adyton.tee.nitro.device import NitroDevice
from adyton.tee.nitro.verify import VerifiedNitro, verify_nitro
from adyton.testing.kernels.emulated import EmulatedKernel
from adyton.testing.kernels.nsm import Nsm
from adyton.testing.kms_keys import KmsError, KmsKey, enveloped
from adyton.testing.kms_replies import Edit, Reply
from adyton.testing.nitro import PCRS, DocumentRecipe, NitroVendor, given

REGION: Final = "eu-central-1"
"""Where it is, and its keys are."""
MAX_AGE: Final = timedelta(minutes=5)
"""Of an attestation document, and of a signature."""

_AUTHORIZATION: Final = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/([0-9]{8}/[a-z0-9/_-]+), "
    r"SignedHeaders=([a-z0-9;-]+), Signature=([0-9a-f]{64})"
)
_SIGNED: Final = frozenset({"host", "x-amz-date", "x-amz-target"})


class KmsServer:
    """A context manager: serves while it is open, on a port of localhost that it chooses.

    `anchors` are the roots of attestation documents. `edits`: the next answers, one edit each. `asked`: what was asked,
    as (operation, members), once its signature was in order. What went wrong in the server itself is raised at its end.
    """

    def __init__(self, *, anchors: Collection[bytes], credentials: AwsCredentials) -> None:
        self.keys: dict[str, KmsKey] = {}
        self.edits: deque[Edit] = deque()
        self.asked: list[tuple[str, Mapping[str, Any]]] = []
        self.closing = threading.Event()
        self.problems: list[BaseException] = []
        self._anchors = anchors
        self._credentials = credentials
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def port(self) -> int:
        """Of localhost."""
        return self._server.server_port

    @property
    def url(self) -> str:
        """For KmsSettings."""
        return f"https://localhost:{self.port}"

    @property
    def roots_pem(self) -> str:
        """For KmsSettings."""
        return self._server.roots_pem

    def add_key(self, arn: str, *, allowed: Collection[bytes]) -> KmsKey:
        """A key for enclaves of these PCR0s."""
        self.keys[arn] = KmsKey(arn=arn, allowed=allowed)
        return self.keys[arn]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        if self.problems:
            raise self.problems[0]

    def reply(self, headers: Mapping[str, str], body: bytes) -> Reply:
        """The answer to a request, edited if anybody wants it so."""
        try:
            self._check_signature(headers, body)
            operation, request = headers["x-amz-target"].removeprefix("TrentService."), json.loads(body)
            self.asked.append((operation, request))
            reply = Reply(status=200, members=self._answer(operation, request))
        except KmsError as error:
            reply = Reply(status=400, members={"__type": str(error), "message": f"{error} it is"})
        return self.edits.popleft()(reply) if self.edits else reply

    def _check_signature(self, headers: Mapping[str, str], body: bytes) -> None:
        match = _AUTHORIZATION.fullmatch(headers.get("authorization", ""))
        if match is None:
            raise KmsError("MissingAuthenticationTokenException")
        access_key_id, scope, names, signature = match.groups()
        token = headers.get("x-amz-security-token", "")
        if (access_key_id, token) != (self._credentials.access_key_id, self._credentials.session_token):
            raise KmsError("UnrecognizedClientException")
        signed = {name: headers[name] for name in names.split(";") if name in headers}
        if not signed.keys() >= (_SIGNED | {"x-amz-security-token"} if token else _SIGNED):
            raise KmsError("InvalidSignatureException")
        wanted = _sigv4.signature(signed, body, secret=self._credentials.secret_access_key, scope=scope)
        date = datetime.strptime(headers["x-amz-date"], _sigv4.DATE_FORMAT).replace(tzinfo=UTC)
        in_scope = scope == f"{date:%Y%m%d}/{REGION}/kms/aws4_request" and abs(datetime.now(UTC) - date) <= MAX_AGE
        if not in_scope or not hmac.compare_digest(wanted, signature):
            raise KmsError("InvalidSignatureException")

    def _answer(self, operation: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
        key = self.keys.get(request["KeyId"])
        if key is None:
            raise KmsError("NotFoundException")
        if key.error:
            raise KmsError(key.error)
        enclave = self._admitted(key, request.get("Recipient"))
        context = json.dumps(request.get("EncryptionContext", {}), sort_keys=True).encode()
        answer = {"KeyId": key.arn}
        if operation == "GenerateDataKey" and request["KeySpec"] == "AES_256":
            plaintext = os.urandom(32)
            answer["CiphertextBlob"] = _base64(key.encrypt(plaintext, context))
        elif operation == "Decrypt":
            plaintext = key.decrypt(base64.b64decode(request["CiphertextBlob"]), context)
        else:
            raise KmsError("UnknownOperationException")
        recipient = load_der_public_key(enclave.public_key or b"")
        assert isinstance(recipient, RSAPublicKey)
        return {**answer, "CiphertextForRecipient": _base64(enveloped(recipient, plaintext))}

    def _admitted(self, key: KmsKey, recipient: Any) -> VerifiedNitro:
        """The enclave that asks; `KmsError` unless it proves that the policy allows it."""
        if recipient is None:
            raise KmsError("AccessDeniedException")
        now = datetime.now(UTC)
        try:
            document = Evidence(tee="nitro", data=base64.b64decode(recipient["AttestationDocument"]))
            enclave = verify_nitro(document, anchors=self._anchors, now=now)
        except EvidenceError:
            raise KmsError("ValidationException") from None
        if now - enclave.timestamp > MAX_AGE or recipient["KeyEncryptionAlgorithm"] != "RSAES_OAEP_SHA_256":
            raise KmsError("ValidationException")
        if enclave.measurement not in key.allowed:
            raise KmsError("AccessDeniedException")
        return enclave


class _Server(ThreadingHTTPServer):
    """HTTPS; the handshake is the handler's, so that a client that is slow keeps nobody waiting."""

    daemon_threads = False

    def __init__(self, kms: KmsServer) -> None:
        super().__init__(("localhost", 0), _Handler)
        self.kms = kms
        self.roots_pem, self._context = _tls("localhost")

    def finish_request(self, request: Any, client_address: Any) -> None:
        """One connection."""
        request.settimeout(10)
        with self._context.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """A client that goes away, or wants none of this certificate, is no problem."""
        problem = sys.exception()
        if problem is not None and not isinstance(problem, OSError):
            self.kms.problems.append(problem)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        """One request."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = self.server.kms.reply(headers, body)
        answer = reply.encode()
        step = 1 if reply.seconds else len(answer)
        for place in range(0, len(answer), step):
            if self.server.kms.closing.wait(reply.seconds):
                return
            self.wfile.write(answer[place : place + step])

    def log_message(self, *_: object) -> None:
        """Nothing."""


def nitro_enclave(vendor: NitroVendor, pcr0: bytes) -> NitroDevice:
    """The device in an enclave of that image, of that vendor's hardware."""

    def respond(request: Any) -> bytes:
        claims = given(pcrs={**PCRS, 0: pcr0}, **request["Attestation"])
        document = vendor.case(DocumentRecipe(edit_claims=claims)).evidence.data
        return cbor2.dumps({"Attestation": {"document": document}})

    return NitroDevice(kernel=EmulatedKernel(Nsm(respond)))


def _tls(name: str) -> tuple[str, ssl.SSLContext]:
    """A certificate for that name, which is its own root, as PEM; and what shows it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        chain = Path(folder) / "chain.pem"
        chain.write_bytes(certificate + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        context.load_cert_chain(chain)
    return certificate.decode("ascii"), context


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
