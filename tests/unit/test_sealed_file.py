"""Sealed files: what is written is read anywhere, what a host can do to one, and what a full disk or a kill leaves."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from simulated_machine import SimulatedMachine

from adyton.errors import InUseError, RollbackError, SealedDataError, UnsealError
from adyton.sealing.chunks import (
    CHUNK_BYTES,
    HEAD_BYTES,
    SECRET_BYTES,
    SLOT_BYTES,
    ChunkWriter,
    FileKeys,
    file_length,
    pack_slot,
)
from adyton.sealing.file import SealedFile
from adyton.sealing.header import MAX_CONTEXT_BYTES, MAX_SOURCE_BYTES, MAX_TCB_BYTES, NONCE_BYTES, TAG_BYTES, Header
from adyton.sealing.sealer import Sealer
from adyton.tee.sealing import MAX_REQUEST_BYTES, MAX_SUBJECT_BYTES, Binding, SealPolicy

CONTENT = b"".join(number.to_bytes(4) for number in range(60_000))  # three chunks and a part of one
DOMAIN = b"adyton file v1 "
TESTS = Path(__file__).parent.parent
CHILD = """
import contextlib, resource, sys
from pathlib import Path
from simulated_machine import SimulatedMachine
from adyton.errors import InUseError, StorageError
from adyton.sealing.chunks import HEAD_BYTES, SLOT_BYTES
from adyton.sealing.file import SealedFile
from adyton.sealing.sealer import Sealer

machine, path = Path(sys.argv[1]), Path(sys.argv[2])
with SimulatedMachine(machine) as made:
    sealer = Sealer(made.source())
"""
FULL = """
    with SealedFile.create(path, sealer) as file:
        file.write(b"before")
    limit = 1_000_000
    if sys.argv[3] == "limited":
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    for size in (2 * limit, limit - HEAD_BYTES - 10):  # while it is written, and at its close
        file = SealedFile.create(path, sealer)
        try:
            file.write(bytes(size))
            file.close()
            print("the disk was not full")
        except StorageError as problem:
            print(problem)
        for again in (lambda: file.write(b""), file.close) if not file.closed else ():
            try:
                again()
                print("went on")
            except StorageError as problem:
                assert "nothing of it was kept" in str(problem), problem
        assert [each.name for each in path.parent.iterdir()] == [path.name], list(path.parent.iterdir())
        assert SealedFile.open(path, sealer).read() == b"before"
    try:
        with SealedFile.create(path, sealer) as file:
            for each in (lambda: file.write(bytes(2 * limit)), file.close):
                with contextlib.suppress(StorageError):
                    each()
        print("a failure was forgotten")
    except StorageError:
        assert SealedFile.open(path, sealer).read() == b"before"
"""
OTHER_DISK = """
    try:
        with SealedFile.create(path, sealer) as file:
            file.write(b"after")
    except StorageError as problem:
        print(problem)
    print(SealedFile.open(path, sealer).read())
"""
HALF_A_RESEAL = """
    resource.setrlimit(resource.RLIMIT_FSIZE, (SLOT_BYTES, SLOT_BYTES))
    try:
        SealedFile.reseal(path, sealer)
    except StorageError:
        print("refused")
"""
OVERTAKEN = """
    SealedFile.create(path, sealer).discard()
    unfinished = path.with_name(".f.sealing")
    unfinished.write_bytes(b"another's")

    def another_writer(event, arguments):
        if event == "fcntl.flock" and unfinished.exists():
            unfinished.replace(path)

    sys.addaudithook(another_writer)
    try:
        SealedFile.create(path, sealer)
    except InUseError:
        print(path.read_bytes())
"""
ENDLESS = """
    file = SealedFile.create(path, sealer)
    while True:
        file.write(bytes(1_000_000))
        print("writing", flush=True)
