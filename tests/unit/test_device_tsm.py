"""The devices over configfs-tsm (SEV-SNP, TDX, CCA), against an emulated one with its traps."""

from __future__ import annotations

import base64
import errno
import hashlib
import struct
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from adyton.errors import EvidenceError, UnsupportedError
from adyton.tee._device import HardwareDevice
from adyton.tee._tsm import BUSY_SECONDS
from adyton.tee.cca.device import CcaDevice
from adyton.tee.evidence import (
    MAX_ENDORSEMENT_BYTES,
    MAX_ENDORSEMENTS,
    MAX_EVIDENCE_BYTES,
    Endorsement,
    EndorsementKind,
)
from adyton.tee.snp.device import SnpDevice, parse_cert_table
from adyton.tee.tdx.device import EVENT_LOG, TdxDevice
from adyton.testing.kernels.emulated import EmulatedKernel, Files
from adyton.testing.kernels.tsm import OUTBLOB_BYTES, Tsm

REPORT_DATA = bytes(range(64))
DEVICES: dict[str, tuple[str, Callable[[EmulatedKernel], HardwareDevice]]] = {
    "snp": ("sev_guest", lambda kernel: SnpDevice(kernel=kernel)),
    "tdx": ("tdx_guest", lambda kernel: TdxDevice(kernel=kernel)),
    "cca": ("arm_cca_guest", lambda kernel: CcaDevice(kernel=kernel)),
}
VCEK, VLEK, ASK, ARK = (
    uuid.UUID(text)
    for text in (
        "63da758d-e664-4564-adc5-f4b93be8accd",
        "a8074bc2-a25a-483e-aae6-39c045a0b8a1",
        "4ab7b379-bbac-4fe4-a02f-05aef327c782",
        "c0b406a4-a803-4952-9743-3fb6014cd0ae",
    )
)


def _report(report_data: bytes) -> bytes:
    return b"report over " + report_data


def _cert_table(*entries: tuple[uuid.UUID, bytes], end: bytes = bytes(24)) -> bytes:
    head, contents = b"", b""
    start = 24 * len(entries) + len(end)
    for guid, content in entries:
        head += guid.bytes + struct.pack("<II", start + len(contents), len(content))
        contents += content
    return head + end + contents


def _failing(operation: str, path_end: str, number: int, *, times: int = 1, label: str = "snp") -> HardwareDevice:
    provider, make = DEVICES[label]
    kernel = EmulatedKernel(Tsm(provider=provider, quote=_report))
    kernel.fail(operation, path_end, number, times=times)  # type: ignore[arg-type]
    return make(kernel)


# --- what is collected


@pytest.mark.parametrize("label", DEVICES)
def test_the_report_over_our_data_is_the_evidence(label: str) -> None:
    provider, make = DEVICES[label]
    with EmulatedKernel(Tsm(provider=provider, quote=_report)) as kernel:
        device = make(kernel)
        device.check_present()
        for _ in range(2):
            evidence = device.collect_evidence(REPORT_DATA)
            assert (evidence.tee, evidence.data, evidence.endorsements) == (label, _report(REPORT_DATA), ())


@pytest.mark.parametrize("length", [0, 63, 65])
def test_report_data_has_64_bytes(length: int) -> None:
    with pytest.raises(ValueError, match=f"report_data has 64 bytes, not {length}"):
        CcaDevice(kernel=EmulatedKernel()).collect_evidence(bytes(length))


def test_a_report_that_comes_byte_by_byte_is_read_to_its_end() -> None:
    with EmulatedKernel(Tsm(provider="tdx_guest", quote=_report), read_at_most=1) as kernel:
        assert TdxDevice(kernel=kernel).collect_evidence(REPORT_DATA).data == _report(REPORT_DATA)


def test_the_certificates_of_the_host_are_stapled() -> None:
    table = _cert_table((VCEK, b"vcek"), (uuid.uuid4(), b"?"), (ASK, b"ask"), (ARK, b"ark"))
    with EmulatedKernel(Tsm(provider="sev_guest", quote=_report, auxblob=table)) as kernel:
        endorsements = SnpDevice(kernel=kernel).collect_evidence(REPORT_DATA).endorsements
    kind = EndorsementKind.CERTIFICATE
    assert endorsements == tuple(Endorsement(kind=kind, data=data) for data in (b"vcek", b"ask", b"ark"))


def test_the_event_log_of_a_td_is_stapled() -> None:
    tsm, log = Tsm(provider="tdx_guest", quote=_report), b"log" * 50_000
    with EmulatedKernel(tsm, Files(**{EVENT_LOG: log})) as kernel:
        (endorsement,) = TdxDevice(kernel=kernel).collect_evidence(REPORT_DATA).endorsements
    assert endorsement == Endorsement(kind=EndorsementKind.EVENT_LOG, data=log)


