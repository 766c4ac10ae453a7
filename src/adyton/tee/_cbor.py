"""CBOR (RFC 8949) from strangers: one item, nothing after it, no duplicate keys, no tag that acts by itself.

The library's decoder acts on the tags that it knows: 35 compiles a regular expression, 28 and 29 make cyclic objects.
Here a tag that the caller does not name is an error, and one that the caller names does nothing.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final, TypeVar

import cbor2

from adyton.errors import EvidenceError

MAX_DEPTH: Final = 12
"""How many arrays, maps and tags may be inside one another."""

_T = TypeVar("_T")


class _PlainTags(Mapping[int, Callable[[Any, bool], Any]]):
    """What the library asks before it acts on a tag. It finds an answer for every tag, so it never acts by itself."""

    def __init__(self, tags: Collection[int]) -> None:
        self._tags = tags

    def __getitem__(self, tag: int) -> Callable[[Any, bool], Any]:
        if tag not in self._tags:
            raise ValueError(f"tag {tag} has no place here")
        return lambda value, _immutable: cbor2.CBORTag(tag, value)

    def __iter__(self) -> Iterator[int]:
        return iter(self._tags)

    def __len__(self) -> int:
        return len(self._tags)


def _with_plain_keys(items: Mapping[Any, Any], _immutable: bool) -> Mapping[Any, Any]:
    """Refuse keys but integers and text: to Python, the keys `true` and 1.0 are 1."""
    for key in items:
        if type(key) is not int and type(key) is not str:
            raise ValueError("a key is neither an integer nor text")
    return items


def decode_cbor(data: bytes, what: str, *, tags: Collection[int] = ()) -> Any:
    """The one item in `data`; `EvidenceError`, with `what` in it, if it is malformed or not alone.

    `tags` come as `cbor2.CBORTag`. Everything comes immutable: arrays as tuples, maps as a `Mapping` that is no dict,
    null as None; keys are integers or text. Indefinite lengths are allowed: Nitro's hardware writes them. So are longer
    encodings than needed: what was signed are bytes, never what was decoded from them.
    """
    stream = io.BytesIO(data)
    try:
        decoder = cbor2.CBORDecoder(
            stream,
            semantic_decoders=_PlainTags(tags),
            object_hook=_with_plain_keys,
            max_depth=MAX_DEPTH,
            allow_duplicate_keys=False,
            read_size=1,  # what it reads ahead would be missing from `tell`
        )
        item = decoder.decode(immutable=True)
    except cbor2.CBORDecodeError as error:  # what the two above raise too comes wrapped in it
        raise EvidenceError(f"{what} is not well-formed CBOR") from error
    if stream.tell() != len(data):
        raise EvidenceError(f"{what} goes on after its end, for {len(data) - stream.tell()} bytes")
    return item


def field(items: Mapping[Any, Any], key: int | str, kind: type[_T], what: str) -> _T:
    """The value under `key`, which must be there and of exactly that type: `True` is no int."""
    value = items.get(key)
    if type(value) is not kind:
        found = "nothing" if key not in items else type(value).__name__
        raise EvidenceError(f"{what} has {found} where its {key!r} should be, of type {kind.__name__}")
    return value
