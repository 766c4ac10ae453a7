"""The device in Gramine, against an emulated /dev/attestation."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from adyton.errors import EvidenceError, UnsupportedError
from adyton.tee.sgx.device import MAX_QUOTE_BYTES, SgxDevice
from adyton.testing.kernels.emulated import EmulatedKernel
from adyton.testing.kernels.gramine import Gramine

REPORT_DATA = bytes(range(64))


def _quote(report_data: bytes) -> bytes:
    return b"q" * 368 + report_data + b"signature"


def test_the_quote_over_our_data_is_the_evidence() -> None:
    with EmulatedKernel(Gramine(quote=_quote), read_at_most=100) as kernel:
        device = SgxDevice(kernel=kernel)
        device.check_present()
        evidence = device.collect_evidence(REPORT_DATA)
    assert (evidence.tee, evidence.data, evidence.endorsements) == ("sgx", _quote(REPORT_DATA), ())


def test_many_threads_each_get_their_own_quote() -> None:
    kernel = EmulatedKernel(Gramine(quote=_quote))
    devices = [SgxDevice(kernel=kernel) for _ in range(3)]
    asked = [hashlib.sha512(bytes([index])).digest() for index in range(60)]
    with kernel, ThreadPoolExecutor(8) as threads:
        got = list(threads.map(lambda data: devices[data[0] % 3].collect_evidence(data).data, asked))
    assert got == [_quote(data) for data in asked]


def test_a_quote_that_other_code_of_the_process_asked_for_is_noticed() -> None:
    with (
        EmulatedKernel(Gramine(quote=lambda _: _quote(bytes(64)))) as kernel,
        pytest.raises(EvidenceError, match="the quote is not over our report_data"),
    ):
        SgxDevice(kernel=kernel).collect_evidence(REPORT_DATA)


def test_outside_of_gramine_it_is_unsupported() -> None:
    for call in (SgxDevice(kernel=EmulatedKernel()).check_present, SgxDevice().check_present):
        with pytest.raises(UnsupportedError, match="no Gramine with SGX here: ENOENT"):
            call()


@pytest.mark.parametrize("kind", [b"none", b"epid", b"", b"\xff"])
def test_another_kind_of_attestation_is_unsupported(kind: bytes) -> None:
    with (
        EmulatedKernel(Gramine(quote=_quote, attestation_type=kind)) as kernel,
        pytest.raises(UnsupportedError, match="attestation_type is ") as caught,
    ):
        SgxDevice(kernel=kernel).collect_evidence(REPORT_DATA)
    assert "sgx.remote_attestation" in caught.value.mend


def test_a_kind_of_attestation_without_end_is_refused() -> None:
    with (
        EmulatedKernel(Gramine(quote=_quote, attestation_type=b"dcap" * 17)) as kernel,
        pytest.raises(EvidenceError, match="attestation_type gives more than 64 bytes"),
    ):
        SgxDevice(kernel=kernel).check_present()


@pytest.mark.parametrize(
    ("operation", "name"),
    [("open", "quote"), ("read", "quote"), ("write", "user_report_data"), ("close", "user_report_data")],
)
def test_a_quoting_enclave_that_refuses_is_said(operation: str, name: str) -> None:
    kernel = EmulatedKernel(Gramine(quote=_quote))
    kernel.fail(operation, name, errno.EACCES)  # type: ignore[arg-type]
    with kernel, pytest.raises(EvidenceError, match="Gramine failed: EACCES"):
        SgxDevice(kernel=kernel).collect_evidence(REPORT_DATA)


def test_a_quote_larger_than_gramine_has_room_for_is_refused() -> None:
    with (
        EmulatedKernel(Gramine(quote=lambda _: bytes(MAX_QUOTE_BYTES + 1))) as kernel,
        pytest.raises(EvidenceError, match=f"quote gives more than {MAX_QUOTE_BYTES} bytes"),
    ):
        SgxDevice(kernel=kernel).collect_evidence(REPORT_DATA)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_that_is_forked_meanwhile_can_ask_too() -> None:
    def slow_quote(report_data: bytes) -> bytes:
        time.sleep(0.005)
        return _quote(report_data)

    kernel = EmulatedKernel(Gramine(quote=slow_quote))
    with kernel, ThreadPoolExecutor(4) as threads:
        asking = [threads.submit(SgxDevice(kernel=kernel).collect_evidence, REPORT_DATA) for _ in range(20)]
        child = os.fork()
        if child == 0:
            _exit_after_asking()
        _, status = os.waitpid(child, 0)
        assert [each.result().data for each in asking] == [_quote(REPORT_DATA)] * 20
    assert os.waitstatus_to_exitcode(status) == 0


def _exit_after_asking() -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(30)  # a child that waits for a lock that nobody will release
    status = 1
    try:
        evidence = SgxDevice(kernel=EmulatedKernel(Gramine(quote=_quote))).collect_evidence(REPORT_DATA)
        status = int(evidence.data != _quote(REPORT_DATA))
    finally:
        os._exit(status)
