"""The devices of a TPM and of Azure's vTPM against swtpm, which runs the TPM 2.0 specification's reference code."""

from __future__ import annotations

import base64
import hashlib
import os
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from adyton.errors import EvidenceError
from adyton.tee._tpm_commands import Tpm
from adyton.tee._tpm_quote import DEFAULT_PCRS, EVENT_LOG
from adyton.tee._tpm_structures import parse_public
from adyton.tee._tpm_transport import DEVICE
from adyton.tee.azure.device import AK_HANDLE, AzureDevice
from adyton.tee.azure.verify import verify_azure
from adyton.tee.devices import find_device
from adyton.tee.evidence import EndorsementKind, Evidence
from adyton.tee.tpm.device import TpmDevice
from adyton.tee.tpm.format import parse_tpm
from adyton.tee.tpm.verify import VerifiedTpm, verify_tpm
from adyton.testing.azure import AzureRecipe, AzureVendor
from adyton.testing.forgery import NOW, Case
from adyton.testing.kernels.emulated import EmulatedKernel, Files
from adyton.testing.kernels.paravisor import Paravisor
from adyton.testing.kernels.tpm import Swtpm, TpmNode, Transmit
from adyton.testing.tpm_quotes import agile_log

pytestmark = pytest.mark.skipif(not Swtpm.is_installed(), reason="swtpm is not installed; Debian: apt install swtpm")

REPORT_DATA = bytes(range(64))
QUALIFYING_DATA = hashlib.sha256(REPORT_DATA).digest()
OWNER, PASSWORD = 0x40000001, bytes.fromhex("00000009 40000009 0000 00 0000")
RSA_AK = bytes.fromhex("0001 000b 00050072 0000 0010 0014 000b 0800 00000000 0000")
NV_BYTES = 2048
"""The largest NV index that swtpm has."""


@pytest.fixture
def swtpm(tmp_path: Path) -> Iterator[Swtpm]:
    with Swtpm(tmp_path) as running:
        yield running


def _send(transmit: Transmit, code: int, handles: bytes, parameters: bytes) -> bytes:
    """What follows the head of the response to a command with one empty password."""
    body = handles + PASSWORD + parameters
    response = transmit(struct.pack(">HII", 0x8002, 10 + len(body), code) + body)
    assert response[6:10] == bytes(4), response.hex()
    return response[10:]


def _extend(transmit: Transmit, index: int, data: bytes) -> None:
    digest = struct.pack(">IH", 1, 0x000B) + hashlib.sha256(data).digest()
    _send(transmit, 0x182, struct.pack(">I", index), digest)


def _make_persistent_ak(transmit: Transmit, handle: int) -> rsa.RSAPublicKey:
    template = struct.pack(">HIH", 4, 0, len(RSA_AK)) + RSA_AK + bytes(6)
    created = _send(transmit, 0x131, struct.pack(">I", OWNER), template)
    _send(transmit, 0x120, struct.pack(">I", OWNER) + created[:4], struct.pack(">I", handle))
    flush = struct.pack(">HII", 0x8001, 14, 0x165) + created[:4]
    assert transmit(flush)[6:10] == bytes(4)
    (size,) = struct.unpack_from(">H", created, 8)
    key = parse_public(created[10 : 10 + size]).key
    assert isinstance(key, rsa.RSAPublicKey)
    return key


def _verify(evidence: Evidence) -> VerifiedTpm:
    ak = parse_tpm(evidence.data).ak.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return verify_tpm(evidence, anchors={hashlib.sha256(ak).digest()}, now=NOW)


def test_what_a_tpm_quotes_is_genuine(swtpm: Swtpm) -> None:
    _extend(swtpm.transmit, 7, b"secure boot")
    with EmulatedKernel(TpmNode(swtpm.transmit)) as kernel:
        device = find_device(kernel=kernel)
        assert isinstance(device, TpmDevice)
        verified = _verify(device.collect_evidence(REPORT_DATA))
    (bank, values), *others = verified.quote.pcrs.items()
    assert (verified.report_data, bank, tuple(values), others) == (QUALIFYING_DATA, "sha256", DEFAULT_PCRS, [])
    assert values[7] == hashlib.sha256(bytes(32) + hashlib.sha256(b"secure boot").digest()).digest()
    assert values[4] == bytes(32)


def test_the_key_is_the_same_each_time_and_never_stays(swtpm: Swtpm) -> None:
    with EmulatedKernel(TpmNode(swtpm.transmit)) as kernel:
        device = TpmDevice(pcrs=range(24), kernel=kernel)
        keys = {_verify(device.collect_evidence(bytes([index]) * 64)).ak_sha256 for index in range(10)}
    assert len(keys) == 1


