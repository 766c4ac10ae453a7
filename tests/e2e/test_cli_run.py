"""`adyton run`: what it refuses of a project, what it says of an end, and that no line of the log is said twice."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from command_line import COMMAND, adyton, running, simulated_policy
from machines import QEMU, boots, process_of
from probe import probe_pb2, probe_pb2_grpc

from adyton.atls.connect import connect
from adyton.errors import ExitCode
from adyton.testing.probes import SERVER, write_probe_project

#: The status of its own, after two lines of the log and one that is printed.
FAILING = """
import logging

import adyton


class Failing(adyton.TrustedApplication):
    def initialize(self, config):
        logging.getLogger("failing").error("first line")
        print("second line", flush=True)
        raise adyton.ApplicationError(adyton.StatusCode.NOT_FOUND, "no model")
"""
STARTED = '"message": "server started"'


@pytest.fixture
def failing(tmp_path: Path) -> Path:
    """A project whose application does not start."""
    project = write_probe_project(tmp_path / "project", "probe.failing:Failing")
    (project / "probe" / "failing.py").write_text(FAILING)
    return project


@pytest.mark.parametrize("options", [(), ("--log-level", "ERROR"), ("--log-directory", "log")])
def test_an_application_that_does_not_start_has_said_why_once(
    options: tuple[str, ...], failing: Path, tmp_path: Path
) -> None:
    done = adyton("run", failing, *options, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (ExitCode.FAILED, "")
    assert done.stderr.endswith("\nadyton run: NOT_FOUND: no model\n")
    assert [done.stderr.count(line) for line in ("first line", "second line")] == [1, 1]
    if "log" in options:
        assert "first line" in (tmp_path / "log" / "probe.log").read_text()


def test_an_application_that_does_not_start_where_nobody_reads_what_it_says(failing: Path, tmp_path: Path) -> None:
    """The error goes where its log goes, so neither is heard; the file has the log all the same."""
    with Path("/dev/full").open("w") as full:
        words: list[str | Path] = [*COMMAND, "run", failing, "--log-directory", tmp_path]
        done = subprocess.run(words, stderr=full, check=False, timeout=90)
    assert done.returncode == ExitCode.FAILED
    assert "first line" in (tmp_path / "probe.log").read_text()


class TestOnAMachine:
    pytestmark = boots

    def test_a_machine_that_ends_says_only_what_its_console_had_beside_the_log(self, tmp_path: Path) -> None:
        with running(write_probe_project(tmp_path, SERVER), "--on", "vm") as server:
            os.kill(process_of(QEMU), signal.SIGKILL)
            code, talk = server.end(None)
        log, _, error = talk.partition("adyton run: ")
        assert code == ExitCode.FAILED
        assert error.startswith("the virtual machine is gone: QEMU ended: killed by SIGKILL; its last log lines:\n  ")
        assert (STARTED in log, STARTED in error) == (True, False)
        assert [line for line in error.splitlines()[1:] if line.strip() in log] == []


@pytest.mark.parametrize(
    ("file", "before", "after", "why"),
    [
        (
            "probe/servers.py",
            '"""The',
            '("""The',
            "probe/servers.py:1: '(' was never closed; the application imports it",
        ),
        ("enclave.toml", "servers:", "server:", "enclave.toml: 'application' is in the module 'probe.server', which"),
    ],
    ids=["no Python", "not included"],
)
@pytest.mark.parametrize("verb", ["build", "run"])
def test_a_project_that_can_not_start_is_refused_before_anything_does(
    verb: str, file: str, before: str, after: str, why: str, tmp_path: Path
) -> None:
    project = write_probe_project(tmp_path, SERVER)
    (project / file).write_text((project / file).read_text().replace(before, after, 1))
    done = adyton(verb, project)
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert f"adyton {verb}: {why}" in done.stderr
    assert not (project / "dist").exists()


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    project = write_probe_project(tmp_path, SERVER)
    policy = simulated_policy(project).encode()
    with (
        running(project, "--grace-ms", "60000") as server,
        connect(f"localhost:{server.port}", policy, allow_insecure=["simulated"]) as channel,
    ):
        call = probe_pb2_grpc.ProbeStub(channel).Count(probe_pb2.Text(text="600", milliseconds=100))
        next(call)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(2)
        assert server.process.poll() is None
        begun = time.monotonic()
        code, talk = server.end(signal.SIGTERM)
        assert time.monotonic() - begun < 10
        call.cancel()
    assert code == -signal.SIGTERM
    assert "\nSIGTERM: finalizing; a second signal ends it at once\n" in talk
