"""`adyton proxy` says of each attestation what came of it, one line each, and nothing of calls."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from command_line import ALLOW, SIMULATED, Running, adyton, running, simulated_policy
from probe import probe_pb2, probe_pb2_grpc

from adyton.atls.connect import connector
from adyton.atls.connector import BlockingConnector
from adyton.cli.proxy import TellingOpener
from adyton.errors import ExitCode, UnreachableError
from adyton.host.bundles import Bundle
from adyton.testing.probes import SERVER, write_probe_project

CALLS = 50


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_probe_project(tmp_path / "project", SERVER)


@pytest.fixture
def policy(project: Path, tmp_path: Path) -> Path:
    (tmp_path / "policy.toml").write_text(simulated_policy(project))
    return tmp_path / "policy.toml"


@contextmanager
def proxy_to(target: str, policy: Path) -> Iterator[tuple[Running, Any]]:
    """A proxy, and a client's stub on it."""
    words = (target, "--policy", policy, *ALLOW, "--listen", "127.0.0.1:0")
    with (
        running(*words, verb="proxy") as proxy,
        grpc.insecure_channel(proxy.first_line, [("grpc.enable_http_proxy", 0)]) as channel,
    ):
        yield proxy, probe_pb2_grpc.ProbeStub(channel)


def echo(stub: Any) -> grpc.StatusCode:
    """What becomes of a call."""
    try:
        stub.Echo(probe_pb2.Text(text="a secret"), timeout=30)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def attested(target: str, project: Path) -> str:
    """The line that says that the enclave of the project is acceptable."""
    found = Bundle.of(project).measurements()["reference_values"]
    assert isinstance(found, dict)
    measurement = found["simulated"]["measurement"]
    return rf"attested {target}: simulated, rule '.+', measurement {measurement}, level connection"


def assert_lines(talk: str, *patterns: str) -> None:
    lines = talk.removesuffix("\n").split("\n")
    assert len(lines) == len(patterns), talk
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), (line, pattern)


def attempts(talk: str) -> int:
    """How many attestations failed: one, or two or three where this machine is slow, for it is tried each second."""
    found = talk.count("not attested")
    assert 1 <= found < CALLS / 10
    return found


def test_one_line_for_each_connection_that_it_attests(project: Path, policy: Path) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(running(project))
        target = f"localhost:{first.port}"
        proxy, stub = stack.enter_context(proxy_to(target, policy))
        assert [echo(stub) for _ in range(20)] == [grpc.StatusCode.OK] * 20
        first.end()
        stack.enter_context(running(project, "--port", str(first.port)))
        assert [echo(stub) for _ in range(20)] == [grpc.StatusCode.OK] * 20
        code, talk = proxy.end()
    assert code == 0
    line = attested(target, project)
    assert_lines(talk, line, SIMULATED.strip(), line)


def test_a_line_for_a_refusal_and_not_for_each_call_that_it_concerns(
    project: Path, policy: Path, tmp_path: Path
) -> None:
    other = write_probe_project(tmp_path / "other", SERVER, "[logging]\naccess = true\n")
    with ExitStack() as stack:
        first = stack.enter_context(running(project))
        target = f"localhost:{first.port}"
        proxy, stub = stack.enter_context(proxy_to(target, policy))
        assert echo(stub) is grpc.StatusCode.OK
        first.end()
        stack.enter_context(running(other, "--port", str(first.port)))
        assert {echo(stub) for _ in range(CALLS)} == {grpc.StatusCode.PERMISSION_DENIED}
        _, talk = proxy.end()
    refused = f"not attested {target}: .*; rule '.+': measurement is [0-9a-f]+, wanted is .*"
    assert_lines(talk, attested(target, project), SIMULATED.strip(), *[refused] * attempts(talk))
    assert "a secret" not in talk


def test_a_line_where_nobody_is_there_any_more(project: Path, policy: Path) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(running(project))
        target = f"localhost:{first.port}"
        proxy, stub = stack.enter_context(proxy_to(target, policy))
        first.end()
        assert {echo(stub) for _ in range(CALLS)} == {grpc.StatusCode.UNAVAILABLE}
        _, talk = proxy.end()
    refused = f"not attested {target}: .*Connection refused"
    assert_lines(talk, attested(target, project), SIMULATED.strip(), *[refused] * attempts(talk))


def test_one_line_for_each_time_that_it_attests_again(
    project: Path, policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On one connection, which the command does once an hour."""
    with running(project) as server:
        target = f"localhost:{server.port}"
        opener = TellingOpener(BlockingConnector(connector(target, policy, allow_insecure=["simulated"])), target)
        session = opener.open(20)
        try:
            opener.renew(session, 20)
            server.end()
            with pytest.raises(UnreachableError):
                opener.renew(session, 20)
        finally:
            session.channel.close()
    line = attested(target, project)
    assert_lines(capsys.readouterr().err, line, line, f"not attested {target}: .*")


def test_a_refusal_at_the_start_is_said_once_by_the_command(project: Path, policy: Path) -> None:
    with running(project) as server:
        done = adyton("proxy", f"localhost:{server.port}", "--policy", policy, "--listen", "127.0.0.1:0")
    assert done.returncode == ExitCode.POLICY_REFUSED
    assert "not attested" not in done.stderr
    assert done.stderr.count("insecurity is simulated, wanted is none") == 1
