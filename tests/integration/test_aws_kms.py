"""AWS KMS as a source of sealing keys, against a server that speaks its protocol and checks what it gets."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from adyton.bundle.settings import KmsSettings as EnclaveKmsSettings
from adyton.bundle.settings import SealingSettings, Settings
from adyton.enclave.application import EnclaveContext
from adyton.enclave.key_sources._cms import open_envelope
from adyton.enclave.key_sources._https import MAX_ANSWER_BYTES
from adyton.enclave.key_sources._kms_service import KmsService
from adyton.enclave.key_sources._sigv4 import DATE_FORMAT, sign
from adyton.enclave.key_sources.aws_kms import MAX_BLOB_BYTES, AwsCredentials, AwsKms, KmsSettings
from adyton.errors import (
    AdytonError,
    ConfigurationError,
    KeyUnavailableError,
    SealedDataError,
    UnsealError,
    UnsupportedError,
)
from adyton.sealing.header import parse_header, split_header
from adyton.sealing.sealer import Sealer
from adyton.tee.devices import Device
from adyton.tee.nitro.device import NitroDevice
from adyton.tee.nitro.format import parse_nitro
from adyton.tee.sealing import Binding, SealingKey, SealPolicy
from adyton.tee.tpm.device import TpmDevice
from adyton.testing.kernels.emulated import EmulatedKernel
from adyton.testing.kernels.nsm import Nsm
from adyton.testing.kms import KmsServer, nitro_enclave
from adyton.testing.kms_keys import enveloped
from adyton.testing.kms_replies import Edit, Reply, failing, giving, hanging
from adyton.testing.nitro import NitroVendor
from adyton.testing.sealers import KeySourceConformance, SealingWorld

if TYPE_CHECKING:
    from adyton.enclave.vault import Vault

ARN = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
OTHER_ARN = "arn:aws:kms:eu-central-1:111122223333:key/mrk-0987dcba09fe87dc65ba43fe21dc09ba"
CREDENTIALS = AwsCredentials(
    access_key_id="AKIDEXAMPLE",
    secret_access_key="wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
    session_token="FwoGZXIvYXdzEXAMPLETOKEN//==",
)
EXTERNAL = SealPolicy.EXTERNAL
STRANGER = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def pcr0(code: str) -> bytes:
    return hashlib.sha384(code.encode()).digest()


class World:
    """One KMS with one key for the code "a", and Nitro enclaves that ask it."""

    def __init__(self, stack: ExitStack, arn: str = ARN) -> None:
        self._stack = stack
        self.vendor = NitroVendor(now=datetime.now(UTC))
        self.kms = stack.enter_context(KmsServer(anchors=self.vendor.case().anchors, credentials=CREDENTIALS))
        self.key = self.kms.add_key(arn, allowed=[pcr0("a")])

    def source(
        self,
        *,
        code: str = "a",
        signer: str = "s",
        version: int = 1,
        tcb: int = 1,
        measurement: bytes = b"",
        device: NitroDevice | None = None,
        credentials: Callable[[], AwsCredentials] = lambda: CREDENTIALS,
        connect: Callable[[float], socket.socket] | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        **settings: Any,
    ) -> AwsKms:
        """The enclave of that code; the other arguments are for what differs from a KMS and a host in order."""
        return AwsKms(
            device=device or nitro_enclave(self.vendor, measurement or pcr0(code)),
            settings=replace(self.settings(), **settings),
            credentials=credentials,
            connect=connect,
            clock=clock,
        )

    def settings(self) -> KmsSettings:
        return KmsSettings(
            key_arn=self.key.arn, enclave="translator", endpoint=self.kms.url, roots_pem=self.kms.roots_pem
        )

    def elsewhere(self) -> World:
        return World(self._stack, OTHER_ARN)

    def operations(self) -> list[str]:
        return [operation for operation, _ in self.kms.asked]


@pytest.fixture
def world() -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack)


class TestConformance(KeySourceConformance):
    policies = frozenset({EXTERNAL})
    can_downgrade = False

    @pytest.fixture
    def world(self, world: World) -> SealingWorld:
        return world


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little time between attempts."""
    monkeypatch.setattr("adyton.enclave.key_sources._kms_service.PAUSES_SECONDS", (0.0, 0.01, 0.01))


