"""`adyton proxy`: stock gRPC clients, in plain text, that reach an enclave through it as if they were there."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import stat
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from command_line import ALLOW, SIMULATED, Running, adyton, running, simulated_policy
from grpc_health.v1 import health_pb2, health_pb2_grpc

from adyton.cli.proxy import MAX_RPCS
from adyton.errors import ExitCode
from adyton.host.bundles import LOCK, runtime_lock

MEBIBYTE = 1 << 20
MIRROR = '''
import json
import threading
import time

import grpc

import adyton

PRODUCED, TAKEN, CANCELLED = [0], [0], threading.Event()


def shout(request, context):
    return request.upper()


def count(request, context):
    for number in range(int(request)):
        yield b"%d" % number


def join(requests, context):
    return b"+".join(requests)


def chat(requests, context):
    for request in requests:
        yield request.upper()


def metadata(requests, context):
    """What it got, as initial metadata, as its one response, and as trailing metadata."""
    got = [(key, value.hex() if isinstance(value, bytes) else value) for key, value in context.invocation_metadata()]
    context.send_initial_metadata((("x-initial", "i"), ("x-initial-bin", b"\\x00\\xff")))
    context.set_trailing_metadata((("x-trailing", "t"), ("x-trailing", "u")))
    time.sleep(float(dict(got).get("x-sleep", "0")))
    yield json.dumps([got, context.time_remaining()]).encode()


def fail(requests, context):
    yield b"before"
    context.set_trailing_metadata((("x-why", "so"), ("grpc-status-details-bin", b"\\x08\\x09")))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now, \\u00fc")


def flood(request, context):
    context.add_callback(CANCELLED.set)
    while context.is_active():
        yield bytes(65536)
        PRODUCED[0] += 1


def swallow(requests, context):
    """Takes a request when it is told to, which is never."""
    context.add_callback(CANCELLED.set)
    CANCELLED.wait(60)
    return b""


def facts(request, context):
    return json.dumps({"produced": PRODUCED[0], "cancelled": CANCELLED.wait(float(request))}).encode()


class Mirror(adyton.GrpcApplication):
    def add_servicers(self, server):
        unary, out = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        methods = {"Shout": unary(shout), "Facts": unary(facts), "Count": out(count), "Flood": out(flood)}
        for name, method in (("Chat", chat), ("Metadata", metadata), ("Fail", fail)):
            methods[name] = grpc.stream_stream_rpc_method_handler(method)
        for name, method in (("Join", join), ("Swallow", swallow)):
            methods[name] = grpc.stream_unary_rpc_method_handler(method)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("mirror.Mirror", methods)])
'''
SETTINGS = f"""\
name = "mirror"
application = "mirror:Mirror"
include = ["mirror.py"]
[server]
max_message_bytes = {100 * MEBIBYTE}
"""


def write_mirror(folder: Path) -> Path:
    folder.mkdir()
    (folder / "mirror.py").write_text(MIRROR)
    (folder / "enclave.toml").write_text(SETTINGS)
    (folder / LOCK).write_bytes(runtime_lock())
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mirror(tmp_path_factory.mktemp("a project") / "mirror")


@pytest.fixture(scope="module")
def policy(project: Path) -> Path:
    path = project.parent / "policy.toml"
    path.write_text(simulated_policy(project))
    return path


@pytest.fixture(scope="module")
def enclave(project: Path) -> Iterator[Running]:
    with running(project) as server:
        yield server


@pytest.fixture(scope="module")
def words(enclave: Running, policy: Path) -> tuple[str | Path, ...]:
    """How a proxy is told to connect to the enclave."""
    return (f"localhost:{enclave.port}", "--policy", policy, *ALLOW)


@pytest.fixture(scope="module")
def proxy(words: tuple[str | Path, ...]) -> Iterator[Running]:
    with running(*words, "--listen", "127.0.0.1:0", verb="proxy") as started:
        yield started


def channel_to(address: str) -> Any:
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    alone = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.insecure_channel(address, [*unlimited, *alone])


@pytest.fixture
def channel(proxy: Running) -> Iterator[Any]:
    with channel_to(proxy.first_line) as made:
        yield made


def shout(channel: Any, request: bytes = b"a", **options: Any) -> bytes:
    answer: bytes = channel.unary_unary("/mirror.Mirror/Shout")(request, timeout=30, **options)
    return answer


def facts(channel: Any, seconds: float) -> dict[str, Any]:
    """What the enclave's application has counted; it waits so long for a cancellation."""
    found: dict[str, Any] = json.loads(channel.unary_unary("/mirror.Mirror/Facts")(str(seconds).encode(), timeout=30))
    return found


