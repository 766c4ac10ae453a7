"""Quotes and event logs of a fake TPM: genuine by default, and wrong where a recipe says so.

Both the TPM and Azure's paravisor make quotes, so `QUOTE_FORGERIES` are recipes that the cases of either are made of.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from adyton.tee._event_log import EV_NO_ACTION, MAX_EVENTS
from adyton.tee._tpm import Pcrs
from adyton.tee._tpm_structures import MAGIC, ST_ATTEST_QUOTE

Edit = Callable[[bytes], bytes]
SigningKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
KeyName = Literal["rsa", "weak", "exponent 3", "p256", "p384", "p521", "root", "ca"]
Measurement = tuple[int, int, bytes]
"""Register, event type, and data; the digests are of the data."""

ALGORITHMS: Final[Mapping[str, int]] = {"sha1": 4, "sha256": 11, "sha384": 12, "sha512": 13, "sm3_256": 18}
SCHEMES: Final[Mapping[str, int]] = {"rsassa": 0x14, "rsapss": 0x16, "ecdsa": 0x18}
CURVES: Final[Mapping[str, int]] = {"secp256r1": 3, "secp384r1": 4, "secp521r1": 5}

NONCE: Final = bytes(range(32))
SIGNER: Final = b"\x00\x0b" + b"\x51" * 32
"""A qualified name in SHA-256."""
CLOCK_MS: Final = 123_456_789
RESET_COUNT: Final = 7
RESTART_COUNT: Final = 3
FIRMWARE: Final = 0x2016_0511_0016_2800

EV_SEPARATOR: Final = 4
EV_ACTION: Final = 5
MEASUREMENTS: Final[tuple[Measurement, ...]] = (
    (0, EV_NO_ACTION, b"StartupLocality\0\x03"),
    (0, 8, b"firmware"),
    (4, EV_ACTION, b"Calling EFI Application from Boot Option"),
    (4, EV_SEPARATOR, bytes(4)),
    (0, EV_SEPARATOR, bytes(4)),
    (7, EV_SEPARATOR, bytes(4)),
)
"""A boot in brief."""


def unchanged(data: bytes) -> bytes:
    """The edit that does nothing."""
    return data


def overwrite(start: int, new: bytes) -> Edit:
    """The edit that puts `new` where it says; before the end, if `start` is negative."""
    return lambda data: data[:start] + new + data[start % len(data) + len(new) :]


def sized(data: bytes) -> bytes:
    """A TPM2B structure."""
    return len(data).to_bytes(2, "big") + data


@functools.cache
def key(name: KeyName) -> SigningKey:
    """The key of that name, the same each time."""
    if name == "rsa":
        return rsa.generate_private_key(65537, 2048)
    if name == "weak":
        return rsa.generate_private_key(65537, 1024)  # noqa: S505 - to be refused
    if name == "exponent 3":
        return rsa.generate_private_key(3, 2048)
    return ec.generate_private_key({"p384": ec.SECP384R1(), "p521": ec.SECP521R1()}.get(name, ec.SECP256R1()))


def sha1_log(measurements: Sequence[Measurement], padding_: bytes = b"") -> bytes:
    """An event log of the old format."""
    return b"".join(_sha1_event(measurement) for measurement in measurements) + padding_


def agile_log(
    measurements: Sequence[Measurement], banks: Sequence[str] = ("sha1", "sha256"), padding_: bytes = b""
) -> bytes:
    """A crypto-agile event log."""
    sizes = b"".join(_u16(ALGORITHMS[bank]) + _u16(_digest_size(bank)) for bank in banks)
    header = b"Spec ID Event03\0" + bytes(4) + b"\0\x02\0\x02" + _u32(len(banks)) + sizes + b"\0"
    events = b"".join(_agile_event(measurement, banks) for measurement in measurements)
    return _sha1_event((0, EV_NO_ACTION, header), digest=bytes(20)) + events + padding_


def _sha1_event(measurement: Measurement, digest: bytes | None = None) -> bytes:
    register, event_type, data = measurement
    return _u32(register) + _u32(event_type) + (digest or digest_of("sha1", data)) + _u32(len(data)) + data


def _agile_event(measurement: Measurement, banks: Sequence[str]) -> bytes:
    register, event_type, data = measurement
    digests = b"".join(_u16(ALGORITHMS[bank]) + digest_of(bank, data) for bank in banks)
    return _u32(register) + _u32(event_type) + _u32(len(banks)) + digests + _u32(len(data)) + data


def digest_of(bank: str, data: bytes) -> bytes:
    """What a bank measures; zeros for SM3, which is not everywhere."""
    return bytes(32) if bank == "sm3_256" else hashlib.new(bank, data).digest()


def _digest_size(bank: str) -> int:
    return len(digest_of(bank, b""))


def _u16(number: int) -> bytes:
    return number.to_bytes(2, "little")


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


def pcrs_after(measurements: Sequence[Measurement], *banks: str) -> dict[str, dict[int, bytes]]:
    """The values of 24 PCRs after these measurements, which began in locality 3."""
    pcrs: dict[str, dict[int, bytes]] = {}
    for bank in banks:
        size = _digest_size(bank)
        values = {index: bytes(size) if index < 17 else b"\xff" * size for index in range(24)}
        values[0] = bytes(size - 1) + b"\x03"
        for register, event_type, data in measurements:
            if event_type != EV_NO_ACTION:
                values[register] = hashlib.new(bank, values[register] + digest_of(bank, data)).digest()
        pcrs[bank] = values
    return pcrs


PCRS: Final[Pcrs] = MappingProxyType(pcrs_after(MEASUREMENTS, "sha256"))


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmQuoteRecipe:
    """How to make a quote; its edits are done in this order, `edit_quoted` before the signature.

    `pcrs` are the values that are given, `quoted_pcrs` those that the TPM quotes, the same if None. `scheme` and `hash`
    are what signs; `named_scheme` is what the signature says, if it is not the truth.
    """

    extra_data: bytes = NONCE
    pcrs: Pcrs = field(default_factory=lambda: PCRS)
    quoted_pcrs: Pcrs | None = None
    clock_safe: bool = True
    edit_quoted: Edit = unchanged
    scheme: str | None = None
    hash: str = "sha256"
    named_scheme: str | None = None
    edit_signature: Edit = unchanged
    edit_fields: Callable[[dict[str, Any]], dict[str, Any]] = dict
    logs: tuple[bytes, ...] = ()

    def fields(self, signing_key: SigningKey) -> dict[str, Any]:
        """The fields of the evidence that are the quote."""
        quoted = self.edit_quoted(self._quoted())
        scheme = self.scheme or ("rsassa" if isinstance(signing_key, rsa.RSAPrivateKey) else "ecdsa")
        signature = self._signature(signing_key, scheme, quoted)
        pcrs = {bank: dict(values) for bank, values in self.pcrs.items()}
        return self.edit_fields({"quoted": quoted, "signature": self.edit_signature(signature), "pcrs": pcrs})

    def _quoted(self) -> bytes:
        pcrs = self.pcrs if self.quoted_pcrs is None else self.quoted_pcrs
        joined = b"".join(values[index] for values in pcrs.values() for index in sorted(values))
        clock = CLOCK_MS.to_bytes(8, "big") + RESET_COUNT.to_bytes(4, "big") + RESTART_COUNT.to_bytes(4, "big")
        head = MAGIC.to_bytes(4, "big") + ST_ATTEST_QUOTE.to_bytes(2, "big") + sized(SIGNER) + sized(self.extra_data)
        head += clock + bytes([self.clock_safe]) + FIRMWARE.to_bytes(8, "big") + len(pcrs).to_bytes(4, "big")
        selections = b"".join(selection(bank, values) for bank, values in pcrs.items())
        return head + selections + sized(hashlib.new(self.hash, joined).digest())

    def _signature(self, signing_key: SigningKey, scheme: str, quoted: bytes) -> bytes:
        hash_ = getattr(hashes, self.hash.upper())()
        head = SCHEMES[self.named_scheme or scheme].to_bytes(2, "big") + ALGORITHMS[self.hash].to_bytes(2, "big")
        if isinstance(signing_key, ec.EllipticCurvePrivateKey):
            value = signing_key.sign(quoted, ec.ECDSA(hash_))
            halves = (half.to_bytes(66, "big").lstrip(b"\0") for half in decode_dss_signature(value))
            in_two = b"".join(sized(half) for half in halves)
            return head + (in_two if self.named_scheme in (None, "ecdsa") else sized(value))
        pss = padding.PSS(padding.MGF1(hash_), padding.PSS.MAX_LENGTH)
        return head + sized(signing_key.sign(quoted, pss if scheme == "rsapss" else padding.PKCS1v15(), hash_))


def selection(bank: str, indices: Sequence[int] | Mapping[int, object]) -> bytes:
    """A TPMS_PCR_SELECTION."""
    bitmap = sum(1 << index for index in indices).to_bytes(3, "little")
    return ALGORITHMS[bank].to_bytes(2, "big") + b"\x03" + bitmap


def _in_pcrs(index: object, digest: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The edit that gives PCR 0 another index and another value."""

    def edit(fields: dict[str, Any]) -> dict[str, Any]:
        values = dict(fields["pcrs"]["sha256"])
        del values[0]
        return fields | {"pcrs": {"sha256": values | {index: digest}}}

    return edit