def test_an_event_log_that_is_empty_or_can_not_be_read_is_left_out() -> None:
    kernel = EmulatedKernel(Tsm(provider="tdx_guest", quote=_report), Files(**{EVENT_LOG: b""}))
    assert TdxDevice(kernel=kernel).collect_evidence(REPORT_DATA).endorsements == ()
    kernel.fail("open", "CCEL", errno.EACCES)
    assert TdxDevice(kernel=kernel).collect_evidence(REPORT_DATA).endorsements == ()


def test_an_event_log_that_no_verifier_takes_is_refused() -> None:
    log = bytes(MAX_ENDORSEMENT_BYTES + 1)
    with (
        EmulatedKernel(Tsm(provider="tdx_guest", quote=_report), Files(**{EVENT_LOG: log})) as kernel,
        pytest.raises(EvidenceError, match=f"CCEL gives more than {MAX_ENDORSEMENT_BYTES} bytes"),
    ):
        TdxDevice(kernel=kernel).collect_evidence(REPORT_DATA)


def test_many_threads_and_devices_each_get_their_own_report() -> None:
    kernel = EmulatedKernel(Tsm(provider="sev_guest", quote=_report))
    devices = [SnpDevice(kernel=kernel) for _ in range(3)]
    asked = [hashlib.sha512(bytes([index])).digest() for index in range(60)]
    with kernel, ThreadPoolExecutor(8) as threads:
        got = list(threads.map(lambda data: devices[data[0] % 3].collect_evidence(data).data, asked))
    assert got == [_report(data) for data in asked]


# --- privilege levels


@pytest.mark.parametrize(("wanted", "floor", "used"), [(None, 0, 0), (None, 2, 2), (1, 0, 1), (2, 2, 2), (3, 2, 3)])
def test_the_report_is_made_at_the_privilege_level_that_was_asked_for(
    wanted: int | None, floor: int, used: int
) -> None:
    tsm = Tsm(provider="sev_guest", quote=_report, privlevel_floor=floor)
    with EmulatedKernel(tsm) as kernel:
        SnpDevice(privlevel=wanted, kernel=kernel).collect_evidence(REPORT_DATA)
    assert tsm.privlevels == [used]


@pytest.mark.parametrize("floor", [2, 2**64])
def test_a_privilege_level_above_the_guests_own_is_never_asked_for(floor: int) -> None:
    tsm = Tsm(provider="sev_guest", quote=_report, privlevel_floor=floor)
    with (
        EmulatedKernel(tsm) as kernel,
        pytest.raises(UnsupportedError, match=f"this guest may ask for {floor} and above"),
    ):
        SnpDevice(privlevel=1, kernel=kernel).collect_evidence(REPORT_DATA)
    assert tsm.privlevels == []


@pytest.mark.parametrize("privlevel", [-1, 4])
def test_there_are_four_privilege_levels(privlevel: int) -> None:
    with pytest.raises(ValueError, match="privlevel is 0 to 3"):
        SnpDevice(privlevel=privlevel)


def test_a_floor_that_is_no_privilege_level_is_refused_by_the_kernel() -> None:
    with (
        EmulatedKernel(Tsm(provider="sev_guest", quote=_report, privlevel_floor=4)) as kernel,
        pytest.raises(EvidenceError, match=r"configfs-tsm failed: EINVAL"),
    ):
        SnpDevice(kernel=kernel).collect_evidence(REPORT_DATA)


@pytest.mark.parametrize("provider", ["\u00e9", "zwei", "-1", "9" * 21, ""])
def test_a_number_that_is_none_is_refused(provider: str) -> None:
    tsm = Tsm(provider="sev_guest", quote=_report)
    tsm.privlevel_floor = provider  # type: ignore[assignment]
    with EmulatedKernel(tsm) as kernel, pytest.raises(EvidenceError, match="the kernel's privlevel_floor is no number"):
        SnpDevice(kernel=kernel).collect_evidence(REPORT_DATA)


# --- the traps


def test_report_data_that_the_kernel_lost_is_noticed() -> None:
    with (
        EmulatedKernel(Tsm(provider="tdx_guest", quote=_report, lose_inblob=True)) as kernel,
        pytest.raises(EvidenceError, match="the kernel did not take the report_data"),
    ):
        TdxDevice(kernel=kernel).collect_evidence(REPORT_DATA)


