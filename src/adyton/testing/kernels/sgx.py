"""An SGX processor as an enclave sees it, through ENCLU, and the sealing keys that Gramine has in files.

EREPORT and EGETKEY do what the pseudo-code of the Intel SDM says (volume 3D, 38.4, December 2023): operands are read
from memory by their address, so that a test with them shows the alignment and the layout too. Where the processor
faults, and the process would die, the emulation fails the test. Enclaves are without KSS, as Gramine's are.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import hmac
import struct
from dataclasses import dataclass
from typing import Final, NoReturn

from adyton.tee.sgx.egetkey import Enclu
from adyton.testing.kernels.emulated import Content, Driver, OpenFile
from adyton.testing.kernels.gramine import ATTESTATION

INIT: Final = 0x01
DEBUG: Final = 0x02
MODE64BIT: Final = 0x04
PROVISIONKEY: Final = 0x10
AEXNOTIFY: Final = 0x400

_EREPORT: Final = 0
_EGETKEY: Final = 1
_SEAL_KEY: Final = 4
_MRENCLAVE: Final = 1
_MRSIGNER: Final = 2
_ALWAYS_IN_SEAL_KEYS: Final = INIT | DEBUG
_INVALID_CPUSVN: Final = 32
_INVALID_ISVSVN: Final = 64
_INVALID_KEYNAME: Final = 256

_KEY_REQUEST: Final = struct.Struct("<HHHH16sQQ32sIH434s")
_REPORT: Final = struct.Struct("<16sI28xQQ32s32x32s96xHH60x64s32s16s")
_DEPENDENCIES: Final = struct.Struct("<HHH16sQQQQ32s32s32s16sIIH")
_GRAMINE_MASKS: Final = (0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFF9_FF1B, 0xFFFF_FFFF)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatedEnclave:
    """What the processor holds of an enclave (its SECS). `attributes` are the flags, `xfrm` their other half."""

    mrenclave: bytes
    mrsigner: bytes
    isv_prod_id: int = 1
    isv_svn: int = 1
    attributes: int = INIT | MODE64BIT
    xfrm: int = 0b111
    misc_select: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatedProcessor:
    """One processor: what was fused into it (16 bytes, a secret), its owner's epoch and its present CPUSVN (16 each).

    Here a CPUSVN is beyond another if any of its bytes is greater; Intel does not say how it is.
    """

    fuses: bytes
    cpu_svn: bytes
    owner_epoch: bytes = bytes(16)

    def enclu(self, enclave: EmulatedEnclave) -> Enclu:
        """The instruction, as that enclave executes it."""
        return functools.partial(self._execute, enclave)

    def seal_key(self, enclave: EmulatedEnclave, request: bytes) -> tuple[int, bytes]:
        """EGETKEY: a KEYREQUEST (512 bytes) in, an error code and a key (16 bytes) out.

        The key depends on the fields that the SDM lists, but for those of KSS and a constant padding.
        """
        name, policy, isv_svn, reserved, cpu_svn, flags, xfrm, key_id, misc, config_svn, rest = _KEY_REQUEST.unpack(
            request
        )
        if reserved or any(rest) or policy & ~(_MRENCLAVE | _MRSIGNER) or config_svn:
            _fault("reserved bits of the KEYREQUEST are set, or those of KSS")
        if name != _SEAL_KEY:
            return _INVALID_KEYNAME, b""
        if any(asked > present for asked, present in zip(cpu_svn, self.cpu_svn, strict=True)):
            return _INVALID_CPUSVN, b""
        if isv_svn > enclave.isv_svn:
            return _INVALID_ISVSVN, b""
        dependencies = _DEPENDENCIES.pack(
            *(name, enclave.isv_prod_id, isv_svn, self.owner_epoch),
            *((flags | _ALWAYS_IN_SEAL_KEYS) & enclave.attributes, xfrm & enclave.xfrm, flags, xfrm),
            enclave.mrenclave if policy & _MRENCLAVE else bytes(32),
            enclave.mrsigner if policy & _MRSIGNER else bytes(32),
            *(key_id, cpu_svn, misc & enclave.misc_select, misc ^ 0xFFFF_FFFF, policy),
        )
        return 0, hmac.digest(self.fuses, dependencies, hashlib.sha256)[:16]

    def report(self, enclave: EmulatedEnclave, report_data: bytes) -> bytes:
        """EREPORT: 432 bytes. Key ID and MAC, which only the target can check, are zeros."""
        return _REPORT.pack(
            *(self.cpu_svn, enclave.misc_select, enclave.attributes, enclave.xfrm, enclave.mrenclave),
            *(enclave.mrsigner, enclave.isv_prod_id, enclave.isv_svn, report_data, b"", b""),
        )

    def _execute(self, enclave: EmulatedEnclave, leaf: int, rbx: int, rcx: int, rdx: int, /) -> int:
        if leaf not in (_EREPORT, _EGETKEY):
            _fault(f"leaf {leaf} is not emulated")
        if leaf == _EREPORT:
            _read(rbx, 512, alignment=512)
            _write(rdx, self.report(enclave, _read(rcx, 64, alignment=128)), alignment=512)
            return leaf
        code, key = self.seal_key(enclave, _read(rbx, 512, alignment=512))
        _write(rcx, key, alignment=16)
        return code


class GramineKeys(Driver):
    """The files _sgx_mrenclave and _sgx_mrsigner: keys of the present (pal/src/host/linux-sgx/enclave_framework.c)."""

    def __init__(self, processor: EmulatedProcessor, enclave: EmulatedEnclave) -> None:
        self._processor = processor
        self._enclave = enclave

    def open(self, path: str, flags: int) -> OpenFile | None:  # noqa: ARG002
        """Made at the present CPUSVN and ISVSVN, under Gramine's masks, with a KEYID of zeros."""
        policy = {"_sgx_mrenclave": _MRENCLAVE, "_sgx_mrsigner": _MRSIGNER}.get(
            path.removeprefix(f"{ATTESTATION}/keys/")
        )
        if policy is None:
            return None
        masks, misc = _GRAMINE_MASKS[:2], _GRAMINE_MASKS[2]
        request = _KEY_REQUEST.pack(
            *(_SEAL_KEY, policy, self._enclave.isv_svn, 0, self._processor.cpu_svn, *masks, b"", misc, 0, b"")
        )
        return Content(self._processor.seal_key(self._enclave, request)[1])


def _read(address: int, size: int, *, alignment: int) -> bytes:
    _check_aligned(address, alignment)
    return ctypes.string_at(address, size)


def _write(address: int, content: bytes, *, alignment: int) -> None:
    _check_aligned(address, alignment)
    ctypes.memmove(address, content, len(content))


def _check_aligned(address: int, alignment: int) -> None:
    if not address or address % alignment:
        _fault(f"{address:#x} is not aligned to {alignment}")


def _fault(why: str) -> NoReturn:
    raise AssertionError(f"#GP(0): {why}")
