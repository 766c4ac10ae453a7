"""The nine TPM 2.0 commands that evidence takes (TCG TPM 2.0 Library, part 3).

Handles are authorised by empty passwords, which is what a TPM comes with.
"""

from __future__ import annotations

import contextlib
import enum
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Final

from adyton.errors import EvidenceError
from adyton.tee._binary import Reader
from adyton.tee._kernel import Kernel
from adyton.tee._tpm_transport import RC_HANDLE, RESPONSE_BYTES, TpmTransport, check_response_code, is_error

OWNER: Final = 0x40000001
ENDORSEMENT: Final = 0x4000000B
SHA256: Final = 0x000B
SHA256_BYTES: Final = 32
PCRS: Final = range(24)
"""Of a PC client's TPM; a bit each in a selection of 3 bytes, the size that every TPM takes."""
NV_CHUNK_BYTES: Final = 512
"""What every TPM reads from NV memory in one command."""
MAX_NV_BYTES: Final = 16 * 1024

_NULL: Final = 0x0010
_OWNER_READ_WRITE: Final = 0x00020002

AK_TEMPLATE: Final = bytes.fromhex(
    "0023000b"  # ECC, named by SHA-256
    "00050472"  # fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, sign
    "0000"  # no policy
    "0010"  # no symmetric algorithm
    "0018000b"  # ECDSA with SHA-256
    "00030010"  # P-256, no KDF
    "00000000"  # nothing unique: the same key whenever it is asked for
)
"""The attestation key, as a TPMT_PUBLIC. Restricted: it signs only what the TPM made up itself."""


class _Command(enum.IntEnum):
    NV_DEFINE_SPACE = 0x12A
    CREATE_PRIMARY = 0x131
    NV_WRITE = 0x137
    NV_READ = 0x14E
    QUOTE = 0x158
    FLUSH_CONTEXT = 0x165
    NV_READ_PUBLIC = 0x169
    READ_PUBLIC = 0x173
    PCR_READ = 0x17E


_WANT_PASSWORD: Final = frozenset(
    {_Command.NV_DEFINE_SPACE, _Command.CREATE_PRIMARY, _Command.NV_WRITE, _Command.NV_READ, _Command.QUOTE}
)


