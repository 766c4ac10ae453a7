"""Inside an AMD SEV-SNP guest: sealing keys, which the secure processor derives from the key of its chip.

The guest asks over /dev/sev-guest (include/uapi/linux/sev-guest.h) with MSG_KEY_REQ (ABI, section 7.2). In a key are:

- the chip's key, VCEK, which is asked for by name: no other machine has it. By default (KEY_SEL 0) the host would
  choose, for once it has loaded a VLEK, that is taken: the provider's, and the same on all of its machines. Where a
  host lets its guests use the VLEK only, there are no sealing keys, but those of a key-release enclave;
- the launch measurement, and the guest policy: other code, or the same with debugging allowed, has another key.
  Nothing that the launch does not measure may be relied on to be in it;
- the VMPL: what runs at a lower privilege in the same machine (a higher number) can't have the keys of a higher one;
- a TCB version. The firmware takes any up to the committed one, part by part, so a key is made at the committed
  version, is there after each update, and is not there for firmware that is older. The host can't roll back below the
  committed version; the current one may be provisional, and the reported one is what the host likes.

There are no keys for a signer. Image ID and family ID can be mixed in, but the key that signed them can't be asked for,
so a host might sign other code with the same ones. Whether the firmware mixes in that key and HOST_DATA unasked, those
who tried tell differently (google/go-sev-guest, microsoft/CCF#6791, confidential-containers/guest-components#885): what
shall read old data is best launched with the same ones.

Nobody has asked a real secure processor with this module yet. That an older TCB version gives the older key after an
update is what the specification's field is for, and what dfinity/ic#11476 builds on; it was not tried here.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final, NamedTuple

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from adyton.errors import EvidenceError, KeyUnavailableError, SealedDataError, UnsealError, UnsupportedError
from adyton.tee._device import REPORT_DATA_BYTES
from adyton.tee._kernel import Kernel, LinuxKernel, describe, opened_device
from adyton.tee.evidence import Evidence
from adyton.tee.sealing import KEY_BYTES, Binding, FreshnessRegister, SealingKey, SealPolicy
from adyton.tee.snp.device import SnpDevice
from adyton.tee.snp.format import SnpReport, parse_snp
from adyton.tee.snp.products import PRODUCTS, Product

DEVICE: Final = "/dev/sev-guest"
SNP_GET_DERIVED_KEY: Final = 0xC0205301
BUSY_SECONDS: Final = 60.0
"""How long a key may be asked for again, as a report may."""

_PAUSE_SECONDS: Final = 0.1
_AGAIN: Final = frozenset({errno.EAGAIN, errno.EBUSY, errno.EINTR})
_WHAT: Final = "sev-guest device"
_MEND: Final = "in an SEV-SNP guest load the kernel's module sev-guest, and run as a user who may use /dev/sev-guest"
_RELEASE: Final = 'take keys from a key-release enclave: [sealing] source = "release"'

_ARGUMENT: Final = struct.Struct("<B7xQQII")
"""Message version; addresses of message and answer; then what firmware and host say when they fail."""
_MESSAGE: Final = struct.Struct("<IIQII8s")
"""Root key, reserved, fields, VMPL, guest SVN, TCB version."""
_ANSWER: Final = struct.Struct(f"<I28x{KEY_BYTES}s")
_MESSAGE_VERSION: Final = 1
_VCEK: Final = 1 << 1
"""KEY_SEL (bits 1 and 2) is 1, and ROOT_KEY_SELECT (bit 0) is 0: no VMRK, which is another after each launch."""
_FIELDS: Final = 1 << 0 | 1 << 3 | 1 << 5
"""Guest policy, measurement, TCB version."""

_SALT_BYTES: Final = 32
_REQUEST: Final = struct.Struct(f"<BB8s8s{_SALT_BYTES}s")
_REQUEST_VERSION: Final = 1
_DOMAIN: Final = b"adyton snp sealing key v1\0"

_STATUSES: Final[Mapping[int, tuple[str, str]]] = MappingProxyType(
    {
        0x16: ("INVALID_PARAMS", "have the host update its firmware to one that knows KEY_SEL"),
        0x27: ("INVALID_KEY_SELECTION: the host keeps the chip's key (VCEK) from this guest", _RELEASE),
    }
)
_LOST: Final = "the guest has lost its key to the firmware, until it boots again"
_MEANINGS: Final[Mapping[int, str]] = MappingProxyType(
    dict.fromkeys(_AGAIN, f"it was busy for {BUSY_SECONDS:g} s")
    | {
        errno.EBADMSG: "the answer is not the firmware's",
        errno.EIO: "the firmware or the host refused",
        errno.ENOTTY: _LOST,
        errno.ETIMEDOUT: f"the host throttled the request for longer than the driver waits: {_LOST}",
    }
)
_FIRMWARE_ERRORS: Final[Mapping[int, str]] = MappingProxyType(
    {0x0B: "BAD_MEASUREMENT", 0x16: "INVALID_PARAM", 0x17: "RESOURCE_LIMIT", 0x1D: "AEAD_OFLOW", 0x27: "INVALID_KEY"}
)
_HOST_ERRORS: Final[Mapping[int, str]] = MappingProxyType({1: "INVALID_LEN", 2: "BUSY"})
_NOT_CALLED: Final = 0xFFFFFFFF


class _Request(NamedTuple):
    """What a `SealingKey.request` has. Root key and fields are not in it: they go with the version, and can't be less.

    `policy` is there so that another one can be named; the firmware takes the guest's own.
    """

    version: int
    vmpl: int
    policy: bytes
    tcb: bytes
    salt: bytes


class SnpSealing:
    """A `KeySource`. Who this guest is, it learns from one report, when it is first asked.

    `collect` asks for that report in place of an `SnpDevice`, for a process that may not: configfs-tsm is root's.
    `privlevel` is the VMPL of the keys, as of an `SnpDevice`; what `collect` gives has one of its own. The report is
    not verified: the guest has a channel of its own to the secure processor, which derives from what it knows itself.

    The request: a version byte (1), the VMPL in one byte, guest policy and TCB version in eight each as in a report, a
    random salt in 32. The processor's key would be the same each time; with the salt it is another.
    """

    name: Final = "snp"
    policies: Final = frozenset({SealPolicy.MEASUREMENT})

    def __init__(
        self,
        *,
        collect: Callable[[bytes], Evidence] | None = None,
        privlevel: int | None = None,
        kernel: Kernel | None = None,
    ) -> None:
        self._kernel = kernel or LinuxKernel()
        self._collect = collect or SnpDevice(privlevel=privlevel, kernel=kernel).collect_evidence
        self._known: SnpReport | None = None

    def check_present(self) -> None:
        """`UnsupportedError` unless the kernel has the device, and this process may use it. No key is made."""
        with _as_unavailable(), opened_device(self._kernel, DEVICE, _WHAT, mend=_MEND):
            pass

    def current(self, policy: SealPolicy) -> Binding:
        """As `KeySource` says."""
        _check_policy(policy)
        return Binding(policy=policy, subject=self._report().measurement)

    def new_key(self, policy: SealPolicy) -> SealingKey:
        """As `KeySource` says; fresh each time. Its TCB is what was committed when the report was made."""
        binding, report = self.current(policy), self._report()
        request = _Request(
            version=_REQUEST_VERSION,
            vmpl=report.vmpl,
            policy=_policy(report),
            tcb=report.committed_tcb,
            salt=os.urandom(_SALT_BYTES),
        )
        tcb = " ".join(f"{name} {part}" for name, part in _parts(report, request.tcb).items())
        return SealingKey(key=self._key(request), binding=binding, request=_REQUEST.pack(*request), tcb=tcb)

    def same_key(self, binding: Binding, request: bytes) -> bytes:
        """As `KeySource` says."""
        report = self._report()
        _check_binding(binding, report)
        asked = _parse_request(request)
        _check_guest(asked, report)
        if _above(asked.tcb, report):  # the host may have updated and committed while this guest was running
            _check_tcb(asked.tcb, self._report(fresh=True))
        return self._key(asked)

    def register(self, binding: Binding, label: bytes) -> FreshnessRegister | None:  # noqa: ARG002  there is none
        """None: nothing in SEV-SNP remembers anything for a guest."""
        return None

    def _report(self, *, fresh: bool = False) -> SnpReport:
        known = self._known
        if known is None or fresh:
            with _as_unavailable():
                known = self._known = parse_snp(self._collect(bytes(REPORT_DATA_BYTES)).data)
        return known

    def _key(self, request: _Request) -> bytes:
        root = self._ask(_MESSAGE.pack(_VCEK, 0, _FIELDS, request.vmpl, 0, request.tcb))
        return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=request.salt, info=_DOMAIN).derive(root)

    def _ask(self, message: bytes) -> bytes:
        """The key that the secure processor derives."""
        message_memory = ctypes.create_string_buffer(message, len(message))
        answer_memory = ctypes.create_string_buffer(_ANSWER.size)
        addresses = ctypes.addressof(message_memory), ctypes.addressof(answer_memory)
        argument = bytearray(_ARGUMENT.pack(_MESSAGE_VERSION, *addresses, 0, 0))
        with _as_unavailable(), opened_device(self._kernel, DEVICE, _WHAT, mend=_MEND) as descriptor:
            self._transmit(descriptor, argument)
        status, key = _ANSWER.unpack(answer_memory.raw)
        if status:
            words, mend = _STATUSES.get(status, (f"status {status:#x}", ""))
            raise KeyUnavailableError(f"the secure processor derived no key: {words}", mend=mend)
        if not any(key):  # what is left of an answer that nobody wrote, and a key that everybody has
            raise KeyUnavailableError("the secure processor derived no key, and said that it had")
        return bytes(key)

    def _transmit(self, descriptor: int, argument: bytearray) -> None:
        """One request, again while the device is busy. A throttled one the driver repeats by itself."""
        deadline = self._kernel.monotonic() + BUSY_SECONDS
        while True:
            try:
                self._kernel.ioctl(descriptor, SNP_GET_DERIVED_KEY, argument)
            except OSError as error:
                if error.errno not in _AGAIN or self._kernel.monotonic() >= deadline:
                    raise KeyUnavailableError(_describe_failure(error, argument)) from error
            else:
                return
            self._kernel.sleep(_PAUSE_SECONDS)


@contextmanager
def _as_unavailable() -> Iterator[None]:
    """What evidence fails with, keys do: the hardware is there, and does not give one now."""
    try:
        yield
    except EvidenceError as problem:
        raise KeyUnavailableError(problem.message, mend=problem.mend) from problem


def _describe_failure(error: OSError, argument: bytearray) -> str:
    *_, firmware, host = _ARGUMENT.unpack(argument)  # zeros from Python 3.14, which drops what a failing ioctl wrote
    words = [_MEANINGS.get(error.errno or 0, "no key was derived")]
    if firmware not in (0, _NOT_CALLED):
        words.append(f"firmware error {firmware:#x} {_FIRMWARE_ERRORS.get(firmware, '')}".rstrip())
    if host:
        words.append(f"host error {host:#x} {_HOST_ERRORS.get(host, '')}".rstrip())
    return f"the {_WHAT} failed: {', '.join(words)}: {describe(error)}"


def _parse_request(request: bytes) -> _Request:
    try:
        parsed = _Request(*_REQUEST.unpack(request))
    except struct.error:
        raise SealedDataError("this key request is none of SEV-SNP's") from None
    if parsed.version != _REQUEST_VERSION:
        raise SealedDataError(f"key requests of version {parsed.version} are not known here")
    return parsed


def _check_policy(policy: SealPolicy) -> None:
    if policy is SealPolicy.SIGNER:
        raise UnsupportedError(
            "SEV-SNP has no keys for a signer: a key can't be bound to the one that signed the ID block", mend=_RELEASE
        )
    if policy is not SealPolicy.MEASUREMENT:
        raise UnsupportedError(f"SEV-SNP has no keys for {policy.name.lower()}")


def _check_binding(binding: Binding, report: SnpReport) -> None:
    _check_policy(binding.policy)
    if binding != Binding(policy=binding.policy, subject=report.measurement):
        mine, theirs = report.measurement.hex(), binding.subject.hex()
        raise UnsealError(f"the measurement is {mine}; the data was sealed for {theirs}")


def _check_guest(asked: _Request, report: SnpReport) -> None:
    """Refuse in words what would be another key, and a VMPL below our own, whose keys others may have too."""
    if asked.policy != _policy(report):
        mine, theirs = (int.from_bytes(each, "little") for each in (_policy(report), asked.policy))
        raise UnsealError(f"the guest policy is {mine:#x}; the data was sealed under {theirs:#x}")
    if asked.vmpl != report.vmpl:
        raise UnsealError(f"the VMPL is {report.vmpl}; the data was sealed at {asked.vmpl}")


def _check_tcb(tcb: bytes, report: SnpReport) -> None:
    if higher := _above(tcb, report):
        mine = _parts(report, report.committed_tcb)
        parts = ", ".join(f"{name} {part} (here {mine.get(name, 0)})" for name, part in higher.items())
        mend = "have the host update its firmware, and commit it"
        raise UnsealError(f"the data was sealed at a newer TCB than is committed here: {parts}", mend=mend)


def _above(tcb: bytes, report: SnpReport) -> dict[str, int]:
    """The parts that are above the committed TCB."""
    mine = _parts(report, report.committed_tcb)
    return {name: part for name, part in _parts(report, tcb).items() if part > mine.get(name, 0)}


def _parts(report: SnpReport, tcb: bytes) -> dict[str, int]:
    """The parts of a TCB version by name; what is reserved, or of an unknown product, by its place if not zero."""
    product = _find_product(report)
    names = [part for part, _ in product.tcb_bytes] if product else [None] * len(tcb)
    return {
        name or f"byte{place}": part for place, (name, part) in enumerate(zip(names, tcb, strict=True)) if name or part
    }


def _find_product(report: SnpReport) -> Product | None:
    """Of which product the chip is, as far as that matters for its TCB version."""
    if report.cpuid is None:  # in version 2 only the chip's identifier tells family 19h: it is longer than Turin's
        return PRODUCTS["Milan"] if any(report.chip_id[PRODUCTS["Turin"].hwid_bytes :]) else None
    family, model, _ = report.cpuid
    return next((product for product in PRODUCTS.values() if product.has_cpu(family, model)), None)


def _policy(report: SnpReport) -> bytes:
    """The guest policy as it stands in the report."""
    return report.signed_part[0x08:0x10]
