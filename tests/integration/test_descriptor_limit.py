"""How many files an enclave's processes may have open: each of a server's connections is one."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from observing import children_of

from adyton.host.manager import EnclaveManager
from adyton.proto import grpc_application_pb2 as extensions
from adyton.testing.probes import SERVER, probe_bundle, server_config


@pytest.fixture
def hard_limit() -> Iterator[int]:
    """This process's, whose soft limit is less meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard // 2, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def soft_and_hard(pid: int) -> tuple[int, int]:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    soft, hard = next(line for line in lines if line.startswith("Max open files")).split()[3:5]
    return int(soft), int(hard)


def runs_an_enclave(pid: int) -> bool:
    return b"adyton.enclave.process_entry" in Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.parametrize(("workers", "processes"), [(1, 1), (2, 3)])
def test_an_enclaves_processes_may_open_as_many_as_the_host_allows(
    manager: EnclaveManager, hard_limit: int, workers: int, processes: int
) -> None:
    configuration = server_config()
    configuration.Extensions[extensions.workers] = workers
    manager.load("server", probe_bundle(SERVER), configuration)
    limits = [soft_and_hard(pid) for pid in children_of(os.getpid()) if runs_an_enclave(pid)]
    assert limits == [(hard_limit, hard_limit)] * processes
