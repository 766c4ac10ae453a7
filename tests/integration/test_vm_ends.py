"""What a virtual machine that could not start leaves on the host, and one that ends while nobody reads its log."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path

import pytest
from descriptors import failures_for_want_of_descriptors, python_leaves_none
from machines import LOAD_SECONDS, boots, nothing_left

from adyton.errors import AdytonError, ApplicationError, ConfigurationError
from adyton.host.manager import EnclaveManager
from adyton.testing.probes import SERVER, command, config, probe_bundle, server_config

pytestmark = boots


@pytest.fixture(autouse=True)
def _nothing_stays(runtime_directory: Path) -> Iterator[None]:
    with nothing_left(runtime_directory):
        yield


@python_leaves_none
def test_without_descriptors_left_it_is_a_launch_error_and_nothing_stays() -> None:
    assert failures_for_want_of_descriptors("vm") > 12


@pytest.mark.parametrize("port", [-1, 65536])
def test_what_is_no_port_is_refused_before_the_machine_starts(manager: EnclaveManager, port: int) -> None:
    with pytest.raises(ConfigurationError, match=f"port {port} is none"):
        manager.load("probe", probe_bundle(SERVER), server_config(port=port), on="vm")


def test_an_applications_error_comes_with_its_own_log_only(manager: EnclaveManager) -> None:
    with pytest.raises(ApplicationError, match="uncaught ValueError in initialize") as caught:
        manager.load("probe", probe_bundle(), config("raise no"), on="vm", timeout_seconds=LOAD_SECONDS)
    log = "\n".join(caught.value.log_tail)
    assert "ValueError: no" in log
    assert "random: crng init done" not in log
    assert "Run /init" not in log


@pytest.mark.timeout(240)
def test_a_log_that_nobody_reads_does_not_hold_up_the_end(manager: EnclaveManager) -> None:
    read, write = os.pipe()
    configuration = config()
    configuration.stdout_fd = write
    enclave = manager.load("probe", probe_bundle(), configuration, on="vm", timeout_seconds=LOAD_SECONDS)
    printing = enclave.run_future(command("print " + "y" * 2_000_000))
    with pytest.raises(FutureTimeoutError):
        printing.result(5)
    begun = time.monotonic()
    with contextlib.suppress(AdytonError):
        enclave.destroy(timeout_seconds=1)
    assert time.monotonic() - begun < 10
    os.close(read)
    os.close(write)