def test_a_persistent_key_signs(swtpm: Swtpm) -> None:
    key = _make_persistent_ak(swtpm.transmit, 0x81010002)
    with EmulatedKernel(TpmNode(swtpm.transmit)) as kernel:
        verified = _verify(TpmDevice(ak_handle=0x81010002, kernel=kernel).collect_evidence(REPORT_DATA))
        with pytest.raises(EvidenceError, match=r"the TPM refused READ_PUBLIC: HANDLE \(0x18b\)"):
            TpmDevice(ak_handle=0x81010003, kernel=kernel).collect_evidence(REPORT_DATA)
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert verified.ak_sha256 == hashlib.sha256(spki).digest()


def test_the_event_log_gives_the_quoted_pcrs(swtpm: Swtpm) -> None:
    events = [(4, 5, b"boot loader"), (4, 4, bytes(4)), (7, 4, bytes(4))]
    for index, _, data in events:
        _extend(swtpm.transmit, index, data)
    _extend(swtpm.transmit, 7, b"what the log does not know")
    files = Files(**{EVENT_LOG: agile_log(events, banks=["sha256"])})
    with EmulatedKernel(TpmNode(swtpm.transmit), files) as kernel:
        verified = _verify(TpmDevice(kernel=kernel).collect_evidence(REPORT_DATA))
    assert {index: [each.data for each in some] for index, some in verified.quote.events.items()} == {
        4: [b"boot loader", bytes(4)]
    }


def test_pcrs_that_are_extended_meanwhile_are_read_again(swtpm: Swtpm) -> None:
    extended: list[bytes] = []

    def transmit(command: bytes) -> bytes:
        if command[6:10] == bytes.fromhex("00000158") and len(extended) < 2:  # TPM2_Quote
            extended.append(command)
            _extend(swtpm.transmit, 4, b"late")
        return swtpm.transmit(command)

    with EmulatedKernel(TpmNode(transmit)) as kernel:
        verified = _verify(TpmDevice(kernel=kernel).collect_evidence(REPORT_DATA))
    assert (len(extended), verified.quote.pcrs["sha256"][4] == bytes(32)) == (2, False)


def test_many_threads_each_get_their_own_quote(swtpm: Swtpm) -> None:
    asked = [bytes([index]) * 64 for index in range(12)]
    with EmulatedKernel(TpmNode(swtpm.transmit)) as kernel, ThreadPoolExecutor(4) as threads:
        device = TpmDevice(kernel=kernel)
        got = list(threads.map(lambda data: _verify(device.collect_evidence(data)).report_data, asked))
    assert got == [hashlib.sha256(data).digest() for data in asked]


def test_a_refusal_of_a_real_tpm_is_said_by_its_name(swtpm: Swtpm) -> None:
    with EmulatedKernel(TpmNode(swtpm.transmit)) as kernel:
        descriptor = kernel.open(DEVICE, os.O_RDWR)
        tpm = Tpm(kernel, descriptor)
        tpm.nv_define(0x01500000, 64)
        with pytest.raises(EvidenceError, match="the TPM refused NV_DEFINE_SPACE: NV_DEFINED"):
            tpm.nv_define(0x01500000, 64)
        with pytest.raises(EvidenceError, match="the TPM refused NV_READ: NV_UNINITIALIZED"):
            tpm.nv_read(0x01500000, 64)
        with pytest.raises(EvidenceError, match="the TPM refused NV_WRITE: NV_RANGE"):
            tpm.nv_write(0x01500000, bytes(65))
        assert (tpm.nv_size(0x01500000), tpm.nv_size(0x01500001)) == (64, None)
        kernel.close(descriptor)


def _azure_case(ak: rsa.RSAPublicKey, user_data: bytes) -> Case:
    modulus = base64.urlsafe_b64encode(ak.public_numbers().n.to_bytes(256, "big")).rstrip(b"=").decode()
    claims = {
        "keys": [{"kid": "HCLAkPub", "kty": "RSA", "e": "AQAB", "n": modulus}],
        "user-data": user_data.hex().upper(),
    }
    return AzureVendor().case(AzureRecipe(edit_runtime=lambda _: claims))


def test_what_a_paravisor_and_its_vtpm_say_is_genuine(swtpm: Swtpm) -> None:
    ak = _make_persistent_ak(swtpm.transmit, AK_HANDLE)

    def report(user_data: bytes) -> bytes:
        hcl: bytes = cbor2.loads(_azure_case(ak, user_data).evidence.data)["hcl_report"]
        return hcl.rstrip(b"\0")

    node = TpmNode(Paravisor(swtpm.transmit, report, size=NV_BYTES).transmit)
    with EmulatedKernel(node) as kernel:
        device = find_device(kernel=kernel)
        assert isinstance(device, AzureDevice)
        evidence = device.collect_evidence(REPORT_DATA)
    case = _azure_case(ak, REPORT_DATA)
    chip = tuple(each for each in case.evidence.endorsements if each.kind is EndorsementKind.CERTIFICATE)
    verified = verify_azure(replace(evidence, endorsements=chip), anchors=case.anchors, now=case.now)
    assert (verified.report_data, verified.hardware_tee) == (QUALIFYING_DATA, "snp")
    assert tuple(verified.quote.pcrs["sha256"]) == DEFAULT_PCRS
