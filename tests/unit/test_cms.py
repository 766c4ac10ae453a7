"""CMS EnvelopedData as AWS KMS sends it: made by OpenSSL and by our own server, and everything that is none."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from certificates import certificate, key
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from adyton.enclave.key_sources._cms import DATA, ENVELOPED_DATA, MAX_ENVELOPE_BYTES, open_envelope
from adyton.testing.kms_keys import enveloped

CONTENT = bytes(range(32))
KEY: rsa.RSAPrivateKey = key("rsa2048")
GENUINE = enveloped(KEY.public_key(), CONTENT)
SIGNED_DATA = DATA[:-1] + b"\x02"
RSA = "rsa2048"
OAEP = ("-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_md:sha256")


def openssl(
    folder: Path, *options: str, content: bytes = CONTENT, to: tuple[str, ...] = OAEP, recipients: int = 1
) -> bytes:
    """What OpenSSL encrypts to KEY, named by its subjectKeyIdentifier."""
    identifier = x509.SubjectKeyIdentifier.from_public_key(KEY.public_key())
    pem = certificate(RSA, RSA, (identifier, False), keys=(RSA, RSA)).public_bytes(Encoding.PEM)
    (folder / "recipient.pem").write_bytes(pem)
    (folder / "content").write_bytes(content)
    recipient = ["-recip", "recipient.pem", *to] * recipients
    command = ["openssl", "cms", "-encrypt", "-binary", "-in", "content", "-outform", "DER", *options, *recipient]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True).stdout


@pytest.mark.parametrize("options", [[], ["-stream", "-indef"]], ids=["definite", "indefinite"])
@pytest.mark.parametrize("size", [0, 16, 32, 5000])
def test_what_openssl_encrypts_is_opened(tmp_path: Path, options: list[str], size: int) -> None:
    content = os.urandom(size)
    assert open_envelope(openssl(tmp_path, "-aes256", "-keyid", *options, content=content), KEY) == content


@pytest.mark.parametrize("in_pieces", [True, False])
def test_what_kms_encrypts_is_opened_in_both_of_its_forms(in_pieces: bool) -> None:
    assert open_envelope(enveloped(KEY.public_key(), CONTENT, in_pieces=in_pieces), KEY) == CONTENT


def test_openssl_opens_what_our_server_encrypts(tmp_path: Path) -> None:
    pem = certificate(RSA, RSA, keys=(RSA, RSA)).public_bytes(Encoding.PEM)
    (tmp_path / "key.pem").write_bytes(pem + KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "envelope").write_bytes(GENUINE)
    command = ["openssl", "cms", "-decrypt", "-binary", "-in", "envelope", "-inform", "DER", "-inkey", "key.pem"]
    assert subprocess.run(command, cwd=tmp_path, check=True, capture_output=True).stdout == CONTENT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-aes256"], "element 0x02 before 26 is not what KMS sends"),  # named by issuer and serial number
        (["-aes128", "-keyid"], "is not what KMS sends"),
        (["-aes-256-gcm", "-keyid"], "is not what KMS sends"),
    ],
)
def test_other_algorithms_and_recipients_are_refused(tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_envelope(openssl(tmp_path, *options), KEY)


def test_a_key_that_is_not_encrypted_with_oaep_and_sha_256_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not encrypted with RSAES-OAEP and SHA-256"):
        open_envelope(openssl(tmp_path, "-aes256", "-keyid", to=()), KEY)
    with pytest.raises(ValueError, match="not encrypted with RSAES-OAEP and SHA-256"):
        open_envelope(openssl(tmp_path, "-aes256", "-keyid", to=OAEP[:2]), KEY)  # SHA-1


def test_an_envelope_for_two_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bytes more than there should be"):
        open_envelope(openssl(tmp_path, "-aes256", "-keyid", recipients=2), KEY)


def test_another_key_opens_nothing_and_the_error_does_not_say_what_failed() -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    broken_padding = bytearray(GENUINE)
    broken_padding[GENUINE.rindex(b"\0" * 10) - 17] ^= 1  # the last byte of the last block but one
    for envelope, private in ((GENUINE, other), (bytes(broken_padding), KEY)):
        with pytest.raises(ValueError, match=r"^it does not open with this key$") as caught:
            open_envelope(envelope, private)
        assert caught.value.__cause__ is None


def test_nothing_may_lack_and_nothing_may_follow() -> None:
    for end in range(len(GENUINE)):
        with pytest.raises(ValueError):
            open_envelope(GENUINE[:end], KEY)
    with pytest.raises(ValueError, match="1 bytes more than there should be"):
        open_envelope(GENUINE + b"\0", KEY)


@pytest.mark.parametrize(
    ("envelope", "message"),
    [
        (bytes(MAX_ENVELOPE_BYTES + 1), "6145 bytes; 6144 are allowed"),
        (b"\x31\x80", "no element 0x30"),
        (b"\x30\x80\x06\x80", "the element 0x06 has no length"),
        (b"\x30\x03\x06\x09\x2a", "the element 0x06 goes on after what holds it"),
        (b"\x30\xff" + b"\xff" * 127, "the element 0x30 goes on after what holds it"),
        (b"\x30\x84\x01", "it ends after 2 bytes"),
        (GENUINE[:-2] + b"\x05\0", "more than there should be in the element 0x30"),
        (GENUINE.replace(DATA, SIGNED_DATA), "element 0x06 before 400 is not what KMS sends"),
        (GENUINE.replace(ENVELOPED_DATA, SIGNED_DATA), "element 0x06 before 13 is not what KMS sends"),
        (GENUINE.replace(b"\xa0\x80\x04", b"\xa0\x80\x24"), "more than there should be in the element 0xa0"),
    ],
)
def test_what_is_no_such_ber_is_refused_by_what_is_wrong(envelope: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_envelope(envelope, KEY)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    with pytest.raises(ValueError):
        open_envelope(data, KEY)


@given(st.integers(0, len(GENUINE) - 1), st.integers(0, 255))
def test_no_change_raises_anything_else(place: int, value: int) -> None:
    changed = GENUINE[:place] + bytes([value]) + GENUINE[place + 1 :]
    try:
        content = open_envelope(changed, KEY)
    except ValueError:
        return
    assert len(content) <= len(CONTENT) + 16
