"""The translator as it is built, run, called and killed, by tests that look at its counts."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from command_line import Running, adyton, running, simulated_policy
from observing import children_of, eventually
from translator import translator_pb2, translator_pb2_grpc, usage

from adyton.atls.channel import AttestedChannel
from adyton.atls.connect import connect
from adyton.errors import ExitCode
from adyton.policy.document import Policy

TRANSLATOR = Path(__file__).resolve().parents[1] / "examples" / "translator"


def build(folder: Path, more: str = "", **words: str) -> Path:
    """The translator's bundle with that in its enclave.toml besides, and these words in its dictionary."""
    shutil.copytree(TRANSLATOR, folder, ignore=shutil.ignore_patterns("dist", "image.lock", "__pycache__"))
    with (folder / "enclave.toml").open("a") as settings:
        settings.write(more)
    with (folder / "translator" / "dictionary.toml").open("a") as dictionary:
        dictionary.writelines(f'{word} = "{translated}"\n' for word, translated in words.items())
    built = adyton("build", folder)
    assert built.returncode == 0, built.stderr
    return folder / "dist" / "translator.adyton"


@contextlib.contextmanager
def channel_to(server: Running, bundle: Path, **options: Any) -> Iterator[AttestedChannel]:
    policy = Policy.parse(simulated_policy(bundle).encode())
    assert server.port, server.end()
    with connect(f"localhost:{server.port}", policy, allow_insecure=["simulated"], **options) as channel:
        yield channel


def told(call: Any) -> int:
    """The count that came with an answer; -1 for none."""
    return int(dict(call.trailing_metadata()).get(usage.USAGE_COUNT, -1))


def translate(channel: grpc.Channel, client: str | None, word: str = "asylo") -> tuple[str, int]:
    """The word, and the client's count."""
    stub: Any = translator_pb2_grpc.TranslatorStub(channel)
    metadata = () if client is None else ((usage.CLIENT_NAME, client),)
    request = translator_pb2.GetTranslationRequest(input_word=word)
    answer, call = stub.GetTranslation.with_call(request, timeout=20, metadata=metadata)
    return answer.translated_word, told(call)


def count(channel: grpc.Channel, client: str | None = None) -> int:
    """The client's count, with one word more."""
    return translate(channel, client)[1]


def status_of(channel: grpc.Channel, client: str | None, word: str = "asylo") -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        translate(channel, client, word)
    failed: Any = caught.value
    code: grpc.StatusCode = failed.code()
    return code


def at(folder: Path, name: str = "") -> tuple[str | Path, ...]:
    """A state folder in that one, of an enclave with a name of its own: the hardware remembers the stores of each."""
    return ("--state", folder / "state", "--name", name or folder.name)


def count_after_a_start(client: str, bundle: Path, *state: str | Path) -> int:
    """What a client's count is, when the bundle is run and ended as it should be."""
    with running(bundle, *state) as server:
        with channel_to(server, bundle) as channel:
            found = count(channel, client) - 1
        assert server.end()[0] == 0
    return found


def assert_refused(message: str, *words: str | Path) -> None:
    """`adyton run` of these ends without a port, says that, and exits as the table of errors has it."""
    done = adyton("run", *words)
    assert (done.returncode, done.stdout) == (ExitCode.FAILED, ""), done.stderr
    assert re.search(message, done.stderr), done.stderr


def kill_the_enclave(server: Running) -> None:
    for pid in reversed(children_of(server.process.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert server.end(None)[0] == ExitCode.FAILED


def kill_the_host(server: Running) -> None:
    enclave = children_of(server.process.pid)
    server.end(signal.SIGKILL)
    eventually(lambda: not any(Path(f"/proc/{pid}/fd").is_dir() and _is_alive(pid) for pid in enclave))


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    return False