def refusal(source: AwsKms, made: SealingKey | None = None) -> AdytonError:
    """What it raises for a new key, or that one."""
    with pytest.raises(AdytonError) as caught:
        source.same_key(made.binding, made.request) if made else source.new_key(EXTERNAL)
    return caught.value


def test_the_requests_are_what_aws_documents(world: World) -> None:
    made = world.source().new_key(EXTERNAL)
    world.source().same_key(made.binding, made.request)
    (first, generate), (second, decrypt) = world.kms.asked
    assert (first, second) == ("GenerateDataKey", "Decrypt")
    for request in (generate, decrypt):
        recipient = request["Recipient"]
        assert recipient.keys() == {"AttestationDocument", "KeyEncryptionAlgorithm"}
        assert recipient["KeyEncryptionAlgorithm"] == "RSAES_OAEP_SHA_256"
        assert request["KeyId"] == ARN
        assert request["EncryptionContext"] == {"adyton:enclave": "translator"}
    common = {"KeyId", "EncryptionContext", "Recipient"}
    assert generate.keys() == common | {"KeySpec"}
    assert decrypt.keys() == common | {"CiphertextBlob"}
    assert generate["KeySpec"] == "AES_256"
    assert base64.b64decode(decrypt["CiphertextBlob"]) == made.request[3:]
    assert made.request[:3] == b"\x01" + len(made.request[3:]).to_bytes(2)


def test_each_new_key_is_another_and_is_bound_to_the_keys_arn(world: World) -> None:
    source = world.source()
    first, second = source.new_key(EXTERNAL), source.new_key(EXTERNAL)
    assert first.key != second.key
    assert first.binding == Binding(policy=EXTERNAL, subject=hashlib.sha256(ARN.encode()).digest())
    assert source.register(first.binding, bytes(32)) is None


# AWS' own code as the judge


def test_the_signature_is_what_awss_own_signer_made_of_it() -> None:
    headers = {
        "Host": "kms.eu-central-1.amazonaws.com",
        "X-Amz-Target": "TrentService.Decrypt",
        "Content-Type": "application/x-amz-json-1.1",
    }
    now = datetime(2026, 11, 23, 12, tzinfo=UTC)
    signed = sign(headers, b"{}", credentials=CREDENTIALS, region="eu-central-1", now=now)
    assert signed["Authorization"] == (
        "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261123/eu-central-1/kms/aws4_request, "
        "SignedHeaders=content-type;host;x-amz-date;x-amz-security-token;x-amz-target, "
        "Signature=88db08240ce34e02f5643f8a394fc17645e1bea73d37204b70150adf49504816"  # botocore 1.43.11
    )


@pytest.mark.parametrize("token", ["", CREDENTIALS.session_token])
def test_the_signature_is_what_awss_own_signer_makes_of_it_now(token: str) -> None:
    auth = pytest.importorskip("botocore.auth", reason="botocore is not installed")
    from_aws = pytest.importorskip("botocore.awsrequest").AWSRequest
    keys = pytest.importorskip("botocore.credentials").Credentials
    ours = replace(CREDENTIALS, session_token=token)
    headers = {"Host": "kms.eu-central-1.amazonaws.com:8443", "X-Amz-Target": "TrentService.Decrypt"}
    request = from_aws(method="POST", url=f"https://{headers['Host']}/", data=b'{"a": 1}', headers=headers)
    theirs = keys(ours.access_key_id, ours.secret_access_key, token or None)
    auth.SigV4Auth(theirs, "kms", "eu-central-1").add_auth(request)
    now = datetime.strptime(request.headers["X-Amz-Date"], DATE_FORMAT).replace(tzinfo=UTC)
    signed = sign(headers, b'{"a": 1}', credentials=ours, region="eu-central-1", now=now)
    assert signed == dict(request.headers.items())


