"""/dev/sev-guest (drivers/virt/coco/sev-guest) and a secure processor that makes reports and keys (AMD 56860, 7.2).

    device = SevGuest(Chip(seed=b"this one"), Guest(measurement=...))
    kernel = EmulatedKernel(Tsm(provider="sev_guest", quote=device.report), device)

The reports are signed with the fake AMD's key, and have no certificates.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import hmac
import os
import struct
from dataclasses import dataclass
from typing import Final

from adyton.tee.snp.products import ProductName
from adyton.testing import snp_pki as pki
from adyton.testing.kernels.emulated import Driver, OpenFile, failure
from adyton.testing.snp_vendor import SnpVendor, put, signature

SEV_GUEST: Final = "/dev/sev-guest"
GET_DERIVED_KEY: Final = 0xC0205301
SUCCESS, INVALID_PARAMS, INVALID_KEY_SELECTION = 0, 0x16, 0x27
POLICY: Final = 0x30000
"""Of a guest with which nothing is allowed but two threads a core."""
DEBUG: Final = 1 << 19
"""The bit of a policy that lets the host look into the guest."""

_ARGUMENT: Final = struct.Struct("<B7xQQQ")
_MESSAGE: Final = struct.Struct("<IIQII8s")
_ANSWER: Final = struct.Struct("<I28x32s")
_MAX_VMPL: Final = 3
_NOT_CALLED: Final = 0xFFFFFFFF
"""The error of a firmware that was not asked."""
_VMRK, _KEY_SEL, _BY_DEFAULT, _VCEK, _VLEK = 0b001, 0b110, 0b000, 0b010, 0b100
_GUEST_POLICY, _IMAGE_ID, _FAMILY_ID, _MEASUREMENT, _GUEST_SVN, _TCB_VERSION = (1 << bit for bit in range(6))


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """A processor, and the firmware that its host runs on it. Two of one seed are the same chip.

    The TCB versions are 8 bytes each; `current_tcb` is as `committed_tcb` if it is empty. `vlek` is the key that the
    host has loaded, empty if none.
    """

    seed: bytes
    product: ProductName = "Genoa"
    report_version: int = 5
    committed_tcb: bytes = bytes((9, 2, 0, 0, 0, 0, 22, 72))
    current_tcb: bytes = b""
    vlek: bytes = b""

    @property
    def chip_id(self) -> bytes:
        """As in reports: 8 bytes and zeros in Turin, else 64."""
        chip_id = hashlib.sha512(self.seed).digest()
        return chip_id[:8].ljust(64, b"\0") if self.product == "Turin" else chip_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """What was launched. `vmpl` is that of its kernel; `vcek_disabled` is the host's choice, as is the rest."""

    measurement: bytes
    policy: int = POLICY
    vmpl: int = 0
    svn: int = 0
    image_id: bytes = bytes(16)
    family_id: bytes = bytes(16)
    id_key_digest: bytes = bytes(48)
    vcek_disabled: bool = False


