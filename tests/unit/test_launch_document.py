"""The launch document: one text for the same parts, and nothing else parses."""

from __future__ import annotations

import hashlib

import pytest

from adyton.errors import EvidenceError
from adyton.tee.tpm.launch import MAX_BYTES, MAX_PARTS, encode_launch, parse_launch

KERNEL, SYSTEM = hashlib.sha256(b"kernel").digest(), hashlib.sha256(b"system").digest()
DOCUMENT = f"adyton-launch/1\nkernel {KERNEL.hex()}\nsystem {SYSTEM.hex()}\n".encode()
LINE = b"kernel " + KERNEL.hex().encode() + b"\n"


def test_the_document_is_text_in_the_order_of_the_names() -> None:
    assert encode_launch({"system": SYSTEM, "kernel": KERNEL}) == DOCUMENT


def test_what_was_encoded_parses_and_can_not_be_changed() -> None:
    parts = parse_launch(DOCUMENT)
    assert dict(parts) == {"kernel": KERNEL, "system": SYSTEM}
    with pytest.raises(TypeError):
        parts["kernel"] = SYSTEM  # type: ignore[index]


def test_the_largest_document_fits() -> None:
    names = [letter * 32 for letter in "abcdefghijklmnopqrstuvwxyz-"] + [letter * 31 for letter in "abcde"]
    largest = encode_launch(dict.fromkeys(names, KERNEL))
    assert (len(names), len(parse_launch(largest))) == (MAX_PARTS, MAX_PARTS)
    assert len(largest) <= MAX_BYTES


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "does not begin with adyton-launch/1"),
        (b"adyton-launch/2\n" + LINE, "does not begin"),
        (b"\xef\xbb\xbf" + DOCUMENT, "does not begin"),
        (DOCUMENT.replace(b"\n", b"\r\n"), "does not begin"),
        (b"adyton-launch/1", "does not end with its last line"),
        (DOCUMENT[:-1], "does not end with its last line"),
        (b"adyton-launch/1\n", "has 0 parts; 1 to 32 are allowed"),
        (DOCUMENT + b"\n", "line 4 of the launch document is not a name and a SHA-256"),
        (DOCUMENT[:-2] + b"\n", "line 3 of the launch document is not"),
        (DOCUMENT.replace(b"kernel ", b"kernel  "), "line 2 of the launch document is not"),
        (DOCUMENT.replace(b"kernel", b"Kernel"), "line 2 of the launch document is not"),
        (DOCUMENT.replace(b"kernel", b"kern\xc3\xa9l"), "line 2 of the launch document is not"),
        (DOCUMENT.replace(b"kernel", b""), "line 2 of the launch document is not"),
        (DOCUMENT.replace(b"kernel", b"k" * 33), "line 2 of the launch document is not"),
        (
            DOCUMENT.replace(KERNEL.hex().encode(), KERNEL.hex().upper().encode()),
            "line 2 of the launch document is not",
        ),
        (b"adyton-launch/1\n" + LINE + LINE, "line 3 of the launch document is not in order"),
        (DOCUMENT.replace(b"kernel", b"zoo"), "line 3 of the launch document is not in order"),
        (b"adyton-launch/1\n" + b"".join(b"a" * n + LINE[6:] for n in range(1, 34)), "has 33 parts"),
        (b"adyton-launch/1\n".ljust(4097, b"\n"), "has 4097 bytes; 4096 are allowed"),
    ],
)
def test_anything_else_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        parse_launch(data)


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"": KERNEL},
        {"Kernel": KERNEL},
        {"kernel\n": KERNEL},
        {"kernel": KERNEL[:-1]},
        {"k" * 33: KERNEL},
        {"a" * length: KERNEL for length in range(1, 34)},
    ],
    ids=["no part", "no name", "capital", "line feed", "short digest", "long name", "many"],
)
def test_what_would_not_parse_is_not_encoded(parts: dict[str, bytes]) -> None:
    with pytest.raises(ValueError, match="launch document"):
        encode_launch(parts)