def test_awss_own_client_understands_the_server(world: World, tmp_path: Path) -> None:
    session = pytest.importorskip("botocore.session", reason="botocore is not installed").get_session()
    (tmp_path / "roots.pem").write_text(world.kms.roots_pem)
    client = session.create_client(
        "kms",
        region_name="eu-central-1",
        endpoint_url=world.kms.url,
        verify=str(tmp_path / "roots.pem"),
        aws_access_key_id=CREDENTIALS.access_key_id,
        aws_secret_access_key=CREDENTIALS.secret_access_key,
        aws_session_token=CREDENTIALS.session_token,
    )
    spki = STRANGER.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    document = nitro_enclave(world.vendor, pcr0("a")).collect_document(spki)
    recipient = {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": document}
    made = client.generate_data_key(KeyId=ARN, KeySpec="AES_256", Recipient=recipient)
    again = client.decrypt(KeyId=ARN, CiphertextBlob=made["CiphertextBlob"], Recipient=recipient)
    opened = {open_envelope(answer["CiphertextForRecipient"], STRANGER) for answer in (made, again)}
    assert [len(key) for key in opened] == [32]
    with pytest.raises(client.exceptions.NotFoundException):
        client.decrypt(KeyId=OTHER_ARN, CiphertextBlob=made["CiphertextBlob"], Recipient=recipient)
    client.close()


def test_the_server_gives_nothing_to_whom_does_not_attest(world: World) -> None:
    service = KmsService(world.settings(), lambda: CREDENTIALS, None, lambda: datetime.now(UTC))
    answer = service.ask("GenerateDataKey", {"KeyId": ARN, "KeySpec": "AES_256"})
    assert (answer.status, answer.error) == (400, "AccessDeniedException")


# Whom KMS' policy lets in


def test_an_enclave_that_the_policy_does_not_allow_is_told_its_measurement(world: World) -> None:
    made = world.source().new_key(EXTERNAL)
    other = world.source(code="b")
    for error, operation in ((refusal(other), "GenerateDataKey"), (refusal(other, made), "Decrypt")):
        assert isinstance(error, UnsealError)
        assert f"policy does not let this enclave in, whose measurement (PCR0) is {pcr0('b').hex()}" in error.message
        assert error.mend == f"allow the host's role kms:{operation} where kms:RecipientAttestation:PCR0 is that"


def test_an_enclave_in_debug_mode_is_told_so(world: World) -> None:
    error = refusal(world.source(measurement=bytes(48)))
    assert isinstance(error, UnsealError)
    assert "debug mode" in error.mend


def test_an_update_of_the_policy_lets_new_code_read_what_old_code_sealed(world: World) -> None:
    made = world.source().new_key(EXTERNAL)
    world.key.allowed = [pcr0("a"), pcr0("b")]
    assert world.source(code="b").same_key(made.binding, made.request) == made.key


def test_a_document_under_another_root_is_believed_by_nobody(world: World) -> None:
    impostor = nitro_enclave(NitroVendor(now=datetime.now(UTC)), pcr0("a"))
    error = refusal(world.source(device=impostor))
    assert isinstance(error, KeyUnavailableError)
    assert error.message == "AWS KMS refuses: ValidationException"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"subject": hashlib.sha256(OTHER_ARN.encode()).digest()}, f"under another key of AWS KMS than {ARN}"),
        ({"policy": SealPolicy.MEASUREMENT}, "for another policy"),
        ({"product": b"x"}, "for another product"),
        ({"version": 1}, "for another version"),
    ],
)
def test_a_binding_that_is_not_this_keys_is_refused_before_anybody_is_asked(
    world: World, changed: dict[str, Any], message: str
) -> None:
    made = world.source().new_key(EXTERNAL)
    error = refusal(world.source(), replace(made, binding=replace(made.binding, **changed)))
    assert isinstance(error, UnsealError)
    assert message in error.message
    assert world.operations() == ["GenerateDataKey"]


