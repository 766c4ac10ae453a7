"""The device of a TPM, and the commands that it speaks, against an emulated TPM that can be made to misbehave."""

from __future__ import annotations

import errno
import hashlib
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from adyton.errors import EvidenceError, UnsupportedError
from adyton.tee._tpm_commands import MAX_NV_BYTES, Tpm
from adyton.tee._tpm_quote import ATTEMPTS, DEFAULT_PCRS, EVENT_LOG
from adyton.tee._tpm_transport import BUSY_SECONDS, DEVICE
from adyton.tee.evidence import Endorsement, EndorsementKind
from adyton.tee.tpm.device import TpmDevice
from adyton.tee.tpm.format import parse_tpm
from adyton.tee.tpm.verify import verify_tpm
from adyton.testing.forgery import NOW
from adyton.testing.kernels.emulated import EmulatedKernel, Files
from adyton.testing.kernels.soft_tpm import SoftTpm
from adyton.testing.kernels.tpm import TpmNode, Transmit

REPORT_DATA = bytes(range(64))
QUALIFYING_DATA = hashlib.sha256(REPORT_DATA).digest()
CREATE_PRIMARY, QUOTE, PCR_READ, NV_READ, NV_READ_PUBLIC = 0x131, 0x158, 0x17E, 0x14E, 0x169
INDEX = 0x01500000


def _kernel(transmit: Transmit) -> EmulatedKernel:
    return EmulatedKernel(TpmNode(transmit))


def _answering(soft: SoftTpm, code: int, response: Callable[[bytes], bytes], *, times: int = 1 << 30) -> Transmit:
    """That TPM, but for so many commands of that code, whose response is changed."""
    left = [times]

    def transmit(command: bytes) -> bytes:
        if struct.unpack_from(">I", command, 6) != (code,) or not left[0]:
            return soft.transmit(command)
        left[0] -= 1
        return response(soft.transmit(command))

    return transmit


def _refusing(soft: SoftTpm, code: int, response_code: int, *, times: int = 1 << 30) -> Transmit:
    return _answering(soft, code, lambda _: struct.pack(">HII", 0x8001, 10, response_code), times=times)


def _with_parameters(parameters: bytes) -> Callable[[bytes], bytes]:
    """A response without sessions that has these parameters."""
    return lambda _: struct.pack(">HII", 0x8001, 10 + len(parameters), 0) + parameters


def _check_refused(transmit: Transmit, message: str) -> None:
    with _kernel(transmit) as kernel, pytest.raises(EvidenceError, match=message):
        TpmDevice(kernel=kernel).collect_evidence(REPORT_DATA)


# --- what is collected


def test_the_quote_over_the_digest_of_our_data_is_the_evidence() -> None:
    soft = SoftTpm()
    soft.extend(7, b"secure boot")
    with _kernel(soft.transmit) as kernel:
        device = TpmDevice(kernel=kernel)
        device.check_present()
        evidence = device.collect_evidence(REPORT_DATA)
    assert (evidence.tee, evidence.endorsements, soft.loaded) == ("tpm", (), 0)
    ak = soft.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    verified = verify_tpm(evidence, anchors={hashlib.sha256(ak).digest()}, now=NOW)
    assert verified.report_data == QUALIFYING_DATA
    assert verified.quote.pcrs == {"sha256": {index: soft.pcrs[index] for index in DEFAULT_PCRS}}


@pytest.mark.parametrize("pcrs", [[0], [23, 0, 23], range(24)])
def test_the_pcrs_that_were_asked_for_are_quoted(pcrs: list[int]) -> None:
    soft = SoftTpm()
    with _kernel(soft.transmit) as kernel:
        parsed = parse_tpm(TpmDevice(pcrs=pcrs, kernel=kernel).collect_evidence(REPORT_DATA).data)
    assert set(parsed.quote.pcrs["sha256"]) == set(pcrs)
    assert parsed.quote.attest.selection == {"sha256": tuple(sorted(set(pcrs)))}


@pytest.mark.parametrize("pcrs", [[], [24], [-1]])
def test_pcrs_that_there_are_not_are_the_callers_mistake(pcrs: list[int]) -> None:
    with pytest.raises(ValueError, match="PCRs are one or more of 0 to 23"):
        TpmDevice(pcrs=pcrs)


