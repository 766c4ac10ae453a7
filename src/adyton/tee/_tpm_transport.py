"""One command and its response, to and from /dev/tpmrm0 (TCG TPM 2.0 Library, part 1, section 18, and part 2, 6)."""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Final

from adyton.errors import EvidenceError
from adyton.tee._binary import Reader
from adyton.tee._kernel import Kernel, opened_device

DEVICE: Final = "/dev/tpmrm0"
"""The kernel's resource manager: who opens it has room for keys of its own, which go when it is closed."""
RESPONSE_BYTES: Final = 4096
BUSY_SECONDS: Final = 10.0
"""How long a TPM that asks for it is asked again."""
RC_VALUE: Final = 0x084
RC_HANDLE: Final = 0x08B
RC_AUTH_FAIL: Final = 0x08E
RC_POLICY_FAIL: Final = 0x09D
RC_BAD_AUTH: Final = 0x0A2
RC_PCR_CHANGED: Final = 0x128
RC_COMMAND_CODE: Final = 0x143
RC_NV_DEFINED: Final = 0x14C

_PAUSE_SECONDS: Final = 0.02
_HEAD: Final = struct.Struct(">HII")
_NO_SESSIONS: Final = 0x8001
_SESSIONS: Final = 0x8002
_EMPTY_PASSWORD: Final = struct.pack(">IHBH", 0x40000009, 0, 0, 0)

_AGAIN: Final = frozenset({0x908, 0x90A, 0x922})  # YIELDED, TESTING, RETRY
_NO_PASSWORD: Final = frozenset({RC_AUTH_FAIL, RC_BAD_AUTH})
_NAMES: Final[Mapping[int, str]] = MappingProxyType(
    {
        0x082: "ATTRIBUTES",
        0x083: "HASH",
        RC_VALUE: "VALUE",
        0x085: "HIERARCHY",
        0x08A: "TYPE",
        RC_HANDLE: "HANDLE",
        RC_AUTH_FAIL: "AUTH_FAIL",
        0x092: "SCHEME",
        0x095: "SIZE",
        0x09A: "INSUFFICIENT",
        0x09B: "SIGNATURE",
        0x09C: "KEY",
        RC_POLICY_FAIL: "POLICY_FAIL",
        0x09F: "INTEGRITY",
        0x0A0: "TICKET",
        RC_BAD_AUTH: "BAD_AUTH",
        0x0A6: "CURVE",
        0x100: "INITIALIZE",
        0x101: "FAILURE",
        0x120: "DISABLED",
        RC_PCR_CHANGED: "PCR_CHANGED",
        RC_COMMAND_CODE: "COMMAND_CODE",
        0x146: "NV_RANGE",
        0x148: "NV_LOCKED",
        0x149: "NV_AUTHORIZATION",
        0x14A: "NV_UNINITIALIZED",
        0x14B: "NV_SPACE",
        RC_NV_DEFINED: "NV_DEFINED",
        0x902: "OBJECT_MEMORY",
        0x903: "SESSION_MEMORY",
        0x904: "MEMORY",
        0x905: "SESSION_HANDLES",
        0x908: "YIELDED",
        0x90A: "TESTING",
        0x910: "REFERENCE_H0",
        0x920: "NV_RATE",
        0x921: "LOCKOUT",
        0x922: "RETRY",
        0x923: "NV_UNAVAILABLE",
    }
)


def opened_tpm(kernel: Kernel) -> AbstractContextManager[int]:
    """A descriptor of the TPM; not there, `UnsupportedError`. A failure of the kernel in the body: `EvidenceError`."""
    mend = f"give the machine a TPM 2.0, and this process access to {DEVICE} (group tss, or root)"
    return opened_device(kernel, DEVICE, "TPM 2.0", mend=mend)


class TpmTransport:
    """Commands and responses over an open descriptor."""

    def __init__(self, kernel: Kernel, descriptor: int) -> None:
        self._kernel = kernel
        self._descriptor = descriptor

    def execute(self, command: enum.IntEnum, *handles: int, parameters: bytes = b"", password: bool = False) -> Reader:
        """A reader of what is behind the response code, as `attempt`; what the TPM refuses is an `EvidenceError`."""
        response_code, response = self.attempt(command, handles, parameters, password=password)
        check_response_code(command.name, response_code)
        return response

    def attempt(self, code: int, handles: tuple[int, ...], parameters: bytes, *, password: bool) -> tuple[int, Reader]:
        """The response code, and a reader of what is behind it. `password`: the first handle wants one; it is empty.

        A TPM that is busy is asked again for a while. A response that is none is an `EvidenceError`.
        """
        return self.attempt_authorized(code, handles, _EMPTY_PASSWORD if password else b"", parameters)

    def attempt_authorized(
        self, code: int, handles: tuple[int, ...], authorization: bytes, parameters: bytes
    ) -> tuple[int, Reader]:
        """As `attempt`, with a TPMS_AUTH_COMMAND for the first handle, or none of it."""
        area = struct.pack(">I", len(authorization)) + authorization if authorization else b""
        body = struct.pack(f">{len(handles)}I", *handles) + area + parameters
        tag = _SESSIONS if authorization else _NO_SESSIONS
        command = _HEAD.pack(tag, _HEAD.size + len(body), code) + body
        deadline = self._kernel.monotonic() + BUSY_SECONDS
        while True:
            response = self._transmit(command)
            found, _, response_code = _HEAD.unpack_from(response)
            if response_code not in _AGAIN or self._kernel.monotonic() >= deadline:
                break
            self._kernel.sleep(_PAUSE_SECONDS)
        if response_code == 0 and found != tag:
            raise EvidenceError(f"the TPM's response has the tag 0x{found:04x}, not 0x{tag:04x}")
        return response_code, Reader(response[_HEAD.size :], "the TPM's response", order="big")

    def _transmit(self, command: bytes) -> bytes:
        written = self._kernel.write(self._descriptor, command)
        if written != len(command):
            raise EvidenceError(f"the TPM took {written} of {len(command)} bytes of a command")
        response = self._read_until(b"", _HEAD.size)
        _, size, _ = _HEAD.unpack_from(response)
        if not _HEAD.size <= size <= RESPONSE_BYTES:
            raise EvidenceError(f"the TPM's response says that it has {size} bytes")
        response = self._read_until(response, size)
        if len(response) != size:
            raise EvidenceError(f"the TPM's response has {len(response)} bytes and says {size}")
        return response

    def _read_until(self, response: bytes, size: int) -> bytes:
        while len(response) < size:
            part = self._kernel.read(self._descriptor, RESPONSE_BYTES)
            if not part:
                raise EvidenceError(f"the TPM's response ends after {len(response)} of {size} bytes")
            response += part
        return response


def is_error(response_code: int, error: int) -> bool:
    """Whether the code is of that error, whichever parameter, handle or session it is about (part 2, 6.6.3)."""
    return _base(response_code) == error


def check_response_code(command: str, response_code: int) -> None:
    """`EvidenceError`, with the error's name, unless the TPM did what it was told."""
    if response_code:
        error = _base(response_code)
        mend = "a handle of the TPM has a password; give it an empty one" if error in _NO_PASSWORD else ""
        raise EvidenceError(
            f"the TPM refused {command}: {_NAMES.get(error, 'TPM_RC')} (0x{response_code:03x})", mend=mend
        )


def _base(response_code: int) -> int:
    return response_code & 0x0BF if response_code & 0x080 else response_code