class TestWhatPasses:
    def test_all_four_kinds(self, channel: Any) -> None:
        assert shout(channel) == b"A"
        assert list(channel.unary_stream("/mirror.Mirror/Count")(b"3", timeout=30)) == [b"0", b"1", b"2"]
        assert channel.stream_unary("/mirror.Mirror/Join")(iter([b"a", b"b"]), timeout=30) == b"a+b"
        chat = channel.stream_stream("/mirror.Mirror/Chat")(iter([b"a"] * 500), timeout=30)
        assert list(chat) == [b"A"] * 500

    def test_generated_stubs(self, channel: Any) -> None:
        stub = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=30).status == health_pb2.HealthCheckResponse.SERVING

    def test_each_answer_comes_before_the_next_question(self, channel: Any) -> None:
        asked = threading.Semaphore(0)

        def questions() -> Iterator[bytes]:
            for word in (b"one", b"two", b"three"):
                yield word
                asked.acquire()

        answers = channel.stream_stream("/mirror.Mirror/Chat")(questions(), timeout=30)
        for word in (b"ONE", b"TWO", b"THREE"):
            assert next(answers) == word
            asked.release()
        assert list(answers) == []

    def test_many_clients_at_once(self, proxy: Running) -> None:
        def client(number: int) -> bool:
            with channel_to(proxy.first_line) as own:
                return all(shout(own, b"%d-%d" % (number, count)) for count in range(100))

        with futures.ThreadPoolExecutor(8) as pool:
            assert all(pool.map(client, range(8)))

    def test_metadata_both_ways(self, channel: Any) -> None:
        sent = (("x-text", "a"), ("x-text", "b"), ("x-raw-bin", b"\x00\xff"), ("te-not", "c"))
        call = channel.stream_stream("/mirror.Mirror/Metadata")(iter([]), metadata=sent, timeout=30)
        got, _ = json.loads(next(call))
        assert [pair for pair in got if pair[0] != "user-agent"] == [
            ["x-text", "a"],
            ["x-text", "b"],
            ["x-raw-bin", "00ff"],
            ["te-not", "c"],
        ]
        assert len([key for key, _ in got if key == "user-agent"]) == 1
        assert [tuple(pair) for pair in call.initial_metadata()] == [("x-initial", "i"), ("x-initial-bin", b"\x00\xff")]
        assert list(call) == []
        assert [tuple(pair) for pair in call.trailing_metadata()] == [("x-trailing", "t"), ("x-trailing", "u")]

    def test_initial_metadata_come_before_the_first_response(self, channel: Any) -> None:
        begun = time.monotonic()
        call = channel.stream_stream("/mirror.Mirror/Metadata")(iter([]), metadata=(("x-sleep", "3"),), timeout=30)
        assert dict(call.initial_metadata())["x-initial"] == "i"
        assert time.monotonic() - begun < 2
        call.cancel()

    def test_the_status_with_its_details_after_the_responses_before_it(self, channel: Any) -> None:
        call = channel.stream_stream("/mirror.Mirror/Fail")(iter([]), timeout=30)
        assert next(call) == b"before"
        with pytest.raises(grpc.RpcError):
            next(call)
        assert (call.code(), call.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "not now, ü")
        assert dict(call.trailing_metadata()) == {"x-why": "so", "grpc-status-details-bin": b"\x08\x09"}

    def test_a_method_that_nobody_has(self, channel: Any) -> None:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/mirror.Mirror/Nothing")(b"", timeout=30)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    def test_the_deadline(self, channel: Any) -> None:
        call = channel.stream_stream("/mirror.Mirror/Metadata")(iter([]), timeout=20)
        _, remaining = json.loads(next(call))
        assert 10 < remaining < 22
        with pytest.raises(grpc.RpcError) as caught:
            list(channel.stream_stream("/mirror.Mirror/Metadata")(iter([]), metadata=(("x-sleep", "5"),), timeout=1))
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    def test_large_messages_up_to_the_bound(self, channel: Any) -> None:
        large = b"a" * (20 * MEBIBYTE)
        assert shout(channel, large) == large.upper()
        with pytest.raises(grpc.RpcError) as caught:
            shout(channel, b"a" * (65 * MEBIBYTE))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert shout(channel) == b"A"

    def test_more_rpcs_than_it_has_threads_for_are_refused(self, alone: tuple[Running, Any]) -> None:
        _, channel = alone
        swallow = channel.stream_unary("/mirror.Mirror/Swallow")
        calls = [swallow.future(endless()) for _ in range(MAX_RPCS + 1)]
        refused = futures.wait(map(_watched, calls), timeout=20, return_when="FIRST_COMPLETED").done
        assert [each.result() for each in refused] == [grpc.StatusCode.RESOURCE_EXHAUSTED]
        for call in calls:
            call.cancel()
        assert shout(channel) == b"A"

    def test_compressed_messages(self, channel: Any) -> None:
        assert shout(channel, b"a" * MEBIBYTE, compression=grpc.Compression.Gzip) == b"A" * MEBIBYTE