def test_a_persistent_key_can_sign_instead() -> None:
    key = rsa.generate_private_key(65537, 2048)
    soft = SoftTpm(rsa_ak=key, ak_handle=0x81010002)
    with _kernel(soft.transmit) as kernel:
        evidence = TpmDevice(ak_handle=0x81010002, kernel=kernel).collect_evidence(REPORT_DATA)
    ak = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert verify_tpm(evidence, anchors={hashlib.sha256(ak).digest()}, now=NOW).report_data == QUALIFYING_DATA


def test_certificates_and_the_event_log_are_stapled() -> None:
    with EmulatedKernel(TpmNode(SoftTpm().transmit), Files(**{EVENT_LOG: b"log"})) as kernel:
        device = TpmDevice(certificates=[b"ak", b"root"], kernel=kernel)
        endorsements = device.collect_evidence(REPORT_DATA).endorsements
    certificate, log = EndorsementKind.CERTIFICATE, EndorsementKind.EVENT_LOG
    assert [(each.kind, each.data) for each in endorsements] == [
        (certificate, b"ak"),
        (certificate, b"root"),
        (log, b"log"),
    ]
    assert isinstance(endorsements[0], Endorsement)


def test_a_response_that_comes_byte_by_byte_is_read_to_its_end() -> None:
    with EmulatedKernel(TpmNode(SoftTpm().transmit), read_at_most=1) as kernel:
        parse_tpm(TpmDevice(kernel=kernel).collect_evidence(REPORT_DATA).data)


def test_many_threads_each_get_their_own_quote() -> None:
    soft = SoftTpm()
    kernel = _kernel(soft.transmit)
    devices = [TpmDevice(kernel=kernel) for _ in range(3)]
    asked = [bytes([index]) * 64 for index in range(30)]
    with kernel, ThreadPoolExecutor(8) as threads:
        got = threads.map(lambda data: parse_tpm(devices[data[0] % 3].collect_evidence(data).data), asked)
        assert [each.quote.attest.extra_data for each in got] == [hashlib.sha256(data).digest() for data in asked]
    assert soft.loaded == 0


# --- PCRs that change


def test_pcrs_that_change_between_reading_and_quoting_are_read_again() -> None:
    soft, changes = SoftTpm(), iter(range(ATTEMPTS - 1))
    soft.before = lambda code: soft.extend(4, b"") if code == QUOTE and next(changes, None) is not None else None
    with _kernel(soft.transmit) as kernel:
        parsed = parse_tpm(TpmDevice(kernel=kernel).collect_evidence(REPORT_DATA).data)
    assert parsed.quote.pcrs["sha256"][4] == soft.pcrs[4] != bytes(32)
    assert (next(changes, None), soft.loaded) == (None, 0)


def test_pcrs_that_never_stand_still_are_given_up() -> None:
    soft = SoftTpm()
    soft.before = lambda code: soft.extend(4, b"") if code == QUOTE else None
    _check_refused(soft.transmit, f"PCRs were extended while they were quoted, {ATTEMPTS} times in a row")
    assert soft.loaded == 0


# --- what goes wrong


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENODEV, errno.EACCES])
def test_no_tpm_is_unsupported(number: int) -> None:
    kernel = _kernel(SoftTpm().transmit)
    kernel.fail("open", DEVICE, number, times=2)
    device = TpmDevice(kernel=kernel)
    for call in (device.check_present, lambda: device.collect_evidence(REPORT_DATA)):
        with pytest.raises(UnsupportedError, match=r"no TPM 2\.0 here") as caught:
            call()
        assert "group tss" in caught.value.mend


@pytest.mark.parametrize(("operation", "number"), [("open", errno.EBUSY), ("write", errno.EIO), ("read", errno.ETIME)])
def test_a_tpm_that_fails_is_said(operation: str, number: int) -> None:
    kernel = _kernel(SoftTpm().transmit)
    kernel.fail(operation, DEVICE, number)  # type: ignore[arg-type]
    with kernel, pytest.raises(EvidenceError, match=rf"the TPM 2\.0 failed: {errno.errorcode[number]}"):
        TpmDevice(kernel=kernel).collect_evidence(REPORT_DATA)