# What a host may do to the request


def test_a_host_that_swaps_the_blobs_of_two_kms_keys_is_refused(world: World) -> None:
    world.kms.add_key(OTHER_ARN, allowed=[pcr0("a")])
    made, other = world.source().new_key(EXTERNAL), world.source(key_arn=OTHER_ARN).new_key(EXTERNAL)
    error = refusal(world.source(), replace(made, request=other.request))
    assert isinstance(error, SealedDataError)
    assert "IncorrectKeyException" in error.message


def test_a_host_that_swaps_the_blobs_of_two_enclaves_is_refused(world: World) -> None:
    made = world.source(enclave="bank").new_key(EXTERNAL)
    error = refusal(world.source(enclave="translator"), made)
    assert isinstance(error, SealedDataError)
    assert "InvalidCiphertextException" in error.message


def test_a_host_that_swaps_the_blobs_of_two_sealed_data_unseals_neither(world: World) -> None:
    sealer = Sealer(world.source())
    first, second = (sealer.seal(b"secret", context=context) for context in (b"first", b"second"))
    its_own, another = (parse_header(split_header(sealed)[0]).request for sealed in (first, second))
    with pytest.raises(SealedDataError):
        Sealer(world.source()).unseal(first.replace(its_own, another), context=b"first")
    assert Sealer(world.source()).unseal(first, context=b"first") == b"secret"


def test_a_request_that_was_changed_anywhere_is_refused(world: World) -> None:
    source = world.source()
    made = source.new_key(EXTERNAL)
    for place in range(0, len(made.request), 9):
        changed = bytearray(made.request)
        changed[place] ^= 1
        assert isinstance(refusal(source, replace(made, request=bytes(changed))), SealedDataError)


def test_a_request_that_kms_would_not_take_is_not_sent(world: World) -> None:
    source = world.source()
    binding = source.current(EXTERNAL)
    size = MAX_BLOB_BYTES + 1
    for request in (b"", b"\1", b"\1\0\0", b"\1\0\2x", b"\2\0\1x", b"\1" + size.to_bytes(2) + bytes(size)):
        with pytest.raises(SealedDataError, match="none that was made for AWS KMS"):
            source.same_key(binding, request)
    assert world.operations() == []


def test_what_decrypts_to_no_sealing_key_is_refused(world: World) -> None:
    context = json.dumps({"adyton:enclave": "translator"}).encode()
    blob = world.key.encrypt(b"short", context)  # as kms:Encrypt would, which the policy should allow nobody
    with pytest.raises(SealedDataError, match="no sealing key: it has 5 bytes"):
        world.source().same_key(world.source().current(EXTERNAL), b"\1" + len(blob).to_bytes(2) + blob)


# What a host, or who sits in its place, may do to the answer


def test_a_host_that_replays_another_enclaves_answer_gives_nothing(world: World) -> None:
    made = world.source().new_key(EXTERNAL)
    heard: list[Reply] = []

    def hear(reply: Reply) -> Reply:
        heard.append(reply)
        return reply

    world.kms.edits.append(hear)
    assert world.source().same_key(made.binding, made.request) == made.key
    world.kms.edits.append(lambda _: heard[0])
    error = refusal(world.source(), made)
    assert isinstance(error, KeyUnavailableError)  # the data may well be in order
    assert error.message == "AWS KMS' answer is damaged, or for another enclave: it does not open with this key"


