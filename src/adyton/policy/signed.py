"""Reference values that others sign: a threshold of keys, an end, and a version that never goes back.

A policy names a source and its keys; a rule takes a value from it in place of a list:

    [[reference_values]]
    name = "translator"
    keys = ["<64 digits>", "<64 digits>"]     # Ed25519 public keys (RFC 8032, section 5.1.5) in hexadecimal
    threshold = 2
    min_version = 7

    [[snp]]
    measurement = { signed = "translator" }

The document is a DSSE envelope (in-toto, DSSE protocol 1.0.2) of type `PAYLOAD_TYPE`; its payload is JSON:

    {"name": "translator", "version": 7, "expires": "2027-01-01T00:00:00Z", "values": {"snp": {"measurement": ["…"]}}}
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Self

from adyton.errors import ConfigurationError, PolicyError
from adyton.policy.constraints import Unresolved
from adyton.policy.readings import ANY, hex_bytes, number

PAYLOAD_TYPE: Final = "application/vnd.adyton.reference-values+json"
MAX_DOCUMENT_BYTES: Final = 1024 * 1024
MAX_KEYS: Final = 32
MAX_SIGNATURES: Final = 64

_key = hex_bytes({32})
_version = number(0, (1 << 63) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceSource:
    """Whose signatures count for the documents of that name."""

    name: str
    keys: tuple[bytes, ...]
    threshold: int
    min_version: int

    @classmethod
    def read(cls, table: Mapping[str, Any]) -> Self:
        """The source in a `[[reference_values]]` table of a policy."""
        wanted = {"name", "keys", "threshold", "min_version"}
        name = table.get("name")
        if set(table) != wanted or not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= 100:
            raise ConfigurationError("a table of reference_values must have name, keys, threshold, and min_version")
        where = f"reference_values {name!r}"
        keys = table["keys"]
        if not isinstance(keys, list) or len(keys) > MAX_KEYS:
            raise ConfigurationError(f"{where}: keys must be a list of up to {MAX_KEYS}")
        read = tuple(_key(key, f"{where}: keys[{index}]") for index, key in enumerate(keys))
        if len(set(read)) != len(read):
            raise ConfigurationError(f"{where} lists a key twice")
        return cls(
            name=name,
            keys=read,
            threshold=number(1, max(1, len(read)))(table["threshold"], f"{where}: threshold"),
            min_version=_version(table["min_version"], f"{where}: min_version"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """The values of the documents that were given and can be believed, and which versions and bytes they are."""

    values: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)
    digests: tuple[bytes, ...] = ()
    expires: datetime | None = None


def resolve(
    sources: Mapping[str, ReferenceSource],
    documents: Sequence[bytes],
    *,
    seen_versions: Mapping[str, int],
    now: datetime | None,
) -> Resolved:
    """Verify each document against the source that it names; one that can't be used is a `PolicyError`."""
    values: dict[str, Any] = {}
    versions: dict[str, int] = {}
    digests = []
    ends = []
    for document in documents:
        if now is None or now.utcoffset() is None:
            raise ValueError("signed reference values need a now with a time zone")
        payload, signatures = _open_envelope(document)
        body = _parse_payload(payload)
        source = sources.get(body["name"])
        if source is None or source.name in values:
            raise _unusable(f"the policy has no place for a document named {body['name'][:64]!r}, or had one already")
        _check_signatures(source, payload, signatures)
        _check_current(source, body, seen_versions.get(source.name, 0), now)
        values[source.name] = body["values"]
        versions[source.name] = body["version"]
        digests.append(hashlib.sha256(payload).digest())
        ends.append(body["expires"])
    return Resolved(values=values, versions=versions, digests=tuple(digests), expires=min(ends, default=None))


