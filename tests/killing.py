"""A process that is stopped before each system call that changes a folder, by ptrace: to be killed there, or to fail.

    with Traced(work, folder) as child:
        for point in child.points():     # the child stands at the entry of this call; nothing of it has happened
            if point.call == "fsync":
                child.kill()             # as `kill -9` at this moment; or child.fail(errno.EIO)
        child.acknowledged               # what `work` has said so far

`work` runs in a fork, so everything is imported already and one child costs some milliseconds. It has one thread;
`Ledger` is such work, with a sealed store whose hardware answers in the same thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import random
import signal
import socket
import struct
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self, cast

from adyton.sealing.sealer import Sealer
from adyton.sealing.store import SealedStore
from adyton.tee.simulated.format import MEASUREMENT_BYTES
from adyton.tee.simulated.platform import SimulatedPlatform
from adyton.tee.simulated.root_file import load_or_make_root
from adyton.tee.simulated.sealing import SimulatedSealing
from adyton.tee.simulated.sealing_format import HEAD
from adyton.tee.simulated.sealing_platform import SealingHardware

Work = Callable[[Callable[[int], None]], None]
"""What the child does; it calls what it is given with a number that is to be acknowledged to whoever traces it."""
Step = Mapping[str, bytes | None] | str

_TRACEME, _POKEUSER, _SYSCALL, _SETOPTIONS, _GET_SYSCALL_INFO = 0, 6, 24, 0x4200, 0x420E
_OPTIONS: Final = 0x00100001  # kill the child with its tracer; mark the stops at system calls
_CALL_STOP: Final = signal.SIGTRAP | 0x80
_INFO: Final = struct.Struct("B3xIQQQQQQQQQ")
_ENTRY: Final = 1
_AT_FDCWD: Final = 0xFFFFFF9C
_PATH_BYTES: Final = 4096
_ORIG_RAX, _RAX = 15 * 8, 10 * 8
_ACKNOWLEDGEMENT: Final = struct.Struct(">I")

# By number: the call, and which arguments say what it is about: a descriptor ("f"), a path ("p"), or a folder's
# descriptor and a path in it ("d").
_CALLS: Final = {
    "x86_64": {
        1: ("write", "f0"),
        18: ("pwrite", "f0"),
        20: ("writev", "f0"),
        74: ("fsync", "f0"),
        75: ("fdatasync", "f0"),
        76: ("truncate", "p0"),
        77: ("ftruncate", "f0"),
        82: ("rename", "p1"),
        83: ("mkdir", "p0"),
        84: ("rmdir", "p0"),
        86: ("link", "p1"),
        87: ("unlink", "p0"),
        258: ("mkdir", "d0"),
        263: ("unlink", "d0"),
        264: ("rename", "d2"),
        265: ("link", "d2"),
        285: ("fallocate", "f0"),
        296: ("pwritev", "f0"),
        316: ("rename", "d2"),
        328: ("pwritev", "f0"),
    },
    "aarch64": {
        34: ("mkdir", "d0"),
        35: ("unlink", "d0"),
        37: ("link", "d2"),
        38: ("rename", "d2"),
        45: ("truncate", "p0"),
        46: ("ftruncate", "f0"),
        47: ("fallocate", "f0"),
        64: ("write", "f0"),
        66: ("writev", "f0"),
        68: ("pwrite", "f0"),
        70: ("pwritev", "f0"),
        82: ("fsync", "f0"),
        83: ("fdatasync", "f0"),
        276: ("rename", "d2"),
        286: ("pwritev", "f0"),
    },
}
_MACHINE: Final = platform.machine()
_libc: Final = ctypes.PyDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The entry of a call that changes a file or a folder, or makes it last: its name, and what it is about."""

    call: str
    path: Path


