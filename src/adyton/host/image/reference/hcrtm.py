"""What a TPM says of a machine without firmware, whose launcher measures it as the TPM's H-CRTM. Pure functions.

The launcher gives the launch document to the TPM before it is started (_TPM_Hash_Start, _Data, _End: TPM 2.0 Library,
Part 3, sections 22.9 to 22.11), and nothing else is measured into PCR 0.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import Final

from adyton.tee._event_log import EV_NO_ACTION
from adyton.tee.tpm.launch import HCRTM_EVENT, encode_launch

COMMAND_LINE: Final = "command-line"
"""The part of the launch document that is the kernel's command line."""

_LOCALITY: Final = b"\x04"
_SHA256: Final = 0x000B
_EVENT: Final = struct.Struct("<III")
_BIOS_CLASS_64_BIT: Final = b"\0\0\0\0\0\x02\0\x02"
"""Platform class "client", version 2.0 of the format, errata 0, and numbers of 64 bits."""


def launch_document(digests: Mapping[str, bytes], command_line: str) -> bytes:
    """The document over the SHA-256 of each file and the command line. ValueError if a part of it can't be one."""
    if COMMAND_LINE in digests:
        raise ValueError("the command line is a string, not a file")
    return encode_launch({**digests, COMMAND_LINE: hashlib.sha256(command_line.encode()).digest()})


def event_log(document: bytes) -> bytes:
    """The log of a launch: crypto agile, of SHA-256 only; its one measurement has the document as its data.

    It gives the PCR 0 of `adyton.tee.tpm.launch.pcr0`. TCG PC Client Platform Firmware Profile 1.06, sections 10.2.2
    and 10.4.5.
    """
    banks = struct.pack("<IHHB", 1, _SHA256, 32, 0)
    header = b"Spec ID Event03\0" + _BIOS_CLASS_64_BIT + banks
    head = struct.pack("<II20sI", 0, EV_NO_ACTION, b"", len(header))
    locality = _event(EV_NO_ACTION, bytes(32), b"StartupLocality\0" + _LOCALITY)
    return head + header + locality + _event(HCRTM_EVENT, hashlib.sha256(document).digest(), document)


def _event(event_type: int, digest: bytes, data: bytes) -> bytes:
    """A TCG_PCR_EVENT2 of PCR 0."""
    head = _EVENT.pack(0, event_type, 1) + struct.pack("<H32s", _SHA256, digest)
    return head + struct.pack("<I", len(data)) + data
