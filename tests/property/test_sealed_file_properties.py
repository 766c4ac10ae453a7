"""Sealed files, as far as a thousand random ones and every single bit can say.

Chunks have 48 bytes here, so that three tags fill one, and small files have levels above levels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutating import bit_flips, mutations
from simulated_machine import SimulatedMachine

from adyton.errors import SealedDataError, UnsealError, UnsupportedError
from adyton.sealing import chunks, file
from adyton.sealing.chunks import HEAD_BYTES, SLOT_BYTES, file_length, level_sizes
from adyton.sealing.file import SealedFile
from adyton.sealing.sealer import Sealer

CHUNK = 48
REFUSALS = (SealedDataError, UnsealError, UnsupportedError)
CONTENT = bytes(range(256)) * 2 + b"a part of a chunk"


@dataclass(frozen=True, kw_only=True)
class World:
    path: Path
    sealer: Sealer
    versions: tuple[bytes, ...]
    """Files with the same content but for a few bytes, as they are on the disk; the first is the one to be edited."""

    def write(self, content: bytes) -> bytes:
        with SealedFile.create(self.path, self.sealer) as target:
            target.write(content)
        return self.path.read_bytes()

    def read(self, data: bytes) -> bytes | None:
        """What is in a file of these bytes; None if it is refused as the documentation says."""
        with self.path.open("r+b") as raw:  # not emptied first: for that some file systems wait for the disk
            raw.write(data)
            raw.truncate()
        try:
            with SealedFile.open(self.path, self.sealer) as opened:
                return opened.read()
        except REFUSALS:
            return None

    def check_edited(self, data: bytes) -> None:
        """Refused, but for what hits only the head: that has the secret twice, and places that say nothing."""
        got = self.read(data)
        assert got in (None, CONTENT)
        original = self.versions[0]
        if data[HEAD_BYTES:] != original[HEAD_BYTES:]:
            assert got is None
        if data == original:
            assert got == CONTENT


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("sealed files")
    with SimulatedMachine(folder / "machine") as machine, pytest.MonkeyPatch.context() as patch:
        for module in (chunks, file):
            patch.setattr(module, "CHUNK_BYTES", CHUNK)
        empty = World(path=folder / "f", sealer=Sealer(machine.source()), versions=())
        others = (CONTENT, CONTENT[:60] + b"!" + CONTENT[61:], CONTENT + b"more", CONTENT[:-1])
        versions = tuple(map(empty.write, (CONTENT, *others)))
        yield World(path=empty.path, sealer=empty.sealer, versions=versions)


def pieces(data: bytes) -> list[tuple[int, int]]:
    """Where each chunk begins and ends, level after level, and then the trailer."""
    found, start = [], HEAD_BYTES
    for size in level_sizes(len(CONTENT)):
        found += [(start + at, start + min(at + CHUNK, size)) for at in range(0, size, CHUNK)]
        start += size
    return [*found, (start, len(data))]


def test_small_chunks_make_many_levels(world: World) -> None:
    assert len(level_sizes(len(CONTENT))) == 4
    assert len(world.versions[0]) == file_length(len(CONTENT)) == pieces(world.versions[0])[-1][1]


@settings(max_examples=300)
@given(
    writes=st.lists(st.binary(max_size=200) | st.binary(min_size=CHUNK, max_size=CHUNK), max_size=12),
    reads=st.lists(st.tuples(st.integers(0, 2000), st.integers(-1, 300), st.booleans()), max_size=12),
)
def test_what_is_read_is_what_was_written(
    world: World, writes: list[bytes], reads: list[tuple[int, int, bool]]
) -> None:
    model = bytearray()
    with SealedFile.create(world.path, world.sealer) as target:
        for each in writes:
            assert target.write(each) == len(each)
            model += each
    with SealedFile.open(world.path, world.sealer, expected=target.identity) as opened:
        assert opened.size == len(model)
        for place, count, into in reads:
            wanted = bytes(model[place:] if count < 0 else model[place : place + count])
            opened.seek(place)
            if into:
                buffer = bytearray(max(count, 0))
                assert buffer[: opened.readinto(buffer)] == (wanted if count >= 0 else b"")
            else:
                assert opened.read(count) == wanted
                assert opened.tell() == place + len(wanted)
        opened.seek(0)
        assert opened.read() == model


def test_every_bit_behind_the_head_counts(world: World) -> None:
    original = world.versions[0]
    for place in range(HEAD_BYTES * 8, len(original) * 8):
        edited = bytearray(original)
        edited[place // 8] ^= 1 << place % 8
        assert world.read(bytes(edited)) is None


def test_every_bit_of_the_sealed_secret_counts(world: World) -> None:
    """Where both slots have it; one of them alone is not needed."""
    original = world.versions[0]
    for place in range((4 + int.from_bytes(original[:4])) * 8):
        slot = bytearray(original[:SLOT_BYTES])
        slot[place // 8] ^= 1 << place % 8
        assert world.read(bytes(slot) * 2 + original[HEAD_BYTES:]) is None
    for slots in (bytes(SLOT_BYTES) + original[:SLOT_BYTES], original[:SLOT_BYTES] + bytes(SLOT_BYTES)):
        assert world.read(slots + original[HEAD_BYTES:]) == CONTENT


def test_a_file_cut_anywhere_or_with_more_at_its_end_is_refused(world: World) -> None:
    original = world.versions[0]
    for length in (0, 1, SLOT_BYTES, HEAD_BYTES - 1, *range(HEAD_BYTES, len(original))):
        assert world.read(original[:length]) is None
    for more in (b"\0", original[-56:], original[HEAD_BYTES:], original):
        assert world.read(original + more) is None


@settings(max_examples=400)
@given(data=st.data())
def test_edits_are_refused(world: World, data: st.DataObject) -> None:
    original = world.versions[0]
    world.check_edited(data.draw(mutations(original) | bit_flips(original)))
    body = data.draw(mutations(original[HEAD_BYTES:]) | bit_flips(original[HEAD_BYTES:]))
    world.check_edited(original[:HEAD_BYTES] + body)
    used = original[:300]
    world.check_edited(data.draw(mutations(used) | bit_flips(used)).ljust(300, b"\0")[:300] + original[300:])


@settings(max_examples=400)
@given(data=st.data())
def test_chunks_that_are_swapped_doubled_or_of_another_version_are_refused(world: World, data: st.DataObject) -> None:
    original = world.versions[0]
    parts = pieces(original)
    source = data.draw(st.sampled_from(world.versions))
    into, start = data.draw(st.sampled_from(parts)), data.draw(st.sampled_from(parts))[0]
    piece = source[start : start + into[1] - into[0]]
    world.check_edited(original[: into[0]] + piece + original[into[1] :])  # in its place, or in another one's
    world.check_edited(original[: into[0]] + piece + original[into[0] :])  # inserted
    world.check_edited(original[: into[0]] + original[into[1] :])  # removed
    if start >= into[1]:
        there = original[into[0] : into[1]]
        swapped = original[: into[0]] + piece + original[into[1] : start] + there + original[start + len(there) :]
        world.check_edited(swapped)


@settings(max_examples=100)
@given(data=st.data())
def test_heads_bodies_and_ends_of_versions_do_not_mix(world: World, data: st.DataObject) -> None:
    cut = data.draw(st.sampled_from((SLOT_BYTES, HEAD_BYTES, *(start for start, _ in pieces(world.versions[0])))))
    first, second = (data.draw(st.sampled_from(world.versions)) for _ in range(2))
    mixed = first[:cut] + second[cut:]
    if mixed not in world.versions:
        got = world.read(mixed)
        if cut > SLOT_BYTES:
            assert got is None
        else:  # the first slot alone decides; the body must be its own
            assert (got is None) == (first is not second)


@settings(max_examples=300)
@given(data=st.binary(max_size=300), size=st.sampled_from((0, 200, SLOT_BYTES, HEAD_BYTES, HEAD_BYTES + 100)))
def test_any_bytes_at_all_are_refused(world: World, data: bytes, size: int) -> None:
    for each in (data.ljust(size, b"\0"), os.urandom(size) + data, world.versions[0][:100] + data.ljust(size)):
        assert world.read(each) is None


@settings(max_examples=200)
@given(data=st.data())
def test_a_reseal_of_an_edited_file_refuses_it_or_leaves_it_readable(world: World, data: st.DataObject) -> None:
    edited = data.draw(mutations(world.versions[0]) | bit_flips(world.versions[0]))
    before = world.read(edited)
    try:
        SealedFile.reseal(world.path, world.sealer)
    except REFUSALS:
        assert before is None
        assert world.path.read_bytes() == edited
    else:
        assert world.read(world.path.read_bytes()) == before
