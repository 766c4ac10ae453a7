"""Several server processes in one enclave."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import grpc
import pytest
from attested import open_channel
from observing import eventually, processes_that_mention
from probe import probe_pb2, probe_pb2_grpc

from adyton.errors import AdytonError, EnclaveDiedError
from adyton.host.launch import registry
from adyton.host.launch.process import ProcessLauncher
from adyton.host.manager import EnclaveClient, EnclaveManager
from adyton.proto import grpc_application_pb2 as extensions
from adyton.testing.probes import AIO_SERVER, SERVER, probe_bundle, server_config

Text = probe_pb2.Text


class WithoutNamespaces(ProcessLauncher):
    """So that a process id inside is one outside."""

    def __init__(self) -> None:
        super().__init__(namespaces=False)


@pytest.fixture(autouse=True)
def _same_process_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.LAUNCHERS, "process", f"{__name__}:WithoutNamespaces")


@pytest.fixture
def enclave(manager: EnclaveManager) -> EnclaveClient:
    return manager.load("server", probe_bundle(SERVER, "[server]\nworkers = 2\n"), server_config())


def ask_who(enclave: EnclaveClient) -> tuple[int, str]:
    """Process id and CPUs of the worker that a new connection reaches."""
    with open_channel(enclave) as channel:
        pid, _, cpus = probe_pb2_grpc.ProbeStub(channel).Who(Text(), timeout=10).text.partition(" ")
    return int(pid), cpus


def all_workers(enclave: EnclaveClient) -> dict[int, str]:
    return dict(ask_who(enclave) for _ in range(40))


def test_each_worker_has_a_cpu_of_its_own(enclave: EnclaveClient) -> None:
    workers = all_workers(enclave)
    assert len(workers) == 2
    allowed = sorted(os.sched_getaffinity(0))
    assert set(workers.values()) == {f"[{allowed[index % len(allowed)]}]" for index in range(2)}


def test_asyncio_workers_by_the_hosts_configuration(manager: EnclaveManager) -> None:
    configuration = server_config()
    configuration.Extensions[extensions.workers] = 3
    enclave = manager.load("server", probe_bundle(AIO_SERVER), configuration)
    assert len(all_workers(enclave)) == 3


def test_a_killed_worker_is_replaced_and_the_others_serve_meanwhile(enclave: EnclaveClient) -> None:
    before = all_workers(enclave)
    victim = next(iter(before))
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: any("another takes its place" in line for line in enclave.log_tail()))
    eventually(lambda: len(set(all_workers(enclave)) - {victim}) == 2, 20)


def test_a_worker_that_dies_again_and_again_ends_the_enclave(enclave: EnclaveClient) -> None:
    until = time.monotonic() + 60
    while enclave.wait_stop_requested(0) is None:
        assert time.monotonic() < until
        try:
            os.kill(ask_who(enclave)[0], signal.SIGKILL)
        except (AdytonError, grpc.RpcError, ProcessLookupError):
            time.sleep(0.05)
    assert enclave.wait_stop_requested(0) == "10 workers died within a minute"
    enclave.destroy()


def test_workers_end_with_the_enclave(enclave: EnclaveClient, runtime_directory: Path) -> None:
    workers = set(all_workers(enclave))
    enclave.destroy()
    assert not workers & set(processes_that_mention(str(runtime_directory)))


def test_workers_die_with_a_killed_enclave(enclave: EnclaveClient, runtime_directory: Path) -> None:
    workers = set(all_workers(enclave))
    leaders = set(processes_that_mention(str(runtime_directory))) - workers
    for pid in leaders:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not processes_that_mention(str(runtime_directory)))
    with pytest.raises(EnclaveDiedError, match="killed by SIGKILL"):
        enclave.destroy()


def test_rpcs_in_flight_get_their_time_in_every_worker(manager: EnclaveManager) -> None:
    configuration = server_config()
    configuration.Extensions[extensions.workers] = 2
    configuration.Extensions[extensions.shutdown_grace_ms] = 3000
    enclave = manager.load("server", probe_bundle(SERVER), configuration)
    channels = [open_channel(enclave) for _ in range(8)]
    slow = [
        probe_pb2_grpc.ProbeStub(each).Echo.future(Text(text="ok", milliseconds=1000), timeout=20) for each in channels
    ]
    time.sleep(0.5)
    enclave.destroy()
    assert [each.result().text for each in slow] == ["ok"] * 8
    for channel in channels:
        channel.close()
