"""Root's process in a guest, which asks the hardware for the enclave's: real sockets, emulated hardware."""

from __future__ import annotations

import functools
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from adyton.enclave.guest import hardware
from adyton.enclave.guest.hardware import BrokeredDevice, find_hardware, serve_hardware
from adyton.errors import EvidenceError, UnsupportedError
from adyton.proto.frames import encode_frame, read_frame
from adyton.tee import devices
from adyton.tee.tpm.device import TpmDevice
from adyton.testing.kernels.emulated import Driver, EmulatedKernel
from adyton.testing.kernels.soft_tpm import SoftTpm
from adyton.testing.kernels.tpm import TpmNode
from adyton.testing.kernels.tsm import Tsm

REPORT_DATA = bytes(range(64))
SECONDS = 10


@contextmanager
def brokered(monkeypatch: pytest.MonkeyPatch, *drivers: Driver) -> Iterator[socket.socket]:
    """The unprivileged end of a broker on a machine that has that hardware."""
    inside, outside = socket.socketpair()
    inside.settimeout(SECONDS)
    with EmulatedKernel(*drivers) as kernel:
        monkeypatch.setattr(devices, "find_device", functools.partial(devices.find_device, kernel=kernel))

        def serve() -> None:
            with outside:
                serve_hardware(outside)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield inside
        finally:
            inside.close()
            thread.join(SECONDS)
            assert not thread.is_alive()


def test_evidence_comes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    with brokered(monkeypatch, Tsm(provider="sev_guest")) as connection:
        device = BrokeredDevice(connection)
        assert device.tee == "snp"
        answers = [device.collect_evidence(bytes([byte]) * 64) for byte in (1, 2)]
    assert [each.tee for each in answers] == ["snp", "snp"]
    assert bytes([1]) * 64 in answers[0].data
    assert bytes([2]) * 64 in answers[1].data


def test_threads_may_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[int, bool] = {}
    with brokered(monkeypatch, Tsm(provider="sev_guest")) as connection:
        device = BrokeredDevice(connection)

        def ask(byte: int) -> None:
            found[byte] = bytes([byte]) * 64 in device.collect_evidence(bytes([byte]) * 64).data

        threads = [threading.Thread(target=ask, args=(byte,)) for byte in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
    assert found == dict.fromkeys(range(8), True)


def test_a_wrong_length_is_refused_here_and_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with brokered(monkeypatch, Tsm(provider="sev_guest")) as connection:
        device = BrokeredDevice(connection)
        with pytest.raises(ValueError, match="report_data has 64 bytes, not 63"):
            device.collect_evidence(bytes(63))
        connection.sendall(encode_frame(bytes(63)))
        refusal = read_frame(connection)
        assert refusal is not None
        assert refusal.startswith(b"\1")
        assert device.collect_evidence(REPORT_DATA).tee == "snp"


def test_no_hardware_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        brokered(monkeypatch) as connection,
        pytest.raises(EvidenceError, match="no hardware here that gives evidence"),
    ):
        BrokeredDevice(connection)


def test_a_broker_that_is_gone_is_an_error_and_not_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            theirs.sendall(encode_frame(b"\0snp"))
        device = BrokeredDevice(ours)
        with pytest.raises((EvidenceError, OSError)):
            device.collect_evidence(REPORT_DATA)


@pytest.mark.parametrize("answer", [b"", b"\2snp", b"\1no"])
def test_an_answer_that_is_not_one_is_refused(answer: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(encode_frame(answer))
        with pytest.raises(EvidenceError):
            BrokeredDevice(ours)


def test_a_guest_without_hardware_goes_on_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with EmulatedKernel() as kernel, caplog.at_level(logging.WARNING):
        monkeypatch.setattr(devices, "find_device", functools.partial(devices.find_device, kernel=kernel))
        assert find_hardware(certificates=(), broker_fd=None) is None
    assert "no hardware here that gives evidence" in caplog.text


def test_a_tpm_gets_the_certificates_and_the_log_that_the_launcher_gave(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = tmp_path_factory.mktemp("run") / "event-log"
    log.write_bytes(b"log")
    monkeypatch.setattr(hardware, "EVENT_LOG", str(log))
    with EmulatedKernel(TpmNode(SoftTpm().transmit)) as kernel:
        monkeypatch.setattr(devices, "find_device", functools.partial(devices.find_device, kernel=kernel))
        assert isinstance(find_hardware(certificates=("30", "31"), broker_fd=None), TpmDevice)
        log.unlink()
        with pytest.raises(FileNotFoundError):
            find_hardware(certificates=(), broker_fd=None)


def test_hardware_that_only_root_may_ask_is_reached_through_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    with brokered(monkeypatch, Tsm(provider="tdx_guest")) as connection:
        connection.setblocking(True)  # as the enclave's process gets it
        device = find_hardware(certificates=(), broker_fd=connection.detach())
        assert isinstance(device, BrokeredDevice)
        assert device.tee == "tdx"
        device._connection.close()


def test_unsupported_is_told_from_out_of_order(monkeypatch: pytest.MonkeyPatch) -> None:
    with EmulatedKernel() as kernel, pytest.raises(UnsupportedError):
        devices.find_device(kernel=kernel)
