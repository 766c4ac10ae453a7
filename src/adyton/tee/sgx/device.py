"""Inside an SGX enclave under Gramine: ask the quoting enclave for a quote."""

from __future__ import annotations

from typing import ClassVar, Final

from adyton.errors import EvidenceError, UnsupportedError
from adyton.tee._device import HardwareDevice
from adyton.tee._kernel import failing_as_evidence, present_or_unsupported, read_to_end, write_at_once
from adyton.tee.evidence import Evidence

ATTESTATION: Final = "/dev/attestation"
MAX_QUOTE_BYTES: Final = 8192
"""What Gramine has room for."""
REPORT_DATA: Final = slice(368, 432)
"""Where a quote of version 3 has the report_data: in the report body, behind 48 bytes of header."""

_TYPE_BYTES: Final = 64
_MEND: Final = 'set sgx.remote_attestation = "dcap" in the Gramine manifest'


class SgxDevice(HardwareDevice):
    """Quotes over Gramine's /dev/attestation.

    What is written there is of the whole process, and taken when the file is closed. So the quote is looked at for the
    report_data, in case other code of the process asks for a quote at the same time.
    """

    tee: ClassVar[str] = "sgx"

    def check_present(self) -> None:
        """`UnsupportedError` unless this is Gramine in SGX, with remote attestation of the kind DCAP."""
        with failing_as_evidence("Gramine"):
            with present_or_unsupported("Gramine with SGX", mend=_MEND):
                kind = read_to_end(self._kernel, f"{ATTESTATION}/attestation_type", at_most=_TYPE_BYTES)
            if kind.strip() != b"dcap":
                raise UnsupportedError(f"Gramine's attestation_type is {kind!r}, not b'dcap'", mend=_MEND)

    def _collect(self, report_data: bytes) -> Evidence:
        self.check_present()
        with failing_as_evidence("Gramine"):
            write_at_once(self._kernel, f"{ATTESTATION}/user_report_data", report_data)
            quote = read_to_end(self._kernel, f"{ATTESTATION}/quote", at_most=MAX_QUOTE_BYTES)
        if quote[REPORT_DATA] != report_data:
            raise EvidenceError("the quote is not over our report_data: other code of this process asked for one too")
        return Evidence(tee=self.tee, data=quote)