_PCR0: Final = PCRS["sha256"][0]
_PCR1_ONLY: Final[Pcrs] = {"sha256": {1: PCRS["sha256"][1]}}
_SHIFTED: Final[Pcrs] = {"sha256": {0: _PCR0 + b"\0", 1: bytes(31)}}
_SELECTION_AT: Final = -(2 + 32) - 6
_LOG: Final = agile_log(MEASUREMENTS)
_HEADER_AT: Final = 32


def _log(edit: Edit) -> TpmQuoteRecipe:
    return TpmQuoteRecipe(logs=(edit(_LOG),))


def _grown_header(data: bytes) -> bytes:
    """A byte more in the log's header."""
    size = int.from_bytes(data[28:32], "little")
    return data[:28] + _u32(size + 1) + data[32 : 32 + size] + b"\0" + data[32 + size :]


_FIRST_EVENT: Final = _HEADER_AT + 16 + 4 + 4 + 4 + 8 + 1
_FIRST_DIGEST: Final = _FIRST_EVENT + 12

QUOTE_FORGERIES: Final[Mapping[str, tuple[str, TpmQuoteRecipe]]] = {
    "something that a TPM did not make": (
        "not with TPM_GENERATED",
        TpmQuoteRecipe(edit_quoted=overwrite(0, b"\xffTCH")),
    ),
    "a certified key as a quote": (
        "the TPM attests something of type 0x8017",
        TpmQuoteRecipe(edit_quoted=overwrite(4, b"\x80\x17")),
    ),
    "a clock that is safe and more": (
        "a TPMI_YES_NO of 2",
        TpmQuoteRecipe(edit_quoted=overwrite(6 + 36 + 34 + 16, b"\x02")),
    ),
    "a quote with a byte more": (
        "the TPM's quote goes on after its end",
        TpmQuoteRecipe(edit_quoted=lambda data: data + b"\0"),
    ),
    "a quote cut short": (
        "the TPM's quote ends inside its PCR digest",
        TpmQuoteRecipe(edit_quoted=lambda data: data[:-1]),
    ),
    "an unknown bank quoted": (
        "selects PCRs of the unknown bank 0x0027",
        TpmQuoteRecipe(edit_quoted=overwrite(_SELECTION_AT, b"\x00\x27")),
    ),
    "a bank quoted twice": (
        "selects PCRs of the bank sha256 twice",
        TpmQuoteRecipe(
            quoted_pcrs=_PCR1_ONLY,
            pcrs=_PCR1_ONLY,
            edit_quoted=lambda data: (
                data[: _SELECTION_AT - 4] + bytes(3) + b"\x02" + selection("sha256", ()) + data[_SELECTION_AT:]
            ),
        ),
    ),
    "a signature of another scheme": (
        "the TPM's signature is of the scheme 0x0015",
        TpmQuoteRecipe(edit_signature=overwrite(0, b"\x00\x15")),
    ),
    "a signature with SHA-1": (
        "the TPM's signature is made with the hash 0x0004",
        TpmQuoteRecipe(hash="sha1"),
    ),
    "a signature with a byte more": (
        "the TPM's signature goes on after its end",
        TpmQuoteRecipe(edit_signature=lambda data: data + b"\0"),
    ),
    "a signature that does not verify": (
        "the signature of the TPM's quote does not verify",
        TpmQuoteRecipe(edit_signature=lambda data: data[:-1] + bytes([data[-1] ^ 1])),
    ),
    "PCR values that are no map": ("no map of maps", TpmQuoteRecipe(edit_fields=lambda fields: fields | {"pcrs": []})),
    "PCR values of a bank that are no map": (
        "no map of maps",
        TpmQuoteRecipe(edit_fields=lambda fields: fields | {"pcrs": {"sha256": [_PCR0]}}),
    ),
    "PCR values of an unknown bank": (
        "PCR values of the unknown bank 'md5'",
        TpmQuoteRecipe(edit_fields=lambda fields: fields | {"pcrs": fields["pcrs"] | {"md5": {}}}),
    ),
    "a PCR whose number is a text": ("none of the bank sha256", TpmQuoteRecipe(edit_fields=_in_pcrs("0", _PCR0))),
    "a PCR whose value is a text": ("none of the bank sha256", TpmQuoteRecipe(edit_fields=_in_pcrs(0, "0" * 32))),
    "a byte moved from one PCR to the next": ("none of the bank sha256", TpmQuoteRecipe(pcrs=_SHIFTED)),
    "a PCR value that is not quoted": (
        "the PCR values are of sha256:0,1,",
        TpmQuoteRecipe(quoted_pcrs=_PCR1_ONLY),
    ),
    "a quoted PCR without value": (
        "the PCR values are of sha256:1, ",
        TpmQuoteRecipe(pcrs=_PCR1_ONLY, quoted_pcrs=PCRS),
    ),
    "PCR values of another bank": (
        "the quote is of sha384:1",
        TpmQuoteRecipe(pcrs=_PCR1_ONLY, quoted_pcrs={"sha384": _PCR1_ONLY["sha256"]}),
    ),
    "another PCR value": ("do not hash to the quoted digest", TpmQuoteRecipe(edit_fields=_in_pcrs(0, bytes(32)))),
    "two event logs": ("2 event logs came with the quote", TpmQuoteRecipe(logs=(_LOG, _LOG))),
    "a log of padding": ("the event log is empty", TpmQuoteRecipe(logs=(b"\xff" * 64,))),
    "a log of too many events": (
        f"more than {MAX_EVENTS} events",
        TpmQuoteRecipe(logs=(sha1_log([(1, EV_ACTION, b"")]) * (MAX_EVENTS + 1),)),
    ),
    "a log cut short": ("the event log ends inside its event's data", _log(lambda data: data[:-2])),
    "a log of an unknown algorithm": (
        "digests of the unknown algorithm 0x0027",
        _log(overwrite(_HEADER_AT + 28, b"\x27\0")),
    ),
    "a log of no bank": ("names 0 banks", _log(overwrite(_HEADER_AT + 24, b"\0"))),
    "a log of too many banks": ("names 6 banks", _log(overwrite(_HEADER_AT + 24, b"\x06"))),
    "a log of a bank with digests of another size": (
        "gives digests of sha256 33 bytes, not 32",
        _log(overwrite(_HEADER_AT + 34, b"\x21")),
    ),
    "a log of one bank twice": ("names a bank twice", _log(overwrite(_HEADER_AT + 32, b"\x04\0\x14\0"))),
    "a log whose header goes on": ("the event log's header goes on after its end", _log(_grown_header)),
    "an event with a digest too few": ("has 1 digests, not one for each", _log(overwrite(_FIRST_EVENT + 8, b"\x01"))),
    "an event with two digests of one bank": (
        "digests of other banks than its header names",
        _log(lambda data: data[: _FIRST_DIGEST + 22] + data[_FIRST_DIGEST:][:22] + data[_FIRST_DIGEST + 56 :]),
    ),
}
"""What is wrong → what the refusal says, and how to make it, under any RSA key whose scheme is RSASSA with SHA-256."""