def envelope_for(recipient: rsa.RSAPublicKey, content: bytes) -> str:
    return base64.b64encode(enveloped(recipient, content)).decode()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (giving(Plaintext=base64.b64encode(bytes(32)).decode()), "sent the key in the clear"),
        (giving(KeyId=OTHER_ARN), "with another key than the one that was asked for"),
        (giving(KeyId=None), "with another key than the one that was asked for"),
        (giving(CiphertextForRecipient=None), "no CiphertextForRecipient"),
        (giving(CiphertextForRecipient=""), "no CiphertextForRecipient"),
        (giving(CiphertextForRecipient=5), "no CiphertextForRecipient"),
        (giving(CiphertextForRecipient="*AAAA"), "no CiphertextForRecipient"),
        (giving(CiphertextForRecipient="A" * 8196), "no CiphertextForRecipient"),
        (giving(CiphertextForRecipient="AAAA"), "damaged, or for another enclave: no element 0x30"),
        (giving(CiphertextForRecipient=envelope_for(STRANGER.public_key(), bytes(32))), "for another enclave"),
        (giving(CiphertextBlob=None), "no CiphertextBlob"),
        (giving(CiphertextBlob="A" * 8196), "no CiphertextBlob"),
        (lambda _: Reply(status=200, members={}), "with another key"),
        (lambda reply: replace(reply, padding=b"}"), "with another key"),
        (lambda reply: replace(reply, body=b"[" * 60_000), "with another key"),
        (lambda reply: replace(reply, body=b"[]"), "with another key"),
        (lambda reply: replace(reply, body=b"\xff"), "with another key"),
    ],
)
def test_an_answer_that_kms_would_not_give_is_not_used(world: World, edit: Edit, message: str) -> None:
    world.kms.edits.append(edit)
    error = refusal(world.source())
    assert isinstance(error, KeyUnavailableError)
    assert message in error.message
    assert world.operations() == ["GenerateDataKey"]


def test_a_new_key_that_is_too_short_is_not_used(world: World) -> None:
    def shorten(reply: Reply) -> Reply:
        document = base64.b64decode(world.kms.asked[-1][1]["Recipient"]["AttestationDocument"])
        public_key = load_der_public_key(parse_nitro(document).public_key or b"")
        assert isinstance(public_key, rsa.RSAPublicKey)
        return giving(CiphertextForRecipient=envelope_for(public_key, b"short"))(reply)

    world.kms.edits.append(shorten)
    with pytest.raises(KeyUnavailableError, match="a key of 5 bytes, not 32"):
        world.source().new_key(EXTERNAL)


def to(port: int) -> Callable[[float], socket.socket]:
    return lambda seconds: socket.create_connection(("localhost", port), seconds)


def test_the_connection_may_come_from_a_proxy(world: World) -> None:
    with pytest.raises(KeyUnavailableError):
        world.source(endpoint="https://localhost:1", seconds=0.3).new_key(EXTERNAL)
    source = world.source(endpoint="https://localhost:1", connect=to(world.kms.port))
    assert len(source.new_key(EXTERNAL).key) == 32


def test_a_man_in_the_middle_with_another_certificate_gets_no_request(world: World) -> None:
    middle = world.elsewhere().kms
    error = refusal(world.source(connect=to(middle.port)))
    assert isinstance(error, KeyUnavailableError)
    assert "whoever answers is not localhost" in error.message
    assert middle.asked == []


def test_a_genuine_certificate_of_another_name_is_not_enough(world: World) -> None:
    error = refusal(world.source(endpoint="https://kms.eu-central-1.amazonaws.com", connect=to(world.kms.port)))
    assert isinstance(error, KeyUnavailableError)
    assert "whoever answers is not kms.eu-central-1.amazonaws.com: Hostname mismatch" in error.message
    assert world.operations() == []


def test_the_systems_roots_are_the_default(world: World) -> None:
    error = refusal(world.source(roots_pem=""))
    assert "whoever answers is not localhost" in error.message
    assert "roots_pem" in error.mend


# When KMS has no answer now


