"""Whose evidence is this? Told from a few fields; nothing is parsed to its end, and nothing verified.

A wrong guess does no harm: evidence is believed only by the verifier of the label, and that one parses it whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import cbor2

from adyton.errors import EvidenceError
from adyton.tee._cbor import decode_cbor
from adyton.tee._dcap_quote import TEE_SGX, TEE_TDX
from adyton.tee.evidence import MAX_EVIDENCE_BYTES
from adyton.tee.registry import TEES
from adyton.tee.simulated.format import MAGIC
from adyton.tee.snp.format import REPORT_BYTES

_VERSIONS: Final = range(1, 16)
"""Of quotes and of reports: those of today, and some that may come, which their parser refuses by name."""
_QUOTE_KEY_TYPES: Final = (2, 3)
_QUOTES: Final = {TEE_SGX: "sgx", TEE_TDX: "tdx"}

_MAC0_TAG: Final = 17
_SIGN1_TAG: Final = 18
_CCA_TAGS: Final = (399, 907)
_PSA_PROFILES: Final = (265, -75000)
"""The claims that say what a PSA token is: the registered one, and the one before it."""
_MAPS: Final = {"hcl_report": "azure", "quoted": "tpm"}
_TOKENS: Final = {"module_id": "nitro"} | dict.fromkeys(_PSA_PROFILES, "psa")
"""Label by a key that no other format has."""
_KNOWN: Final = f"known are those of {', '.join(TEES)}"


def recognise(data: bytes) -> str:
    """The label of the TEE that this looks like evidence of; `EvidenceError`, which lists what is known, if none."""
    if len(data) > MAX_EVIDENCE_BYTES:
        raise EvidenceError(f"evidence of {len(data)} bytes; {MAX_EVIDENCE_BYTES} are allowed")
    label = _of_structure(data) or _of_cbor(data)
    if label is None:
        raise EvidenceError(f"{len(data)} bytes that are no evidence of a known format", mend=_KNOWN)
    return label


def _of_structure(data: bytes) -> str | None:
    if data.startswith(MAGIC):
        return "simulated"
    if len(data) == REPORT_BYTES and _number(data[:4]) in _VERSIONS:
        return "snp"
    version, key_type, tee_type = _number(data[:2]), _number(data[2:4]), _number(data[4:8])
    if version in _VERSIONS and key_type in _QUOTE_KEY_TYPES:
        return _QUOTES.get(tee_type)
    return None


def _number(field: bytes) -> int:
    return int.from_bytes(field, "little")


def _of_cbor(data: bytes) -> str | None:
    item = _decoded(data)
    if isinstance(item, Mapping):
        return _by_key(item, _MAPS)
    if isinstance(item, cbor2.CBORTag):
        if item.tag in _CCA_TAGS:
            return "cca"
        item = item.value
    if isinstance(item, tuple) and len(item) == 4 and isinstance(item[2], bytes):
        return _by_key(_decoded(item[2]), _TOKENS)
    return None


def _decoded(data: bytes) -> Any:
    try:
        return decode_cbor(data, "the evidence", tags=(_MAC0_TAG, _SIGN1_TAG, *_CCA_TAGS))
    except EvidenceError:
        return None


def _by_key(items: object, labels: Mapping[Any, str]) -> str | None:
    if not isinstance(items, Mapping):
        return None
    return next((label for key, label in labels.items() if key in items), None)
