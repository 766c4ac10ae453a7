"""The Authenticode digest of a PE image, against slices of images whose every byte is known."""

from __future__ import annotations

import hashlib
import struct
from itertools import pairwise

import pytest

from adyton.errors import ConfigurationError
from adyton.host.image.reference.pe import authenticode_sha256

SIGNATURE, HEADERS = 0x40, 0x200
OPTIONAL = SIGNATURE + 24
CHECKSUM = OPTIONAL + 64
PE32, PE32_PLUS = 0x10B, 0x20B
FIRST, SECOND = b"one " * 64, b"two " * 32
CERTIFICATES = b"signature" + bytes(7)


def entry_of(magic: int) -> int:
    """Where the directory's entry for the signatures is."""
    return OPTIONAL + {PE32: 96, PE32_PLUS: 112}[magic] + 32


def image(
    *sections: tuple[int, bytes], magic: int = PE32_PLUS, tail: bytes = b"", certificates: bytes = b"", entries: int = 6
) -> bytes:
    """A PE image with these sections, by the place of each in the file, in the order of its section table."""
    entry = entry_of(magic)
    optional_bytes = entry + 16 - OPTIONAL
    headers = bytearray(HEADERS)
    headers[:2] = b"MZ"
    struct.pack_into("<I", headers, 0x3C, SIGNATURE)
    struct.pack_into("<4sHH", headers, SIGNATURE, b"PE\0\0", 0x8664, len(sections))
    struct.pack_into("<HHH", headers, SIGNATURE + 20, optional_bytes, 0, magic)
    struct.pack_into("<II", headers, OPTIONAL + 60, HEADERS, 0x12345678)
    struct.pack_into("<I", headers, entry - 36, entries)
    for index, (begin, content) in enumerate(sections):
        header = OPTIONAL + optional_bytes + 40 * index
        struct.pack_into("<8sIIII", headers, header, b".text", len(content), 0x1000, len(content), begin)
    body = b"".join(content for _, content in sorted(sections)) + tail
    if certificates:
        struct.pack_into("<II", headers, entry, HEADERS + len(body), len(certificates))
    return bytes(headers) + body + certificates


IMAGE = image((HEADERS, FIRST), (HEADERS + len(FIRST), SECOND), certificates=CERTIFICATES)


@pytest.mark.parametrize("magic", [PE32, PE32_PLUS])
def test_the_digest_is_of_all_bytes_but_the_checksum_and_where_and_what_the_signatures_are(magic: int) -> None:
    data = image((HEADERS, FIRST), magic=magic, tail=b"tail", certificates=CERTIFICATES)
    counted = data[:CHECKSUM] + data[CHECKSUM + 4 : entry_of(magic)] + data[entry_of(magic) + 8 : HEADERS]
    counted += FIRST + b"tail"
    assert authenticode_sha256(data) == hashlib.sha256(counted).digest()
    assert authenticode_sha256(data, "sha384") == hashlib.sha384(counted).digest()


def test_an_image_without_signatures_has_the_digest_that_a_signed_one_has() -> None:
    assert authenticode_sha256(image((HEADERS, FIRST))) == authenticode_sha256(
        image((HEADERS, FIRST), certificates=CERTIFICATES)
    )


def test_sections_count_in_the_order_of_the_file_and_not_of_their_table() -> None:
    late = HEADERS + len(FIRST)
    straight, reversed_ = image((HEADERS, FIRST), (late, SECOND)), image((late, SECOND), (HEADERS, FIRST))
    table = slice(entry_of(PE32_PLUS) + 16, HEADERS)
    counted = (straight[:CHECKSUM], straight[CHECKSUM + 4 : entry_of(PE32_PLUS)])
    for data in (straight, reversed_):
        expected = hashlib.sha256(b"".join(counted) + bytes(8) + data[table] + FIRST + SECOND).digest()
        assert authenticode_sha256(data) == expected


def test_a_section_that_has_no_bytes_in_the_file_does_not_count() -> None:
    data = image((HEADERS, FIRST), (0, b""))
    assert authenticode_sha256(data) != authenticode_sha256(image((HEADERS, FIRST)))  # its header does
    entry = entry_of(PE32_PLUS)
    counted = data[:CHECKSUM] + data[CHECKSUM + 4 : entry] + data[entry + 8 :]
    assert authenticode_sha256(data) == hashlib.sha256(counted).digest()


def test_what_follows_the_sections_begins_as_many_bytes_into_the_file_as_were_hashed() -> None:
    late, half = HEADERS + len(FIRST), len(FIRST) // 2
    gap = bytearray(image((HEADERS, FIRST), (late, SECOND), tail=b"tail"))
    struct.pack_into("<I", gap, entry_of(PE32_PLUS) + 16 + 16, half)
    entry, hashed = entry_of(PE32_PLUS), HEADERS + half + len(SECOND)
    counted = gap[:CHECKSUM] + gap[CHECKSUM + 4 : entry] + gap[entry + 8 : HEADERS]
    expected = counted + FIRST[:half] + SECOND + gap[hashed:]
    assert authenticode_sha256(bytes(gap)) == hashlib.sha256(expected).digest()


def test_another_byte_anywhere_that_counts_is_another_digest_or_no_image() -> None:
    entry, digest = entry_of(PE32_PLUS), authenticode_sha256(IMAGE)
    free = {*range(CHECKSUM, CHECKSUM + 4), *range(entry, entry + 4), *range(len(IMAGE) - 16, len(IMAGE))}
    for offset in range(len(IMAGE)):
        changed = bytearray(IMAGE)
        changed[offset] ^= 0x80
        try:
            same = authenticode_sha256(bytes(changed)) == digest
        except ConfigurationError:
            same = False
        assert same == (offset in free), hex(offset)


def test_an_image_that_ends_too_early_is_refused_wherever_it_ends() -> None:
    for size in range(len(IMAGE)):
        with pytest.raises(ConfigurationError, match="PE image"):
            authenticode_sha256(IMAGE[:size])


@pytest.mark.parametrize("data", [b"", b"MZ", b"\x7fELF" + bytes(200), bytes(0x1000), b"MZ" + b"\xff" * 0x1000])
def test_what_is_no_pe_image_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigurationError, match="PE image"):
        authenticode_sha256(data)


def test_sections_that_overlap_each_other_or_the_headers_are_refused() -> None:
    for begins in pairwise((HEADERS, HEADERS + 4, HEADERS - 4)):
        data = image(*((begin, FIRST) for begin in begins))
        with pytest.raises(ConfigurationError, match="overlap"):
            authenticode_sha256(data)


def test_an_image_that_says_it_has_65535_sections_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="overlap"):
        authenticode_sha256(IMAGE[: SIGNATURE + 6] + b"\xff\xff" + IMAGE[SIGNATURE + 8 :] + bytes(65536 * 40))


def test_an_image_that_is_neither_pe32_nor_pe32_plus_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="neither"):
        authenticode_sha256(IMAGE[:OPTIONAL] + b"\x07\x01" + IMAGE[OPTIONAL + 2 :])


def test_an_image_without_a_place_for_signatures_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no place"):
        authenticode_sha256(image((HEADERS, FIRST), entries=4))