@pytest.mark.parametrize(
    "edit",
    [
        failing("ThrottlingException"),
        failing("com.amazonaws.kms#ThrottlingException"),
        failing("KMSInternalException", 500),
        failing("KeyUnavailableException", 500),
        failing("DependencyTimeoutException:http://internal.amazon.com/", 500),
        failing("TooManyRequestsException"),
        failing("SlowDown", 429),
        lambda reply: replace(reply, status=503, body=b"<html>"),
        lambda reply: replace(reply, length=10_000),
    ],
)
def test_what_may_pass_is_tried_again(world: World, impatient: None, edit: Edit) -> None:
    world.kms.edits.extend([edit, edit])
    source = world.source()
    made = source.new_key(EXTERNAL)
    assert world.operations() == ["GenerateDataKey"] * 3
    assert source.same_key(made.binding, made.request) == made.key


def test_an_attempt_that_hangs_leaves_time_for_another(world: World) -> None:
    world.kms.edits.append(hanging)
    assert len(world.source(seconds=3).new_key(EXTERNAL).key) == 32


def test_it_is_not_tried_for_ever(world: World) -> None:
    world.kms.edits.extend([failing("ThrottlingException")] * 3)
    error = refusal(world.source())
    assert isinstance(error, KeyUnavailableError)
    assert "gives no key now: ThrottlingException" in error.message
    assert world.operations() == ["GenerateDataKey"] * 3


@pytest.mark.parametrize("name", ["NotFoundException", "DisabledException", "KMSInvalidStateException"])
def test_a_key_that_is_not_to_be_used_is_unavailable_and_not_asked_for_again(world: World, name: str) -> None:
    made = world.source().new_key(EXTERNAL)
    world.key.error = name
    for error in (refusal(world.source()), refusal(world.source(), made)):
        assert isinstance(error, KeyUnavailableError)
        assert (error.message, error.mend) == (
            f"AWS KMS refuses: {name}",
            "look at the key in AWS KMS, its state and its region",
        )
    assert world.operations() == ["GenerateDataKey", "GenerateDataKey", "Decrypt"]


@pytest.mark.parametrize("name", ["", "Bad Name\n", "A" * 65, "\u00e4"])
def test_an_error_that_is_no_name_is_said_by_its_status(world: World, name: str) -> None:
    world.kms.edits.append(failing(name, 418))
    assert refusal(world.source()).message == "AWS KMS refuses: HTTP 418"


@pytest.mark.parametrize(
    "edit",
    [
        hanging,
        lambda reply: replace(reply, seconds=0.02),
        lambda reply: replace(reply, padding=b" " * MAX_ANSWER_BYTES),
        lambda reply: replace(reply, length=10**15),
        lambda reply: replace(reply, headers=f"A: {'x' * 10_000}\r\n" * 90),
    ],
    ids=["hangs", "drips", "is too long", "claims to be too long", "has headers without end"],
)
def test_an_answer_without_end_is_ended(world: World, edit: Edit) -> None:
    world.kms.edits.extend([edit] * 3)
    source = world.source(seconds=0.45)
    begin = time.monotonic()
    assert isinstance(refusal(source), KeyUnavailableError)
    assert time.monotonic() - begin < 2


def test_a_server_that_does_not_even_shake_hands_is_left(world: World) -> None:
    with socket.create_server(("localhost", 0)) as silent:
        source = world.source(connect=to(silent.getsockname()[1]), seconds=0.45)
        begin = time.monotonic()
        assert "TimeoutError" in refusal(source).message
        assert time.monotonic() - begin < 2


# The host's credentials, the enclave's clock, its NSM


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"access_key_id": "AKIDOTHER"}, "UnrecognizedClientException"),
        ({"secret_access_key": "another"}, "InvalidSignatureException"),
        ({"session_token": ""}, "UnrecognizedClientException"),
    ],
)
def test_credentials_that_are_not_known_let_nobody_in(world: World, changed: dict[str, str], name: str) -> None:
    error = refusal(world.source(credentials=lambda: replace(CREDENTIALS, **changed)))
    assert isinstance(error, KeyUnavailableError)
    assert error.message == f"AWS KMS refuses: {name}"
    assert "credentials" in error.mend
    assert world.operations() == []


