"""Sealing keys of SGX: against an emulated processor, and the machine code that asks a real one for real."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import hmac
import mmap
import platform
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.errors import KeyUnavailableError, SealedDataError, UnsealError, UnsupportedError
from adyton.sealing.sealer import Sealer
from adyton.tee.sealing import Binding, SealingKey, SealPolicy
from adyton.tee.sgx import egetkey
from adyton.tee.sgx.egetkey import (
    ALIGNMENT,
    EGETKEY,
    ENCLU,
    EREPORT,
    MACHINE_CODE,
    Enclu,
    KeyPolicy,
    KeyRequest,
    Masks,
    get_key,
    load_enclu,
    map_code,
    read_report,
)
from adyton.tee.sgx.sealing import MASKS, SgxSealing
from adyton.testing.kernels.emulated import EmulatedKernel
from adyton.testing.kernels.gramine import ATTESTATION, Gramine
from adyton.testing.kernels.sgx import (
    AEXNOTIFY,
    DEBUG,
    INIT,
    MODE64BIT,
    PROVISIONKEY,
    EmulatedEnclave,
    EmulatedProcessor,
    GramineKeys,
)
from adyton.testing.sealers import KeySourceConformance

BOTH = pytest.mark.parametrize("policy", [SealPolicy.MEASUREMENT, SealPolicy.SIGNER], ids=["measurement", "signer"])
x86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="machine code of x86_64")

PROCESSOR = EmulatedProcessor(fuses=b"fuses of a machine", cpu_svn=bytes([2] * 16))
ENCLAVE = EmulatedEnclave(mrenclave=b"e" * 32, mrsigner=b"s" * 32, isv_prod_id=0x0107, isv_svn=5)
REQUEST = struct.Struct("<B16sHHQ32sQQI")
"""Version, CPUSVN, ISVSVN, ISVPRODID, flags, KEYID and three masks."""


class World:
    """One processor, on which enclaves are started; as often as it was updated, so high is its CPUSVN."""

    def __init__(self, fuses: bytes = b"one machine") -> None:
        self._fuses = fuses

    def source(self, *, code: str = "a", signer: str = "s", version: int = 1, tcb: int = 1) -> SgxSealing:
        enclave = EmulatedEnclave(mrenclave=_sha256(code), mrsigner=_sha256(signer), isv_svn=version)
        return _source(enclave, EmulatedProcessor(fuses=self._fuses, cpu_svn=bytes([tcb] * 16)))

    def elsewhere(self) -> World:
        return World(b"another machine")


class TestSgxSealing(KeySourceConformance):
    policies = frozenset({SealPolicy.MEASUREMENT, SealPolicy.SIGNER})

    @pytest.fixture
    def world(self) -> World:
        return World()


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _kernel(enclave: EmulatedEnclave = ENCLAVE, processor: EmulatedProcessor = PROCESSOR) -> EmulatedKernel:
    gramine = Gramine(quote=lambda report_data: report_data, attestation_type=b"none")
    return EmulatedKernel(gramine, GramineKeys(processor, enclave))


def _source(enclave: EmulatedEnclave = ENCLAVE, processor: EmulatedProcessor = PROCESSOR) -> SgxSealing:
    return SgxSealing(kernel=_kernel(enclave, processor), enclu=processor.enclu(enclave))


def _again(made: SealingKey, enclave: EmulatedEnclave = ENCLAVE, processor: EmulatedProcessor = PROCESSOR) -> bytes:
    return _source(enclave, processor).same_key(made.binding, made.request)


def _altered(made: SealingKey, index: int, value: object) -> SealingKey:
    """Its request with another value in one field."""
    fields = list(REQUEST.unpack(made.request))
    fields[index] = value
    return replace(made, request=REQUEST.pack(*fields))


# Updates


@BOTH
def test_what_gramines_key_files_lose_in_an_update_of_the_microcode_stays_ours(policy: SealPolicy) -> None:
    updated = replace(PROCESSOR, cpu_svn=bytes([2] * 15 + [3]))
    path = f"{ATTESTATION}/keys/_sgx_{'mrenclave' if policy is SealPolicy.MEASUREMENT else 'mrsigner'}"
    before, after = (_content(_kernel(processor=each), path) for each in (PROCESSOR, updated))
    assert len(before) == len(after) == 16
    assert before == _content(_kernel(), path)
    assert before != after

    sealed = Sealer(_source(), policy=policy).seal(b"secret")
    assert Sealer(_source(processor=updated), policy=policy).unseal(sealed) == b"secret"


def _content(kernel: EmulatedKernel, path: str) -> bytes:
    descriptor = kernel.open(path, 0)
    with kernel:
        content = kernel.read(descriptor, 100)
        kernel.close(descriptor)
    return content


@BOTH
def test_what_is_resealed_after_an_update_is_closed_to_the_old_hardware(policy: SealPolicy) -> None:
    updated = replace(PROCESSOR, cpu_svn=bytes([3] * 16))
    sealed = Sealer(_source(), policy=policy).seal(b"secret")
    sealed = Sealer(_source(processor=updated), policy=policy).reseal(sealed)
    assert Sealer(_source(processor=updated), policy=policy).unseal(sealed) == b"secret"
    with pytest.raises(UnsealError, match=r"security version \(CPUSVN\) is older than 0303"):
        Sealer(_source(), policy=policy).unseal(sealed)


@BOTH
@pytest.mark.parametrize(
    "change",
    [
        {"xfrm": 0x602E7},
        {"attributes": INIT | MODE64BIT | PROVISIONKEY},
        {"attributes": INIT | MODE64BIT | AEXNOTIFY},
        {"misc_select": 1},
    ],
    ids=["AVX-512 and AMX", "PROVISIONKEY", "AEX-Notify", "EXINFO"],
)
def test_what_takes_no_protection_away_may_change(policy: SealPolicy, change: dict[str, int]) -> None:
    changed = replace(ENCLAVE, **change)  # type: ignore[arg-type]
    for maker, asker in (ENCLAVE, changed), (changed, ENCLAVE):
        made = _source(maker).new_key(policy)
        assert _again(made, asker) == made.key


# Whom it refuses


@BOTH
def test_a_debug_enclave_gets_no_key_of_a_production_enclave_nor_the_other_way(policy: SealPolicy) -> None:
    debug = replace(ENCLAVE, attributes=ENCLAVE.attributes | DEBUG)
    for maker, asker in (ENCLAVE, debug), (debug, ENCLAVE):
        made = _source(maker).new_key(policy)
        with pytest.raises(UnsealError, match=r"the attributes are .* is a debug enclave"):
            _again(made, asker)
        told_otherwise = _altered(made, 4, asker.attributes & MASKS.flags)
        assert _again(told_otherwise, asker) != made.key


@BOTH
@pytest.mark.parametrize("flag", [MODE64BIT, 1 << 63], ids=["32-bit mode", "a protection to come"])
def test_other_attributes_are_refused_by_name(policy: SealPolicy, flag: int) -> None:
    made = _source().new_key(policy)
    with pytest.raises(UnsealError, match=r"the attributes are 0x[0-9a-f]+; the data was sealed for 0x5$"):
        _again(made, replace(ENCLAVE, attributes=ENCLAVE.attributes ^ flag))


@BOTH
def test_another_product_is_refused_by_name(policy: SealPolicy) -> None:
    made = _source().new_key(policy)
    with pytest.raises(UnsealError, match=r"the product \(ISVPRODID\) is 0108; the data was sealed for 0107"):
        _again(made, replace(ENCLAVE, isv_prod_id=0x0108))


def test_the_same_code_signed_as_an_earlier_version_is_refused_by_the_processor() -> None:
    made = _source().new_key(SealPolicy.MEASUREMENT)
    with pytest.raises(UnsealError, match=r"security version \(ISVSVN\) is lower than 5"):
        _again(made, replace(ENCLAVE, isv_svn=4))


def test_the_same_code_of_another_signer_has_the_measurements_key_and_not_the_signers() -> None:
    other = replace(ENCLAVE, mrsigner=b"t" * 32)
    made = _source().new_key(SealPolicy.MEASUREMENT)
    assert _again(made, other) == made.key
    with pytest.raises(UnsealError, match=r"the signer \(MRSIGNER\) is 7474"):
        _again(_source().new_key(SealPolicy.SIGNER), other)


def test_a_signers_enclave_whose_version_is_0_has_no_signers_key() -> None:
    source = _source(replace(ENCLAVE, isv_svn=0))
    assert source.current(SealPolicy.MEASUREMENT).version == 0
    assert len(source.new_key(SealPolicy.MEASUREMENT).key) == 32
    for ask in source.current, source.new_key:
        with pytest.raises(UnsupportedError, match="ISVSVN is 0") as caught:
            ask(SealPolicy.SIGNER)
        assert "sgx.isvsvn" in caught.value.mend
    made = _source().new_key(SealPolicy.SIGNER)
    with pytest.raises(UnsealError, match=r"the version \(ISVSVN\) is 0; the data was sealed for 5 or later"):
        source.same_key(made.binding, made.request)


def test_a_binding_to_what_sgx_has_not_is_refused_by_name() -> None:
    made = _source().new_key(SealPolicy.MEASUREMENT)
    for change, message in (
        ({"policy": SealPolicy.EXTERNAL}, "the policy is external"),
        ({"product": b"x"}, "the product is none"),
        ({"version": 1}, "the version"),
    ):
        with pytest.raises(UnsealError, match=message):
            _source().same_key(replace(made.binding, **change), made.request)


# Requests, which the host brings


@BOTH
@pytest.mark.parametrize(("index", "value"), [(6, 0), (6, MASKS.flags & ~DEBUG), (7, 3), (8, 0), (8, 0xFFFFFFFF)])
def test_masks_that_nothing_was_sealed_under_are_refused(policy: SealPolicy, index: int, value: int) -> None:
    made = _altered(_source().new_key(policy), index, value)
    with pytest.raises(SealedDataError, match="masks that nothing was ever sealed under"):
        _again(made)


@pytest.mark.parametrize(("version", "asked"), [(4, 5), (5, 4), (0, 0), (0, 5), (5, 0)])
def test_a_signers_request_is_for_the_version_that_the_binding_names(version: int, asked: int) -> None:
    made = _altered(_source().new_key(SealPolicy.SIGNER), 2, asked)
    with pytest.raises(SealedDataError, match=f"the key request is for version {asked}, the binding for {version}"):
        _source().same_key(replace(made.binding, version=version), made.request)


def test_requests_of_another_version_or_length_are_refused() -> None:
    made = _source().new_key(SealPolicy.MEASUREMENT)
    with pytest.raises(SealedDataError, match="of version 2 are not known here"):
        _again(_altered(made, 0, 2))
    with pytest.raises(SealedDataError, match="a key request of SGX has 81 bytes, not 82"):
        _source().same_key(made.binding, made.request + b"\0")


_BINDINGS = st.sampled_from([_source().current(SealPolicy.MEASUREMENT), _source().current(SealPolicy.SIGNER)])
_REQUESTS = st.binary(max_size=128) | st.builds(
    REQUEST.pack,
    st.sampled_from([1, 1, 1, 0, 2]),
    st.lists(st.integers(0, 3), min_size=16, max_size=16).map(bytes),
    st.integers(0, 7) | st.integers(0, 0xFFFF),
    st.just(ENCLAVE.isv_prod_id) | st.integers(0, 0xFFFF),
    st.just(ENCLAVE.attributes) | st.integers(0, 2**64 - 1),
    st.binary(min_size=32, max_size=32),
    st.just(MASKS.flags) | st.integers(0, 2**64 - 1),
    st.just(0) | st.integers(0, 2**64 - 1),
    st.just(MASKS.misc) | st.integers(0, 2**32 - 1),
)


@given(binding=_BINDINGS, version=st.none() | st.integers(0, 2**32 - 1), request=_REQUESTS)
def test_any_request_gives_a_key_or_a_documented_error(binding: Binding, version: int | None, request: bytes) -> None:
    if version is not None:
        binding = replace(binding, version=version)
    try:
        key = _source().same_key(binding, request)
    except (UnsealError, SealedDataError):
        return
    assert len(key) == 32


@BOTH
def test_what_was_sealed_once_stays_readable(policy: SealPolicy) -> None:
    """Requests as they were made at first: if this fails, data of the world outside is lost."""
    request = bytes.fromhex(
        "01" + "02" * 16 + "0500" + "0701" + "0500000000000000" + "4b" * 32 + "0f000000000000ff" + "00" * 8 + "000000f0"
    )
    keys = {
        SealPolicy.MEASUREMENT: "17f1ccf879b68ff3c10599d7379411092509db0895c4678765cbfa5ac52dd0d2",
        SealPolicy.SIGNER: "4101356ba7eb4774c55727f5c7efd05af3455b12d9bcfdb350ae397ec77dce12",
    }
    assert _source().same_key(_source().current(policy), request).hex() == keys[policy]


def test_a_key_is_hkdf_of_the_processors_and_fresh_each_time() -> None:
    made, other = (_source().new_key(SealPolicy.MEASUREMENT) for _ in range(2))
    assert made.request != other.request
    assert made.key != other.key
    _, cpu_svn, isv_svn, _, _, key_id, *masks = REQUEST.unpack(made.request)
    assert masks == [MASKS.flags, MASKS.xfrm, MASKS.misc]
    request = _key_request(cpu_svn=cpu_svn, isv_svn=isv_svn, key_id=key_id)
    code, hardware_key = PROCESSOR.seal_key(ENCLAVE, request.encode())
    extracted = hmac.digest(bytes(32), hardware_key, "sha256")
    assert code == 0
    assert made.key == hmac.digest(extracted, b"adyton sgx sealing key v1\x01", "sha256")
    assert made.tcb == f"CPUSVN {'02' * 16}, ISVSVN 5"


def test_it_has_no_register() -> None:
    source = _source()
    assert source.register(source.current(SealPolicy.MEASUREMENT), bytes(32)) is None


# Where it is not, or fails


def test_outside_of_gramine_it_is_unsupported() -> None:
    made = _source().new_key(SealPolicy.MEASUREMENT)
    for source in SgxSealing(), SgxSealing(kernel=EmulatedKernel(), enclu=PROCESSOR.enclu(ENCLAVE)):
        for call in (
            source.check_present,
            lambda source=source: source.current(SealPolicy.MEASUREMENT),
            lambda source=source: source.new_key(SealPolicy.SIGNER),
            lambda source=source: source.same_key(made.binding, made.request),
        ):
            with pytest.raises(UnsupportedError, match="no Gramine with SGX here: ENOENT"):
                call()


def test_inside_it_is_present_and_leaves_nothing_open() -> None:
    with _kernel() as kernel:
        source = SgxSealing(kernel=kernel, enclu=PROCESSOR.enclu(ENCLAVE))
        source.check_present()
        source.new_key(SealPolicy.SIGNER)


@x86_64
def test_it_is_present_with_the_real_instruction_too() -> None:
    SgxSealing(kernel=_kernel()).check_present()


@pytest.mark.parametrize("operation", ["open", "close"])
def test_gramine_that_fails_now_is_said(operation: str) -> None:
    kernel = _kernel()
    kernel.fail(operation, "attestation_type", errno.EIO)  # type: ignore[arg-type]
    source = SgxSealing(kernel=kernel, enclu=PROCESSOR.enclu(ENCLAVE))
    with kernel, pytest.raises(KeyUnavailableError, match="Gramine failed: EIO"):
        source.new_key(SealPolicy.MEASUREMENT)
    source.new_key(SealPolicy.MEASUREMENT)


@pytest.mark.parametrize("code", [2, 256])
def test_any_other_refusal_of_the_processor_is_said(code: int) -> None:
    real = PROCESSOR.enclu(ENCLAVE)

    def refusing(leaf: int, rbx: int, rcx: int, rdx: int, /) -> int:
        return code if leaf == EGETKEY else real(leaf, rbx, rcx, rdx)

    source = SgxSealing(kernel=_kernel(), enclu=refusing)
    with pytest.raises(KeyUnavailableError, match=f"EGETKEY failed with error {code}"):
        source.new_key(SealPolicy.MEASUREMENT)


# The instruction


def _key_request(**fields: object) -> KeyRequest:
    default = KeyRequest(
        policy=KeyPolicy.MRENCLAVE, isv_svn=5, cpu_svn=PROCESSOR.cpu_svn, masks=MASKS, key_id=bytes(range(32))
    )
    return replace(default, **fields)  # type: ignore[arg-type]


def test_a_key_request_is_laid_out_as_the_manual_says() -> None:
    masks = Masks(flags=0x1122334455667788, xfrm=0x99AABBCCDDEEFF00, misc=0x12345678)
    request = _key_request(policy=KeyPolicy.MRSIGNER, isv_svn=0x0102, cpu_svn=b"c" * 16, masks=masks).encode()
    assert len(request) == 512
    assert request[:8] == bytes.fromhex("0400" + "0200" + "0201" + "0000")
    assert request[8:24] == b"c" * 16
    assert request[24:40] == bytes.fromhex("8877665544332211" + "00ffeeddccbbaa99")
    assert request[40:72] == bytes(range(32))
    assert request[72:76] == bytes.fromhex("78563412")
    assert not any(request[76:])


def test_a_report_says_what_the_processor_knows() -> None:
    report = read_report(PROCESSOR.enclu(replace(ENCLAVE, misc_select=1)))
    assert (report.cpu_svn, report.misc_select) == (PROCESSOR.cpu_svn, 1)
    assert (report.mrenclave, report.mrsigner) == (ENCLAVE.mrenclave, ENCLAVE.mrsigner)
    assert (report.isv_prod_id, report.isv_svn) == (ENCLAVE.isv_prod_id, ENCLAVE.isv_svn)
    assert (report.attributes, report.xfrm, report.report_data) == (ENCLAVE.attributes, ENCLAVE.xfrm, bytes(64))


def test_operands_are_aligned_wherever_memory_is_free() -> None:
    seen: set[int] = set()
    kept = []
    enclu = PROCESSOR.enclu(ENCLAVE)

    def watching(leaf: int, rbx: int, rcx: int, rdx: int, /) -> int:
        seen.update((rbx, rcx, rdx))
        return enclu(leaf, rbx, rcx, rdx)

    for size in range(200):
        kept.append(ctypes.create_string_buffer(16 * size + 8))  # so that the next is somewhere else
        read_report(watching)
        get_key(watching, _key_request())
    assert len(kept) == 200
    assert len(seen) > 3
    assert {address % ALIGNMENT for address in seen} == {0}


def test_the_emulation_takes_nothing_that_a_processor_would_not() -> None:
    enclu = PROCESSOR.enclu(ENCLAVE)
    memory = ctypes.create_string_buffer(4096)
    aligned = ctypes.addressof(memory) + -ctypes.addressof(memory) % 512
    good = _key_request().encode()
    for operands in (aligned + 16, aligned + 1024), (aligned, aligned + 1032), (0, aligned):
        with pytest.raises(AssertionError, match="is not aligned"):
            enclu(EGETKEY, *operands, 0)
    with pytest.raises(AssertionError, match="leaf 4"):
        enclu(4, aligned, aligned, aligned)
    for place in 2, 6, 76, 78, 511:
        bad = bytearray(good)
        bad[place] |= 0x40
        with pytest.raises(AssertionError, match="reserved bits"):
            PROCESSOR.seal_key(ENCLAVE, bytes(bad))
    assert PROCESSOR.seal_key(ENCLAVE, b"\x01" + good[1:]) == (256, b"")


def test_each_field_of_a_key_request_makes_another_key() -> None:
    enclu = PROCESSOR.enclu(ENCLAVE)
    keys = {
        get_key(enclu, request)
        for request in (
            _key_request(),
            _key_request(policy=KeyPolicy.MRSIGNER),
            _key_request(isv_svn=4),
            _key_request(cpu_svn=bytes(16)),
            _key_request(key_id=bytes(32)),
            _key_request(masks=replace(MASKS, flags=0xF)),
            _key_request(masks=replace(MASKS, xfrm=8)),
            _key_request(masks=replace(MASKS, misc=0)),
        )
    }
    keys.add(get_key(replace(PROCESSOR, owner_epoch=b"a new owner's ep").enclu(ENCLAVE), _key_request()))
    no_masks = _key_request(masks=Masks(flags=0, xfrm=0, misc=0))
    debug = replace(ENCLAVE, attributes=ENCLAVE.attributes | DEBUG)
    keys |= {get_key(PROCESSOR.enclu(enclave), no_masks) for enclave in (ENCLAVE, debug)}
    assert len(keys) == 11


# The machine code

_RECORDER = bytes.fromhex(
    "498901"  # mov [r9], rax
    "49895908"  # mov [r9+8], rbx
    "49894910"  # mov [r9+16], rcx
    "49895118"  # mov [r9+24], rdx
    "48b8efcdab8967452301"  # mov rax, 0x0123456789abcdef
    "c3"  # ret
)
_CALL_R8 = bytes.fromhex("41ffd0")
"""As long as ENCLU, and calls what the fifth argument points to."""
_KEPT_IN_RBX = 0x5AFE5AFE5AFE5AFE


def _caller_of(address: int) -> bytes:
    """Calls that address with the arguments that it was called with, and stores what is in rbx after."""
    return (
        bytes.fromhex("53" + "48bb")  # push rbx; mov rbx, …
        + struct.pack("<Q", _KEPT_IN_RBX)
        + bytes.fromhex("48b8")  # mov rax, …
        + struct.pack("<Q", address)
        + bytes.fromhex("ffd0" + "49895920" + "5b" + "c3")  # call rax; mov [r9+32], rbx; pop rbx; ret
    )


@x86_64
@pytest.mark.parametrize("leaf", [EREPORT, EGETKEY])
def test_the_machine_code_has_every_operand_in_its_register_and_keeps_the_callers(leaf: int) -> None:
    assert MACHINE_CODE.count(ENCLU) == 1
    stub = map_code(MACHINE_CODE.replace(ENCLU, _CALL_R8))
    call = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint32, *[ctypes.c_void_p] * 5)(map_code(_caller_of(stub)))
    seen = (ctypes.c_uint64 * 5)()
    answer = call(leaf, 0x1111111111111111, 0x3333333333333333, 0x2222222222222222, map_code(_RECORDER), seen)
    rax, rbx, rcx, rdx, rbx_after = seen
    assert (rax, rbx, rcx, rdx) == (leaf, 0x1111111111111111, 0x2222222222222222, 0x3333333333333333)
    assert rbx_after == _KEPT_IN_RBX
    assert answer == 0x0123456789ABCDEF


@pytest.fixture
def _loaded_anew() -> Iterator[None]:
    load_enclu.cache_clear()
    yield
    load_enclu.cache_clear()


@x86_64
@pytest.mark.usefixtures("_loaded_anew")
def test_the_loaded_instruction_takes_its_operands_in_the_manuals_order(monkeypatch: pytest.MonkeyPatch) -> None:
    store = bytes.fromhex("4801c8")  # add rax, rcx, in ENCLU's place: rax is the leaf + rcx
    monkeypatch.setattr(egetkey, "MACHINE_CODE", MACHINE_CODE.replace(ENCLU, store))
    enclu: Enclu = load_enclu()
    assert enclu(1, 0x1000, 0x7FFF_2000, 0x3000) == 0x7FFF_2001
    assert load_enclu() is enclu


@x86_64
def test_code_is_never_writable_and_executable_at_once() -> None:
    address = map_code(MACHINE_CODE)
    assert address % mmap.PAGESIZE == 0
    assert ctypes.string_at(address, len(MACHINE_CODE)) == MACHINE_CODE
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, _, end = line.split(" ")[0].partition("-")
        if int(begin, 16) <= address < int(end, 16):
            assert line.split(" ")[1] == "r-xp"
            return
    pytest.fail("the code is nowhere")


_EXECUTE = """
import resource
from adyton.tee.sgx.egetkey import load_enclu, read_report
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
enclu = load_enclu()
print("loaded", flush=True)
read_report(enclu)
print("executed", flush=True)
"""

_REFUSED = """
import ctypes, sys
from adyton.errors import UnsupportedError
from adyton.tee.sgx.egetkey import load_enclu
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
if ctypes.CDLL(None).prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0):
    sys.exit(3)
try:
    load_enclu()
except UnsupportedError as error:
    print(error)
"""


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False, timeout=60)


@x86_64
def test_executed_outside_an_enclave_it_ends_the_process() -> None:
    done = _run(_EXECUTE)
    assert done.stdout == "loaded\n"
    assert done.returncode in (-signal.SIGILL, -signal.SIGSEGV)  # without SGX, and with


@x86_64
def test_where_no_memory_can_be_made_executable_the_error_says_what_to_set() -> None:
    done = _run(_REFUSED)
    if done.returncode == 3:
        pytest.skip("this kernel can't refuse it (PR_SET_MDWE is of Linux 6.3)")
    assert "no memory here can be made executable: EACCES" in done.stdout
    assert "sgx.edmm_enable" in done.stdout


@pytest.mark.usefixtures("_loaded_anew")
def test_another_architecture_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(UnsupportedError, match="SGX is of x86_64; this is aarch64"):
        load_enclu()
