"""The bytes that evidence is bound to: the layout, to the last byte, and that each part of it counts."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace
from typing import Any

import pytest

from adyton.atls.binding import (
    MAX_PATH_STEPS,
    Binding,
    Purpose,
    carried,
    fold,
    host_report_data,
    parent,
    report_data,
)
from adyton.errors import EvidenceError
from adyton.tee.registry import TEES

BINDING = Binding(
    purpose=Purpose.INSTANCE,
    nonce=bytes(range(32)),
    anchor_sha256=b"\x11" * 32,
    client_sha256=b"\x22" * 32,
    claims_sha256=hashlib.sha256(b'{"v":1}').digest(),
    audience="atls.internal",
)
LEFT, RIGHT = b"\x33" * 64, b"\x44" * 64


def test_the_check_values_of_the_protocol() -> None:
    leaf = BINDING.leaf()
    assert len(BINDING.encode()) == 170
    assert leaf.hex() == (
        "21c7f1a46920abbf5a1137fd6ce7af8b769939d7b6c4bd076a9b77489d9883ba"
        "3761b457a0d953375f68be7db7860e2b2ace2ff2fc69b41943e2f82bd235d8af"
    )
    assert report_data(leaf).hex() == (
        "207e79716e406aa0b898476f154fedae89969903a61a3bf62c8366aa1e386150"
        "f931220ed9b05bd9be7f9b743a5968ca31e0ee8ed3672212ab5a57bc20c8944b"
    )
    assert report_data(fold(leaf, [b"R" + LEFT, b"L" + RIGHT])).hex() == (
        "9ad19a82aeb297f426b427443c1f3c869772663c87cb2c0df9781a24e3402f3c"
        "7f5d9167c282993347b23fd187b2ea66f89d3ddac0893eeffedf50252f88f6c8"
    )


def test_the_layout_is_a_domain_a_purpose_and_parts_after_their_lengths() -> None:
    binding = replace(BINDING, purpose=Purpose.ENROL, kem_sha256=b"kem", peer_sha256=b"peer", audience="é")
    assert binding.encode() == (
        b"ATLS-BINDING\x00\x01\x03"
        + (b"\x00\x20" + bytes(range(32)))
        + (b"\x00\x20" + b"\x11" * 32)
        + (b"\x00\x20" + b"\x22" * 32)
        + b"\x00\x03kem"
        + (b"\x00\x20" + BINDING.claims_sha256)
        + b"\x00\x04peer"
        + b"\x00\x02\xc3\xa9"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"purpose": Purpose.FLEET},
        {"nonce": bytes(31) + b"\x01"},
        {"anchor_sha256": b"\x12" * 32},
        {"client_sha256": b"\x23" * 32},
        {"client_sha256": b""},
        {"kem_sha256": b"\x01" * 32},
        {"claims_sha256": bytes(32)},
        {"peer_sha256": b"\x01" * 32},
        {"audience": "atls.internal."},
        {"anchor_sha256": BINDING.client_sha256, "client_sha256": BINDING.anchor_sha256},
        {"kem_sha256": BINDING.client_sha256, "client_sha256": b""},
    ],
    ids="+".join,
)
def test_each_field_counts(change: dict[str, Any]) -> None:
    changed = replace(BINDING, **change)
    assert changed.encode() != BINDING.encode()
    assert report_data(changed.leaf()) != report_data(BINDING.leaf())


def test_no_two_purposes_share_a_leaf() -> None:
    assert len({replace(BINDING, purpose=purpose).leaf() for purpose in Purpose}) == len(Purpose) == 4


def test_a_field_too_long_for_its_length_is_not_encoded() -> None:
    with pytest.raises(struct.error):
        replace(BINDING, audience="a" * 65536).encode()


def test_a_leaf_and_a_node_are_hashed_in_domains_of_their_own() -> None:
    # Two nodes are as long as what a leaf may hash: only the first byte keeps them apart.
    assert BINDING.leaf() == hashlib.sha512(b"\x00" + BINDING.encode()).digest()
    assert parent(LEFT, RIGHT) == hashlib.sha512(b"\x01" + LEFT + RIGHT).digest()
    assert parent(LEFT, RIGHT) != parent(RIGHT, LEFT)


def test_a_leaf_without_a_path_is_the_root() -> None:
    assert fold(LEFT, []) == LEFT


def test_each_step_says_on_which_side_the_sibling_stands() -> None:
    leaf = BINDING.leaf()
    assert fold(leaf, [b"L" + LEFT]) == parent(LEFT, leaf)
    assert fold(leaf, [b"R" + LEFT]) == parent(leaf, LEFT)
    assert fold(leaf, [b"R" + LEFT, b"L" + RIGHT]) == parent(RIGHT, parent(leaf, LEFT))


def test_a_path_of_32_steps_is_folded_and_one_of_33_is_not() -> None:
    path = [b"R" + LEFT] * MAX_PATH_STEPS
    assert MAX_PATH_STEPS == 32
    assert len(fold(LEFT, path)) == 64
    with pytest.raises(EvidenceError, match="a batch path of 33 steps; 32 are allowed"):
        fold(LEFT, [*path, b"R" + LEFT])


@pytest.mark.parametrize(
    "step",
    [b"", b"L", b"R", b"L" + bytes(63), b"R" + bytes(65), bytes(65), b"l" + bytes(64), b"X" + bytes(64), bytes(64)],
    ids=["empty", "only L", "only R", "63", "65", "side 0", "side l", "side X", "no side"],
)
@pytest.mark.parametrize("before", [[], [b"L" + LEFT]], ids=["first", "second"])
def test_a_step_that_is_no_step_is_refused(step: bytes, before: list[bytes]) -> None:
    with pytest.raises(EvidenceError, match="is not 'L' or 'R' and 64 bytes"):
        fold(LEFT, [*before, step])


def test_a_longer_or_shorter_path_leads_to_another_root() -> None:
    path = [b"R" + LEFT, b"L" + RIGHT]
    roots = {fold(BINDING.leaf(), each) for each in ([], path[:1], path[1:], path[::-1], path, path + path[:1])}
    assert len(roots) == 6


def test_what_a_host_may_have_signed_is_never_the_binding_of_a_channel() -> None:
    root = BINDING.leaf()
    signed = host_report_data(root)
    assert signed == hashlib.sha512(b"ADYTON-HOST-QUESTION\x00\x01" + root).digest()
    assert signed != report_data(root) == hashlib.sha512(b"ATLS-REPORT-DATA\x00\x01" + root).digest()


@pytest.mark.parametrize("label", TEES)
def test_a_tpm_carries_the_hash_of_the_64_bytes_and_everything_else_themselves(label: str) -> None:
    data = report_data(BINDING.leaf())
    hashed = label in {"tpm", "azure"}
    assert carried(label, data) == (hashlib.sha256(data).digest() if hashed else data)