class SevGuest(Driver):
    """The device of one guest. The host may update the firmware under it: give another `chip`.

    A request that fails outside of an answer costs the driver its key to the firmware, as it does in Linux: ENOTTY from
    then on. `hands_back_errors` is False for a Python from 3.14 on, in which a failing ioctl changes no buffer.
    """

    def __init__(
        self, chip: Chip, guest: Guest, *, report_vmpl: int | None = None, hands_back_errors: bool = True
    ) -> None:
        self.chip = chip
        self.guest = guest
        self.messages: list[bytes] = []
        """Each MSG_KEY_REQ that the firmware has got."""
        self._report_vmpl = guest.vmpl if report_vmpl is None else report_vmpl
        self._hands_back_errors = hands_back_errors
        self._refusal: OSError | None = None
        self._exit_info = _NOT_CALLED
        self._answer: bytes | None = None

    def refuse(self, number: int, *, firmware: int = _NOT_CALLED, host: int = 0) -> None:
        """The next request fails with that errno, and these errors of firmware and host."""
        self._refusal, self._exit_info = failure(number), host << 32 | firmware

    def answer(self, status: int) -> None:
        """The next answers have that status, and no key."""
        self._answer = _ANSWER.pack(status, bytes(32))

    def open(self, path: str, flags: int) -> OpenFile | None:
        """The device, for reading and writing."""
        return _SevGuest(self) if path == SEV_GUEST and flags == os.O_RDWR else None

    def report(self, report_data: bytes) -> bytes:
        """An attestation report over these 64 bytes."""
        chip, guest = self.chip, self.guest
        signed = SnpVendor(chip.product).signed_part(chip.report_version, "VLEK" if chip.vlek else "VCEK")
        for offset, field in (
            (0x04, guest.svn.to_bytes(4, "little") + guest.policy.to_bytes(8, "little")),
            (0x10, guest.family_id + guest.image_id + self._report_vmpl.to_bytes(4, "little")),
            (0x38, chip.current_tcb or chip.committed_tcb),
            (0x50, report_data + guest.measurement),
            (0xE0, guest.id_key_digest),
            (0x180, chip.committed_tcb),
            (0x1A0, chip.chip_id + chip.committed_tcb),
            (0x1F0, chip.committed_tcb),
        ):
            signed = put(offset, field)(signed)
        return signed + signature(pki.leaf_key(), signed)

    def request(self, message: bytes) -> bytes:
        """The firmware's answer to a MSG_KEY_REQ, or OSError."""
        if self._refusal:
            refusal, self._refusal = self._refusal, failure(errno.ENOTTY)
            raise refusal
        self.messages.append(message)
        return self._answer or _ANSWER.pack(*derive(self.chip, self.guest, message))

    def exit_info(self) -> int | None:
        """What the request that just failed writes into its argument: errors of host and firmware, 32 bits each."""
        exit_info, self._exit_info = self._exit_info, _NOT_CALLED
        return exit_info if self._hands_back_errors else None


class _SevGuest(OpenFile):
    def __init__(self, device: SevGuest) -> None:
        self._device = device

    def ioctl(self, request: int, buffer: bytearray) -> int:
        """One key."""
        if request != GET_DERIVED_KEY:
            raise failure(errno.ENOTTY)
        assert len(buffer) == _ARGUMENT.size, len(buffer)
        version, message_at, answer_at, _ = _ARGUMENT.unpack(buffer)
        if not (version and message_at and answer_at):
            raise failure(errno.EINVAL)
        assert version == 1, "the message of a later version is longer than the driver's"
        try:
            answer = self._device.request(ctypes.string_at(message_at, _MESSAGE.size))
        except OSError:
            if (exit_info := self._device.exit_info()) is not None:
                _ARGUMENT.pack_into(buffer, 0, version, message_at, answer_at, exit_info)
            raise
        ctypes.memmove(answer_at, answer, len(answer))
        return 0


def derive(chip: Chip, guest: Guest, message: bytes) -> tuple[int, bytes]:
    """What the firmware makes of a MSG_KEY_REQ of version 1: a status, and the key, zeros if there is none."""
    root_select, reserved, fields, vmpl, svn, tcb = _MESSAGE.unpack(message)
    if (
        reserved
        or root_select >> 3
        or root_select & _KEY_SEL == _KEY_SEL
        or fields >> 6
        or not guest.vmpl <= vmpl <= _MAX_VMPL
        or svn > guest.svn
        or any(part > limit for part, limit in zip(tcb, chip.committed_tcb, strict=True))
    ):
        return INVALID_PARAMS, bytes(32)
    root = _root(chip, guest, root_select)
    if root is None:
        return INVALID_KEY_SELECTION, bytes(32)
    mixed = {
        _GUEST_POLICY: guest.policy.to_bytes(8, "little"),
        _IMAGE_ID: guest.image_id,
        _FAMILY_ID: guest.family_id,
        _MEASUREMENT: guest.measurement,
        _GUEST_SVN: svn.to_bytes(4, "little"),
        _TCB_VERSION: tcb,
    }
    chosen = b"".join(value if fields & bit else bytes(len(value)) for bit, value in mixed.items())
    return SUCCESS, hmac.digest(root, struct.pack("<QI", fields, vmpl) + chosen, "sha256")


def _root(chip: Chip, guest: Guest, root_select: int) -> bytes | None:
    """The key that is derived from: the VMRK is new with each launch, the VCEK the chip's, the VLEK the provider's."""
    if root_select & _VMRK:
        return hashlib.sha256(b"VMRK" + id(guest).to_bytes(8)).digest()
    wanted = root_select & _KEY_SEL
    if wanted == _BY_DEFAULT:
        wanted = _VLEK if chip.vlek else _VCEK
    if wanted == _VLEK:
        return chip.vlek or None
    return None if guest.vcek_disabled else hashlib.sha256(b"VCEK" + chip.seed).digest()