def test_a_tpm_that_dies_with_a_key_loaded_is_closed() -> None:
    soft = SoftTpm()
    kernel = _kernel(soft.transmit)
    soft.before = lambda code: kernel.fail("read", DEVICE, errno.EIO, times=9) if code == QUOTE else None
    with kernel, pytest.raises(EvidenceError, match="EIO"):
        TpmDevice(kernel=kernel).collect_evidence(REPORT_DATA)


@pytest.mark.parametrize(
    ("response_code", "message"),
    [
        (0x084, r"refused CREATE_PRIMARY: VALUE \(0x084\)"),
        (0x2C4, r"refused CREATE_PRIMARY: VALUE \(0x2c4\)"),
        (0x185, r"refused CREATE_PRIMARY: HIERARCHY"),
        (0x101, r"refused CREATE_PRIMARY: FAILURE \(0x101\)"),
        (0x902, r"OBJECT_MEMORY"),
        (0x9A2, r"BAD_AUTH \(0x9a2\) \(a handle of the TPM has a password"),
        (0x98E, r"AUTH_FAIL \(0x98e\) \(a handle of the TPM has a password"),
        (0xFFFFFF00, r"TPM_RC \(0xffffff00\)"),
    ],
)
def test_a_refusal_is_said_by_its_name(response_code: int, message: str) -> None:
    _check_refused(_refusing(SoftTpm(), CREATE_PRIMARY, response_code), message)


@pytest.mark.parametrize("response_code", [0x922, 0x908, 0x90A])
def test_a_tpm_that_is_busy_is_asked_again(response_code: int) -> None:
    with _kernel(_refusing(SoftTpm(), QUOTE, response_code, times=7)) as kernel:
        TpmDevice(kernel=kernel).collect_evidence(REPORT_DATA)
    assert 0 < kernel.monotonic() < 1


def test_a_tpm_that_stays_busy_is_given_up() -> None:
    kernel = _kernel(_refusing(SoftTpm(), QUOTE, 0x922))
    with kernel, pytest.raises(EvidenceError, match="refused QUOTE: RETRY"):
        TpmDevice(kernel=kernel).collect_evidence(REPORT_DATA)
    assert BUSY_SECONDS <= kernel.monotonic() < BUSY_SECONDS + 1


def test_a_key_that_can_not_be_flushed_is_no_matter() -> None:
    with _kernel(_refusing(SoftTpm(), 0x165, 0x101)) as kernel:
        TpmDevice(kernel=kernel).collect_evidence(REPORT_DATA)


def test_a_command_that_is_taken_in_part_is_refused() -> None:
    class Cutting(EmulatedKernel):
        def write(self, descriptor: int, data: bytes) -> int:
            return super().write(descriptor, data) - 1

    with (
        Cutting(TpmNode(SoftTpm().transmit)) as kernel,
        pytest.raises(EvidenceError, match="the TPM took 64 of 65 bytes"),
    ):
        TpmDevice(kernel=kernel).collect_evidence(REPORT_DATA)


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (b"", "ends after 0 of 10 bytes"),
        (bytes(9), "ends after 9 of 10 bytes"),
        (struct.pack(">HII", 0x8002, 9, 0), "says that it has 9 bytes"),
        (struct.pack(">HII", 0x8002, 4097, 0), "says that it has 4097 bytes"),
        (struct.pack(">HII", 0x8002, 11, 0), "ends after 10 of 11 bytes"),
        (struct.pack(">HII", 0x8002, 10, 0) + b"\0", "has 11 bytes and says 10"),
        (struct.pack(">HII", 0x8001, 10, 0), "has the tag 0x8001, not 0x8002"),
        (struct.pack(">HII", 0x8002, 10, 0), "ends inside its handle"),
        (struct.pack(">HII", 0x8002, 14, 0) + bytes(4), "ends inside its length of its parameters"),
        (struct.pack(">HIIII", 0x8002, 18, 0, 0, 5), "ends inside its parameters"),
        (struct.pack(">HIIII", 0x8002, 18, 0, 0, 0), "ends inside its length of its public area"),
    ],
)
def test_a_response_that_is_none_is_refused(response: bytes, message: str) -> None:
    _check_refused(_answering(SoftTpm(), CREATE_PRIMARY, lambda _: response), message)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("00000007 00000000 00000000", "does not give the SHA-256 values"),  # no bank
        ("00000007 00000001 0004 03 010000 00000001 0020" + "00" * 32, "does not give the SHA-256 values"),  # of SHA-1
        ("00000007 00000001 000b 03 000000 00000000", "does not give the SHA-256 values"),  # nothing
        ("00000007 00000001 000b 03 020000 00000001 0020" + "00" * 32, "does not give the SHA-256 values"),  # another
        ("00000007 00000001 000b 03 010000 00000000", "does not give the SHA-256 values"),  # no value
        ("00000007 00000001 000b 05 0100000000 00000001", "selection of 5 bytes; 4 are allowed"),
        ("00000007 00000001 000b 03 010000 00000001 0014" + "00" * 20, "a PCR of 20 bytes, not 32"),
        ("00000007 00000001 000b 03 010000 00000001 0021" + "00" * 33, "a PCR of 33 bytes; 32 are allowed"),
        ("00000007 00000001", "ends inside its bank"),
    ],
)
def test_pcrs_that_are_none_are_refused(parameters: str, message: str) -> None:
    transmit = _answering(SoftTpm(), PCR_READ, _with_parameters(bytes.fromhex(parameters)))
    with _kernel(transmit) as kernel, pytest.raises(EvidenceError, match=message):
        TpmDevice(pcrs=[0], kernel=kernel).collect_evidence(REPORT_DATA)


