"""What an enclave prints, through real pipes: kept, copied, bounded, and never in the enclave's way."""

from __future__ import annotations

import os
import pty
import resource
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
import tty
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest
from observing import eventually

from adyton.errors import LaunchError
from adyton.host.launch.log_pump import KEPT_LINES, MAX_LINE_BYTES, LogPump, open_log

SECONDS = 20.0


def make_pipe() -> tuple[IO[bytes], IO[bytes]]:
    """A pipe as a child process has one: what the pump reads, and where the enclave prints."""
    read, write = os.pipe()
    return os.fdopen(read, "rb"), os.fdopen(write, "wb", buffering=0)


def pump_all(data: bytes, *, copy: int | None = None, log_file: int | None = None) -> LogPump:
    """A pump that has read `data` to its end."""
    source, enclave = make_pipe()
    pump = LogPump({source: copy}, log_file)
    with enclave:
        enclave.write(data)
    pump.join(SECONDS)
    assert source.closed
    return pump


def open_descriptors() -> set[str]:
    return {each.name for each in Path("/proc/self/fd").iterdir()}


# --- what is kept


def test_the_last_lines_are_kept_oldest_first() -> None:
    pump = pump_all(b"".join(b"line %d\n" % number for number in range(250)))
    assert pump.tail(3) == ("line 247", "line 248", "line 249")
    assert len(pump.tail()) == 20
    assert pump.tail(1000) == tuple(f"line {number}" for number in range(250 - KEPT_LINES, 250))


def test_a_last_line_without_an_end_is_kept_too() -> None:
    assert pump_all(b"one\ntwo").tail() == ("one", "two")


def test_what_a_console_ends_its_lines_with_is_no_part_of_them(tmp_path: Path) -> None:
    pump = pump_all(b"Linux version\r\n50 %\r100 %\r\r\n\r\n", log_file=open_log(tmp_path / "log"))
    assert pump.tail() == ("Linux version", "50 %?100 %", "")
    assert (tmp_path / "log").read_bytes() == b"Linux version\n50 %\r100 %\n\n"


def test_nothing_printed_is_nothing_kept() -> None:
    assert pump_all(b"").tail() == ()


def test_what_is_not_utf_8_is_replaced() -> None:
    assert pump_all(b"caf\xc3\xa9 \xff\xfe \xc3\n").tail() == ("café \ufffd\ufffd \ufffd",)


def test_a_character_that_comes_in_two_pieces_is_one() -> None:
    source, enclave = make_pipe()
    pump = LogPump({source: None}, None)
    with enclave:
        enclave.write(b"caf\xc3")
        enclave.write(b"\xa9\n")
    pump.join(SECONDS)
    assert pump.tail() == ("café",)


def test_a_line_can_be_seen_before_the_enclave_ends() -> None:
    source, enclave = make_pipe()
    copy_read, copy = os.pipe()
    pump = LogPump({source: copy}, None)
    with enclave, os.fdopen(copy_read, "rb", buffering=0) as copied:
        enclave.write(b"ready\n")
        assert copied.read(6) == b"ready\n"
        assert pump.tail() == ("ready",)
    pump.join(SECONDS)
    os.close(copy)


def test_two_pipes_are_read_until_both_end(tmp_path: Path) -> None:
    pipes, log_file = [make_pipe(), make_pipe()], open_log(tmp_path / "log")
    pump = LogPump({source: None for source, _ in pipes}, log_file)
    (_, out), (_, err) = pipes
    out.write(b"out\n")
    out.close()
    err.write(b"err\n" * 3)
    err.close()
    pump.join(SECONDS)
    assert sorted(pump.tail()) == ["err", "err", "err", "out"]
    assert sorted((tmp_path / "log").read_text().split()) == ["err", "err", "err", "out"]


# --- what is endless


def test_a_long_line_is_cut_and_goes_on_in_the_next() -> None:
    pump = pump_all(b"x" * (MAX_LINE_BYTES + 1) + b"\nshort\n")
    assert all(len(line) <= MAX_LINE_BYTES for line in pump.tail())
    assert pump.tail()[0] == "x" * MAX_LINE_BYTES
    assert pump.tail()[-1] == "short"


