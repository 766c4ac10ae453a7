"""Whatever hardware, firmware or host answer a device, and whatever fails: only the documented errors, nothing left."""

from __future__ import annotations

import errno
import struct
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, get_args

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from adyton.errors import EvidenceError, UnsupportedError
from adyton.tee._device import HardwareDevice
from adyton.tee._tpm_quote import EVENT_LOG
from adyton.tee.azure.device import AzureDevice
from adyton.tee.azure.format import parse_azure
from adyton.tee.cca.device import CcaDevice
from adyton.tee.evidence import MAX_ENDORSEMENT_BYTES, MAX_ENDORSEMENTS, MAX_EVIDENCE_BYTES, Evidence
from adyton.tee.nitro.device import NitroDevice
from adyton.tee.sgx.device import SgxDevice
from adyton.tee.snp.device import CERTIFICATE_GUIDS, SnpDevice, parse_cert_table
from adyton.tee.tdx.device import EVENT_LOG as CCEL
from adyton.tee.tdx.device import TdxDevice
from adyton.tee.tpm.device import TpmDevice
from adyton.tee.tpm.format import parse_tpm
from adyton.testing.azure import AzureRecipe, AzureVendor
from adyton.testing.kernels.emulated import Driver, EmulatedKernel, Files, Operation
from adyton.testing.kernels.gramine import Gramine
from adyton.testing.kernels.nsm import Nsm, documents
from adyton.testing.kernels.paravisor import Paravisor
from adyton.testing.kernels.soft_tpm import SoftTpm
from adyton.testing.kernels.tpm import TpmNode, Transmit
from adyton.testing.kernels.tsm import Tsm
from adyton.testing.tpm_quotes import key

REPORT_DATA = bytes(range(64))
TOLD = {"user-data": REPORT_DATA.hex()}
HCL_REPORT: bytes = cbor2.loads(
    AzureVendor().case(AzureRecipe(edit_runtime=lambda runtime: runtime | TOLD)).evidence.data
)["hcl_report"]
VTPM_AK = key("rsa")
assert isinstance(VTPM_AK, rsa.RSAPrivateKey)

ERRNOS = st.sampled_from(sorted(errno.errorcode))


def _quote(report_data: bytes) -> bytes:
    return bytes(368) + report_data


def _soft_tpm() -> SoftTpm:
    assert isinstance(VTPM_AK, rsa.RSAPrivateKey)
    return SoftTpm(rsa_ak=VTPM_AK)


def _paravisor(transmit: Transmit) -> TpmNode:
    return TpmNode(Paravisor(transmit, lambda _: HCL_REPORT, lag=0).transmit)


HARDWARE: dict[type[HardwareDevice], Callable[[], Iterable[Driver]]] = {
    SgxDevice: lambda: [Gramine(quote=_quote)],
    NitroDevice: lambda: [Nsm(documents(_quote))],
    SnpDevice: lambda: [Tsm(provider="sev_guest", quote=_quote)],
    TdxDevice: lambda: [Tsm(provider="tdx_guest", quote=_quote), Files(**{CCEL: b"log"})],
    CcaDevice: lambda: [Tsm(provider="arm_cca_guest", quote=_quote)],
    TpmDevice: lambda: [TpmNode(_soft_tpm().transmit), Files(**{EVENT_LOG: b"log"})],
    AzureDevice: lambda: [_paravisor(_soft_tpm().transmit)],
}


def _collect(device: HardwareDevice, kernel: EmulatedKernel) -> Evidence | None:
    """What a device gives, in bounds, or None if it says no; nothing is left either way."""
    evidence = None
    with suppress(EvidenceError, UnsupportedError):
        evidence = device.collect_evidence(REPORT_DATA)
    kernel.check_nothing_left()
    if evidence is not None:
        assert 0 < len(evidence.data) <= MAX_EVIDENCE_BYTES
        assert len(evidence.endorsements) <= MAX_ENDORSEMENTS
        assert all(len(each.data) <= MAX_ENDORSEMENT_BYTES for each in evidence.endorsements)
    return evidence