def test_a_quote_that_is_none_is_refused() -> None:
    empty = struct.pack(">HIIIH", 0x8002, 16, 0, 2, 0)
    _check_refused(_answering(SoftTpm(), QUOTE, lambda _: empty), "the TPM's signature ends inside its scheme")


# --- NV memory


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 2600, MAX_NV_BYTES])
def test_nv_memory_is_written_and_read(size: int) -> None:
    soft = SoftTpm()
    with _kernel(soft.transmit) as kernel:
        descriptor = kernel.open(DEVICE, 2)
        tpm = Tpm(kernel, descriptor)
        assert tpm.nv_size(INDEX) is None
        tpm.nv_define(INDEX, size)
        content = bytes(index % 251 for index in range(size))
        for offset in range(0, size, 2048):
            soft.nv[INDEX][offset:] = content[offset:]
        tpm.nv_write(INDEX, content[:64])
        assert (tpm.nv_size(INDEX), tpm.nv_read(INDEX, size)) == (size, content)
        kernel.close(descriptor)


def _nv(transmit: Transmit, call: Callable[[Tpm], object], message: str) -> None:
    with _kernel(transmit) as kernel:
        descriptor = kernel.open(DEVICE, 2)
        with pytest.raises(EvidenceError, match=message):
            call(Tpm(kernel, descriptor))
        kernel.close(descriptor)


def test_nv_memory_that_is_too_large_is_not_read() -> None:
    _nv(SoftTpm().transmit, lambda tpm: tpm.nv_read(INDEX, MAX_NV_BYTES + 1), f"{MAX_NV_BYTES} are allowed")


def test_nv_memory_that_gives_nothing_is_refused() -> None:
    nothing = struct.pack(">HIIIH", 0x8002, 16, 0, 2, 0)
    transmit = _answering(SoftTpm(), NV_READ, lambda _: nothing)
    _nv(transmit, lambda tpm: tpm.nv_read(INDEX, 8), "the NV index 0x01500000 ends after 0 of 8 bytes")


def test_nv_memory_that_gives_more_than_asked_is_refused() -> None:
    more = struct.pack(">HIIIH9s", 0x8002, 25, 0, 11, 9, bytes(9))
    transmit = _answering(SoftTpm(), NV_READ, lambda _: more)
    _nv(transmit, lambda tpm: tpm.nv_read(INDEX, 8), "NV data of 9 bytes; 8 are allowed")


def test_an_nv_index_that_does_not_say_its_size_is_refused() -> None:
    transmit = _answering(SoftTpm(), NV_READ_PUBLIC, _with_parameters(bytes.fromhex("0003 000000")))
    _nv(transmit, lambda tpm: tpm.nv_size(INDEX), "the NV index ends inside its index")
    _nv(_refusing(SoftTpm(), NV_READ_PUBLIC, 0x101), lambda tpm: tpm.nv_size(INDEX), "refused NV_READ_PUBLIC: FAILURE")