@pytest.mark.parametrize("data", [b"x", b"\0", b"\n", b"\xff"], ids=ascii)
def test_the_memory_is_bounded_whatever_is_printed(data: bytes) -> None:
    source, enclave = make_pipe()
    tracemalloc.start()
    try:
        pump = LogPump({source: None}, None)
        with enclave:
            for _ in range(20 if data == b"\n" else 400):
                enclave.write(data * 65536)
        pump.join(SECONDS)
        assert tracemalloc.get_traced_memory()[1] < 12_000_000
    finally:
        tracemalloc.stop()
    assert len(pump.tail(1000)) <= KEPT_LINES
    assert all(len(line) <= MAX_LINE_BYTES for line in pump.tail(1000))


def test_everything_is_copied_however_long_the_lines(tmp_path: Path) -> None:
    data = b"".join(bytes([97 + number % 26]) * (number * 37 % 5000) + b"\n" for number in range(500))
    pump_all(data, log_file=open_log(tmp_path / "log"))
    assert (tmp_path / "log").read_bytes() == data


# --- sinks


def test_a_pipe_has_a_copy_and_a_log(tmp_path: Path) -> None:
    read, copy = os.pipe()
    pump_all(b"one\ntwo", copy=copy, log_file=open_log(tmp_path / "log"))
    os.close(copy)  # the host's own: the pump left it open
    with os.fdopen(read, "rb") as copied:
        assert copied.read() == b"one\ntwo\n" == (tmp_path / "log").read_bytes()