def test_a_clock_that_is_wrong_is_said(world: World) -> None:
    error = refusal(world.source(clock=lambda: datetime.now(UTC) - timedelta(minutes=6)))
    assert isinstance(error, KeyUnavailableError)
    assert "clock" in error.mend


def test_the_clock_may_be_of_any_time_zone(world: World) -> None:
    zone = timezone(timedelta(hours=9))
    assert len(world.source(clock=lambda: datetime.now(zone)).new_key(EXTERNAL).key) == 32


def test_credentials_are_asked_for_anew_each_time(world: World) -> None:
    given = iter([replace(CREDENTIALS, session_token="old"), CREDENTIALS])
    source = world.source(credentials=lambda: next(given))
    refusal(source)
    assert len(source.new_key(EXTERNAL).key) == 32


@pytest.mark.parametrize("value", ["a\r\nX-Amz-Target: TrentService.Encrypt", "x y", "\u00e4", "\0"])
@pytest.mark.parametrize("part", ["access_key_id", "secret_access_key", "session_token"])
def test_credentials_that_no_header_can_carry_are_refused_unseen(world: World, part: str, value: str) -> None:
    error = refusal(world.source(credentials=lambda: replace(CREDENTIALS, **{part: value})))
    assert isinstance(error, KeyUnavailableError)
    assert error.message == "the AWS credentials are not printable ASCII"
    assert world.kms.asked == []


@pytest.mark.parametrize("part", ["access_key_id", "secret_access_key"])
def test_credentials_that_lack_a_part_are_refused(world: World, part: str) -> None:
    error = refusal(world.source(credentials=lambda: replace(CREDENTIALS, **{part: ""})))
    assert isinstance(error, KeyUnavailableError)
    assert error.message == "the AWS credentials lack a part"


