"""Inside an SGX enclave under Gramine: sealing keys from the processor, which survive updates of it.

Gramine has sealing keys in files (/dev/attestation/keys). They are made at the security versions of the present, so
that after an update of the microcode other keys are there and what was sealed is lost (gramine issues 855 and 1504);
and under masks that have changed between versions of Gramine (issue 274). EGETKEY itself gives a key of any security
version up to the present one, so it is asked directly, and each request says what it was made at.

Who the enclave is comes from EREPORT and not from /dev/attestation/report: that file answers for a target_info that is
of the whole process, so that writing it would disturb other code, and other code us; the instruction has no such state
and needs no lock.

SGX's keys have 128 bits, and so the security of what they seal; HKDF makes them 32 bytes long, not stronger. And who
broke the hardware or an enclave at a security version can read and forge what was sealed at it or below, also after
the update: seal it again then.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from adyton.errors import KeyUnavailableError, SealedDataError, UnsealError, UnsupportedError
from adyton.tee._kernel import Kernel, LinuxKernel, describe, opened, present_or_unsupported
from adyton.tee.sealing import KEY_BYTES, Binding, FreshnessRegister, SealingKey, SealPolicy
from adyton.tee.sgx.device import ATTESTATION
from adyton.tee.sgx.egetkey import KEY_ID_BYTES, Enclu, KeyPolicy, KeyRequest, Masks, get_key, load_enclu, read_report
from adyton.tee.sgx.format import DEBUG, SgxReport

MASKS: Final = Masks(flags=0xFF00_0000_0000_000F, xfrm=0, misc=0xF000_0000)
"""What a key depends on, of what the host or the signer chose for the enclave and MRENCLAVE does not cover.

Flags (Intel SDM, volume 3D, 35.7.1), bit by bit:

    0  INIT           in: EGETKEY puts it in anyway, and is asked for nothing less
    1  DEBUG          in, likewise: a debug enclave, which the host reads, never has a production enclave's key
    2  MODE64BIT      in: the same bytes are other code in 32-bit mode; Gramine always has it, so it costs nothing
    3  reserved       in, as Intel has it
    4  PROVISIONKEY   out: it gives the enclave another key, and nobody a look into the enclave
    5  EINITTOKENKEY  out, likewise
    6-55              out: AEX-Notify, CET, KSS and what is to come; Intel keeps these for what takes no protection
                      away, and an update of Gramine may turn them on
    56-63             in: Intel keeps these for what may

XFRM: out. Gramine sets it at each start to what the processor, its firmware and the host's kernel have just then of
AVX, AVX-512 and AMX: with it, data would be lost to a setting in the firmware. It only lets registers be used.

MISCSELECT (35.7.2): as the flags, 28-31 are in, the others (what an exception leaves to be seen inside) are out.

The split is Intel's own, TSEAL_DEFAULT_FLAGSMASK and TSEAL_DEFAULT_MISCMASK in tseal_migration_attr.h of its SDK, and
XFRM's 0 is that of sgx_seal_data; MODE64BIT is ours. What it leaves open: anyone may sign the same code anew without a
hardening like AEX-Notify, and under MEASUREMENT that has the same keys; a policy on evidence sees it, sealing does not.

