"""As much of a TPM 2.0 as evidence takes: a key, PCRs, NV memory. A test may look into it, and change it as it runs."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from adyton.tee._binary import Reader

PCR_READ_COUNT: Final = 8
"""How many PCRs it gives at a time, as real ones do."""
TRANSIENT_HANDLE: Final = 0x80000000
RC_HANDLE: Final = 0x18B
RC_COMMAND_CODE: Final = 0x143
RC_NV_RANGE: Final = 0x146
_SHA256: Final = 0x000B
_HEAD: Final = struct.Struct(">HII")
_SIGNER: Final = bytes.fromhex("000b") + bytes(32)
"""The name of a key, by SHA-256."""

Response = tuple[int | None, bytes]
"""A handle, if the command has one in its response, and the parameters."""


class TpmError(Exception):
    """The response code that a command failed with."""

    def __init__(self, code: int) -> None:
        super().__init__(hex(code))
        self.code = code


class SoftTpm:
    """`transmit` carries out a command.

    The endorsement hierarchy's attestation key is of P-256; `rsa_ak`, if given, is a persistent one at `ak_handle`.
    """

    def __init__(self, *, rsa_ak: rsa.RSAPrivateKey | None = None, ak_handle: int = 0x81000003) -> None:
        self.pcrs = {index: bytes(32) for index in range(24)}
        self.nv: dict[int, bytearray] = {}
        self.loaded = 0
        """How many transient keys were made and not flushed."""
        self.key = ec.generate_private_key(ec.SECP256R1())
        self._rsa_ak = rsa_ak
        self._ak_handle = ak_handle
        self.before: Callable[[int], None] = lambda _: None
        """Called with the code of each command, before it is carried out."""
        self._commands: Mapping[int, Callable[[Reader], Response]] = {
            0x12A: self._nv_define,
            0x131: self._create_primary,
            0x137: self._nv_write,
            0x14E: self._nv_read,
            0x158: self._quote,
            0x165: self._flush,
            0x169: self._nv_read_public,
            0x173: self._read_public,
            0x17E: self._pcr_read,
        }

    def extend(self, index: int, digest: bytes) -> None:
        """Extend a PCR."""
        self.pcrs[index] = hashlib.sha256(self.pcrs[index] + digest).digest()

    def transmit(self, command: bytes) -> bytes:
        """A command in, its response out."""
        tag, _, code = _HEAD.unpack_from(command)
        self.before(code)
        try:
            if code not in self._commands:
                raise TpmError(RC_COMMAND_CODE)
            handle, parameters = self._commands[code](Reader(command[_HEAD.size :], "the command", order="big"))
        except TpmError as error:
            return _HEAD.pack(0x8001, _HEAD.size, error.code)
        body = b"" if handle is None else struct.pack(">I", handle)
        if tag == 0x8002:
            body += struct.pack(">I", len(parameters)) + parameters + bytes.fromhex("0000 00 0000")
        else:
            body += parameters
        return _HEAD.pack(tag, _HEAD.size + len(body), 0) + body

    def _create_primary(self, command: Reader) -> Response:
        assert command.number(4, "hierarchy") == 0x4000000B
        _take_password(command)
        assert command.prefixed(2, "sensitive", at_most=4) == bytes(4)
        template = command.prefixed(2, "template", at_most=4096)
        assert command.rest() == bytes(6)
        self.loaded += 1
        return TRANSIENT_HANDLE, _sized(template[:-4] + _point(self.key)) + bytes(6)

    def _flush(self, command: Reader) -> Response:
        if command.number(4, "handle") != TRANSIENT_HANDLE or not self.loaded:
            raise TpmError(RC_HANDLE)
        self.loaded -= 1
        return None, b""

    def _read_public(self, command: Reader) -> Response:
        if self._rsa_ak is None or command.number(4, "handle") != self._ak_handle:
            raise TpmError(RC_HANDLE)
        modulus = self._rsa_ak.public_key().public_numbers().n.to_bytes(self._rsa_ak.key_size // 8, "big")
        head = bytes.fromhex("0001000b00050072000000100014000b") + struct.pack(">HI", self._rsa_ak.key_size, 0)
        return None, _sized(head + _sized(modulus)) + _sized(b"") + _sized(b"")

    def _pcr_read(self, command: Reader) -> Response:
        selected = _selected(command)[:PCR_READ_COUNT]
        values = b"".join(_sized(self.pcrs[index]) for index in selected)
        return None, struct.pack(">I", 7) + _selection(selected) + struct.pack(">I", len(selected)) + values

    def _quote(self, command: Reader) -> Response:
        handle = command.number(4, "handle")
        _take_password(command)
        extra_data = command.prefixed(2, "qualifying data", at_most=50)
        assert command.number(2, "scheme") == 0x0010
        selected = _selected(command)
        digest = hashlib.sha256(b"".join(self.pcrs[index] for index in selected)).digest()
        attest = bytes.fromhex("ff5443478018") + _sized(_SIGNER) + _sized(extra_data)
        attest += struct.pack(">QIIBQ", 1234, 5, 6, 1, 7) + _selection(selected) + _sized(digest)
        return None, _sized(attest) + self._sign(handle, attest)

    def _sign(self, handle: int, attest: bytes) -> bytes:
        if handle == TRANSIENT_HANDLE and self.loaded:
            r, s = decode_dss_signature(self.key.sign(attest, ec.ECDSA(hashes.SHA256())))
            return bytes.fromhex("0018000b") + _sized(r.to_bytes(32, "big")) + _sized(s.to_bytes(32, "big"))
        if handle == self._ak_handle and self._rsa_ak is not None:
            signature = self._rsa_ak.sign(attest, padding.PKCS1v15(), hashes.SHA256())
            return bytes.fromhex("0014000b") + _sized(signature)
        raise TpmError(RC_HANDLE)

    def _nv_read_public(self, command: Reader) -> Response:
        index = command.number(4, "index")
        public = struct.pack(">IHIHH", index, _SHA256, 0x00020002, 0, len(self._nv(index)))
        return None, _sized(public) + _sized(b"name")

    def _nv_define(self, command: Reader) -> Response:
        assert command.number(4, "owner") == 0x40000001
        _take_password(command)
        assert command.number(2, "password's size") == 0
        public = Reader(command.prefixed(2, "public area", at_most=64), "the NV index", order="big")
        index = public.number(4, "index")
        public.take(8, "algorithm, attributes and policy")
        self.nv[index] = bytearray(b"\xff" * public.number(2, "size"))
        return None, b""

    def _nv_read(self, command: Reader) -> Response:
        content = self._owned(command)
        size, offset = command.number(2, "size"), command.number(2, "offset")
        if offset + size > len(content):
            raise TpmError(RC_NV_RANGE)
        return None, _sized(bytes(content[offset : offset + size]))

    def _nv_write(self, command: Reader) -> Response:
        content = self._owned(command)
        data = command.prefixed(2, "data", at_most=2048)
        offset = command.number(2, "offset")
        if offset + len(data) > len(content):
            raise TpmError(RC_NV_RANGE)
        content[offset : offset + len(data)] = data
        return None, b""

    def _owned(self, command: Reader) -> bytearray:
        assert command.number(4, "owner") == 0x40000001
        index = command.number(4, "index")
        _take_password(command)
        return self._nv(index)

    def _nv(self, index: int) -> bytearray:
        if index not in self.nv:
            raise TpmError(RC_HANDLE)
        return self.nv[index]


def _take_password(command: Reader) -> None:
    assert command.prefixed(4, "authorisation", at_most=9) == bytes.fromhex("40000009 0000 00 0000")


def _sized(content: bytes) -> bytes:
    return struct.pack(">H", len(content)) + content


def _point(key: ec.EllipticCurvePrivateKey) -> bytes:
    numbers = key.public_key().public_numbers()
    return _sized(numbers.x.to_bytes(32, "big")) + _sized(numbers.y.to_bytes(32, "big"))


def _selected(command: Reader) -> list[int]:
    assert (command.number(4, "count"), command.number(2, "bank"), command.number(1, "size")) == (1, _SHA256, 3)
    bits = command.number(3, "bitmap")
    swapped = int.from_bytes(bits.to_bytes(3, "big"), "little")
    return [index for index in range(24) if swapped >> index & 1]


def _selection(selected: list[int]) -> bytes:
    bits = sum(1 << index for index in selected)
    return struct.pack(">IHB", 1, _SHA256, 3) + bits.to_bytes(3, "little")