def test_the_pump_closes_its_copies_and_the_pipes(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log")
    before = open_descriptors()
    pump_all(b"one\n", copy=log, log_file=log)
    assert open_descriptors() == before
    os.close(log)


def test_a_terminal_gets_nothing_that_it_would_obey(tmp_path: Path) -> None:
    terminal, copy = pty.openpty()
    tty.setraw(copy)
    log = open_log(tmp_path / "log")
    pump_all(b"\x1b]0;title\x07 tab\t \xc2\x9b2J caf\xc3\xa9\n", copy=copy, log_file=log)
    assert os.read(terminal, 1000) == b"?]0;title? tab\t ?2J caf\xc3\xa9\n"
    assert b"\x1b]0;" in (tmp_path / "log").read_bytes()
    for each in (terminal, copy, log):
        os.close(each)


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def closed_pipe() -> int:
    read, write = os.pipe()
    os.close(read)
    return write


def read_only_file() -> int:
    return os.open(os.devnull, os.O_RDONLY)


@pytest.mark.parametrize("sink", [full_disk, closed_pipe, read_only_file])
def test_a_sink_that_fails_harms_neither_the_enclave_nor_the_other_sink(
    tmp_path: Path, sink: Callable[[], int], capfd: pytest.CaptureFixture[str]
) -> None:
    broken = sink()
    pump = pump_all(b"a line\n" * 50_000, copy=broken, log_file=open_log(tmp_path / "log"))
    os.close(broken)
    assert (tmp_path / "log").read_bytes() == b"a line\n" * 50_000
    assert pump.tail(1) == ("a line",)
    assert capfd.readouterr().err == ""


def test_a_copy_that_the_host_had_closed_is_dropped(tmp_path: Path) -> None:
    log_file, gone = open_log(tmp_path / "log"), os.open(os.devnull, os.O_WRONLY)
    os.close(gone)
    pump_all(b"a line\n" * 3, copy=gone, log_file=log_file)
    assert (tmp_path / "log").read_bytes() == b"a line\n" * 3


def test_nothing_is_written_to_what_gets_the_number_of_a_copy_that_the_host_closes(tmp_path: Path) -> None:
    source, enclave = make_pipe()
    copy = open_log(tmp_path / "copy")
    pump = LogPump({source: copy}, None)
    os.close(copy)
    with (tmp_path / "accounts").open("wb") as other, enclave:
        assert other.fileno() == copy
        enclave.write(b"a line\n")
        enclave.close()
        pump.join(SECONDS)
    assert (tmp_path / "accounts").read_bytes() == b""
    assert (tmp_path / "copy").read_bytes() == b"a line\n"


def test_a_log_on_a_full_disk_leaves_the_copy() -> None:
    read, copy = os.pipe()
    with os.fdopen(read, "rb") as copied:
        pump_all(b"a line\n" * 3, copy=copy, log_file=full_disk())
        os.close(copy)
        assert copied.read() == b"a line\n" * 3


def test_an_enclave_that_prints_without_end_is_not_held_up_by_a_full_disk() -> None:
    code = "import sys\nfor _ in range(2000): sys.stdout.write('x' * 1000 + chr(10))\nprint('done')"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        pump = LogPump({process.stdout: None, process.stderr: None}, full_disk())
        assert process.wait(SECONDS) == 0
        pump.join(SECONDS)
    assert pump.tail(1) == ("done",)


# --- the end


def test_a_sink_that_does_not_read_does_not_hold_up_the_end(tmp_path: Path) -> None:
    threads = set(threading.enumerate())
    source, enclave = make_pipe()
    read, copy = os.pipe()
    pump = LogPump({source: copy}, open_log(tmp_path / "log"))
    printed = b"a line\n" * 100_000
    with enclave:
        printer = threading.Thread(target=enclave.write, args=(printed,))
        printer.start()
        printer.join(1)
        assert printer.is_alive()  # held up, as by any pipe, while there is time
        begun = time.monotonic()
        pump.join(1.0)
        assert time.monotonic() - begun < 2
        printer.join(SECONDS)
    pump.join(SECONDS)
    assert time.monotonic() - begun < 3
    eventually(lambda: set(threading.enumerate()) <= threads)
    assert source.closed
    assert len((tmp_path / "log").read_bytes()) > 500_000  # the other sink goes on
    os.close(copy)
    os.close(read)


def test_a_sink_that_reads_late_gets_all_that_was_printed_before_the_end() -> None:
    source, enclave = make_pipe()
    read, copy = os.pipe()
    pump = LogPump({source: copy}, None)
    os.close(copy)
    printed = b"a line\n" * 17_000  # more than one pipe holds, less than two
    with enclave:
        enclave.write(printed)
    joining = threading.Thread(target=pump.join, args=(SECONDS,))
    joining.start()
    time.sleep(0.2)
    with os.fdopen(read, "rb") as copied:
        assert copied.read() == printed
    joining.join(SECONDS)


def test_a_sink_that_does_not_read_can_be_given_up_before_the_end() -> None:
    source, enclave = make_pipe()
    read, copy = os.pipe()
    pump = LogPump({source: copy}, None)
    with enclave:
        printer = threading.Thread(target=enclave.write, args=(b"a line\n" * 100_000,))
        printer.start()
        pump.hurry(0.2)
        printer.join(SECONDS)
        assert not printer.is_alive()
        time.sleep(0.3)
        enclave.write(b"later\n")
    pump.join(SECONDS)
    assert pump.tail(1) == ("later",)
    os.close(copy)
    os.close(read)


def test_a_pipe_that_never_ends_is_given_up() -> None:
    threads = set(threading.enumerate())
    source, enclave = make_pipe()
    pump = LogPump({source: None}, None)
    enclave.write(b"one\n")
    pump.join(0.3)
    eventually(lambda: set(threading.enumerate()) <= threads)
    assert pump.tail() == ("one",)
    with pytest.raises(BrokenPipeError):
        enclave.write(b"two\n")
    enclave.close()


def test_without_a_descriptor_left_there_is_no_pump_and_the_pipe_is_closed() -> None:
    before = open_descriptors()
    source, enclave = make_pipe()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            LogPump({source: None}, None)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert source.closed
    enclave.close()
    assert open_descriptors() == before


def test_no_thread_is_left() -> None:
    before = set(threading.enumerate())
    pump_all(b"one\n")
    assert set(threading.enumerate()) <= before


# --- the log's file


def test_a_log_is_for_its_owner_only_and_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "logs of today" / "enclave.log"
    before = os.umask(0)
    try:
        for word in (b"one\n", b"two\n"):
            descriptor = open_log(path)
            os.write(descriptor, word)
            os.close(descriptor)
    finally:
        os.umask(before)
    assert path.read_bytes() == b"one\ntwo\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_log_is_not_given_to_children(tmp_path: Path) -> None:
    descriptor = open_log(tmp_path / "log")
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)


@pytest.mark.parametrize(("path", "why"), [("file/log", "File exists|Not a directory"), ("folder", "Is a directory")])
def test_a_log_that_can_not_be_written_is_a_launch_error(tmp_path: Path, path: str, why: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(LaunchError, match=f"the log can't be written to .*: ({why})"):
        open_log(tmp_path / path)