@pytest.fixture
def alone(project: Path, policy: Path) -> Iterator[tuple[Running, Any]]:
    """An enclave of its own, and a channel to a proxy of its own."""
    with running(project) as server:
        words = (f"localhost:{server.port}", "--policy", policy, *ALLOW)
        with running(*words, "--listen", "127.0.0.1:0", verb="proxy") as proxy, channel_to(proxy.first_line) as made:
            yield proxy, made


class TestFlow:
    def test_a_client_that_reads_no_more_stops_the_server(self, alone: tuple[Running, Any]) -> None:
        proxy, channel = alone
        flood = channel.unary_stream("/mirror.Mirror/Flood")(b"")
        next(flood)
        time.sleep(2)
        produced = facts(channel, 0)["produced"]
        time.sleep(2)
        assert facts(channel, 0)["produced"] <= produced + 1
        assert produced * 65536 < 64 * MEBIBYTE
        assert resident_bytes(proxy) < 200 * MEBIBYTE
        flood.cancel()
        assert facts(channel, 20)["cancelled"]

    def test_a_server_that_reads_no_more_stops_the_client(self, alone: tuple[Running, Any]) -> None:
        proxy, channel = alone
        given = 0

        def requests() -> Iterator[bytes]:
            nonlocal given
            while given < 4096:
                given += 1
                yield bytes(65536)

        call = channel.stream_unary("/mirror.Mirror/Swallow").future(requests())
        time.sleep(2)
        assert given * 65536 < 64 * MEBIBYTE
        assert resident_bytes(proxy) < 200 * MEBIBYTE
        call.cancel()
        assert facts(channel, 20)["cancelled"]

    def test_a_client_that_is_gone_cancels_at_the_enclave(self, alone: tuple[Running, Any]) -> None:
        proxy, channel = alone
        with channel_to(proxy.first_line) as gone:
            next(gone.unary_stream("/mirror.Mirror/Flood")(b""))
        assert facts(channel, 20)["cancelled"]

    def test_nothing_is_said_of_calls_that_end_early(self, alone: tuple[Running, Any]) -> None:
        proxy, channel = alone
        for _ in range(20):
            call = channel.stream_stream("/mirror.Mirror/Chat")(iter([b"a"] * 100))
            next(call)
            call.cancel()
            call = channel.stream_stream("/mirror.Mirror/Fail")(endless(), timeout=30)
            with pytest.raises(grpc.RpcError):
                list(call)
        assert shout(channel) == b"A"
        code, talk = proxy.end()
        assert code == 0
        assert [line.split()[0] for line in talk.splitlines()] == ["attested", "warning:"]


def _watched(call: Any) -> futures.Future[grpc.StatusCode]:
    """Done with the status of the call when that has ended."""
    ended: futures.Future[grpc.StatusCode] = futures.Future()
    call.add_done_callback(lambda done: ended.set_result(done.code()))
    return ended


def endless() -> Iterator[bytes]:
    while True:
        yield b"x"
        time.sleep(0.001)


def resident_bytes(running: Running) -> int:
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1])


class TestLife:
    def test_what_it_says_at_the_start(self, words: tuple[str | Path, ...]) -> None:
        with running(*words, "--listen", "localhost:0", verb="proxy") as proxy:
            assert proxy.first_line.startswith("127.0.0.1:")
            assert proxy.port > 0
            code, talk = proxy.end(signal.SIGINT)
        assert code == 0
        assert talk.startswith(f"attested {words[0]}: simulated, rule 'mirror ")
        assert talk.endswith(f", level connection\n{SIMULATED}")

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_rpcs_under_way_end_first(self, words: tuple[str | Path, ...], number: int) -> None:
        with running(*words, "--listen", "127.0.0.1:0", verb="proxy") as proxy, channel_to(proxy.first_line) as channel:
            call = channel.stream_stream("/mirror.Mirror/Metadata")(iter([]), metadata=(("x-sleep", "1.5"),))
            assert call.initial_metadata()
            proxy.process.send_signal(number)
            assert json.loads(next(call))
            assert list(call) == []
            assert proxy.end(None)[0] == 0

    def test_an_rpc_without_end_gets_five_seconds(self, words: tuple[str | Path, ...]) -> None:
        with running(*words, "--listen", "127.0.0.1:0", verb="proxy") as proxy, channel_to(proxy.first_line) as channel:
            call = channel.unary_stream("/mirror.Mirror/Flood")(b"")
            next(call)
            begun = time.monotonic()
            assert proxy.end()[0] == 0
            assert 4 < time.monotonic() - begun < 15
            call.cancel()

    def test_a_restart_of_the_enclave(self, project: Path, policy: Path) -> None:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(running(project))
            words = (f"localhost:{first.port}", "--policy", policy, *ALLOW)
            proxy = stack.enter_context(running(*words, "--listen", "127.0.0.1:0", verb="proxy"))
            channel = stack.enter_context(channel_to(proxy.first_line))
            assert shout(channel) == b"A"
            first.end()
            stack.enter_context(running(project, "--port", str(first.port)))
            assert shout(channel) == b"A"

    def test_another_enclave_after_a_restart_gets_nothing(self, project: Path, policy: Path, tmp_path: Path) -> None:
        impostor = write_mirror(tmp_path / "impostor")
        (impostor / "mirror.py").write_text(MIRROR.replace("request.upper()", "request.lower()"))
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(running(project))
            words = (f"localhost:{first.port}", "--policy", policy, *ALLOW)
            proxy = stack.enter_context(running(*words, "--listen", "127.0.0.1:0", verb="proxy"))
            channel = stack.enter_context(channel_to(proxy.first_line))
            assert shout(channel) == b"A"
            first.end()
            stack.enter_context(running(impostor, "--port", str(first.port)))
            with pytest.raises(grpc.RpcError) as caught:
                shout(channel)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "measurement is " in str(caught.value.details())


