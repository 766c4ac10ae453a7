"""ENCLU, the instruction by which an enclave asks its processor who it is (EREPORT) and for keys (EGETKEY).

Gramine runs the program's own code inside the enclave, so the program can execute ENCLU itself: a few bytes of machine
code, which are never writable and executable at once. Structures and leaves are in the Intel SDM, volume 3D; the
sections named here are those of its edition of December 2023. A KEYREQUEST (35.18) has 512 bytes, little endian:

    0   KEYNAME     2      24  ATTRIBUTEMASK: flags  8
    2   KEYPOLICY   2      32  ATTRIBUTEMASK: XFRM   8
    4   ISVSVN      2      40  KEYID                32
    6   reserved    2      72  MISCMASK              4
    8   CPUSVN     16      76  CONFIGSVN             2
                           78  reserved            434

What EGETKEY (38.4) finds malformed, it does not refuse: it faults, and the process dies. So none of the reserved bits,
no KEYPOLICY but the two below and no CONFIGSVN can be expressed here: only an enclave with KSS may ask for those, and
Gramine's are without.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import mmap
import os
import platform
import struct
from dataclasses import dataclass
from typing import Final, Protocol

from adyton.errors import KeyUnavailableError, UnsealError, UnsupportedError
from adyton.tee._kernel import describe
from adyton.tee.sgx.format import SgxReport, parse_report

EREPORT: Final = 0
EGETKEY: Final = 1
SEAL_KEY: Final = 4
KEY_REQUEST: Final = struct.Struct("<HHHH16sQQ32sIH434x")
KEY_ID_BYTES: Final = 32
HARDWARE_KEY_BYTES: Final = 16
REPORT_BYTES: Final = 432
"""The body, as in a quote (384), a key ID (32) and a MAC (16) that only the report's target can check."""
TARGET_INFO_BYTES: Final = 512
REPORT_DATA_BYTES: Final = 64
ALIGNMENT: Final = 512
"""What the strictest operands need: REPORT, TARGETINFO, KEYREQUEST. Aligned so, none crosses a page either."""

INVALID_CPUSVN: Final = 32
INVALID_ISVSVN: Final = 64
"""Error codes (38.1). A CPUSVN is no number: whether one is beyond another, only the processor knows."""

ENCLU: Final = bytes.fromhex("0f01d7")
MACHINE_CODE: Final = (
    bytes.fromhex("53")  # push rbx        the caller's to keep (System V ABI, AMD64, 3.2.1)
    + bytes.fromhex("89f8")  # mov eax, edi    leaf
    + bytes.fromhex("4889f3")  # mov rbx, rsi
    + ENCLU  # rdx and rcx are the third and the fourth argument already
    + bytes.fromhex("5b")  # pop rbx
    + bytes.fromhex("c3")  # ret             rax: the error code; EREPORT has none and leaves its leaf there, 0
)

_MEND: Final = "set sgx.edmm_enable = false in the Gramine manifest: memory is executable from the start then"
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_code: Final[list[mmap.mmap]] = []
"""Mapped for as long as the process lives."""


class KeyPolicy(enum.IntEnum):
    """What a key depends on, besides ISVPRODID, of which it always does."""

    MRENCLAVE = 1
    MRSIGNER = 2


class Enclu(Protocol):
    """ENCLU: the leaf and three registers, which are addresses or 0, before; RAX after it."""

    def __call__(self, leaf: int, rbx: int, rcx: int, rdx: int, /) -> int:
        """Execute it. Outside an enclave the process dies of SIGILL or SIGSEGV."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Masks:
    """Which bits of ATTRIBUTES (flags and XFRM) and of MISCSELECT a key depends on. The masks are in the key too."""

    flags: int
    xfrm: int
    misc: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRequest:
    """What the fields of a KEYREQUEST for a seal key say. `cpu_svn` has 16 bytes, `key_id` 32."""

    policy: KeyPolicy
    isv_svn: int
    cpu_svn: bytes
    masks: Masks
    key_id: bytes

    def encode(self) -> bytes:
        """512 bytes, as the processor reads them."""
        masks = self.masks
        return KEY_REQUEST.pack(
            *(SEAL_KEY, self.policy, self.isv_svn, 0, self.cpu_svn),
            *(masks.flags, masks.xfrm, self.key_id, masks.misc, 0),
        )


def read_report(enclu: Enclu) -> SgxReport:
    """Who this enclave is, on which hardware, by EREPORT (38.4).

    To be read, not to be shown to anybody: for the target of zeros, which is no enclave.
    """
    target, data, report = _operand(bytes(TARGET_INFO_BYTES)), _operand(bytes(REPORT_DATA_BYTES)), _room(REPORT_BYTES)
    enclu(EREPORT, ctypes.addressof(target), ctypes.addressof(data), ctypes.addressof(report))
    return parse_report(report.raw)


def get_key(enclu: Enclu, request: KeyRequest) -> bytes:
    """The seal key (16 bytes) of this enclave for that request, by EGETKEY (38.4).

    `UnsealError` for a security version that is beyond the present one; `KeyUnavailableError` for any other refusal.
    """
    asked, key = _operand(request.encode()), _room(HARDWARE_KEY_BYTES)
    code = enclu(EGETKEY, ctypes.addressof(asked), ctypes.addressof(key), 0)
    if code == INVALID_CPUSVN:
        raise UnsealError(f"the hardware's security version (CPUSVN) is older than {request.cpu_svn.hex()}, or another")
    if code == INVALID_ISVSVN:
        raise UnsealError(f"this enclave's security version (ISVSVN) is lower than {request.isv_svn}")
    if code:
        raise KeyUnavailableError(f"EGETKEY failed with error {code}")
    return key.raw


@functools.cache
def load_enclu() -> Enclu:
    """The instruction, ready to be called from any thread; nothing is executed yet.

    `UnsupportedError` on another architecture than x86-64, or where no memory can be made executable.
    """
    if platform.machine() != "x86_64":
        raise UnsupportedError(f"SGX is of x86_64; this is {platform.machine()}")
    try:
        address = map_code(MACHINE_CODE)
    except OSError as error:
        raise UnsupportedError(f"no memory here can be made executable: {describe(error)}", mend=_MEND) from error
    function = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint32, *[ctypes.c_void_p] * 3)(address)

    def enclu(leaf: int, rbx: int, rcx: int, rdx: int, /) -> int:
        code: int = function(leaf, rbx, rdx, rcx)
        return code

    return enclu


def map_code(code: bytes) -> int:
    """The address of that code (up to a page) in memory that can be executed, and be written no more. `OSError`."""
    flags, writable = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=flags, prot=writable)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    if _libc.mprotect(address, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    _code.append(page)
    return address


def _room(size: int) -> ctypes.Array[ctypes.c_char]:
    """So many bytes, aligned for ENCLU."""
    memory = ctypes.create_string_buffer(size + ALIGNMENT - 1)
    return (ctypes.c_char * size).from_buffer(memory, -ctypes.addressof(memory) % ALIGNMENT)


def _operand(content: bytes) -> ctypes.Array[ctypes.c_char]:
    operand = _room(len(content))
    operand.raw = content
    return operand
