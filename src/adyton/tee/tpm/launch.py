"""What a machine with a TPM has booted, by name; and the launch document, version 1, that says so. Total, no I/O.

A launcher measures the document into PCR 0. It is ASCII text: the line `adyton-launch/1`, then one line a part,
`name SP sha256-hex`, sorted by name; each ends in a line feed. There is one text for the same parts, so whoever knows
the parts knows the document's digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from adyton.errors import EvidenceError
from adyton.tee._event_log import Event

MAX_BYTES: Final = 4096
"""What a TPM's emulator takes in one piece."""
MAX_PARTS: Final = 32
DIGEST_BYTES: Final = 32

HCRTM_EVENT: Final = 0x80000010
"""EV_EFI_HCRTM_EVENT: what was measured before the TPM was started (Platform Firmware Profile, section 10.4.1)."""

APPLICATION_EVENT: Final = 0x80000003
"""EV_EFI_BOOT_SERVICES_APPLICATION: an image that firmware has started."""
TAGGED_EVENT: Final = 6
"""EV_EVENT_TAG: a number, a size, and the label by which Linux calls what it has measured."""

_LABELS: Final = {"command-line": b"LOADED_IMAGE::LoadOptions\0", "initrd": b"Linux initrd\0"}
_START: Final = b"\x04".rjust(DIGEST_BYTES, b"\0")
"""PCR 0 before an H-CRTM's event: the locality that is the H-CRTM's own."""
_HEADER: Final = b"adyton-launch/1"
_NAME: Final = re.compile(r"[a-z-]{1,32}")
_LINE: Final = re.compile(rb"([a-z-]{1,32}) ([0-9a-f]{64})")


def encode_launch(parts: Mapping[str, bytes]) -> bytes:
    """The document of 1 to 32 parts, name → SHA-256.

    ValueError for another number of them, a name that is not 1 to 32 of a to z and `-`, or a digest not of 32 bytes.
    """
    if not 1 <= len(parts) <= MAX_PARTS:
        raise ValueError(f"a launch document has 1 to {MAX_PARTS} parts, not {len(parts)}")
    for name, digest in parts.items():
        if not _NAME.fullmatch(name) or len(digest) != DIGEST_BYTES:
            raise ValueError(f"{name!r} with {len(digest)} bytes is no part of a launch document")
    lines = [f"{name} {parts[name].hex()}".encode() for name in sorted(parts)]
    return b"\n".join([_HEADER, *lines, b""])


def parse_launch(data: bytes) -> Mapping[str, bytes]:
    """Name → SHA-256 of each part, in order. Bytes that `encode_launch` would not give are an `EvidenceError`."""
    if len(data) > MAX_BYTES:
        raise EvidenceError(f"the launch document has {len(data)} bytes; {MAX_BYTES} are allowed")
    header, *lines = data.split(b"\n")
    if header != _HEADER:
        raise EvidenceError(f"the launch document does not begin with {_HEADER.decode()}")
    if not lines or lines.pop():
        raise EvidenceError("the launch document does not end with its last line")
    if not 1 <= len(lines) <= MAX_PARTS:
        raise EvidenceError(f"the launch document has {len(lines)} parts; 1 to {MAX_PARTS} are allowed")
    parts: dict[str, bytes] = {}
    last = ""
    for number, line in enumerate(lines, start=2):
        found = _LINE.fullmatch(line)
        if not found:
            raise EvidenceError(f"line {number} of the launch document is not a name and a SHA-256")
        name = found[1].decode()
        if name <= last:
            raise EvidenceError(f"line {number} of the launch document is not in order")
        parts[name], last = bytes.fromhex(found[2].decode()), name
    return MappingProxyType(parts)


def pcr0(document: bytes) -> bytes:
    """PCR 0 of the SHA-256 bank after an H-CRTM has measured the document, if nobody extends it further.

    TPM 2.0 Library, Part 3, sections 22.9 to 22.11.
    """
    return hashlib.sha256(_START + hashlib.sha256(document).digest()).digest()


def launched(pcrs: Mapping[int, bytes], events: Mapping[int, Sequence[Event]]) -> Mapping[str, bytes]:
    """What a machine booted, name → SHA-256, by whoever measured it: the launcher, or else the firmware and Linux.

    `pcrs` are the quoted registers of the SHA-256 bank, `events` those that their values confirm. Empty where nobody
    measured as this module says. The launcher's parts are as true as PCR 0. What firmware measured is true as well, but
    not what it is called: types and labels are the log's own word, so the registers must decide, and the parts explain.
    """
    return _by_launcher(pcrs, events) or _by_firmware(events)


def _by_launcher(pcrs: Mapping[int, bytes], events: Mapping[int, Sequence[Event]]) -> Mapping[str, bytes]:
    """The document that is all that PCR 0 has seen since the TPM's start, in the locality that only a launcher has."""
    for event in events.get(0, ()):
        if event.event_type == HCRTM_EVENT and pcrs.get(0) == pcr0(event.data):
            with contextlib.suppress(EvidenceError):
                return parse_launch(event.data)
    return MappingProxyType({})


def _by_firmware(events: Mapping[int, Sequence[Event]]) -> Mapping[str, bytes]:
    """The parts of which there is one event each. Two kernels are none: nobody says which of them runs."""
    tagged = [event for event in events.get(9, ()) if event.event_type == TAGGED_EVENT]
    found = {name: [event for event in tagged if event.data[8:] == label] for name, label in _LABELS.items()}
    found["kernel"] = [event for event in events.get(4, ()) if event.event_type == APPLICATION_EVENT]
    single = {name: each[0].digests.get("sha256") for name, each in sorted(found.items()) if len(each) == 1}
    return MappingProxyType({name: digest for name, digest in single.items() if digest is not None})