def test_nothing_secret_is_said_anywhere(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    made = world.source().new_key(EXTERNAL)
    echo = f"x-amz-security-token:{CREDENTIALS.session_token} {CREDENTIALS.secret_access_key} {made.key.hex()}"
    bad_signature = Reply(status=400, members={"__type": "InvalidSignatureException", "message": echo})
    in_the_clear = giving(Plaintext=base64.b64encode(made.key).decode())
    world.kms.edits.extend([lambda _: bad_signature, in_the_clear])
    errors = [refusal(world.source(), made), refusal(world.source(), made), refusal(world.source(code="b"), made)]
    said = [caplog.text, repr(CREDENTIALS), repr(world.source()), repr(world.settings())]
    said += ["".join(traceback.format_exception(error)) for error in errors]
    key = made.key
    for secret in (CREDENTIALS.session_token, CREDENTIALS.secret_access_key, key.hex(), repr(key)[2:-1]):
        assert not [text for text in said if secret in text]


def test_the_document_is_of_the_enclaves_key_and_of_nothing_else(world: World) -> None:
    asked: list[Any] = []

    def respond(request: Any) -> bytes:
        asked.append(request)
        return cbor2.dumps({"Error": "InternalError"})

    refusal(world.source(device=NitroDevice(kernel=EmulatedKernel(Nsm(respond)))))
    ((kind, fields),) = asked[0].items()
    assert (kind, fields["user_data"], fields["nonce"]) == ("Attestation", None, None)
    public_key = load_der_public_key(fields["public_key"])
    assert isinstance(public_key, rsa.RSAPublicKey)
    assert public_key.key_size == 2048


def test_outside_of_a_nitro_enclave_it_is_unsupported(world: World) -> None:
    with pytest.raises(UnsupportedError, match="no Nitro Security Module here"):
        world.source(device=NitroDevice(kernel=EmulatedKernel()))


@pytest.mark.parametrize("response", [{"Error": "InternalError"}, {"Attestation": {"document": b"none"}}])
def test_an_nsm_that_fails_is_no_key_now(world: World, response: Any) -> None:
    device = NitroDevice(kernel=EmulatedKernel(Nsm(lambda _: cbor2.dumps(response))))
    error = refusal(world.source(device=device))
    assert isinstance(error, KeyUnavailableError)
    assert "no attestation document" in error.message


@pytest.mark.parametrize(
    "changed",
    [
        {"key_arn": "alias/mine"},
        {"key_arn": "arn:aws:kms:eu-central-1:111122223333:alias/mine"},
        {"key_arn": ARN + "\n"},
        {"enclave": ""},
        {"endpoint": "http://localhost"},
        {"endpoint": "https://user@localhost"},
        {"endpoint": "https://localhost/path"},
        {"endpoint": "https://localhost:70000"},
        {"endpoint": "https://"},
        {"roots_pem": "no PEM"},
        {"roots_pem": "\u00e4"},
    ],
)
def test_settings_that_are_wrong_are_refused(world: World, changed: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        world.source(**changed)


def test_the_endpoint_is_the_keys_region_by_default() -> None:
    assert KmsSettings(key_arn=ARN, enclave="e").url == "https://kms.eu-central-1.amazonaws.com"
    china = ARN.replace("arn:aws:", "arn:aws-cn:").replace("eu-central-1", "cn-north-1")
    assert KmsSettings(key_arn=china, enclave="e").url == "https://kms.cn-north-1.amazonaws.com.cn"


# By enclave.toml


@pytest.fixture
def bundle(world: World, tmp_path: Path) -> Path:
    """A bundle's files, the roots among them."""
    (tmp_path / "roots.pem").write_text(world.kms.roots_pem)
    return tmp_path


def context_of(device: Device | None, bundle: Path = Path(), endpoint: str = "") -> EnclaveContext:
    sealing = SealingSettings(source="aws-kms", kms=EnclaveKmsSettings(key=ARN, roots="roots.pem", endpoint=endpoint))
    settings = Settings(name="translator", application="a:B", include=("a",), sealing=sealing)
    return EnclaveContext(
        name="as the host calls it",
        settings=settings,
        vault=cast("Vault", None),  # it asks for the source, not the source for it
        application_directory=bundle,
        data_directory=Path(),
        config_sha256=bytes(32),
        device=device,
        worker=None,
        keeper=None,
        request_stop=lambda _: None,
    )


def test_it_is_what_enclave_toml_says(world: World, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", CREDENTIALS.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CREDENTIALS.secret_access_key)
    monkeypatch.setenv("AWS_SESSION_TOKEN", CREDENTIALS.session_token)
    device = nitro_enclave(world.vendor, pcr0("a"))
    made = AwsKms.of(context_of(device, bundle, world.kms.url), connect=to(world.kms.port)).new_key(EXTERNAL)
    assert world.source(enclave="translator").same_key(made.binding, made.request) == made.key


def test_an_environment_without_credentials_says_which(
    world: World, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", CREDENTIALS.access_key_id)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    error = refusal(AwsKms.of(context_of(nitro_enclave(world.vendor, pcr0("a")), bundle)))
    assert isinstance(error, KeyUnavailableError)
    assert error.message == "the environment has no AWS_SECRET_ACCESS_KEY"


def test_where_no_proxy_listens_on_vsock_there_is_no_key_now(
    world: World, bundle: Path, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", CREDENTIALS.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CREDENTIALS.secret_access_key)
    error = refusal(AwsKms.of(context_of(nitro_enclave(world.vendor, pcr0("a")), bundle)))
    assert isinstance(error, KeyUnavailableError)
    assert "AWS KMS at kms.eu-central-1.amazonaws.com gives no key now" in error.message


@pytest.mark.parametrize("device", [None, TpmDevice(kernel=EmulatedKernel())])
def test_it_is_for_nitro_enclaves_only(device: Device | None) -> None:
    with pytest.raises(UnsupportedError, match="AWS KMS gives keys to Nitro enclaves"):
        AwsKms.of(context_of(device))