@pytest.mark.parametrize("label", DEVICES)
@pytest.mark.parametrize("attribute", ["inblob", "generation", "outblob"])
def test_a_write_of_somebody_else_is_noticed(label: str, attribute: str) -> None:
    provider, make = DEVICES[label]
    with (
        EmulatedKernel(Tsm(provider=provider, quote=_report, intrude_at=attribute)) as kernel,
        pytest.raises(EvidenceError, match="somebody else wrote to our report"),
    ):
        make(kernel).collect_evidence(REPORT_DATA)


def test_certificates_of_somebody_elses_report_are_noticed() -> None:
    with (
        EmulatedKernel(Tsm(provider="sev_guest", quote=_report, intrude_at="auxblob")) as kernel,
        pytest.raises(EvidenceError, match="generation 3 after 2 writes"),
    ):
        SnpDevice(kernel=kernel).collect_evidence(REPORT_DATA)


@pytest.mark.parametrize("label", DEVICES)
def test_reports_of_another_provider_are_not_taken(label: str) -> None:
    provider, make = DEVICES[label]
    with EmulatedKernel(Tsm(provider="another", quote=_report)) as kernel:
        device = make(kernel)
        for call in (device.check_present, lambda: device.collect_evidence(REPORT_DATA)):
            with pytest.raises(UnsupportedError, match=f"come from 'another', not '{provider}'"):
                call()


def test_a_directory_that_is_there_already_is_not_ours_to_use_or_remove() -> None:
    device = _failing("mkdir", "", errno.EEXIST)
    with pytest.raises(EvidenceError, match="configfs-tsm failed: EEXIST"):
        device.collect_evidence(REPORT_DATA)


def test_a_directory_that_a_killed_process_left_is_no_matter() -> None:
    kernel = EmulatedKernel(Tsm(provider="cca", quote=_report))
    kernel.mkdir("/sys/kernel/config/tsm/report/adyton")
    with pytest.raises(AssertionError, match="left behind"):
        kernel.check_nothing_left()
    kernel.rmdir("/sys/kernel/config/tsm/report/adyton")
    kernel.check_nothing_left()


@pytest.mark.parametrize(
    ("operation", "attribute"),
    [
        ("open", "provider"),
        ("read", "provider"),
        ("open", "privlevel"),
        ("write", "privlevel"),
        ("write", "inblob"),
        ("close", "inblob"),
        ("read", "generation"),
        ("open", "outblob"),
        ("read", "outblob"),
        ("close", "outblob"),
        ("read", "auxblob"),
    ],
)
def test_nothing_is_left_behind_wherever_it_fails(operation: str, attribute: str) -> None:
    kernel = EmulatedKernel(Tsm(provider="sev_guest", quote=_report))
    kernel.fail(operation, attribute, errno.EIO)  # type: ignore[arg-type]
    with kernel, pytest.raises(EvidenceError, match="EIO"):
        SnpDevice(kernel=kernel).collect_evidence(REPORT_DATA)


def test_nothing_is_left_behind_by_an_interrupt() -> None:
    def interrupted(report_data: bytes) -> bytes:
        raise KeyboardInterrupt

    with EmulatedKernel(Tsm(provider="tdx_guest", quote=interrupted)) as kernel, pytest.raises(KeyboardInterrupt):
        TdxDevice(kernel=kernel).collect_evidence(REPORT_DATA)


def test_a_directory_that_can_not_be_removed_is_said() -> None:
    with pytest.raises(EvidenceError, match="configfs-tsm failed: EBUSY"):
        _failing("rmdir", "", errno.EBUSY).collect_evidence(REPORT_DATA)


def test_what_failed_first_is_said_though_the_directory_stays() -> None:
    kernel = EmulatedKernel(Tsm(provider="tdx_guest", quote=_report, lose_inblob=True))
    kernel.fail("rmdir", "", errno.EBUSY)
    with pytest.raises(EvidenceError, match="did not take the report_data"):
        TdxDevice(kernel=kernel).collect_evidence(REPORT_DATA)


# --- the errors of the kernel


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENXIO, errno.EACCES, errno.EPERM, errno.EROFS])
def test_no_configfs_or_no_driver_or_no_right_is_unsupported(number: int) -> None:
    device = _failing("mkdir", "", number, times=2)
    for call in (device.check_present, lambda: device.collect_evidence(REPORT_DATA)):
        with pytest.raises(UnsupportedError, match=f"no configfs-tsm here: {errno.errorcode[number]}") as caught:
            call()
        assert "mount configfs" in caught.value.mend


