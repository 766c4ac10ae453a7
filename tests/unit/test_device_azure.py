"""The device in a confidential VM of Azure, against an emulated vTPM with a paravisor behind it."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from dataclasses import replace

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from adyton.errors import EvidenceError, UnsupportedError
from adyton.tee._tpm_quote import DEFAULT_PCRS, EVENT_LOG
from adyton.tee._tpm_transport import DEVICE
from adyton.tee.azure.device import AK_HANDLE, HCL_REPORT_INDEX, REFRESH_SECONDS, USER_DATA_INDEX, AzureDevice
from adyton.tee.azure.format import HardwareTee, parse_azure
from adyton.tee.azure.verify import verify_azure
from adyton.tee.evidence import Endorsement, EndorsementKind
from adyton.testing.azure import AzureRecipe, AzureVendor
from adyton.testing.forgery import Case
from adyton.testing.kernels.emulated import EmulatedKernel, Files
from adyton.testing.kernels.paravisor import Paravisor
from adyton.testing.kernels.soft_tpm import SoftTpm
from adyton.testing.kernels.tpm import TpmNode
from adyton.testing.tpm_quotes import key

REPORT_DATA = bytes(range(64))
QUALIFYING_DATA = hashlib.sha256(REPORT_DATA).digest()


@functools.cache
def _case(hardware: HardwareTee, user_data: bytes) -> Case:
    """Evidence in which the paravisor reports on that user data."""
    told = {"user-data": user_data.hex().upper()}
    return AzureVendor().case(AzureRecipe(hardware=hardware, edit_runtime=lambda runtime: runtime | told))


def _part(name: str, hardware: HardwareTee, user_data: bytes) -> bytes:
    part: bytes = cbor2.loads(_case(hardware, user_data).evidence.data)[name]
    return part


def _of_snp(user_data: bytes) -> bytes:
    return _part("hcl_report", "snp", user_data)


def _of_tdx(user_data: bytes) -> bytes:
    return _part("hcl_report", "tdx", user_data)


def _soft_tpm() -> SoftTpm:
    ak = key("rsa")
    assert isinstance(ak, rsa.RSAPrivateKey)
    return SoftTpm(rsa_ak=ak, ak_handle=AK_HANDLE)


def _vm(report: Callable[[bytes], bytes] = _of_tdx, **options: int) -> tuple[EmulatedKernel, SoftTpm]:
    soft = _soft_tpm()
    return EmulatedKernel(TpmNode(Paravisor(soft.transmit, report, **options).transmit)), soft


def _check_refused(kernel: EmulatedKernel, message: str) -> None:
    with kernel, pytest.raises(EvidenceError, match=message):
        AzureDevice(kernel=kernel, td_quote=bytes).collect_evidence(REPORT_DATA)


@pytest.mark.parametrize("hardware", ["snp", "tdx"])
def test_the_evidence_is_genuine_with_what_azure_serves(hardware: HardwareTee) -> None:
    case, asked = _case(hardware, REPORT_DATA), []

    def td_quote(tdreport: bytes) -> bytes:
        asked.append(tdreport)
        return _part("td_quote", hardware, REPORT_DATA)

    kernel, soft = _vm(_of_snp if hardware == "snp" else _of_tdx)
    soft.extend(7, b"secure boot")
    with kernel:
        device = AzureDevice(td_quote=td_quote, kernel=kernel)
        device.check_present()
        evidence = device.collect_evidence(REPORT_DATA)
    hardwares = [each for each in case.evidence.endorsements if each.kind is not EndorsementKind.EVENT_LOG]
    evidence = replace(evidence, endorsements=(*evidence.endorsements, *hardwares))
    verified = verify_azure(evidence, anchors=case.anchors, now=case.now)
    assert (verified.tee, verified.hardware_tee, verified.report_data) == ("azure", hardware, QUALIFYING_DATA)
    assert verified.runtime["user-data"] == REPORT_DATA.hex().upper()
    assert verified.quote.pcrs == {"sha256": {index: soft.pcrs[index] for index in DEFAULT_PCRS}}
    assert asked == ([] if hardware == "snp" else [_of_tdx(REPORT_DATA)[32 : 32 + 1024]])


def test_the_pcrs_that_were_asked_for_are_quoted() -> None:
    kernel, _ = _vm()
    with kernel:
        evidence = AzureDevice(td_quote=bytes, pcrs=[4], kernel=kernel).collect_evidence(REPORT_DATA)
    assert parse_azure(evidence.data).quote.attest.selection == {"sha256": (4,)}


def test_a_vm_of_tdx_whose_tdreport_nobody_quotes_is_unsupported() -> None:
    kernel, _ = _vm(_of_tdx)
    with kernel, pytest.raises(UnsupportedError, match=r"nobody quotes the TDREPORT .*td_quote"):
        AzureDevice(kernel=kernel).collect_evidence(REPORT_DATA)


def test_what_quoting_raises_is_raised() -> None:
    def unreachable(tdreport: bytes) -> bytes:
        raise ConnectionError("no route to the service")

    kernel, _ = _vm(_of_tdx)
    with kernel, pytest.raises(ConnectionError, match="no route"):
        AzureDevice(td_quote=unreachable, kernel=kernel).collect_evidence(REPORT_DATA)


def test_what_quotes_may_fork() -> None:
    def forking(tdreport: bytes) -> bytes:
        if (child := os.fork()) == 0:
            os._exit(0)
        os.waitpid(child, 0)
        return b"quote"

    kernel, _ = _vm(_of_tdx)
    with kernel:
        evidence = AzureDevice(td_quote=forking, kernel=kernel).collect_evidence(REPORT_DATA)
    assert parse_azure(evidence.data).hardware_evidence == b"quote"


def test_certificates_and_the_event_log_are_stapled() -> None:
    node = TpmNode(Paravisor(_soft_tpm().transmit, _of_snp).transmit)
    with EmulatedKernel(node, Files(**{EVENT_LOG: b"log"})) as kernel:
        endorsements = AzureDevice(certificates=[b"vcek"], kernel=kernel).collect_evidence(REPORT_DATA).endorsements
    certificate = Endorsement(kind=EndorsementKind.CERTIFICATE, data=b"vcek")
    assert endorsements == (certificate, Endorsement(kind=EndorsementKind.EVENT_LOG, data=b"log"))


@pytest.mark.parametrize("lag", [0, 7])
def test_a_report_that_is_late_is_waited_for(lag: int) -> None:
    kernel, _ = _vm(lag=lag)
    with kernel:
        device = AzureDevice(kernel=kernel, td_quote=bytes)
        for report_data in (REPORT_DATA, bytes(64), REPORT_DATA):
            parsed = parse_azure(device.collect_evidence(report_data).data)
            assert bytes.fromhex(parsed.hcl.runtime["user-data"]) == report_data


def test_a_report_that_never_comes_is_given_up() -> None:
    kernel, _ = _vm(lag=10_000)
    _check_refused(kernel, "the paravisor did not report on our user data within 15 s")
    assert REFRESH_SECONDS <= kernel.monotonic() < REFRESH_SECONDS + 1


def test_an_index_for_user_data_that_is_there_is_used() -> None:
    kernel, soft = _vm()
    soft.nv[USER_DATA_INDEX] = bytearray(64)
    with kernel:
        AzureDevice(kernel=kernel, td_quote=bytes).collect_evidence(REPORT_DATA)
    assert soft.nv[USER_DATA_INDEX] == REPORT_DATA


def test_an_index_for_user_data_of_another_size_is_refused() -> None:
    kernel, soft = _vm()
    soft.nv[USER_DATA_INDEX] = bytearray(32)
    _check_refused(kernel, r"0x01400002 has 32 bytes, not 64 \(tpm2_nvundefine -C o 0x01400002\)")


def test_a_report_that_is_none_is_refused() -> None:
    kernel, _ = _vm(lambda _: b"HCL?")
    _check_refused(kernel, "the HCL report begins with")


def test_a_tpm_without_a_paravisors_report_is_not_azures() -> None:
    kernel = EmulatedKernel(TpmNode(SoftTpm().transmit))
    device = AzureDevice(kernel=kernel)
    for call in (device.check_present, lambda: device.collect_evidence(REPORT_DATA)):
        with kernel, pytest.raises(UnsupportedError, match=r"no paravisor of Azure here: .* 0x01400001"):
            call()


def test_no_tpm_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match=f"no TPM 2.0 here: ENOENT .*{DEVICE}"):
        AzureDevice(kernel=EmulatedKernel()).check_present()


def test_an_index_of_azures_that_is_too_large_is_refused() -> None:
    soft = _soft_tpm()
    soft.nv[HCL_REPORT_INDEX] = bytearray(0xFFFF)
    _check_refused(EmulatedKernel(TpmNode(soft.transmit)), "has 65535 bytes; 16384 are allowed")
