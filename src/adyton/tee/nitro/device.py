"""Inside an AWS Nitro enclave: ask the Nitro Security Module for an attestation document."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Final

import cbor2

from adyton.errors import EvidenceError
from adyton.tee._cbor import decode_cbor
from adyton.tee._device import HardwareDevice
from adyton.tee._kernel import opened_device
from adyton.tee.evidence import Evidence

NSM: Final = "/dev/nsm"
NSM_IOCTL_RAW: Final = 0xC0200A00
RESPONSE_BYTES: Final = 0x3000
"""As much as the driver ever has; it cuts what does not fit and does not say so."""

_IOVECS: Final = struct.Struct("=QQQQ")
"""Address and length of the request, then of the room for the response."""
_MEND: Final = "run in a Nitro enclave, with the driver of the NSM (Linux 6.8 or later, or AWS's own)"


class NitroDevice(HardwareDevice):
    """Attestation documents over /dev/nsm (include/uapi/linux/nsm.h); report_data becomes the document's user_data."""

    tee: ClassVar[str] = "nitro"

    def check_present(self) -> None:
        """`UnsupportedError` unless there is an NSM."""
        with self._opened():
            pass

    def collect_document(self, public_key: bytes) -> bytes:
        """A document that says this enclave has that key (up to 1024 bytes, DER), for whoever encrypts to it.

        Raises as `collect_evidence`. It has no user_data, so nobody takes it for evidence over a report_data. Safe in
        threads: the driver asks the NSM one question at a time.
        """
        return self._attest(user_data=None, public_key=public_key)

    def _collect(self, report_data: bytes) -> Evidence:
        return Evidence(tee=self.tee, data=self._attest(user_data=report_data, public_key=None))

    def _attest(self, *, user_data: bytes | None, public_key: bytes | None) -> bytes:
        request = {"Attestation": {"user_data": user_data, "nonce": None, "public_key": public_key}}
        return _document(decode_cbor(self._transmit(cbor2.dumps(request)), "the NSM's response"))

    def _transmit(self, request: bytes) -> bytes:
        """One request to the NSM, and its response, both in CBOR."""
        request_memory = ctypes.create_string_buffer(request, len(request))
        response_memory = ctypes.create_string_buffer(RESPONSE_BYTES)
        argument = bytearray(
            _IOVECS.pack(
                ctypes.addressof(request_memory), len(request), ctypes.addressof(response_memory), RESPONSE_BYTES
            )
        )
        with self._opened() as descriptor:
            self._kernel.ioctl(descriptor, NSM_IOCTL_RAW, argument)
        *_, length = _IOVECS.unpack(argument)
        if length > RESPONSE_BYTES:
            raise EvidenceError(f"the NSM's response has {length} bytes, in room for {RESPONSE_BYTES}")
        return ctypes.string_at(response_memory, length)

    def _opened(self) -> AbstractContextManager[int]:
        return opened_device(self._kernel, NSM, "Nitro Security Module", mend=_MEND)


def _document(response: Any) -> bytes:
    match response:
        case {"Attestation": {"document": bytes(document)}}:
            return document
        case {"Error": str(error)}:
            raise EvidenceError(f"the NSM refused: {error[:64]!r}")
        case Mapping():
            raise EvidenceError("the NSM's response has neither a document nor an error")
        case _:
            raise EvidenceError(f"the NSM's response is no map but {type(response).__name__}")