The masks are part of the key: never change them, add to `_KNOWN`.
"""

_KNOWN: Final = frozenset({MASKS})
"""Masks that some version of this module made keys under. The host brings the request: it must not choose others."""
_REQUEST: Final = struct.Struct(f"<B16sHHQ{KEY_ID_BYTES}sQQI")
_REQUEST_VERSION: Final = 1
_LABEL: Final = b"adyton sgx sealing key v1"
_OUTSIDE: Final = "run this inside an SGX enclave, with gramine-sgx"
_NO_VERSION: Final = "set sgx.isvsvn in the Gramine manifest to 1 or more, and raise it with each security fix"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """The request in sealed data, little endian, 81 bytes.

    Version 1, CPUSVN 16, ISVSVN 2, ISVPRODID 2, flags 8, KEYID 32, masks: flags 8, XFRM 8, MISCSELECT 4. The processor
    takes ISVPRODID and the flags from the enclave itself; they are here so that a difference can be named.
    """

    cpu_svn: bytes
    isv_svn: int
    isv_prod_id: int
    flags: int
    key_id: bytes
    masks: Masks

    def encode(self) -> bytes:
        return _REQUEST.pack(
            *(_REQUEST_VERSION, self.cpu_svn, self.isv_svn, self.isv_prod_id, self.flags, self.key_id),
            *(self.masks.flags, self.masks.xfrm, self.masks.misc),
        )


class SgxSealing:
    """A `KeySource`, fresh keys each time. Safe in threads; holds nothing open.

    `kernel` and `enclu`, the instruction, are this machine's but in tests.
    """

    name: Final = "sgx"
    policies: Final = frozenset({SealPolicy.MEASUREMENT, SealPolicy.SIGNER})

    def __init__(self, *, kernel: Kernel | None = None, enclu: Enclu | None = None) -> None:
        self._kernel = kernel or LinuxKernel()
        self._enclu = enclu

    def check_present(self) -> None:
        """`UnsupportedError` unless this is Gramine in SGX, and ENCLU can be executed. No key is made."""
        self._processor()

    def current(self, policy: SealPolicy) -> Binding:
        """As `KeySource` says. SIGNER: product is ISVPRODID (2 bytes, big endian), version ISVSVN, 1 to 65535."""
        return _binding(policy, read_report(self._processor()))

    def new_key(self, policy: SealPolicy) -> SealingKey:
        """As `KeySource` says, at the present CPUSVN and ISVSVN under either policy."""
        enclu = self._processor()
        report = read_report(enclu)
        request = _Request(
            cpu_svn=report.cpu_svn,
            isv_svn=report.isv_svn,
            isv_prod_id=report.isv_prod_id,
            flags=report.attributes & MASKS.flags,
            key_id=os.urandom(KEY_ID_BYTES),
            masks=MASKS,
        )
        return SealingKey(
            binding=_binding(policy, report),
            key=_key(enclu, policy, request),
            request=request.encode(),
            tcb=f"CPUSVN {report.cpu_svn.hex()}, ISVSVN {report.isv_svn}",
        )

    def same_key(self, binding: Binding, request: bytes) -> bytes:
        """As `KeySource` says; also "attributes" and "product" are named, under either policy."""
        enclu = self._processor()
        report = read_report(enclu)
        _check_binding(binding, report)
        asked = _parse_request(request)
        _check_request(asked, binding, report)
        return _key(enclu, binding.policy, asked)

    def register(self, binding: Binding, label: bytes) -> FreshnessRegister | None:  # noqa: ARG002
        """None: SGX has nothing that remembers; the counters of Intel's SDK were another chip's, and are gone."""
        return None

    def _processor(self) -> Enclu:
        """ENCLU, where it can be executed. Anywhere else it would end the process, so this looks first."""
        try:
            with (
                present_or_unsupported("Gramine with SGX", mend=_OUTSIDE),
                opened(self._kernel, f"{ATTESTATION}/attestation_type", os.O_RDONLY),
            ):
                pass
        except OSError as error:
            raise KeyUnavailableError(f"Gramine failed: {describe(error)}") from error
        return self._enclu or load_enclu()


def _key(enclu: Enclu, policy: SealPolicy, request: _Request) -> bytes:
    key_request = KeyRequest(
        policy=KeyPolicy.MRENCLAVE if policy is SealPolicy.MEASUREMENT else KeyPolicy.MRSIGNER,
        isv_svn=request.isv_svn,
        cpu_svn=request.cpu_svn,
        masks=request.masks,
        key_id=request.key_id,
    )
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=_LABEL).derive(get_key(enclu, key_request))


def _binding(policy: SealPolicy, report: SgxReport) -> Binding:
    """Whom this enclave can bind keys to."""
    if policy is SealPolicy.MEASUREMENT:
        return Binding(policy=policy, subject=report.mrenclave)
    if policy is not SealPolicy.SIGNER:
        raise UnsupportedError(f"SGX has no keys for {policy.name.lower()}")
    if not report.isv_svn:
        raise UnsupportedError("this enclave's ISVSVN is 0: versions of its signer's code begin at 1", mend=_NO_VERSION)
    return Binding(policy=policy, subject=report.mrsigner, product=_product(report.isv_prod_id), version=report.isv_svn)


def _product(isv_prod_id: int) -> bytes:
    return isv_prod_id.to_bytes(2, "big")


def _parse_request(data: bytes) -> _Request:
    try:
        version, cpu_svn, isv_svn, isv_prod_id, flags, key_id, *masks = _REQUEST.unpack(data)
    except struct.error:
        raise SealedDataError(f"a key request of SGX has {_REQUEST.size} bytes, not {len(data)}") from None
    if version != _REQUEST_VERSION:
        raise SealedDataError(f"key requests of SGX of version {version} are not known here")
    asked = Masks(flags=masks[0], xfrm=masks[1], misc=masks[2])
    if asked not in _KNOWN:
        raise SealedDataError("the key request is under masks that nothing was ever sealed under")
    return _Request(cpu_svn=cpu_svn, isv_svn=isv_svn, isv_prod_id=isv_prod_id, flags=flags, key_id=key_id, masks=asked)


def _check_binding(binding: Binding, report: SgxReport) -> None:
    """Refuse in words what the processor would refuse by another key."""
    if binding.policy is SealPolicy.MEASUREMENT:
        _check_equal("measurement (MRENCLAVE)", report.mrenclave, binding.subject)
        _check_equal("product", b"", binding.product)
        version = 0
    elif binding.policy is SealPolicy.SIGNER:
        _check_equal("signer (MRSIGNER)", report.mrsigner, binding.subject)
        _check_equal("product (ISVPRODID)", _product(report.isv_prod_id), binding.product)
        version = report.isv_svn
    else:
        raise UnsealError(f"the policy is {binding.policy.name.lower()}, which SGX has no keys for")
    if binding.version > version:
        raise UnsealError(f"the version (ISVSVN) is {version}; the data was sealed for {binding.version} or later")


def _check_request(asked: _Request, binding: Binding, report: SgxReport) -> None:
    """As `_check_binding`; and for a signer's code, the request must be for the version that the binding names."""
    _check_equal("product (ISVPRODID)", _product(report.isv_prod_id), _product(asked.isv_prod_id))
    flags = report.attributes & asked.masks.flags
    if flags != asked.flags:
        debug = "; one of the two is a debug enclave" if (flags ^ asked.flags) & DEBUG else ""
        raise UnsealError(f"the attributes are {flags:#x}; the data was sealed for {asked.flags:#x}{debug}")
    if binding.policy is SealPolicy.SIGNER and (not asked.isv_svn or asked.isv_svn != binding.version):
        raise SealedDataError(f"the key request is for version {asked.isv_svn}, the binding for {binding.version}")


def _check_equal(field: str, own: bytes, wanted: bytes) -> None:
    if own != wanted:
        raise UnsealError(f"the {field} is {own.hex() or 'none'}; the data was sealed for {wanted.hex() or 'none'}")
