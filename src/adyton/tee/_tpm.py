"""TPM quotes, for the rooms of the TPM and of Azure's paravisor: their part of the CBOR, and their verification.

What vouches for the attestation key is the room's business; here a key that somebody trusts has signed, or not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding

from adyton.errors import EvidenceError
from adyton.tee._cbor import field
from adyton.tee._event_log import BANKS, Event, confirmed, parse_event_log
from adyton.tee._tpm_structures import (
    Attest,
    HashName,
    Scheme,
    TpmPublicKey,
    TpmSignature,
    parse_attest,
    parse_signature,
)
from adyton.tee.steps import Step, Trace

Pcrs = Mapping[str, Mapping[int, bytes]]
"""PCR values: bank ("sha256") → index → digest."""

SIGNED: Final = Step(title="the attestation key signed the quote", reference="TPM 2.0 Library, Part 2, section 11.3.4")
COVERED: Final = Step(
    title="the PCR values are the quoted ones: all of them, and no others",
    reference="TPM 2.0 Library, Part 2, section 10.12.4, and Part 3, section 18.4",
)
REPLAYED: Final = Step(
    title="events are kept of those PCRs whose quoted values the event log gives",
    reference="TCG PC Client Platform Firmware Profile, section 10",
)
QUOTE_STEPS: Final = (SIGNED, COVERED, REPLAYED)

_BANK_BYTES: Final = dict(BANKS.values())
_HASHES: Final[Mapping[HashName, hashes.HashAlgorithm]] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """A well-formed quote, not verified, and the PCR values that are said to be its."""

    attest: Attest
    signature: TpmSignature
    pcrs: Pcrs


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedQuote:
    """What a genuine quote says, and the fields of `Attest` mean what they mean there.

    `events` has, for each PCR whose quoted value the log gives, the events that gave it; a PCR that is missing was not
    quoted, was never extended, or has another value than the log says. Of an event only the digests
    are proven: see `adyton.tee._event_log`.
    """

    extra_data: bytes
    pcr_digest: bytes
    pcrs: Pcrs
    events: Mapping[int, tuple[Event, ...]]
    firmware_version: int
    clock_ms: int
    clock_safe: bool
    reset_count: int
    restart_count: int
    sha256: bytes
    """Of the TPMS_ATTEST, which is what the TPM signed."""


def check_fields(items: object, allowed: Collection[str], what: str) -> Mapping[str, Any]:
    """That map of CBOR, if it has no key but the allowed ones."""
    if not isinstance(items, Mapping):
        raise EvidenceError(f"{what} is not a map")
    for key in items:
        if key not in allowed:
            raise EvidenceError(f"{what} has the unknown field {str(key)[:64]!r}")
    return items


def quote_of(items: Mapping[str, Any], what: str) -> Quote:
    """The quote in the fields "quoted" (TPMS_ATTEST), "signature" (TPMT_SIGNATURE) and "pcrs" of a map."""
    return Quote(
        attest=parse_attest(field(items, "quoted", bytes, what)),
        signature=parse_signature(field(items, "signature", bytes, what)),
        pcrs=_pcrs(items.get("pcrs"), what),
    )


def _pcrs(banks: object, what: str) -> Pcrs:
    if not isinstance(banks, Mapping) or not all(isinstance(values, Mapping) for values in banks.values()):
        raise EvidenceError(f"{what} has no map of maps where its PCR values should be")
    for bank, values in banks.items():
        if bank not in _BANK_BYTES:
            raise EvidenceError(f"{what} has PCR values of the unknown bank {str(bank)[:64]!r}")
        size = _BANK_BYTES[bank]
        for index, digest in values.items():
            if type(index) is not int or type(digest) is not bytes or len(digest) != size:
                raise EvidenceError(f"{what} has a PCR value that is none of the bank {bank}")
    return MappingProxyType({bank: MappingProxyType(dict(values)) for bank, values in banks.items()})


def verify_quote(
    quote: Quote, key: TpmPublicKey, schemes: Collection[Scheme], logs: Iterable[bytes], trace: Trace
) -> VerifiedQuote:
    """Go through `QUOTE_STEPS`. `schemes` are those that the key may sign with; `logs` are one event log at most."""
    trace.begin(SIGNED)
    _check_signature(quote, key, schemes)
    trace.begin(COVERED)
    _check_pcrs(quote)
    trace.begin(REPLAYED)
    events = _events(quote.pcrs, tuple(logs))
    attest = quote.attest
    return VerifiedQuote(
        extra_data=attest.extra_data,
        pcr_digest=attest.pcr_digest,
        pcrs=quote.pcrs,
        events=events,
        firmware_version=attest.firmware_version,
        clock_ms=attest.clock_ms,
        clock_safe=attest.clock_safe,
        reset_count=attest.reset_count,
        restart_count=attest.restart_count,
        sha256=hashlib.sha256(attest.encoded).digest(),
    )


def _check_signature(quote: Quote, key: TpmPublicKey, schemes: Collection[Scheme]) -> None:
    scheme, value = quote.signature.scheme, quote.signature.value
    if scheme not in schemes:
        message = f"the quote is signed with {scheme.algorithm} and {scheme.hash}, which is not its key's scheme"
        raise EvidenceError(message)
    algorithm = _HASHES[scheme.hash]
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(value, quote.attest.encoded, ec.ECDSA(algorithm))
        else:
            key.verify(value, quote.attest.encoded, _padding(scheme, algorithm), algorithm)
    except InvalidSignature:
        raise EvidenceError("the signature of the TPM's quote does not verify") from None


def _padding(scheme: Scheme, algorithm: hashes.HashAlgorithm) -> padding.AsymmetricPadding:
    if scheme.algorithm == "rsassa":
        return padding.PKCS1v15()
    return padding.PSS(padding.MGF1(algorithm), padding.PSS.AUTO)  # TPMs differ in the salt's length


def _check_pcrs(quote: Quote) -> None:
    selection = quote.attest.selection
    given = {bank: tuple(sorted(values)) for bank, values in quote.pcrs.items()}
    if given != selection:
        raise EvidenceError(f"the PCR values are of {_listed(given)}, the quote is of {_listed(selection)}")
    joined = b"".join(quote.pcrs[bank][index] for bank, indices in selection.items() for index in indices)
    if hashlib.new(quote.signature.scheme.hash, joined).digest() != quote.attest.pcr_digest:
        raise EvidenceError("the PCR values do not hash to the quoted digest")


def _listed(pcrs: Mapping[str, tuple[int, ...]]) -> str:
    """As tpm2-tools write them: sha1:0,1+sha256:7."""
    listed = "+".join(f"{bank}:{','.join(map(str, indices))}" for bank, indices in pcrs.items())
    return listed[:200] or "none"


def _events(pcrs: Pcrs, logs: tuple[bytes, ...]) -> Mapping[int, tuple[Event, ...]]:
    if len(logs) > 1:
        raise EvidenceError(f"{len(logs)} event logs came with the quote; a machine has one")
    if not logs:
        return MappingProxyType({})
    return confirmed(parse_event_log(logs[0]), pcrs)