@st.composite
def mutations(draw: st.DrawFn, original: bytes) -> bytes:
    """The original with a few slices replaced, or bits flipped."""
    data = original
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(data)))
        removed, inserted = draw(st.integers(0, 4) | st.integers(0, len(data))), draw(st.binary(max_size=8))
        data = data[:start] + inserted + data[start + removed :]
    return data


# --- the kernel fails


@st.composite
def faults(draw: st.DrawFn) -> tuple[Operation, str, int, int]:
    operation = draw(st.sampled_from([each for each in get_args(Operation) if each != "rmdir"]))
    names = ["", "blob", "generation", "provider", "privlevel", "attestation_type", "quote", "CCEL", "measurements"]
    return operation, draw(st.sampled_from(names)), draw(ERRNOS), draw(st.integers(1, 5) | st.just(10_000))


@pytest.mark.parametrize("kind", HARDWARE)
@settings(max_examples=60)
@given(st.lists(faults(), max_size=3), st.sampled_from([1, 7, 1 << 20]))
def test_whatever_call_fails_nothing_is_left(
    kind: type[HardwareDevice], some: list[tuple[Operation, str, int, int]], read_at_most: int
) -> None:
    kernel = EmulatedKernel(*HARDWARE[kind](), read_at_most=read_at_most)
    for operation, path_end, number, times in some:
        kernel.fail(operation, path_end, number, times=times)
    evidence = _collect(kind(kernel=kernel), kernel)
    assert evidence is not None or some


# --- configfs-tsm


@given(st.binary(max_size=200) | st.integers(0, 70_000).map(bytes), st.binary(max_size=200))
def test_any_report_and_any_table_of_certificates(report: bytes, table: bytes) -> None:
    kernel = EmulatedKernel(Tsm(provider="sev_guest", quote=lambda _: report, auxblob=table))
    evidence = _collect(SnpDevice(kernel=kernel), kernel)
    assert evidence is None or evidence.data == report


@given(st.text(max_size=100), st.text(max_size=30))
def test_any_provider_and_any_floor(provider: str, floor: str) -> None:
    kernel = EmulatedKernel(Tsm(provider=provider, quote=_quote))
    assert _collect(TdxDevice(kernel=kernel), kernel) is None or provider == "tdx_guest"
    tsm = Tsm(provider="sev_guest", quote=_quote)
    tsm.privlevel_floor = floor  # type: ignore[assignment]
    kernel = EmulatedKernel(tsm)
    with suppress(ValueError, TypeError):  # of the emulation, whose floor is no number
        _collect(SnpDevice(kernel=kernel), kernel)


def _table(entries: list[tuple[bytes, int, int]], tail: bytes) -> bytes:
    return b"".join(guid + struct.pack("<II", offset, length) for guid, offset, length in entries) + tail


guids = st.sampled_from(sorted(CERTIFICATE_GUIDS)) | st.just(bytes(16)) | st.uuids().map(lambda value: value.bytes)
numbers = st.integers(0, 300) | st.integers(0, 2**32 - 1)
pems = st.binary(max_size=60).map(lambda data: b"-----BEGIN CERTIFICATE-----" + data + b"-----END CERTIFICATE-----")
tables = st.builds(
    _table,
    st.lists(st.tuples(guids, numbers, numbers), max_size=40),
    st.builds(lambda end, tail: end + tail, st.just(bytes(24)) | st.just(b""), st.binary(max_size=100) | pems),
)


@given(st.binary(max_size=200) | tables)
def test_any_table_gives_certificates_from_itself_or_is_refused(table: bytes) -> None:
    with suppress(EvidenceError):
        certificates = parse_cert_table(table)
        assert len(certificates) < MAX_ENDORSEMENTS
        assert all(der in table or b"-----BEGIN CERTIFICATE-----" in table for der in certificates)


#: A certificate in DER, as far as a table knows: what begins as PEM is read as that.
der = st.binary(max_size=50).filter(lambda content: not content.startswith(b"-----"))


