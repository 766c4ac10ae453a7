"""A TrustedApplication that tries what it is told, so that a test sees an enclave from inside."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import adyton
from probe import probe_pb2


class Plain(adyton.TrustedApplication):
    """`initialize` behaves as `behaviour` says, `run` as `command`, `finalize` as `farewell`."""

    def initialize(self, config: adyton.EnclaveConfig) -> None:
        self.behave(config.Extensions[probe_pb2.behaviour])

    def run(self, input: adyton.EnclaveInput) -> adyton.EnclaveOutput:
        output = adyton.EnclaveOutput()
        output.Extensions[probe_pb2.answer] = str(self.behave(input.Extensions[probe_pb2.command]))
        return output

    def finalize(self, final: adyton.EnclaveFinal) -> None:
        self.behave(final.Extensions[probe_pb2.farewell])

    def behave(self, words: str) -> object:
        """Carry out "verb argument"; nothing for an empty string."""
        if not words:
            return ""
        verb, _, argument = words.partition(" ")
        actions: dict[str, Callable[[str], object]] = {
            "answer": str,
            "bundle": lambda _: sorted(str(each) for each in self.context.application_directory.rglob("*.py")),
            "connect": lambda port: socket.create_connection(("127.0.0.1", int(port)), 5).close(),
            "cwd": lambda _: Path.cwd(),
            "data": lambda _: self.context.data_directory,
            "environ": lambda _: sorted(os.environ),
            "env": lambda name: os.environ[name],
            "exhaust": lambda _: [b"x" * (1 << 20) for _ in itertools.count()],
            "exit": lambda code: os._exit(int(code)),
            "fds": lambda _: _descriptors(),
            "fill": _fill,
            "flags": lambda _: sys.flags,
            "hostname": lambda _: socket.gethostname(),
            "leave": lambda seconds: subprocess.Popen(_python(f"import time; time.sleep({seconds})")).pid,
            "keep": _keep,
            "kill": lambda _: os.kill(os.getpid(), signal.SIGKILL),
            "large": lambda size: "x" * int(size),
            "list": lambda path: sorted(each.name for each in Path(path).iterdir()),
            "modules": lambda _: sorted({name.partition(".")[0] for name in sys.modules}),
            "origin": lambda name: getattr(sys.modules[name], "__file__", None),
            "parent": lambda _: os.kill(os.getppid(), 0),
            "pid": lambda _: os.getpid(),
            "print": lambda text: print(text, flush=True),
            "raise": _raise,
            "reach": _reach,
            "read": lambda path: len(Path(path).read_bytes()),
            "show": lambda path: Path(path).read_text(),
            "sleep": lambda seconds: time.sleep(float(seconds)),
            "spawn": lambda _: subprocess.run(_python("print(1)"), check=True).returncode,
            "state": lambda _: self.context.state_directory,
            "status": _raise_status,
            "stdin": lambda _: sys.stdin.readline(),
            "stop": self.context.request_stop,
            "terminate": lambda _: _terminate(),
            "write": lambda path: Path(path).write_text("written"),
        }
        return actions[verb](argument)


def _keep(words: str) -> None:
    """Write a word to a file ("word path"), so that it outlives whatever ends now."""
    word, _, path = words.partition(" ")
    with Path(path).open("w") as file:
        file.write(word)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(Path(path).parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def _fill(path: str) -> str:
    """Write until there is no more room; what the system says then."""
    try:
        with Path(path).open("wb") as file:
            while True:
                file.write(bytes(1 << 20))
    except OSError as problem:
        return errno.errorcode[problem.errno or 0]


def _descriptors() -> list[str]:
    """What this process has open."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists the folder
            found.append(str(entry.readlink()))
    return sorted(found)


def _python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def _terminate() -> int:
    """How a child ends that is told to."""
    with subprocess.Popen(_python("import time; print(flush=True); time.sleep(60)"), stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.terminate()
        return child.wait(30)


def _reach(address: str) -> None:
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), 5).close()


def _raise(message: str) -> None:
    raise ValueError(message)


def _raise_status(words: str) -> None:
    code, _, message = words.partition(" ")
    raise adyton.ApplicationError(adyton.StatusCode[code], message)


class NotAnApplication:
    """What `application` in enclave.toml must not name."""