class Child:
    """A fork that does `work`, and is gone when the `with` ends."""

    def __init__(self, work: Work) -> None:
        self.acknowledged: list[int] = []
        self.running = self.killed = False
        self._work = work

    def __enter__(self) -> Self:
        self._acknowledgements, told = os.pipe()
        self._complaints, complaint = os.pipe()
        os.set_blocking(self._acknowledgements, False)
        with warnings.catch_warnings():
            # Threads that other tests left hold nothing that the child needs.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pid = os.fork()
        if self._pid == 0:
            self._be_the_child(told, complaint)
        os.close(told)
        os.close(complaint)
        self.running = True
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        os.close(self._acknowledgements)
        os.close(self._complaints)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone. Does nothing if it has ended."""
        if self.running:
            os.kill(self._pid, signal.SIGKILL)
            while not _is_over(status := os.waitpid(self._pid, 0)[1]):
                pass
            self.killed = os.WIFSIGNALED(status)
            self.running = False
            self.listen()

    def wait(self) -> None:
        """Until it ends. AssertionError if `work` raised."""
        self._ended(os.waitpid(self._pid, 0)[1])

    def listen(self) -> None:
        """Add to `acknowledged` what it has told since."""
        with contextlib.suppress(BlockingIOError):
            while told := os.read(self._acknowledgements, 1 << 12):
                self.acknowledged += (number for (number,) in _ACKNOWLEDGEMENT.iter_unpack(told))

    def _ended(self, status: int) -> None:
        self.running = False
        self.listen()
        if not os.WIFEXITED(status) or os.WEXITSTATUS(status):
            complaint = os.read(self._complaints, 1 << 16).decode()
            raise AssertionError(f"the work ended with {status}:\n{complaint}")

    def _be_the_child(self, told: int, complaint: int) -> None:
        """Never returns."""
        try:
            self._prepare()
            self._work(lambda number: _tell(told, number))
            os._exit(0)
        except BaseException:
            os.write(complaint, traceback.format_exc().encode()[-60_000:])
        finally:
            os._exit(1)

    def _prepare(self) -> None:
        """In the child, before the work."""


class Traced(Child):
    """A child that stops at each point in `folder`."""

    def __init__(self, work: Work, folder: Path) -> None:
        super().__init__(work)
        self._folder = folder.resolve()
        self._failure = 0
        self._info = ctypes.create_string_buffer(_INFO.size)

    def fail(self, number: int) -> None:
        """The call at which the child stands does not happen; it gets this error."""
        if _MACHINE != "x86_64":
            raise NotImplementedError
        self._failure = number

    def points(self) -> Iterator[Point]:
        """Where it stops, until it has ended or is killed. AssertionError if `work` raised."""
        os.waitpid(self._pid, 0)
        _ptrace(_SETOPTIONS, self._pid, 0, _OPTIONS)
        deliver, entered = 0, False
        while self.running:
            _ptrace(_SYSCALL, self._pid, 0, deliver)
            _, status = os.waitpid(self._pid, 0)
            if not os.WIFSTOPPED(status):
                self._ended(status)
                return
            deliver = 0 if os.WSTOPSIG(status) == _CALL_STOP else os.WSTOPSIG(status)
            entered = not deliver and not entered
            if entered and (point := self._point()) is not None:
                self.listen()
                yield point
                if self._failure and self.running:
                    self._inject()
                    entered = False

    def _prepare(self) -> None:
        _ptrace(_TRACEME, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)

    def _point(self) -> Point | None:
        _ptrace(_GET_SYSCALL_INFO, self._pid, _INFO.size, ctypes.addressof(self._info))
        operation, _, _, _, number, *arguments = _INFO.unpack(self._info.raw)
        if operation != _ENTRY or (known := _CALLS[_MACHINE].get(number)) is None:
            return None
        call, what = known
        path = self._path(what[0], arguments[int(what[1]) :])
        return Point(call=call, path=path) if path.is_relative_to(self._folder) else None

    def _path(self, kind: str, arguments: list[int]) -> Path:
        """What these arguments name."""
        process = Path(f"/proc/{self._pid}")
        if kind == "f":
            return (process / f"fd/{arguments[0]}").readlink()
        folder = arguments.pop(0) & 0xFFFFFFFF if kind == "d" else _AT_FDCWD
        base = (process / ("cwd" if folder == _AT_FDCWD else f"fd/{folder}")).readlink()
        with (process / "mem").open("rb", buffering=0) as memory:
            memory.seek(arguments[0])
            return base / os.fsdecode(memory.read(_PATH_BYTES).split(b"\0", 1)[0])

    def _inject(self) -> None:
        _ptrace(_POKEUSER, self._pid, _ORIG_RAX, -1)
        _ptrace(_SYSCALL, self._pid, 0, 0)
        os.waitpid(self._pid, 0)
        _ptrace(_POKEUSER, self._pid, _RAX, -self._failure)
        self._failure = 0


def _is_over(status: int) -> bool:
    return os.WIFSIGNALED(status) or os.WIFEXITED(status)


def _tell(pipe: int, number: int) -> None:
    os.write(pipe, _ACKNOWLEDGEMENT.pack(number))


def _ptrace(request: int, pid: int, address: int, data: int) -> None:
    if _libc.ptrace(request, pid, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace: {errno.errorcode.get(number, number)}")


def why_not() -> str | None:
    """Why no process can be traced here, or None."""
    if _MACHINE not in _CALLS:
        return f"the system calls of {_MACHINE} are not known"
    try:
        with Traced(lambda _: None, Path("/")) as child:
            for _ in child.points():
                pass
    except (OSError, AssertionError) as problem:
        return f"no process can be traced here: {problem}"
    return None


class Ledger:
    """Random steps of one enclave with a sealed store in a folder, and what is true after each of them.

    A step is a transaction (None: a name is removed), or "reseal", or "reopen". `states[n]` is the store's content when
    `n` steps have been acknowledged. The folder has two: the host's, and the registers of the simulation's hardware.
    """

    def __init__(self, *, seed: int, steps: int, largest: int = 20_000, first: Sequence[Step] = ()) -> None:
        with tempfile.TemporaryDirectory() as made:
            self._root = load_or_make_root(Path(made), datetime.now(UTC))
        self.steps = [*first, *_steps(random.Random(seed), steps, largest)]
        self.states: list[Mapping[str, bytes]] = [{}]
        for step in self.steps:
            content = {**self.states[-1], **({} if isinstance(step, str) else step)}
            self.states.append({name: value for name, value in content.items() if value is not None})

    def open(self, folder: Path) -> SealedStore:
        """The store, as this one enclave opens it."""
        for each in ("state", "registers"):
            (folder / each).mkdir(parents=True, exist_ok=True)
        machine = SimulatedPlatform(self._root, registers=folder / "registers")
        wire = _Wire(machine.sealing(bytes(MEASUREMENT_BYTES)))
        return SealedStore.open(folder / "state", "s", Sealer(SimulatedSealing(cast(socket.socket, wire))))

    def work(self, folder: Path) -> Work:
        """All steps, each acknowledged by its number when it is done."""

        def work(acknowledge: Callable[[int], None]) -> None:
            store = self.open(folder)
            for number, step in enumerate(self.steps):
                if not isinstance(step, str):
                    _apply(step, store)
                elif step == "reseal":
                    store.reseal()
                else:
                    store.close()
                    store = self.open(folder)
                acknowledge(number)
            store.close()

        return work

    def check(self, folder: Path, acknowledged: int) -> None:
        """That many steps are there whole, the next one is or is not, there is nothing else, and the store goes on."""
        with self.open(folder) as store:
            found = content_of(store)
            assert found in self.states[acknowledged : acknowledged + 2]
            store.put("name 0", b"it goes on")
        with self.open(folder) as store:
            assert content_of(store) == {**found, "name 0": b"it goes on"}


class _Wire:
    """The enclave's end of the wire to its hardware, which answers in the same thread; a socket as far as it takes."""

    def __init__(self, hardware: SealingHardware) -> None:
        self._hardware = hardware
        self._replies = b""

    def settimeout(self, seconds: float) -> None:
        pass

    def sendall(self, data: bytes) -> None:
        status, reply = self._hardware.answer(data[0], data[HEAD.size :])
        self._replies += HEAD.pack(status, len(reply)) + reply

    def recv(self, count: int) -> bytes:
        received, self._replies = self._replies[:count], self._replies[count:]
        return received

    def close(self) -> None:
        pass


def content_of(store: SealedStore) -> dict[str, bytes]:
    """All of it."""
    return {name: store[name] for name in store.names()}


def _steps(choice: random.Random, count: int, largest: int) -> Iterator[Step]:
    names: set[str] = set()
    for _ in range(count):
        kind = choice.random()
        if kind < 0.15:
            yield "reopen" if kind < 0.1 else "reseal"
            continue
        removed = dict.fromkeys(name for name in sorted(names) if choice.random() < 0.1)
        put = {
            f"name {choice.randrange(40)}": choice.randbytes(choice.choice([0, 30, 1000, largest]))
            for _ in range(choice.randrange(1, 5))
        }
        names = names.difference(removed).union(put)
        yield {**removed, **put}


def _apply(changes: Mapping[str, bytes | None], store: SealedStore) -> None:
    with store.transaction() as change:
        for name, value in changes.items():
            if value is None:
                del change[name]
            else:
                change[name] = value