def substitute(value: Any, documents: Mapping[str, Any], path: tuple[str, ...], *, tables: Collection[str] = ()) -> Any:
    """Put the signed values where a rule asks for them: under the same path as they have in the document.

    Single values of a rule are signed, and neither a whole rule nor one of the `tables` in it.
    """
    if not isinstance(value, Mapping):
        return value
    if set(value) != {"signed"} or len(path) == 1 or (len(path) == 2 and path[1] in tables):
        return {key: substitute(inner, documents, (*path, key), tables=tables) for key, inner in value.items()}
    name = value["signed"]
    found: Any = documents.get(name) if isinstance(name, str) else None
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return Unresolved(str(name)[:100]) if found is None else found


def pre_authentication_encoding(payload: bytes) -> bytes:
    """What is signed (DSSE protocol, section "Signature definition")."""
    parts = (b"DSSEv1", str(len(PAYLOAD_TYPE)).encode(), PAYLOAD_TYPE.encode(), str(len(payload)).encode(), payload)
    return b" ".join(parts)


def _unusable(why: str) -> PolicyError:
    return PolicyError(f"signed reference values can't be used: {why}")


def _open_envelope(document: bytes) -> tuple[bytes, list[bytes]]:
    if len(document) > MAX_DOCUMENT_BYTES:
        raise _unusable(f"{len(document)} bytes; {MAX_DOCUMENT_BYTES} are allowed")
    try:
        envelope = _json_object(document)
        if envelope.get("payloadType") != PAYLOAD_TYPE:
            raise ValueError("payloadType")
        signatures = envelope["signatures"]
        if not isinstance(signatures, list) or len(signatures) > MAX_SIGNATURES:
            raise ValueError("signatures")
        payload = base64.b64decode(envelope["payload"], validate=True)
        return payload, [base64.b64decode(signature["sig"], validate=True) for signature in signatures]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _unusable("the envelope is not DSSE of the right type") from error


def _parse_payload(payload: bytes) -> dict[str, Any]:
    try:
        body = _json_object(payload)
        if set(body) != {"name", "version", "expires", "values"} or not isinstance(body["values"], dict):
            raise ValueError("keys")
        if not isinstance(body["name"], str):
            raise TypeError("name")
        body["expires"] = datetime.fromisoformat(body["expires"])
        if body["expires"].utcoffset() is None:
            raise ValueError("expires")
        _version(body["version"], "version")
        for fields in body["values"].values():
            for value in fields.values() if isinstance(fields, dict) else [fields]:
                _check_narrow(value)
    except (ValueError, TypeError, KeyError, RecursionError, ConfigurationError) as error:
        raise _unusable("the payload is not what it should be") from error
    return body


def _check_narrow(value: Any) -> None:
    """Reference values are values: who signs them can neither write "any" nor permit something.

    An empty table permits, too: for some fields it is the policy's way to demand nothing.
    """
    if value == ANY or isinstance(value, bool) or value == {}:
        raise ValueError("any, true, false and an empty table are the policy's own words")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_narrow(inner)


def _json_object(data: bytes) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("duplicate keys")
        return dict(pairs)

    value = json.loads(data.decode(), object_pairs_hook=no_duplicates)
    if not isinstance(value, dict):
        raise TypeError("not an object")
    return value


def _check_signatures(source: ReferenceSource, payload: bytes, signatures: list[bytes]) -> None:
    message = pre_authentication_encoding(payload)
    signers = sum(any(_signed(key, signature, message) for signature in signatures) for key in source.keys)
    if signers < source.threshold:
        raise _unusable(f"{signers} of the keys of {source.name!r} signed it; {source.threshold} must")


def _signed(key: bytes, signature: bytes, message: bytes) -> bool:
    # Imported here: most policies have no signed values, and need no cryptography to be read.
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _check_current(source: ReferenceSource, body: Mapping[str, Any], seen: int, now: datetime) -> None:
    least = max(source.min_version, seen)
    if body["version"] < least:
        raise _unusable(
            f"version {body['version']} of {source.name!r} is older than {least}, which was seen or is asked"
        )
    if now > body["expires"]:
        raise _unusable(f"{source.name!r} expired on {body['expires']}, now it is {now}")
