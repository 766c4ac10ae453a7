"""Bundles of applications that do as they are told, and how to tell them.

Importing this puts the probes' own folder on sys.path: their generated code is the package `probe`, as in the enclave.
"""

from __future__ import annotations

import functools
import shutil
import sys
import tempfile
from pathlib import Path

from adyton.host.bundles import LOCK, Bundle, runtime_lock
from adyton.proto import grpc_application_pb2 as extensions
from adyton.proto.enclave_pb2 import EnclaveConfig, EnclaveFinal, EnclaveInput, EnclaveOutput

PROJECT = Path(__file__).with_name("project")
if str(PROJECT) not in sys.path:
    sys.path.append(str(PROJECT))

from probe import probe_pb2  # noqa: E402  needs the line above

PLAIN = "probe.plain:Plain"
SERVER = "probe.servers:ProbeServer"
AIO_SERVER = "probe.servers:AioProbeServer"


def write_probe_project(folder: Path, application: str = PLAIN, settings: str = "") -> Path:
    """A project of the probe `application` in `folder`; `settings` is more TOML for its enclave.toml."""
    shutil.copytree(PROJECT / "probe", folder / "probe", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / LOCK).write_bytes(runtime_lock())
    text = f'name = "probe"\napplication = "{application}"\ninclude = ["probe"]\n{settings}'
    (folder / "enclave.toml").write_text(text, encoding="utf-8")
    return folder


@functools.cache
def probe_bundle(application: str = PLAIN, settings: str = "") -> Bundle:
    """The bundle of such a project."""
    with tempfile.TemporaryDirectory() as folder:
        return Bundle.build(write_probe_project(Path(folder), application, settings))


def config(behaviour: str = "") -> EnclaveConfig:
    """A configuration that makes the plain probe behave so at initialize."""
    made = EnclaveConfig()
    if behaviour:
        made.Extensions[probe_pb2.behaviour] = behaviour
    return made


def server_config(*, address: str = "127.0.0.1", port: int = 0, behaviour: str = "") -> EnclaveConfig:
    """A configuration for a probe server."""
    made = config(behaviour)
    made.Extensions[extensions.server_address] = address
    made.Extensions[extensions.port] = port
    return made


def command(words: str) -> EnclaveInput:
    """An input that tells the plain probe what to do."""
    made = EnclaveInput()
    made.Extensions[probe_pb2.command] = words
    return made


def farewell(words: str) -> EnclaveFinal:
    """What the plain probe does when it is finalized."""
    made = EnclaveFinal()
    made.Extensions[probe_pb2.farewell] = words
    return made


def answer(output: EnclaveOutput) -> str:
    """What the plain probe answered."""
    return output.Extensions[probe_pb2.answer]
