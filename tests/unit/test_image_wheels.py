"""Wheels: what is read of them, and how pip brings them; from a folder here, so without a network."""

from __future__ import annotations

import hashlib
import socket
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from image_pieces import make_wheel

from adyton.errors import ConfigurationError, UnsupportedError
from adyton.host.image import wheels
from adyton.host.image.architecture import ARCHITECTURES, Architecture
from adyton.host.image.cache import Cache
from adyton.host.image.tree import File
from adyton.host.image.wheels import fetch_wheels, read_wheel

X86, ARM = ARCHITECTURES["x86_64"], ARCHITECTURES["aarch64"]


def test_files_are_read_to_where_they_are_installed() -> None:
    wheel = make_wheel(
        {
            "a/__init__.py": b"1",
            "a-1.data/purelib/b.py": b"2",
            "a-1.data/platlib/c.so": b"3",
            "a-1.data/scripts/run": b"4",
            "a-1.data/headers/x.h": b"5",
        }
    )
    assert read_wheel("a.whl", wheel) == {
        "a/__init__.py": File(content=b"1"),
        "b.py": File(content=b"2"),
        "c.so": File(content=b"3"),
    }


@pytest.mark.parametrize("path", ["../a.py", "/a.py", "a/../../b.py", "a.data/purelib/../../b.py", "a\x01.py"])
def test_a_path_that_leaves_the_packages_is_refused(path: str) -> None:
    with pytest.raises(ConfigurationError, match="no path below its root"):
        read_wheel("hostile.whl", make_wheel({path: b""}))


def test_what_is_no_wheel_is_refused() -> None:
    whole = make_wheel({"a.py": b"text"})
    packed = make_wheel({"a.py": b"text" * 9}, compression=zipfile.ZIP_DEFLATED)
    start = packed.index(b"a.py") + 4
    bad_block = packed[:start] + b"\xff" * 4 + packed[start + 4 :]
    for data in (b"", b"PK", whole[:-5], whole.replace(b"text", b"t3xt"), bad_block):
        with pytest.raises(ConfigurationError, match=r"odd\.whl can't be read"):
            read_wheel("odd.whl", data)


