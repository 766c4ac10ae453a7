"""Which hardware is found, and the few calls that devices make on the kernel."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import termios
import time
from pathlib import Path

import pytest

from adyton.errors import EvidenceError, UnsupportedError
from adyton.tee._device import HardwareDevice, stapled_certificates
from adyton.tee._kernel import LinuxKernel, read_to_end, write_at_once
from adyton.tee._tpm_transport import DEVICE
from adyton.tee.devices import DEVICES, find_device
from adyton.tee.evidence import MAX_ENDORSEMENT_BYTES, MAX_ENDORSEMENTS, MAX_EVIDENCE_BYTES, Evidence
from adyton.tee.registry import TEES
from adyton.testing.kernels.emulated import Driver, EmulatedKernel, OpenFile
from adyton.testing.kernels.gramine import Gramine
from adyton.testing.kernels.nsm import Nsm
from adyton.testing.kernels.paravisor import HCL_REPORT_INDEX
from adyton.testing.kernels.soft_tpm import SoftTpm
from adyton.testing.kernels.tpm import TpmNode
from adyton.testing.kernels.tsm import Tsm


def _azure_tpm() -> TpmNode:
    soft = SoftTpm()
    soft.nv[HCL_REPORT_INDEX] = bytearray(2600)
    return TpmNode(soft.transmit)


HARDWARE: dict[str, Driver] = {
    "sgx": Gramine(quote=bytes),
    "nitro": Nsm(lambda _: b""),
    "snp": Tsm(provider="sev_guest"),
    "tdx": Tsm(provider="tdx_guest"),
    "cca": Tsm(provider="arm_cca_guest"),
    "azure": _azure_tpm(),
    "tpm": TpmNode(SoftTpm().transmit),
}


# --- which is found


@pytest.mark.parametrize("label", HARDWARE)
def test_each_hardware_is_found(label: str) -> None:
    with EmulatedKernel(HARDWARE[label]) as kernel:
        assert find_device(kernel=kernel).tee == label


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("sgx", "nitro"),
        ("sgx", "snp"),
        ("nitro", "tpm"),
        ("snp", "tpm"),
        ("tdx", "azure"),
        ("cca", "tpm"),
        ("azure", "tpm"),
    ],
)
def test_the_better_of_two_is_found(better: str, worse: str) -> None:
    with EmulatedKernel(HARDWARE[better], HARDWARE[worse]) as kernel:
        assert find_device(kernel=kernel).tee == better


def test_there_is_a_device_of_each_tee_that_an_enclave_can_run_on() -> None:
    labels = {label for label, _ in DEVICES}
    assert labels == set(HARDWARE) == set(TEES) - {"simulated", "psa"}


def test_no_hardware_is_unsupported_and_says_what_was_looked_for() -> None:
    with EmulatedKernel(Tsm(provider="something_new")) as kernel, pytest.raises(UnsupportedError) as caught:
        find_device(kernel=kernel)
    assert all(f"{label}: " in str(caught.value) for label in HARDWARE)
    assert "'something_new', not 'sev_guest'" in str(caught.value)


def test_hardware_that_is_out_of_order_is_not_passed_over() -> None:
    kernel = EmulatedKernel(Tsm(provider="sev_guest"), HARDWARE["tpm"])
    kernel.fail("read", "provider", errno.EIO)
    with kernel, pytest.raises(EvidenceError, match="EIO"):
        find_device(kernel=kernel)


# --- what every device checks


class _Giving(HardwareDevice):
    """A device whose hardware gives what it is told."""

    tee = "tpm"

    def __init__(self, data: bytes, *stapled: bytes) -> None:
        super().__init__()
        self._evidence = Evidence(tee=self.tee, data=data, endorsements=stapled_certificates(stapled))

    def check_present(self) -> None:
        pass

    def _collect(self, report_data: bytes) -> Evidence:
        return self._evidence


def test_evidence_that_is_as_large_as_allowed_is_given() -> None:
    stapled = [bytes(MAX_ENDORSEMENT_BYTES)] * MAX_ENDORSEMENTS
    device = _Giving(bytes(MAX_EVIDENCE_BYTES), *stapled)
    device.check_present()
    assert len(device.collect_evidence(bytes(64)).endorsements) == MAX_ENDORSEMENTS


@pytest.mark.parametrize(
    ("device", "message"),
    [
        (_Giving(b""), "the hardware gave 0 bytes of evidence; 1 to 65536 are allowed"),
        (_Giving(bytes(MAX_EVIDENCE_BYTES + 1)), "the hardware gave 65537 bytes of evidence"),
        (_Giving(b"data", *[b""] * (MAX_ENDORSEMENTS + 1)), "33 endorsements; 32 are allowed"),
        (_Giving(b"data", bytes(MAX_ENDORSEMENT_BYTES + 1)), "an endorsement of more than 524288 bytes"),
    ],
)
def test_evidence_that_no_verifier_takes_is_not_given(device: _Giving, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        device.collect_evidence(bytes(64))


# --- the kernel that we run on


def test_files_and_directories_are_those_of_the_system(tmp_path: Path) -> None:
    kernel, directory = LinuxKernel(), f"{tmp_path}/made"
    kernel.mkdir(directory)
    file = Path(directory, "file")
    file.write_bytes(b"")
    write_at_once(kernel, str(file), b"content")
    assert file.read_bytes() == read_to_end(kernel, str(file), at_most=7) == b"content"
    with pytest.raises(EvidenceError, match="gives more than 6 bytes"):
        read_to_end(kernel, str(file), at_most=6)
    file.unlink()
    kernel.rmdir(directory)
    assert not list(tmp_path.iterdir())


def test_an_ioctl_changes_its_buffer() -> None:
    kernel = LinuxKernel()
    reader, writer = os.pipe()
    try:
        os.write(writer, b"12345")
        buffer = bytearray(4)
        kernel.ioctl(reader, termios.FIONREAD, buffer)
        assert struct.unpack("=i", buffer) == (5,)
    finally:
        kernel.close(reader)
        kernel.close(writer)


def test_children_do_not_inherit_what_is_open() -> None:
    kernel = LinuxKernel()
    descriptor = kernel.open("/dev/null", os.O_RDWR)
    assert fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    kernel.close(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_time_passes_while_it_sleeps() -> None:
    kernel, begun = LinuxKernel(), time.monotonic()
    kernel.sleep(0.01)
    assert begun + 0.01 <= kernel.monotonic() <= time.monotonic()


def test_a_write_that_is_taken_in_part_is_refused() -> None:
    class Full(OpenFile):
        def write(self, data: bytes) -> int:
            return 0

    class Disk(Driver):
        def open(self, path: str, flags: int) -> OpenFile:
            return Full()

    with EmulatedKernel(Disk()) as kernel, pytest.raises(EvidenceError, match="/disk took 0 of 4 bytes"):
        write_at_once(kernel, "/disk", b"data")


# --- the emulation, which must notice what the real ones take with a shrug


def test_the_emulation_notices_what_is_left_open() -> None:
    kernel = EmulatedKernel(HARDWARE["tpm"])
    kernel.open(DEVICE, os.O_RDWR)
    with pytest.raises(AssertionError, match="left behind"):
        kernel.check_nothing_left()


def test_the_emulation_notices_what_is_closed_twice_and_read_when_closed() -> None:
    kernel = EmulatedKernel(HARDWARE["tpm"])
    descriptor = kernel.open(DEVICE, os.O_RDWR)
    kernel.close(descriptor)
    for call in (lambda: kernel.close(descriptor), lambda: kernel.read(descriptor, 1)):
        with pytest.raises(AssertionError, match="is not open"):
            call()


def test_the_emulation_notices_a_second_write_of_report_data() -> None:
    kernel = EmulatedKernel(Tsm(provider="tdx_guest"), Gramine(quote=bytes))
    kernel.mkdir("/sys/kernel/config/tsm/report/a")
    for path in ("/sys/kernel/config/tsm/report/a/inblob", "/dev/attestation/user_report_data"):
        descriptor = kernel.open(path, os.O_WRONLY)
        kernel.write(descriptor, bytes(64))
        with pytest.raises(AssertionError, match="a second write"):
            kernel.write(descriptor, bytes(64))


@pytest.mark.parametrize("inblob", [b"", bytes(63), bytes(65)])
def test_the_emulated_report_is_made_of_64_bytes(inblob: bytes) -> None:
    kernel = EmulatedKernel(Tsm(provider="tdx_guest"))
    kernel.mkdir("/sys/kernel/config/tsm/report/a")
    with contextlib.suppress(AssertionError):  # an empty write
        write_at_once(kernel, "/sys/kernel/config/tsm/report/a/inblob", inblob)
    with pytest.raises(OSError, match="Invalid argument"):
        read_to_end(kernel, "/sys/kernel/config/tsm/report/a/outblob", at_most=100)


def test_what_an_emulated_file_does_not_do_fails_as_in_linux() -> None:
    kernel = EmulatedKernel(HARDWARE["sgx"], HARDWARE["tdx"])
    descriptor = kernel.open("/dev/attestation/quote", os.O_RDONLY)
    with pytest.raises(OSError, match="Inappropriate ioctl"):
        kernel.ioctl(descriptor, 0, bytearray())
    with pytest.raises(OSError, match="Bad file descriptor"):
        kernel.write(descriptor, b"")
    writable = kernel.open("/dev/attestation/user_report_data", os.O_WRONLY)
    with pytest.raises(OSError, match="Bad file descriptor"):
        kernel.read(writable, 1)
    for call in (kernel.mkdir, kernel.rmdir):
        with pytest.raises(FileNotFoundError):
            call("/sys/kernel/config/tsm/report/a/b")