def test_a_kernel_without_a_driver_is_unsupported() -> None:
    with EmulatedKernel(Tsm(provider=None)) as kernel, pytest.raises(UnsupportedError, match="ENXIO"):
        TdxDevice(kernel=kernel).collect_evidence(REPORT_DATA)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EFBIG, "the report is larger than this kernel passes on"),
        (errno.EINVAL, "report_data of that size or that privilege level is not for this hardware"),
        (errno.EIO, "the hardware or the host refused"),
        (errno.ENOTTY, "the guest has lost its key to the firmware"),
        (errno.ENXIO, "the guest's driver was unloaded"),
        (errno.ETIMEDOUT, "the host did not answer in time"),
        (errno.ENOMEM, "no report was made"),
    ],
)
def test_each_error_of_the_hardware_is_said_in_words(number: int, message: str) -> None:
    with pytest.raises(EvidenceError, match=f"{message}.*{errno.errorcode[number]}"):
        _failing("read", "outblob", number).collect_evidence(REPORT_DATA)


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EINTR])
def test_hardware_that_is_busy_is_asked_again(number: int) -> None:
    kernel = EmulatedKernel(Tsm(provider="tdx_guest", quote=_report))
    kernel.fail("read", "outblob", number, times=5)
    with kernel:
        assert TdxDevice(kernel=kernel).collect_evidence(REPORT_DATA).data == _report(REPORT_DATA)
    assert 0 < kernel.monotonic() < 1


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EINTR])
def test_hardware_that_stays_busy_is_given_up(number: int) -> None:
    kernel = EmulatedKernel(Tsm(provider="tdx_guest", quote=_report))
    kernel.fail("read", "outblob", number, times=10_000)
    with kernel, pytest.raises(EvidenceError, match=f"for 60 s: {errno.errorcode[number]}"):
        TdxDevice(kernel=kernel).collect_evidence(REPORT_DATA)
    assert BUSY_SECONDS <= kernel.monotonic() < BUSY_SECONDS + 1


def test_a_report_above_the_kernels_bound_is_refused() -> None:
    with (
        EmulatedKernel(Tsm(provider="tdx_guest", quote=lambda _: bytes(OUTBLOB_BYTES + 1))) as kernel,
        pytest.raises(EvidenceError, match="larger than this kernel passes on"),
    ):
        TdxDevice(kernel=kernel).collect_evidence(REPORT_DATA)


def test_an_empty_report_is_refused() -> None:
    with (
        EmulatedKernel(Tsm(provider="tdx_guest", quote=lambda _: b"")) as kernel,
        pytest.raises(EvidenceError, match=f"0 bytes of evidence; 1 to {MAX_EVIDENCE_BYTES} are allowed"),
    ):
        TdxDevice(kernel=kernel).collect_evidence(REPORT_DATA)


# --- the host's certificate table


def test_no_table_and_a_table_of_zeros_hold_no_certificates() -> None:
    for table in (b"", bytes(24), bytes(4096), _cert_table()):
        assert parse_cert_table(table) == ()


def test_a_vlek_comes_from_the_table_too() -> None:
    assert parse_cert_table(_cert_table((VLEK, b"vlek"), (ASK, b"asvk"))) == (b"vlek", b"asvk")


def test_a_certificate_in_pem_becomes_der() -> None:
    der = bytes(range(256)) * 4
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"
    assert parse_cert_table(_cert_table((VCEK, pem))) == (der,)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"\1" * 23, "the host's certificate table ends inside its entry"),
        (_cert_table((VCEK, b"vcek"), end=b""), "ends inside its entry"),
        (_cert_table((VCEK, b"vcek"))[:-1], "an entry of the host's certificate table ends at 52 of 51"),
        (VCEK.bytes + b"\xff" * 8, "ends at 8589934590 of 24"),
        (_cert_table(*[(VCEK, b"vcek")] * MAX_ENDORSEMENTS), f"has more than {MAX_ENDORSEMENTS} entries"),
        (_cert_table((VCEK, b"-----BEGIN CERTIFICATE-----AAAA")), "is no PEM"),
        (_cert_table((VCEK, b"-----BEGIN CERTIFICATE-----*-----END CERTIFICATE-----")), "is no PEM"),
    ],
)
def test_a_table_that_is_none_is_refused(table: bytes, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        parse_cert_table(table)


def test_a_table_that_is_none_leaves_nothing_behind() -> None:
    with (
        EmulatedKernel(Tsm(provider="sev_guest", quote=_report, auxblob=b"\1")) as kernel,
        pytest.raises(EvidenceError, match="ends inside its entry"),
    ):
        SnpDevice(kernel=kernel).collect_evidence(REPORT_DATA)