class Tpm:
    """A TPM behind an open descriptor. What it refuses, or answers out of form, is an `EvidenceError`."""

    def __init__(self, kernel: Kernel, descriptor: int) -> None:
        self._transport = TpmTransport(kernel, descriptor)

    @contextmanager
    def attestation_key(self) -> Iterator[tuple[int, bytes]]:
        """Handle and TPMT_PUBLIC of a key after `AK_TEMPLATE` in the endorsement hierarchy, gone at the end.

        The TPM derives it from a seed of its own, so it is the same each time.
        """
        parameters = sized(sized(b"") + sized(b"")) + sized(AK_TEMPLATE) + sized(b"") + bytes(4)
        response = self._execute(_Command.CREATE_PRIMARY, ENDORSEMENT, parameters=parameters)
        handle = response.number(4, "handle")
        with flushed(self._transport, handle):
            yield handle, parameters_of(response).prefixed(2, "public area", at_most=RESPONSE_BYTES)

    def read_public(self, handle: int) -> bytes:
        """The TPMT_PUBLIC of a loaded or persistent key."""
        return self._execute(_Command.READ_PUBLIC, handle).prefixed(2, "public area", at_most=RESPONSE_BYTES)

    def quote(self, handle: int, qualifying_data: bytes, pcrs: Collection[int]) -> tuple[bytes, bytes]:
        """A TPMS_ATTEST over those PCRs of the SHA-256 bank, and the TPMT_SIGNATURE by the key's own scheme."""
        parameters = sized(qualifying_data) + struct.pack(">H", _NULL) + encode_selection(pcrs)
        response = parameters_of(self._execute(_Command.QUOTE, handle, parameters=parameters))
        return response.prefixed(2, "attestation", at_most=RESPONSE_BYTES), response.rest()

    def read_pcrs(self, pcrs: Collection[int]) -> dict[int, bytes]:
        """The values of those PCRs in the SHA-256 bank. It gives a few at a time, so they may be of several times."""
        values: dict[int, bytes] = {}
        missing = set(pcrs)
        while missing:
            response = self._execute(_Command.PCR_READ, parameters=encode_selection(missing))
            response.number(4, "update counter")
            read = _read_selection(response)
            if not read or not missing.issuperset(read) or response.number(4, "number of digests") != len(read):
                raise EvidenceError(f"the TPM does not give the SHA-256 values of the PCRs {sorted(missing)}")
            values |= {index: _read_digest(response) for index in read}
            missing.difference_update(read)
        return values

    def nv_size(self, index: int) -> int | None:
        """How many bytes an NV index has, or None if it is not defined."""
        response_code, response = self._transport.attempt(_Command.NV_READ_PUBLIC, (index,), b"", password=False)
        if is_error(response_code, RC_HANDLE):
            return None
        check_response_code(_Command.NV_READ_PUBLIC.name, response_code)
        public = Reader(response.prefixed(2, "public area", at_most=RESPONSE_BYTES), "the NV index", order="big")
        public.take(10, "index, algorithm and attributes")
        public.prefixed(2, "policy", at_most=RESPONSE_BYTES)
        return public.number(2, "size")

    def nv_define(self, index: int, size: int) -> None:
        """Make an ordinary NV index that its owner reads and writes."""
        public = struct.pack(">IHIHH", index, SHA256, _OWNER_READ_WRITE, 0, size)
        self._execute(_Command.NV_DEFINE_SPACE, OWNER, parameters=sized(b"") + sized(public))

    def nv_read(self, index: int, size: int) -> bytes:
        """The first `size` bytes of an NV index, by its owner's authority."""
        if size > MAX_NV_BYTES:
            raise EvidenceError(f"the NV index 0x{index:08x} has {size} bytes; {MAX_NV_BYTES} are allowed")
        content = b""
        while len(content) < size:
            count = min(NV_CHUNK_BYTES, size - len(content))
            response = self._execute(_Command.NV_READ, OWNER, index, parameters=struct.pack(">HH", count, len(content)))
            part = parameters_of(response).prefixed(2, "NV data", at_most=count)
            if not part:
                raise EvidenceError(f"the NV index 0x{index:08x} ends after {len(content)} of {size} bytes")
            content += part
        return content

    def nv_write(self, index: int, content: bytes) -> None:
        """Write an NV index from its beginning, by its owner's authority."""
        self._execute(_Command.NV_WRITE, OWNER, index, parameters=sized(content) + bytes(2))

    def _execute(self, command: _Command, *handles: int, parameters: bytes = b"") -> Reader:
        return self._transport.execute(command, *handles, parameters=parameters, password=command in _WANT_PASSWORD)


@contextmanager
def flushed(transport: TpmTransport, handle: int) -> Iterator[None]:
    """At the end the TPM has the room back that a key or a session took."""
    try:
        yield
    finally:
        with contextlib.suppress(EvidenceError, OSError):  # closing the device does it too
            transport.execute(_Command.FLUSH_CONTEXT, parameters=struct.pack(">I", handle))


def parameters_of(response: Reader) -> Reader:
    """The parameters of a response that has sessions behind them."""
    return Reader(response.prefixed(4, "parameters", at_most=RESPONSE_BYTES), "the TPM's response", order="big")


def sized(content: bytes) -> bytes:
    """A TPM2B."""
    return struct.pack(">H", len(content)) + content


def encode_selection(pcrs: Collection[int]) -> bytes:
    """A TPML_PCR_SELECTION of the SHA-256 bank."""
    bits = sum(1 << index for index in pcrs)
    return struct.pack(">IHB", 1, SHA256, len(PCRS) // 8) + bits.to_bytes(len(PCRS) // 8, "little")


def _read_selection(response: Reader) -> list[int]:
    """The PCRs of a TPML_PCR_SELECTION, in order; none if it is of another bank."""
    if response.number(4, "number of selections") != 1 or response.number(2, "bank") != SHA256:
        return []
    bits = int.from_bytes(response.prefixed(1, "selection", at_most=4), "little")
    return [index for index in range(bits.bit_length()) if bits >> index & 1]


def _read_digest(response: Reader) -> bytes:
    digest = response.prefixed(2, "PCR", at_most=SHA256_BYTES)
    if len(digest) != SHA256_BYTES:
        raise EvidenceError(f"the TPM gives a PCR of {len(digest)} bytes, not {SHA256_BYTES}")
    return digest
