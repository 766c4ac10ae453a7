"""What an enclave says of itself: JSON, hashed as it stands into its evidence, and parsed afterwards."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from adyton.atls.binding import MAX_CLAIMS_BYTES
from adyton.errors import EvidenceError

VERSION: Final = 1
_HEX: Final = re.compile(r"[0-9a-f]{64}")


def encode_claims(*, name: str, config_sha256: bytes) -> bytes:
    """The claims of an enclave: the name that its host gave it, and the SHA-256 of the host's configuration."""
    claims = {"v": VERSION, "name": name[:256], "config_sha256": config_sha256.hex()}
    return json.dumps(claims, separators=(",", ":")).encode()


def parse_claims(data: bytes) -> Mapping[str, Any]:
    """Claims of version 1, with what else they say. Raises `EvidenceError`.

    A key that is there twice is refused: two readers could take different ones.
    """
    if len(data) > MAX_CLAIMS_BYTES:
        raise EvidenceError(f"claims of {len(data)} bytes; {MAX_CLAIMS_BYTES} are allowed")
    try:
        claims = json.loads(data.decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as problem:
        raise EvidenceError("the claims are not a JSON object, or have a key twice") from problem
    if not isinstance(claims, dict) or type(claims.get("v")) is not int or claims["v"] != VERSION:
        raise EvidenceError(f"the claims are not of version {VERSION}")
    config = claims.get("config_sha256")
    name = claims.get("name")
    if not isinstance(name, str) or not _is_text(name) or not isinstance(config, str) or not _HEX.fullmatch(config):
        raise EvidenceError("the claims lack a name or the digest of the configuration")
    return claims


def _is_text(value: str) -> bool:
    """Whether it can be printed: JSON can hold half a character."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError("a key is there twice")
    return dict(pairs)