"""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[SimulatedMachine]:
    with SimulatedMachine(tmp_path / "machine") as machine:
        yield machine


@pytest.fixture
def sealer(machine: SimulatedMachine) -> Sealer:
    return Sealer(machine.source())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "files of it"
    path.mkdir()
    return path


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "f"


def write(path: Path, sealer: Sealer, content: bytes = CONTENT) -> bytes:
    """The file, and its identity."""
    with SealedFile.create(path, sealer) as file:
        assert file.write(content) == len(content)
    return file.identity


def read(path: Path, sealer: Sealer) -> bytes:
    with SealedFile.open(path, sealer) as file:
        return file.read()


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def command(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", CHILD + code, *map(str, arguments)]


def sandboxed(*words: str) -> list[str]:
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed, so there is no other disk to be had")
    return ["bwrap", "--unshare-user", "--dev-bind", "/", "/", *words]


def run(code: list[str]) -> list[str]:
    """What it prints, line by line."""
    done = subprocess.run(code, env=environment(), capture_output=True, text=True, check=False, timeout=60)
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout.splitlines()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(TESTS), os.environ.get("PYTHONPATH", "")))}


def test_what_was_written_is_read_from_anywhere(path: Path, machine: SimulatedMachine) -> None:
    write(path, Sealer(machine.source()))
    with SealedFile.open(path, Sealer(machine.source())) as file:
        assert (file.size, file.tell(), file.read(4)) == (len(CONTENT), 0, CONTENT[:4])
        assert file.seek(CHUNK_BYTES - 5) == CHUNK_BYTES - 5
        assert file.read(CHUNK_BYTES + 10) == CONTENT[CHUNK_BYTES - 5 : 2 * CHUNK_BYTES + 5]
        assert file.seek(-7, os.SEEK_CUR) == 2 * CHUNK_BYTES - 2
        assert file.read(3) == CONTENT[2 * CHUNK_BYTES - 2 : 2 * CHUNK_BYTES + 1]
        assert file.seek(-9, os.SEEK_END) == len(CONTENT) - 9
        assert (file.read(), file.read(), file.read(5)) == (CONTENT[-9:], b"", b"")
        file.seek(len(CONTENT) + 10)
        assert (file.read(5), file.readinto(bytearray(5)), file.tell()) == (b"", 0, len(CONTENT) + 10)
        file.seek(0)
        assert file.readall() == CONTENT


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES])
def test_a_file_ends_at_any_byte(path: Path, sealer: Sealer, size: int) -> None:
    write(path, sealer, CONTENT[:size])
    assert path.stat().st_size == file_length(size)
    assert read(path, sealer) == CONTENT[:size]


def test_zip_files_text_and_copies_work(path: Path, sealer: Sealer, folder: Path) -> None:
    with SealedFile.create(path, sealer) as target, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", CONTENT)
        archive.writestr("b", b"b")
    with SealedFile.open(path, sealer) as source, zipfile.ZipFile(source) as archive:
        assert (archive.read("b"), archive.read("a"), archive.testzip()) == (b"b", CONTENT, None)
        source.seek(0)
        with SealedFile.create(folder / "copy", sealer) as target:
            shutil.copyfileobj(source, target)
            assert target.tell() == source.size
        assert read(folder / "copy", sealer) == read(path, sealer)
    with (
        SealedFile.create(path, sealer) as target,
        io.TextIOWrapper(io.BufferedWriter(target), encoding="utf-8") as text,
    ):
        text.write("é\nb\n" * 30_000)
    with io.TextIOWrapper(io.BufferedReader(SealedFile.open(path, sealer)), encoding="utf-8") as text:
        assert list(text) == ["é\n", "b\n"] * 30_000


def test_the_name_appears_when_the_file_is_whole(path: Path, sealer: Sealer, folder: Path) -> None:
    with SealedFile.create(path, sealer) as file:
        file.write(CONTENT)
        file.flush()
        assert not path.exists()
        with pytest.raises(ValueError, match="when it is written"):
            file.identity  # noqa: B018
    assert names(folder) == ["f"]
    file.close()
    file.discard()
    assert read(path, sealer) == CONTENT


def test_a_writer_without_a_with_publishes_by_close(path: Path, sealer: Sealer) -> None:
    file = SealedFile.create(path, sealer)
    file.write(b"a")
    file.close()
    assert read(path, sealer) == b"a"


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_exception_leaves_what_was_there(path: Path, sealer: Sealer, folder: Path, wrapped: bool) -> None:
    write(path, sealer, b"before")
    with (
        contextlib.suppress(ZeroDivisionError),
        SealedFile.create(path, sealer) as file,
        io.BufferedWriter(file) if wrapped else contextlib.nullcontext(file) as target,
    ):
        target.write(CONTENT)
        raise ZeroDivisionError
    assert file.closed
    assert (names(folder), read(path, sealer)) == (["f"], b"before")


def test_a_discarded_writer_leaves_nothing(path: Path, sealer: Sealer, folder: Path) -> None:
    with SealedFile.create(path, sealer) as file:
        file.write(CONTENT)
        file.discard()
    assert names(folder) == []


def test_a_forgotten_writer_publishes_nothing_and_warns(path: Path, sealer: Sealer, folder: Path) -> None:
    file = SealedFile.create(path, sealer)
    file.write(b"a")
    with pytest.warns(ResourceWarning, match="was never closed"):
        del file
    assert names(folder) == []


def test_two_writers_of_one_name_are_refused(path: Path, sealer: Sealer) -> None:
    with SealedFile.create(path, sealer) as file:
        with pytest.raises(InUseError, match="written elsewhere"):
            SealedFile.create(path, sealer)
        file.write(b"a")
    assert read(path, sealer) == b"a"


def test_writers_of_one_name_in_many_threads_never_mix(path: Path, sealer: Sealer) -> None:
    contents = [bytes([number]) * 100_000 for number in range(4)]
    write(path, sealer, contents[0])

    def again_and_again(content: bytes) -> int:
        written = 0
        for _ in range(30):
            with contextlib.suppress(InUseError):
                write(path, sealer, content)
                written += 1
            assert read(path, sealer) in contents
        return written

    with ThreadPoolExecutor() as threads:
        assert sum(threads.map(again_and_again, contents)) > 0
    assert names(path.parent) == ["f"]


def test_a_file_that_got_its_name_before_it_was_locked_is_not_emptied(tmp_path: Path, path: Path) -> None:
    """Another writer renames what this one has opened already, just before it takes the lock."""
    assert run(command(OVERTAKEN, tmp_path / "machine", path)) == ['b"another\'s"']


def test_a_link_in_the_place_of_the_unfinished_file_is_not_followed(path: Path, sealer: Sealer, folder: Path) -> None:
    (folder / "other").write_bytes(b"other")
    (folder / ".f.sealing").symlink_to("other")
    with pytest.raises(OSError, match="symbolic links"):
        SealedFile.create(path, sealer)
    assert (folder / "other").read_bytes() == b"other"


def test_other_code_and_another_context_can_not_open_it(path: Path, machine: SimulatedMachine) -> None:
    sealer = Sealer(machine.source())
    with SealedFile.create(path, sealer, context=b"logs") as file:
        file.write(b"a")
    with SealedFile.open(path, sealer, context=b"logs") as opened:
        assert opened.read() == b"a"
    with pytest.raises(UnsealError, match="context"):
        SealedFile.open(path, sealer)
    with pytest.raises(UnsealError, match="measurement"):
        SealedFile.open(path, Sealer(machine.source(code="b")), context=b"logs")
    for slot in (0, 1):  # either slot says so
        data = bytearray(path.read_bytes())
        data[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES] = bytes(SLOT_BYTES)
        (path.parent / "one slot").write_bytes(data)
        with pytest.raises(UnsealError, match="measurement"):
            SealedFile.open(path.parent / "one slot", Sealer(machine.source(code="b")), context=b"logs")


def test_neither_content_nor_that_chunks_are_equal_is_in_the_file(path: Path, sealer: Sealer) -> None:
    write(path, sealer, b"look-for" * (2 * CHUNK_BYTES // 8))
    written = path.read_bytes()
    assert b"look-for" not in written
    first, second = HEAD_BYTES, HEAD_BYTES + CHUNK_BYTES
    assert written[first:second] != written[second : second + CHUNK_BYTES]


def test_an_older_file_is_genuine_and_not_expected(path: Path, sealer: Sealer) -> None:
    old = write(path, sealer)
    before = path.read_bytes()
    new = write(path, sealer)
    assert len(old) == len(new) == 32
    assert old != new
    with SealedFile.open(path, sealer, expected=new) as file:
        assert file.identity == new
    path.write_bytes(before)
    with pytest.raises(RollbackError, match="another than was expected"):
        SealedFile.open(path, sealer, expected=new)
    SealedFile.open(path, sealer, expected=old).close()


def test_chunks_do_not_move_between_files_that_a_forked_machine_wrote_with_one_key(path: Path, sealer: Sealer) -> None:
    secret = bytes(range(SECRET_BYTES))
    head = 2 * pack_slot(sealer.seal(secret, context=DOMAIN))
    files = []
    for change in (b"a", b"b"):
        file = io.BytesIO()
        file.write(head)
        writer = ChunkWriter(file, FileKeys(secret))
        writer.write(memoryview(change * CHUNK_BYTES + b"same" * CHUNK_BYTES))
        writer.finish()
        files.append(file.getvalue())
        path.write_bytes(files[-1])
        assert read(path, sealer).startswith(change)
    mine, other = files
    chunk = slice(HEAD_BYTES, HEAD_BYTES + CHUNK_BYTES)
    path.write_bytes(mine[: chunk.start] + other[chunk] + mine[chunk.stop :])
    with SealedFile.open(path, sealer) as opened:
        with pytest.raises(SealedDataError, match="chunk 0 of the sealed file's level 0"):
            opened.read()
        assert opened.tell() == 0
        opened.seek(CHUNK_BYTES)
        assert opened.read() == b"same" * CHUNK_BYTES


def test_a_change_while_it_is_open_is_noticed(path: Path, sealer: Sealer) -> None:
    write(path, sealer)
    with SealedFile.open(path, sealer) as file:
        assert file.read(10) == CONTENT[:10]
        with path.open("r+b") as raw:
            raw.seek(HEAD_BYTES + 2 * CHUNK_BYTES)
            raw.write(b"\0")
        buffer = bytearray(len(CONTENT))
        with pytest.raises(SealedDataError, match="chunk 2"):
            file.readinto(buffer)
        os.truncate(path, HEAD_BYTES)
        file.seek(CHUNK_BYTES * 3)
        with pytest.raises(SealedDataError, match="chunk 3"):
            file.read(1)


def test_what_is_no_sealed_file_is_refused(path: Path, sealer: Sealer) -> None:
    whole = 2 * pack_slot(sealer.seal(b"not a secret", context=DOMAIN)) + bytes(100)
    for content in (b"", b"x", bytes(HEAD_BYTES), os.urandom(3 * HEAD_BYTES), whole):
        path.write_bytes(content)
        with pytest.raises(SealedDataError):
            SealedFile.open(path, sealer)
        with pytest.raises(SealedDataError):
            SealedFile.reseal(path, sealer)
        assert path.read_bytes() == content


def test_a_name_at_fault_is_an_oserror(path: Path, sealer: Sealer, folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SealedFile.open(path, sealer)
    with pytest.raises(IsADirectoryError):
        SealedFile.open(folder, sealer)
    with pytest.raises(FileNotFoundError):
        SealedFile.create(folder / "none" / "f", sealer)
    path.mkdir()
    with pytest.raises(IsADirectoryError), SealedFile.create(path, sealer):
        pass
    assert names(folder) == ["f"]


def test_each_end_says_what_it_can_not_do(path: Path, sealer: Sealer) -> None:
    with SealedFile.create(path, sealer) as file:
        assert (file.readable(), file.writable(), file.seekable()) == (False, True, False)
        with pytest.raises(io.UnsupportedOperation):
            file.seek(0)
        with pytest.raises(io.UnsupportedOperation):
            file.truncate()
        with pytest.raises(TypeError):
            file.write("text")  # type: ignore[arg-type]
        file.write(b"a")
    with SealedFile.open(path, sealer) as opened:
        assert (opened.readable(), opened.writable(), opened.seekable()) == (True, False, True)
        with pytest.raises(io.UnsupportedOperation, match="written once"):
            opened.write(b"")
        with pytest.raises(io.UnsupportedOperation):
            opened.truncate()
        for offset, whence in ((-1, os.SEEK_SET), (-2, os.SEEK_END), (0, 9)):
            with pytest.raises(ValueError, match=r"is before|whence"):
                opened.seek(offset, whence)
    for closed in (opened.read, lambda: opened.seek(0), lambda: opened.readinto(bytearray(1)), lambda: file.write(b"")):
        with pytest.raises(ValueError, match="closed"):
            closed()


def test_reseal_takes_it_to_a_later_version_and_closes_it_to_the_earlier(path: Path, machine: SimulatedMachine) -> None:
    def version(number: int) -> Sealer:
        return Sealer(machine.source(code=str(number), version=number), policy=SealPolicy.SIGNER)

    identity = write(path, version(1))
    with SealedFile.open(path, version(1)) as reader:
        SealedFile.reseal(path, version(2))
        assert reader.read() == CONTENT
    with pytest.raises(UnsealError, match="the version is 1"):
        SealedFile.open(path, version(1))
    with SealedFile.open(path, version(2), expected=identity) as file:
        assert file.read() == CONTENT
    with pytest.raises(UnsealError, match="the version is 1"):
        SealedFile.reseal(path, version(1))


def test_a_crash_at_any_write_of_a_reseal_loses_nothing(path: Path, machine: SimulatedMachine) -> None:
    """Both slots are written one after the other; a crash can leave either of them torn at any page."""
    old, new = (Sealer(machine.source(version=number), policy=SealPolicy.SIGNER) for number in (1, 2))
    write(path, old)
    before = path.read_bytes()
    SealedFile.reseal(path, new)
    after = path.read_bytes()
    assert before[HEAD_BYTES:] == after[HEAD_BYTES:]
    parts = (0, 1, 40, 100, 200, 4096, SLOT_BYTES)
    states = [
        *(before[:SLOT_BYTES] + after[SLOT_BYTES : SLOT_BYTES + part] + before[SLOT_BYTES + part :] for part in parts),
        *(after[:part] + before[part:SLOT_BYTES] + after[SLOT_BYTES:] for part in parts),
    ]
    for state in states:
        path.write_bytes(state)
        assert read(path, new) == CONTENT
        if state[SLOT_BYTES:] == after[SLOT_BYTES:]:  # also where the first slot is intact and too old for this one
            assert read(path, Sealer(new.source, policy=SealPolicy.SIGNER, min_version=2)) == CONTENT
        SealedFile.reseal(path, new)
        for slot in (0, 1):  # each alone is enough again
            whole = bytearray(path.read_bytes())
            whole[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES] = bytes(SLOT_BYTES)
            (path.parent / "one slot").write_bytes(whole)
            assert read(path.parent / "one slot", new) == CONTENT
    with pytest.raises(UnsealError, match="the version is 1"):
        SealedFile.open(path, old)


def test_a_reseal_overwrites_the_slot_that_it_needs_last(tmp_path: Path, path: Path, sealer: Sealer) -> None:
    """A process that may not write beyond the first slot: what it does before it fails."""
    write(path, sealer)
    whole = path.read_bytes()
    for state in (whole, bytes(SLOT_BYTES) + whole[SLOT_BYTES:]):
        path.write_bytes(state)
        assert run(command(HALF_A_RESEAL, tmp_path / "machine", path)) == ["refused"]
        left = path.read_bytes()
        assert left[SLOT_BYTES:] == whole[SLOT_BYTES:]
        if state == whole:
            assert left == whole
        else:
            path.write_bytes(left[:SLOT_BYTES] + bytes(SLOT_BYTES) + left[HEAD_BYTES:])
        assert read(path, sealer) == CONTENT


def test_two_reseals_at_once_are_refused(path: Path, sealer: Sealer) -> None:
    write(path, sealer)
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InUseError):
            SealedFile.reseal(path, sealer)
    SealedFile.reseal(path, sealer)


def test_a_slot_has_room_for_the_longest_sealed_secret() -> None:
    subject = bytes(MAX_SUBJECT_BYTES)
    header = Header(
        source="s" * MAX_SOURCE_BYTES,
        binding=Binding(policy=SealPolicy.SIGNER, subject=subject, product=subject, version=1),
        request=bytes(MAX_REQUEST_BYTES),
        tcb="t" * MAX_TCB_BYTES,
        salt=bytes(32),
        context=bytes(MAX_CONTEXT_BYTES),
    )
    sealed = header.encode() + bytes(NONCE_BYTES + SECRET_BYTES + TAG_BYTES)
    assert len(pack_slot(sealed)) == SLOT_BYTES


@pytest.mark.parametrize("how", ["limited", "small"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, folder: Path, how: str) -> None:
    code = command(FULL, tmp_path / "machine", folder / "f", how)
    if how == "small":
        code = sandboxed("--size", "1000000", "--tmpfs", str(folder), *code)
    reason = {"limited": "File too large", "small": "No space left on device"}[how]
    assert run(code) == [f"{folder / 'f'} can't be read or written: {reason}"] * 2


def test_a_read_only_disk_is_a_storage_error(tmp_path: Path, path: Path, sealer: Sealer, folder: Path) -> None:
    write(path, sealer, b"before")
    code = command(OTHER_DISK, tmp_path / "machine", path)
    said = run(sandboxed("--ro-bind", str(folder), str(folder), *code))
    assert said == [f"{path} can't be read or written: Read-only file system", "b'before'"]


def test_a_folder_that_can_not_be_synchronised_is_told(tmp_path: Path, path: Path, folder: Path) -> None:
    folder.chmod(0o300)
    said = run(sandboxed("--cap-drop", "ALL", *command(OTHER_DISK, tmp_path / "machine", path)))
    assert said == [f"{path} is written, and may be as before after a crash: Permission denied", "b'after'"]


def test_a_killed_writer_leaves_what_was_there_and_the_next_one_cleans_up(
    tmp_path: Path, path: Path, sealer: Sealer, folder: Path
) -> None:
    write(path, sealer, b"before")
    with subprocess.Popen(
        command(ENDLESS, tmp_path / "machine", path), env=environment(), stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "writing\n"
        with pytest.raises(InUseError):
            SealedFile.create(path, sealer)
        child.kill()
    assert names(folder) == [".f.sealing", "f"]
    assert read(path, sealer) == b"before"
    write(path, sealer, b"after")
    assert (names(folder), read(path, sealer)) == (["f"], b"after")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(path: Path, sealer: Sealer) -> None:
    block, blocks = os.urandom(1024 * 1024), 300  # more than 4096 chunks: two levels above the content
    tracemalloc.start()
    try:
        with SealedFile.create(path, sealer) as file:
            for _ in range(blocks):
                file.write(block)
        assert tracemalloc.get_traced_memory()[1] < 2 * 1024 * 1024
        tracemalloc.reset_peak()
        buffer = bytearray(len(block))
        with SealedFile.open(path, sealer) as opened:
            assert opened.size == blocks * len(block)
            while opened.readinto(buffer):
                assert buffer == block
            for place in (0, 299, 150, 256, 255):
                opened.seek(place * len(block) + 77)
                assert opened.read(9) == block[77:86]
        assert tracemalloc.get_traced_memory()[1] < 3 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(path: Path, sealer: Sealer) -> None:
    os.mkfifo(path)
    os.mkfifo(path.with_name(".new.sealing"))
    with pytest.raises(SealedDataError, match="is not a file"):
        SealedFile.open(path, sealer)
    with pytest.raises((SealedDataError, OSError)):
        SealedFile.create(path.with_name("new"), sealer)


def test_a_file_of_other_names_is_not_overwritten(path: Path, sealer: Sealer) -> None:
    victim = path.with_name("victim")
    victim.write_bytes(b"kept")
    path.with_name(".f.sealing").hardlink_to(victim)
    with pytest.raises(SealedDataError, match="another name"):
        SealedFile.create(path, sealer)
    assert victim.read_bytes() == b"kept"