class Shelf:
    """A folder of wheels that pip looks into, and nowhere else."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.cache, self.said = folder / "shelf", Cache(folder / "cache"), list[str]()
        self.folder.mkdir()
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", self.folder.as_uri())
        patch.setenv("PIP_CONFIG_FILE", "/dev/null")

    def move_to(self, port: int, patch: pytest.MonkeyPatch) -> None:
        """Let pip ask an index at this port of this machine, and nothing else."""
        patch.delenv("PIP_NO_INDEX")
        patch.delenv("PIP_FIND_LINKS")
        patch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple/")
        patch.setenv("NO_PROXY", "127.0.0.1")

    def put(self, name: str, tag: str = "py3-none-any") -> str:
        """Put a wheel of version 1 there; its digest."""
        info = f"{name}-1.dist-info/"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n".encode()
        wheel = make_wheel(
            {
                f"{name}.py": tag.encode(),
                info + "METADATA": metadata,
                info + "WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
                info + "RECORD": b"",
            }
        )
        (self.folder / f"{name}-1-{tag}.whl").write_bytes(wheel)
        return hashlib.sha256(wheel).hexdigest()

    def fetch(self, lock: str, architecture: Architecture = X86) -> list[str]:
        return [name for name, _ in fetch_wheels(lock.encode(), architecture, self.cache, self.said.append)]


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    return Shelf(tmp_path, monkeypatch)


def test_the_guests_wheels_are_taken_whichever_machine_asks(shelf: Shelf) -> None:
    digests = [shelf.put("a", f"cp311-cp311-manylinux_2_28_{each.name}") for each in (X86, ARM)]
    digests += [
        shelf.put("a", "cp312-cp312-manylinux_2_28_x86_64"),
        shelf.put("a", "cp311-cp311-manylinux_2_39_x86_64"),
    ]
    lock = "a==1 " + " ".join(f"--hash=sha256:{each}" for each in digests)
    assert shelf.fetch(lock, X86) == ["a-1-cp311-cp311-manylinux_2_28_x86_64.whl"]
    assert shelf.fetch(lock, ARM) == ["a-1-cp311-cp311-manylinux_2_28_aarch64.whl"]


def test_markers_are_the_guests_not_the_builders(shelf: Shelf) -> None:
    lines = [
        f"a==1 ; python_full_version == '3.11.2' and platform_machine == 'x86_64' --hash=sha256:{shelf.put('a')}",
        f"b==1 ; platform_machine == 'aarch64' \\\n    --hash=sha256:{shelf.put('b')}",
        f"c==1 ; sys_platform == 'win32' --hash=sha256:{shelf.put('c')}  # not here",
        "# d==1",
    ]
    assert shelf.fetch("\n".join(lines), X86) == ["a-1-py3-none-any.whl"]
    assert shelf.fetch("\n".join(lines), ARM) == ["b-1-py3-none-any.whl"]


def test_no_wheel_is_left_out_however_its_line_is_written(shelf: Shelf) -> None:
    hashes = {name: f"--hash=sha256:{shelf.put(name)}" for name in "abcde"}
    lines = [
        f"a==1 \\\r\n    {hashes['a']}\r",
        f"b==1\t{hashes['b']}",
        "    # via a \\",
        f"c==1 ; python_version < '3.12'\\\n\t{hashes['c']}",
        f"d==1 {hashes['d']}\r",
        f"E == 1 {hashes['e']}  # via d",
    ]
    assert shelf.fetch("\n".join(lines)) == [f"{name}-1-py3-none-any.whl" for name in "abcde"]


def test_a_lock_that_can_not_be_read_is_refused(shelf: Shelf) -> None:
    with pytest.raises(ConfigurationError, match=r"requirements\.lock: can't read"):
        shelf.fetch(f"a==1 --hash=sha256:{shelf.put('a')} # why \\\nb==1 --hash=sha256:{shelf.put('b')}\n")


def test_the_second_time_no_pip_is_called(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = f"a==1 --hash=sha256:{shelf.put('a')}"
    assert shelf.fetch(lock) == ["a-1-py3-none-any.whl"]
    (shelf.folder / "a-1-py3-none-any.whl").unlink()
    monkeypatch.setattr("sys.executable", "/nowhere")
    assert shelf.fetch(lock) == ["a-1-py3-none-any.whl"]
    assert len(shelf.said) == 1


def test_a_wheel_that_was_damaged_in_the_cache_is_fetched_again(shelf: Shelf) -> None:
    digest = shelf.put("a")
    shelf.fetch(f"a==1 --hash=sha256:{digest}")
    shelf.cache.path(digest).unlink()
    shelf.cache.path(digest).write_bytes(b"odd")
    assert shelf.fetch(f"a==1 --hash=sha256:{digest}") == ["a-1-py3-none-any.whl"]
    assert hashlib.sha256(shelf.cache.path(digest).read_bytes()).hexdigest() == digest
    assert len(shelf.said) == 2


def test_a_wheel_of_another_digest_is_refused(shelf: Shelf) -> None:
    shelf.put("a")
    with pytest.raises(UnsupportedError, match="pip can't bring the wheels"):
        shelf.fetch(f"a==1 --hash=sha256:{'00' * 32}")


def test_a_distribution_without_a_wheel_for_the_guest_is_named(shelf: Shelf) -> None:
    digest = shelf.put("a", "cp312-cp312-manylinux_2_28_x86_64")
    with pytest.raises(UnsupportedError, match="a==1") as problem:
        shelf.fetch(f"a==1 --hash=sha256:{digest}")
    assert "x86_64" in problem.value.mend


def test_a_lock_of_nothing_needs_no_pip(shelf: Shelf) -> None:
    assert shelf.fetch("# nothing\n") == []
    assert shelf.said == []


def test_a_python_without_pip_is_told_what_mends_it(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pip", None)
    with pytest.raises(UnsupportedError, match="no pip") as problem:
        shelf.fetch(f"a==1 --hash=sha256:{'00' * 32}")
    assert "ensurepip" in problem.value.mend


class HangingIndex(BaseHTTPRequestHandler):
    """An index that names one wheel and sends half of it."""

    def do_GET(self) -> None:
        page = b'<a href="/a-1-py3-none-any.whl">a-1-py3-none-any.whl</a>'
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)) if self.path.endswith("/") else "1000000")
        self.end_headers()
        self.wfile.write(page)
        self.wfile.flush()
        if not self.path.endswith("/"):
            self.rfile.read(1)  # until the client is gone

    def log_message(self, *_: object) -> None:
        pass


def test_without_a_network_no_wheel_is_blamed(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        shelf.move_to(listener.getsockname()[1], monkeypatch)
    with pytest.raises(UnsupportedError, match=r"the index of wheels can't be reached: .*refused") as problem:
        shelf.fetch(f"a==1 --hash=sha256:{'00' * 32}")
    assert problem.value.mend == "is there a network?"
    assert "object at" not in problem.value.message


def test_an_index_that_does_not_answer_is_given_up(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "STALL_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        shelf.move_to(listener.getsockname()[1], monkeypatch)
        with pytest.raises(UnsupportedError, match=r"can't be reached: .*timed out"):
            shelf.fetch(f"a==1 --hash=sha256:{'00' * 32}")


def test_an_index_that_stops_half_way_is_given_up(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "STALL_SECONDS", 1)
    with ThreadingHTTPServer(("127.0.0.1", 0), HangingIndex) as server:
        shelf.move_to(server.server_port, monkeypatch)
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            with pytest.raises(UnsupportedError, match=r"can't be reached: .*timed out"):
                shelf.fetch(f"a==1 --hash=sha256:{'00' * 32}")
        finally:
            server.shutdown()
            serving.join()


def test_a_pip_that_can_not_be_run_is_said(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python").write_text("")
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(UnsupportedError, match="pip can't be run: Permission denied"):
        shelf.fetch(f"a==1 --hash=sha256:{'00' * 32}")
