"""The device in a Nitro enclave, against an emulated NSM that reads and writes the memory it is pointed to."""

from __future__ import annotations

import errno
import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cbor2
import pytest

from adyton.errors import EvidenceError, UnsupportedError
from adyton.tee.evidence import MAX_EVIDENCE_BYTES
from adyton.tee.nitro.device import NSM_IOCTL_RAW, RESPONSE_BYTES, NitroDevice
from adyton.testing.kernels.emulated import Driver, EmulatedKernel, OpenFile
from adyton.testing.kernels.nsm import Nsm, documents

REPORT_DATA = bytes(range(64))


def _document(user_data: bytes) -> bytes:
    return b"document over " + user_data


def _ask(response: Any) -> bytes:
    """What comes of an NSM that always gives this response, encoded unless it is bytes."""
    encoded = response if type(response) is bytes else cbor2.dumps(response)
    with EmulatedKernel(Nsm(lambda _: encoded)) as kernel:
        return NitroDevice(kernel=kernel).collect_evidence(REPORT_DATA).data


def test_the_document_over_our_data_is_the_evidence() -> None:
    with EmulatedKernel(Nsm(documents(_document))) as kernel:
        device = NitroDevice(kernel=kernel)
        device.check_present()
        evidence = device.collect_evidence(REPORT_DATA)
    assert (evidence.tee, evidence.data, evidence.endorsements) == ("nitro", _document(REPORT_DATA), ())


def test_the_request_is_what_aws_documents() -> None:
    requests: list[Any] = []

    def respond(request: Any) -> bytes:
        requests.append(request)
        return documents(_document)(request)

    with EmulatedKernel(Nsm(respond)) as kernel:
        NitroDevice(kernel=kernel).collect_evidence(REPORT_DATA)
    assert requests == [{"Attestation": {"user_data": REPORT_DATA, "nonce": None, "public_key": None}}]


def test_many_threads_each_get_their_own_document() -> None:
    kernel = EmulatedKernel(Nsm(documents(_document)))
    device = NitroDevice(kernel=kernel)
    asked = [hashlib.sha512(bytes([index])).digest() for index in range(60)]
    with kernel, ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda data: device.collect_evidence(data).data, asked)) == list(map(_document, asked))


def test_outside_of_a_nitro_enclave_it_is_unsupported() -> None:
    device = NitroDevice(kernel=EmulatedKernel())
    for call in (device.check_present, lambda: device.collect_evidence(REPORT_DATA)):
        with pytest.raises(UnsupportedError, match="no Nitro Security Module here: ENOENT") as caught:
            call()
        assert "Linux 6.8" in caught.value.mend


@pytest.mark.parametrize("number", [errno.EIO, errno.ETIMEDOUT, errno.EMSGSIZE, errno.ENODATA])
def test_an_nsm_that_fails_is_said(number: int) -> None:
    kernel = EmulatedKernel(Nsm(documents(_document)))
    kernel.fail("ioctl", "nsm", number)
    with kernel, pytest.raises(EvidenceError, match=f"Nitro Security Module failed: {errno.errorcode[number]}"):
        NitroDevice(kernel=kernel).collect_evidence(REPORT_DATA)


def test_a_refusal_of_the_nsm_is_said_in_its_words() -> None:
    with pytest.raises(EvidenceError, match="the NSM refused: 'InputTooLarge'"):
        _ask({"Error": "InputTooLarge"})
    with pytest.raises(EvidenceError, match=r"the NSM refused: '(\\x07){64}'$"):
        _ask({"Error": "\7" * 1000})


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (b"", "the NSM's response is not well-formed CBOR"),
        ("InvalidArgument", "the NSM's response is no map but str"),
        (["Attestation"], "is no map but tuple"),
        ({}, "has neither a document nor an error"),
        ({"Attestation": {}}, "has neither a document nor an error"),
        ({"Attestation": {"document": "text"}}, "has neither a document nor an error"),
        ({"Error": 5}, "has neither a document nor an error"),
        (cbor2.dumps({"Error": "InternalError"}) + b"\0", "goes on after its end"),
        ({"Attestation": {"document": bytes(RESPONSE_BYTES)}}, "not well-formed"),  # cut off, without a word
        ({"Attestation": {"document": b""}}, f"0 bytes of evidence; 1 to {MAX_EVIDENCE_BYTES}"),
    ],
)
def test_a_response_that_is_none_is_refused(response: Any, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        _ask(response)


def test_a_driver_that_says_it_wrote_beyond_its_room_is_not_believed() -> None:
    class Lying(Driver):
        def open(self, path: str, flags: int) -> OpenFile:
            return LyingFile()

    class LyingFile(OpenFile):
        def ioctl(self, request: int, buffer: bytearray) -> int:
            assert request == NSM_IOCTL_RAW
            buffer[24:32] = b"\xff" * 8
            return 0

    with EmulatedKernel(Lying()) as kernel, pytest.raises(EvidenceError, match="in room for 12288"):
        NitroDevice(kernel=kernel).collect_evidence(REPORT_DATA)
