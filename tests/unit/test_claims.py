"""What an enclave says of itself: what is written is read, and what could be read in two ways is not."""

from __future__ import annotations

import json

import pytest

from adyton.atls.binding import MAX_CLAIMS_BYTES
from adyton.atls.claims import encode_claims, parse_claims
from adyton.errors import EvidenceError

DIGEST = "ab" * 32
FINE = {"v": 1, "name": "an enclave", "config_sha256": DIGEST}


def encoded(**changes: object) -> bytes:
    """The claims with other values; those that are ... are left out."""
    return json.dumps({key: value for key, value in {**FINE, **changes}.items() if value is not ...}).encode()


def test_what_is_written_is_read() -> None:
    data = encode_claims(name="an enclave", config_sha256=bytes.fromhex(DIGEST))
    assert data == b'{"v":1,"name":"an enclave","config_sha256":"' + DIGEST.encode() + b'"}'
    assert parse_claims(data) == FINE


@pytest.mark.parametrize("name", ["", 'a "quoted" one\\', "ἄδυτον", "\0\n", "🏛" * 1000], ids=ascii)
def test_whatever_the_host_calls_it_the_claims_are_read_and_short(name: str) -> None:
    data = encode_claims(name=name, config_sha256=bytes(32))
    assert parse_claims(data)["name"] == name[:256]
    assert len(data) <= MAX_CLAIMS_BYTES


def test_what_is_not_known_is_no_error() -> None:
    assert parse_claims(encoded(later=[1, {"a": None}]))["later"] == [1, {"a": None}]


def test_8_kib_are_allowed_and_a_byte_more_is_not() -> None:
    room = MAX_CLAIMS_BYTES - len(encoded(x=""))
    assert len(parse_claims(encoded(x="a" * room))["x"]) == room
    with pytest.raises(EvidenceError, match="claims of 8193 bytes; 8192 are allowed"):
        parse_claims(encoded(x="a" * (room + 1)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"{} {}",
        b"\xff",
        encoded().replace(b"an enclave", b"an encl\xff\xfe"),
        "\ufeff".encode() + encoded(),
        json.dumps(FINE).encode("utf-16"),
        b"[" * 4000 + b"]" * 4000,
        b'{"a":' * 1300 + b"1" + b"}" * 1300,
        b'{"v":1,"x":' + b"9" * 5000 + b"}",
    ],
    ids=["empty", "cut off", "two", "ff", "not UTF-8", "BOM", "UTF-16", "deep lists", "deep objects", "long number"],
)
def test_what_is_no_json_object_in_utf_8_is_refused(data: bytes) -> None:
    with pytest.raises(EvidenceError, match=r"not a JSON object|not of version|lack a name"):
        parse_claims(data)


@pytest.mark.parametrize(
    "twice",
    [
        encoded()[:-1] + b',"v":1}',
        encoded()[:-1] + b',"name":"another"}',
        encoded()[:-1] + b',"\\u006eame":"another"}',
        encoded()[:-1] + b',"x":{"a":1,"b":2,"a":1}}',
        encoded()[:-1] + b',"x":[{"a":1,"a":2}]}',
    ],
    ids=["v", "name", "escaped", "inside", "in a list"],
)
def test_a_key_that_is_there_twice_is_refused(twice: bytes) -> None:
    with pytest.raises(EvidenceError, match="have a key twice"):
        parse_claims(twice)


@pytest.mark.parametrize("data", [b"1", b"null", b"[]", b'"v"', b"{}"])
def test_another_value_is_no_claims(data: bytes) -> None:
    with pytest.raises(EvidenceError, match="not of version 1"):
        parse_claims(data)


@pytest.mark.parametrize("version", [..., 0, 2, 1.0, True, "1", None, [1]], ids=repr)
def test_another_version_is_refused(version: object) -> None:
    with pytest.raises(EvidenceError, match="not of version 1"):
        parse_claims(encoded(v=version))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ...},
        {"name": 7},
        {"name": None},
        {"config_sha256": ...},
        {"config_sha256": 7},
        {"config_sha256": ""},
        {"config_sha256": DIGEST[:-2]},
        {"config_sha256": DIGEST + "00"},
        {"config_sha256": DIGEST.upper()},
        {"config_sha256": DIGEST[:-1] + "\n"},
        {"config_sha256": DIGEST + "\n"},
        {"config_sha256": "٣" * 64},
    ],
    ids=ascii,
)
def test_claims_without_a_name_and_a_digest_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(EvidenceError, match="lack a name or the digest"):
        parse_claims(encoded(**changes))
