"""Evidence and endorsements from files: every form that they may have, and what they may not be."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import struct
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from adyton.cli.evidence_files import (
    MAX_COLLATERAL_FILES,
    load_endorsements,
    load_evidence,
    parse_endorsements,
    parse_evidence_file,
    read_file,
    staple,
)
from adyton.errors import ConfigurationError, EvidenceError
from adyton.tee.evidence import (
    MAX_ENDORSEMENT_BYTES,
    MAX_ENDORSEMENTS,
    MAX_EVIDENCE_BYTES,
    Endorsement,
    EndorsementKind,
    Evidence,
)
from adyton.tee.message import encode_evidence
from adyton.tee.registry import TEES
from adyton.testing.dcap import DcapVendor
from adyton.testing.dcap_pki import PkiRecipe, pki
from adyton.testing.samples import genuine

EVIDENCE = genuine("simulated").evidence
CERTIFICATE = EVIDENCE.endorsements[0]
RAW = Evidence(tee="simulated", data=EVIDENCE.data)
KEY = ec.generate_private_key(ec.SECP256R1())
SPKI = KEY.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
CRL = pki(PkiRecipe()).root_crl().public_bytes(serialization.Encoding.DER)
COLLATERAL = DcapVendor().collateral("tdx").data
EVENT = struct.pack("<II20sI", 0, 8, hashlib.sha1(b"boot").digest(), 4) + b"boot"


def pem(label: str, der: bytes) -> bytes:
    lines = "\n".join(textwrap.wrap(base64.b64encode(der).decode(), 64))
    return f"-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n".encode()


def wrapped(text: bytes) -> bytes:
    return b"\r\n".join(text[start : start + 60] for start in range(0, len(text), 60)) + b"\n"


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "as it is": lambda data: data,
    "in hexadecimal": lambda data: data.hex().encode(),
    "in upper case on many lines": lambda data: b"  " + wrapped(data.hex().upper().encode()),
    "in base64": base64.b64encode,
    "in base64 on many lines": lambda data: wrapped(base64.b64encode(data)),
    "in base64 of URLs, unpadded": lambda data: base64.urlsafe_b64encode(data).rstrip(b"="),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_evidence_in_every_form(form: Callable[[bytes], bytes]) -> None:
    assert parse_evidence_file(form(RAW.data), None) == RAW
    assert parse_evidence_file(form(encode_evidence(EVIDENCE)), None) == EVIDENCE


@pytest.mark.parametrize("label", sorted(TEES))
def test_evidence_of_every_tee(label: str) -> None:
    evidence = genuine(label).evidence
    assert parse_evidence_file(evidence.data, None) == Evidence(tee=label, data=evidence.data)
    assert parse_evidence_file(encode_evidence(evidence), None) == evidence


def test_a_label_overrules_what_is_said_and_what_is_seen() -> None:
    assert parse_evidence_file(RAW.data, "psa").tee == "psa"
    assert parse_evidence_file(encode_evidence(EVIDENCE), "psa").tee == "psa"
    assert parse_evidence_file(b"\x00", "psa") == Evidence(tee="psa", data=b"\x00")


@pytest.mark.parametrize("content", [b"", b" \n", b"hello", b"{}", b"\x30\x00", b"abc", b"a===", b"A", bytes(99)])
def test_what_is_no_evidence(content: bytes) -> None:
    with pytest.raises(EvidenceError, match="no evidence of a known format"):
        parse_evidence_file(content, None)


def test_evidence_is_bounded() -> None:
    with pytest.raises(EvidenceError, match="65536 are allowed"):
        parse_evidence_file(RAW.data.ljust(MAX_EVIDENCE_BYTES + 1, b"\0"), None)


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode), st.sampled_from([None, "nitro"]))
def test_any_bytes_are_evidence_or_refused(content: bytes, label: str | None) -> None:
    with contextlib.suppress(EvidenceError):
        assert parse_evidence_file(content, label).tee


@given(st.binary(max_size=300), st.sampled_from([".pem", ".key", ".json", ""]))
def test_any_bytes_are_endorsements_or_refused(data: bytes, suffix: str) -> None:
    for prefix in (b"", b"{", b"\x30", b"-----BEGIN X-----\n"):
        with contextlib.suppress(EvidenceError):
            assert parse_endorsements(prefix + data, suffix)


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert read_file(tmp_path / "fifo", at_most=10) == b""
    for path, why in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigurationError, match=f"can't read .*{why}"):
            load_evidence(str(path), None)
    (tmp_path / "large").write_bytes(bytes(11))
    with pytest.raises(ConfigurationError, match="large is larger than 10 bytes"):
        read_file(tmp_path / "large", at_most=10)
    assert read_file(tmp_path / "large", at_most=11) == bytes(11)


ENDORSEMENTS = {
    "a certificate": (CERTIFICATE.data, ".bin", EndorsementKind.CERTIFICATE, CERTIFICATE.data),
    "a certificate in PEM": (pem("CERTIFICATE", CERTIFICATE.data), "", EndorsementKind.CERTIFICATE, CERTIFICATE.data),
    "a revocation list": (CRL, ".crl", EndorsementKind.CRL, CRL),
    "a revocation list in PEM": (pem("X509 CRL", CRL), ".pem", EndorsementKind.CRL, CRL),
    "a public key": (SPKI, "", EndorsementKind.PUBLIC_KEY, SPKI),
    "a public key in PEM": (pem("PUBLIC KEY", SPKI), ".key", EndorsementKind.PUBLIC_KEY, SPKI),
    "collateral": (COLLATERAL, "", EndorsementKind.DCAP_COLLATERAL, COLLATERAL),
    "an event log": (EVENT * 3, "", EndorsementKind.EVENT_LOG, EVENT * 3),
    "a shared key": (b"\x30 any bytes", ".key", EndorsementKind.SYMMETRIC_KEY, b"\x30 any bytes"),
}


@pytest.mark.parametrize(("content", "suffix", "kind", "data"), ENDORSEMENTS.values(), ids=ENDORSEMENTS)
def test_an_endorsement_of_each_kind(content: bytes, suffix: str, kind: EndorsementKind, data: bytes) -> None:
    assert parse_endorsements(content, suffix) == [Endorsement(kind=kind, data=data)]


def test_amds_certificates_which_all_have_the_serial_number_0() -> None:
    stapled = genuine("snp").evidence.endorsements
    chain = b"text before\n" + b"".join(pem("CERTIFICATE", item.data) for item in stapled)
    assert tuple(parse_endorsements(chain, ".pem")) == stapled


NO_ENDORSEMENTS = {
    "nothing": b"",
    "a text": b"Read me.",
    "JSON of something else": b'{"tcb_info": 1}',
    "JSON that is none": b"{" * 1000,
    "DER of something else": b"\x30\x00",
    "a private key": pem("PRIVATE KEY", b"\x30\x00"),
    "PEM without an end": pem("CERTIFICATE", CERTIFICATE.data).partition(b"-----END")[0],
    "PEM that is no base64": b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
}


@pytest.mark.parametrize("content", NO_ENDORSEMENTS.values(), ids=NO_ENDORSEMENTS)
def test_what_is_no_endorsement(content: bytes) -> None:
    with pytest.raises(EvidenceError):
        parse_endorsements(content, ".pem")


def test_a_folder_of_endorsements(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.pem").write_bytes(pem("CERTIFICATE", CERTIFICATE.data))
    (tmp_path / "b.der").write_bytes(CERTIFICATE.data)
    (tmp_path / "c.crl").write_bytes(CRL)
    (tmp_path / "evil\n\x1b[2J").write_bytes(b"junk")
    (tmp_path / "large.log").write_bytes(bytes(MAX_ENDORSEMENT_BYTES + 1))
    found = load_endorsements(tmp_path)
    assert [item.kind for item in found] == [EndorsementKind.CERTIFICATE, EndorsementKind.CRL]
    talk = capsys.readouterr().err.splitlines()
    assert len(talk) == 4
    assert "evil\\u000a\\u001b[2J: it is no endorsement; read as an event log, the event log ends" in talk[0]
    assert talk[1].endswith("fifo: it is no file")
    assert talk[2].endswith("folder: it is no file")
    assert "large.log is larger than 524288 bytes" in talk[3]


def test_a_folder_that_can_not_be_read_or_holds_too_much(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        load_endorsements(tmp_path / "none")
    for number in range(MAX_COLLATERAL_FILES + 1):
        (tmp_path / str(number)).touch()
    with pytest.raises(ConfigurationError, match="holds more than 256 files"):
        load_endorsements(tmp_path)


def test_each_endorsement_is_stapled_once() -> None:
    other = Endorsement(kind=EndorsementKind.CRL, data=CRL)
    assert staple(EVIDENCE, (CERTIFICATE, other)).endorsements == (CERTIFICATE, other)
    many = tuple(Endorsement(kind=EndorsementKind.CRL, data=bytes([number])) for number in range(MAX_ENDORSEMENTS))
    assert len(staple(RAW, many).endorsements) == MAX_ENDORSEMENTS
    with pytest.raises(ConfigurationError, match="33 endorsements; 32 are allowed"):
        staple(EVIDENCE, many)
