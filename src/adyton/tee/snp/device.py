"""Inside an AMD SEV-SNP guest: ask the secure processor for a report."""

from __future__ import annotations

import base64
import binascii
import uuid
from collections.abc import Iterator
from typing import ClassVar, Final

from adyton.errors import EvidenceError
from adyton.tee._binary import Reader
from adyton.tee._device import HardwareDevice, stapled_certificates
from adyton.tee._kernel import Kernel
from adyton.tee._tsm import PRIVLEVELS, check_provider, request_report_at
from adyton.tee.evidence import MAX_ENDORSEMENTS, Evidence

PROVIDER: Final = "sev_guest"

CERTIFICATE_GUIDS: Final = frozenset(
    uuid.UUID(text).bytes  # in the order of the text, not in that of Microsoft
    for text in (
        "63da758d-e664-4564-adc5-f4b93be8accd",  # VCEK
        "a8074bc2-a25a-483e-aae6-39c045a0b8a1",  # VLEK
        "4ab7b379-bbac-4fe4-a02f-05aef327c782",  # ASK or ASVK
        "c0b406a4-a803-4952-9743-3fb6014cd0ae",  # ARK
    )
)
_END: Final = bytes(24)
_PEM_HEAD: Final = b"-----BEGIN CERTIFICATE-----"
_PEM_TAIL: Final = b"-----END CERTIFICATE-----"


class SnpDevice(HardwareDevice):
    """Reports over configfs-tsm, with the certificates that the host keeps for the guest stapled, if it keeps any.

    `privlevel` is the VMPL that the report shall name, 0 to 3, else `ValueError`; None is the highest that the guest
    has.
    """

    tee: ClassVar[str] = "snp"

    def __init__(self, *, privlevel: int | None = None, kernel: Kernel | None = None) -> None:
        super().__init__(kernel=kernel)
        if privlevel is not None and privlevel not in PRIVLEVELS:
            raise ValueError(f"privlevel is 0 to {PRIVLEVELS[-1]}, not {privlevel}")
        self._privlevel = privlevel

    def check_present(self) -> None:
        """`UnsupportedError` unless the kernel's reports are those of SEV-SNP."""
        check_provider(self._kernel, PROVIDER)

    def _collect(self, report_data: bytes) -> Evidence:
        report = request_report_at(self._kernel, PROVIDER, report_data, self._privlevel)
        certificates = stapled_certificates(parse_cert_table(report.auxblob))
        return Evidence(tee=self.tee, data=report.outblob, endorsements=certificates)


def parse_cert_table(table: bytes) -> tuple[bytes, ...]:
    """The DER certificates in the table that the host gave (GHCB 2.03, 4.1.8.1); none if it gave none.

    Any bytes: what is no table is an `EvidenceError`. The certificates are not looked into; entries of other kinds are
    left out.
    """
    if not table.strip(b"\0"):
        return ()
    return tuple(_der(content) for guid, content in _entries(table) if guid in CERTIFICATE_GUIDS)


def _entries(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    header = Reader(table, "the host's certificate table", order="little")
    for _ in range(MAX_ENDORSEMENTS):
        entry = Reader(header.take(len(_END), "entry"), "an entry", order="little")
        guid = entry.take(16, "GUID")
        offset, length = entry.number(4, "offset"), entry.number(4, "length")
        if (guid, offset, length) == (_END[:16], 0, 0):
            return
        if offset + length > len(table):
            raise EvidenceError(f"an entry of the host's certificate table ends at {offset + length} of {len(table)}")
        yield guid, table[offset : offset + length]
    raise EvidenceError(f"the host's certificate table has more than {MAX_ENDORSEMENTS} entries")


def _der(content: bytes) -> bytes:
    """Hosts put certificates in either encoding."""
    if not content.startswith(_PEM_HEAD):
        return content
    body, tail, _ = content.removeprefix(_PEM_HEAD).partition(_PEM_TAIL)
    try:
        if not tail:
            raise ValueError("no end")
        return base64.b64decode(b"".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise EvidenceError("a certificate in the host's table is no PEM") from error