@given(st.lists(st.tuples(st.sampled_from(sorted(CERTIFICATE_GUIDS)), der), max_size=8))
def test_a_table_gives_the_certificates_that_were_put_into_it(put: list[tuple[bytes, bytes]]) -> None:
    entries, contents = [], b""
    for guid, content in [(uuid.uuid4().bytes, b"of another kind"), *put]:
        entries.append((guid, 24 * (len(put) + 2) + len(contents), len(content)))
        contents += content
    assert parse_cert_table(_table(entries, bytes(24) + contents)) == tuple(content for _, content in put)


# --- Gramine and the NSM


@given(st.binary(max_size=100) | mutations(_quote(REPORT_DATA)), st.binary(max_size=70) | st.just(b"dcap"))
def test_any_quote_of_gramine(quote: bytes, attestation_type: bytes) -> None:
    kernel = EmulatedKernel(Gramine(quote=lambda _: quote, attestation_type=attestation_type))
    evidence = _collect(SgxDevice(kernel=kernel), kernel)
    assert evidence is None or REPORT_DATA in evidence.data


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
items = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))
answers = st.one_of(
    items,
    st.builds(lambda item: {"Attestation": item}, items),
    st.builds(lambda item: {"Attestation": {"document": item}}, items),
    st.builds(lambda item: {"Error": item}, items),
)
ANSWER = cbor2.dumps({"Attestation": {"document": b"document"}})


@given(answers.map(cbor2.dumps) | st.binary(max_size=50) | mutations(ANSWER) | st.integers(0, 20_000).map(bytes))
def test_any_response_of_the_nsm(response: bytes) -> None:
    kernel = EmulatedKernel(Nsm(lambda _: response))
    evidence = _collect(NitroDevice(kernel=kernel), kernel)
    assert evidence is None or evidence.data in response


# --- the TPM


def _changing(transmit: Transmit, changes: dict[int, Any]) -> Transmit:
    """That TPM, but the responses of some numbers (the first is 0) are changed."""
    number = [-1]

    def changed(command: bytes) -> bytes:
        number[0] += 1
        response = transmit(command)
        return changes[number[0]](response) if number[0] in changes else response

    return changed


def _spliced(start: int, removed: int, inserted: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data[: start % (len(data) + 1)] + inserted + data[start % (len(data) + 1) + removed :]


def _consistent(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """A change of what follows the head, with the sizes in head and parameters put right; of success, as before."""

    def changed(data: bytes) -> bytes:
        body = change(data[10:])
        return data[:2] + struct.pack(">I", 10 + len(body)) + data[6:10] + body

    return changed


splices = st.builds(_spliced, st.integers(0, 400), st.integers(0, 8), st.binary(max_size=8))
changes_of_one = splices | splices.map(_consistent) | st.binary(max_size=40).map(lambda data: lambda _: data)
codes = st.builds(lambda code: lambda _: struct.pack(">HII", 0x8001, 10, code), st.integers(0, 2**32 - 1))
changes = st.dictionaries(st.integers(0, 12), changes_of_one | codes, max_size=2)


@settings(max_examples=150)
@given(changes)
def test_any_responses_of_a_tpm(some: dict[int, Any]) -> None:
    kernel = EmulatedKernel(TpmNode(_changing(_soft_tpm().transmit, some)))
    evidence = _collect(TpmDevice(kernel=kernel), kernel)
    assert evidence is not None or some
    if evidence is not None:
        with suppress(EvidenceError):  # a public area that was changed is for the verifier to refuse
            parse_tpm(evidence.data)


@settings(max_examples=150)
@given(changes, mutations(HCL_REPORT))
def test_any_responses_of_a_paravisors_tpm(some: dict[int, Any], report: bytes) -> None:
    paravisor = Paravisor(_soft_tpm().transmit, lambda _: report, size=max(len(report), 64), lag=0)
    kernel = EmulatedKernel(TpmNode(_changing(paravisor.transmit, some)))
    evidence = _collect(AzureDevice(kernel=kernel), kernel)
    assert evidence is not None or some or report != HCL_REPORT
    if evidence is not None:
        assert parse_azure(evidence.data).hcl.runtime["user-data"].lower() == REPORT_DATA.hex()