class TestSockets:
    def test_a_socket_file_for_its_owner_only(self, words: tuple[str | Path, ...], tmp_path: Path) -> None:
        path = tmp_path / "the socket"
        with running(*words, "--listen", f"unix:{path}", verb="proxy") as proxy:
            assert proxy.first_line == f"unix:{path}"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            with channel_to(f"unix:{path}") as channel:
                assert shout(channel) == b"A"
            assert proxy.end()[0] == 0
        assert not path.exists()

    def test_a_live_socket_is_not_replaced(self, words: tuple[str | Path, ...], tmp_path: Path) -> None:
        path = tmp_path / "socket"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            inode = path.stat().st_ino
            done = adyton("proxy", *words, "--listen", f"unix:{path}")
        assert (done.returncode, done.stdout, path.stat().st_ino) == (ExitCode.USAGE, "", inode)
        assert f"somebody listens on {path} already" in done.stderr

    def test_a_dead_socket_is_replaced(self, words: tuple[str | Path, ...], tmp_path: Path) -> None:
        path = tmp_path / "socket"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
        with running(*words, "--listen", f"unix:{path}", verb="proxy"), channel_to(f"unix:{path}") as channel:
            assert shout(channel) == b"A"

    def test_what_is_no_socket_stays(self, words: tuple[str | Path, ...], tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_text("mine")
        done = adyton("proxy", *words, "--listen", f"unix:{path}")
        assert (done.returncode, path.read_text()) == (ExitCode.USAGE, "mine")
        assert "exists, and is no socket" in done.stderr

    def test_a_port_in_use(self, words: tuple[str | Path, ...], proxy: Running) -> None:
        done = adyton("proxy", *words, "--listen", proxy.first_line)
        assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
        assert f"can't listen on {proxy.first_line}" in done.stderr

    @pytest.mark.parametrize(
        "listen", ["0.0.0.0:0", "[::]:0", "192.0.2.1:1", "example.com:1", "127.0.0.1", "127.0.0.1:99999", ":1", "unix:"]
    )
    def test_other_machines_are_not_served(self, policy: Path, listen: str) -> None:
        done = adyton("proxy", "localhost:1", "--policy", policy, "--listen", listen)
        assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
        assert f"--listen {listen!r}: a proxy listens on this machine only" in done.stderr


class TestRefusals:
    def test_an_enclave_that_the_policy_refuses(self, words: tuple[str | Path, ...]) -> None:
        done = adyton("proxy", *words[:3], "--listen", "127.0.0.1:0")
        assert (done.returncode, done.stdout) == (ExitCode.POLICY_REFUSED, "")
        assert ": insecurity is simulated, wanted is none" in done.stderr

    def test_nobody_there(self, words: tuple[str | Path, ...]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as closing:
            target = f"127.0.0.1:{closing.getsockname()[1]}"
        done = adyton("proxy", target, *words[1:], "--listen", "127.0.0.1:0")
        assert (done.returncode, done.stdout) == (ExitCode.UNREACHABLE, "")

    def test_somebody_who_says_nothing(self, words: tuple[str | Path, ...]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            target = f"127.0.0.1:{listener.getsockname()[1]}"
            done = adyton("proxy", target, *words[1:], "--listen", "127.0.0.1:0", "--timeout", "1")
        assert (done.returncode, done.stdout) == (ExitCode.UNREACHABLE, "")
