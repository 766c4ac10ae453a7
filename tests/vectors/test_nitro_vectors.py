"""Attestation documents that real Nitro hypervisors signed, in 2021 and 2025, and what others made of them."""

from __future__ import annotations

import base64
import hashlib
from datetime import datetime, timedelta
from typing import Any

import pytest
from real_vectors import content, ids, manifest, needs_vectors

from adyton.errors import EvidenceError
from adyton.tee.evidence import Evidence
from adyton.tee.nitro.format import parse_nitro
from adyton.tee.nitro.verify import ANCHORS, VerifiedNitro, verify_nitro
from adyton.testing.forgery import NOW
from adyton.testing.simulated import certificate

pytestmark = needs_vectors

ROOT = "nitro/roots/aws_nitro_root_g1.pem"
OTHER_ROOTS = {
    # one character of the base64 differs from AWS's root, and the length of the issuer's name is wrong
    "nitro/negative/fortanix_tampered_root_cert.crt": "the root of the Nitro document does not parse",
    # Intel's root
    "nitro/negative/fortanix_unknown_ca.crt": "no valid path to the trusted root",
}
NEGATIVES = {
    "nitro/negative/fortanix_tampered_certificate.bin": "the certificate of the Nitro document does not parse",
    "nitro/negative/fortanix_tampered_signature.bin": "the signature of the Nitro document does not verify",
}
TAMPERED_WITH = "nitro/fortanix_request_proper.bin"
"""What the negatives were made from."""

# dstack wraps a document: version and length before it, a run-time event log and configuration after it. The manifest
# calls two of these "evidence", and says of all of them where in the file the document is.
BUNDLES = [name for name in ids("nitro", "evidence", "evidence-bundle") if manifest()[name]["measured"]["offset"]]
DOCUMENTS = [
    name for name in ids("nitro", "evidence", "evidence-bundle") if name not in BUNDLES and name not in NEGATIVES
]


def _measured(name: str) -> dict[str, Any]:
    measured: dict[str, Any] = manifest()[name]["measured"]
    return measured


def _document(name: str) -> bytes:
    """The file without what is wrapped around the document."""
    data, measured = content(name), _measured(name)
    return data[measured["offset"] : len(data) - measured["trailing"]]


def _verify_time(name: str) -> datetime:
    return datetime.fromisoformat(manifest()[name]["expected"]["verify_time"])


def _verified(data: bytes, now: datetime) -> VerifiedNitro:
    return verify_nitro(Evidence(tee="nitro", data=data), anchors=ANCHORS, now=now)


def _der(name: str) -> bytes:
    lines = content(name).decode().strip().splitlines()
    assert (lines[0], lines[-1]) == ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----")
    return base64.b64decode("".join(lines[1:-1]), validate=True)


def test_every_vector_is_used() -> None:
    assert {*DOCUMENTS, *BUNDLES, *NEGATIVES, *OTHER_ROOTS, ROOT} == set(ids("nitro"))
    assert all(manifest()[name]["expected"]["authentic_at_document_time"] for name in (*DOCUMENTS, *BUNDLES))
    assert not any(manifest()[name]["expected"]["authentic_at_document_time"] for name in NEGATIVES)


@pytest.mark.parametrize("name", [*DOCUMENTS, *BUNDLES])
def test_a_document_of_real_hardware_is_genuine_and_says_what_others_read_in_it(name: str) -> None:
    measured = _measured(name)
    verified = _verified(_document(name), _verify_time(name))
    assert verified.timestamp == datetime.fromisoformat(measured["timestamp"]) == _verify_time(name)
    assert (verified.module_id, verified.debug) == (measured["module_id"], measured["pcr0_zero"])
    assert verified.debug == manifest()[name]["expected"]["debug_all_zero_pcr0"]
    assert len(verified.pcrs) == measured["n_pcrs"]
    assert {str(index): value.hex() for index, value in verified.pcrs.items() if any(value)} == measured["pcrs"]
    for key in ("user_data", "nonce", "public_key"):
        value = getattr(verified, key)
        assert (None if value is None else len(value)) == measured[key]


@pytest.mark.parametrize("name", [*DOCUMENTS, *BUNDLES])
def test_a_document_is_genuine_in_the_hours_of_its_certificate_only(name: str) -> None:
    first, last = map(datetime.fromisoformat, _measured(name)["leaf_window"])
    document = _document(name)
    assert _verified(document, first).timestamp - first < timedelta(seconds=5)
    _verified(document, last)
    with pytest.raises(EvidenceError, match="the certificate of the Nitro document is not yet valid"):
        _verified(document, first - timedelta(microseconds=1))
    for late in (last + timedelta(microseconds=1), NOW):
        with pytest.raises(EvidenceError, match="the certificate of the Nitro document has expired"):
            _verified(document, late)


@pytest.mark.parametrize("name", [*DOCUMENTS, *BUNDLES])
def test_the_form_is_what_the_manifest_says(name: str) -> None:
    measured = _measured(name)
    document = parse_nitro(_document(name))
    assert measured["tag"] is None
    assert _document(name)[:1] == b"\x84"
    assert len(document.cabundle) + 1 == measured["chain_len"]
    assert measured["cabundle0_is_root"]
    assert document.cabundle[0] == _der(ROOT)


@pytest.mark.parametrize("name", BUNDLES)
def test_what_is_wrapped_around_a_document_is_not_ignored(name: str) -> None:
    with pytest.raises(EvidenceError, match="the Nitro document goes on after its end"):
        _verified(content(name), _verify_time(name))
    with pytest.raises(EvidenceError, match="the Nitro document goes on after its end"):
        _verified(content(name)[_measured(name)["offset"] :], _verify_time(name))


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if "via" in manifest()[name]["source"]])
def test_an_extracted_document_is_the_one_in_its_bundle(name: str) -> None:
    assert content(name) == _document(manifest()[name]["source"]["via"])


@pytest.mark.parametrize("name", NEGATIVES)
def test_a_document_that_was_tampered_with_is_refused_for_that(name: str) -> None:
    with pytest.raises(EvidenceError, match=NEGATIVES[name]):
        _verified(content(name), _verify_time(TAMPERED_WITH))


def test_the_root_is_the_pinned_one() -> None:
    assert {hashlib.sha256(_der(ROOT)).digest()} == ANCHORS


@pytest.mark.parametrize("name", OTHER_ROOTS)
def test_another_root_does_not_vouch_even_if_it_is_pinned(name: str) -> None:
    root = _der(name)
    evidence = Evidence(tee="nitro", data=content(TAMPERED_WITH), endorsements=(certificate(root),))
    with pytest.raises(EvidenceError, match=OTHER_ROOTS[name]):
        verify_nitro(evidence, anchors={hashlib.sha256(root).digest()}, now=_verify_time(TAMPERED_WITH))
    with pytest.raises(EvidenceError, match="does not end in a root that is trusted"):
        verify_nitro(evidence, anchors={bytes(32)}, now=_verify_time(TAMPERED_WITH))
