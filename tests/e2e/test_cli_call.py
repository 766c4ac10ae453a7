"""`adyton call --plaintext` as a process, against real servers: honest ones, and ones whose reflection lies.

What it does is the same on an attested channel; what that adds is in test_cli_channel.py.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, message_factory, timestamp_pb2
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

COMMAND = [sys.executable, "-m", "adyton.cli", "call", "--plaintext"]
PLAIN = "plain gRPC: this connection is neither encrypted nor attested\n"
MEBIBYTE = 1 << 20
PROXIES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy", "NO_PROXY")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in PROXIES} | {"PYTHONUTF8": "1"}


def call(
    *words: str, stdin: str | bytes = b"", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *words],
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        timeout=60,
        env=ENVIRONMENT | (environment or {}),
        check=False,
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def start(*words: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([*COMMAND, *words], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT)


def refusal(done: subprocess.CompletedProcess[str]) -> tuple[int, str]:
    """Exit code and message, without the line on the plain connection."""
    return done.returncode, done.stderr.removeprefix(PLAIN).removeprefix("adyton call: ").removesuffix("\n")


# An honest server: the service probe.Probe, with a method of each kind.


def file_of_words() -> FileDescriptorProto:
    file = FileDescriptorProto(name="word.proto", package="probe", syntax="proto2")
    word = file.message_type.add(name="Word")
    kinds = FieldDescriptorProto
    word.field.add(name="the_text", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    word.field.add(name="count", number=2, type=kinds.TYPE_INT32, label=kinds.LABEL_OPTIONAL)
    strict = file.message_type.add(name="Strict")
    strict.field.add(name="needed", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_REQUIRED)
    return file


def file_of_probe() -> FileDescriptorProto:
    imports = ["word.proto", "google/protobuf/any.proto", "google/protobuf/timestamp.proto"]
    file = FileDescriptorProto(name="probe.proto", package="probe", syntax="proto3", dependency=imports)
    service = file.service.add(name="Probe")
    any_type, timestamp_type = ".google.protobuf.Any", ".google.protobuf.Timestamp"
    for name, request, response, streams in (
        ("Echo", ".probe.Word", ".probe.Word", (False, False)),
        ("Repeat", ".probe.Word", ".probe.Word", (False, True)),
        ("Join", ".probe.Word", ".probe.Word", (True, False)),
        ("Chat", ".probe.Word", ".probe.Word", (True, True)),
        ("Demand", ".probe.Strict", ".probe.Word", (False, False)),
        ("Wrap", ".probe.Word", any_type, (False, False)),
        ("Unwrap", any_type, ".probe.Word", (False, False)),
        ("Date", timestamp_type, timestamp_type, (False, False)),
        ("Garbage", ".probe.Word", ".probe.Word", (False, False)),
        ("Twice", ".probe.Word", ".probe.Word", (False, False)),
        ("Never", ".probe.Word", ".probe.Word", (False, False)),
    ):
        service.method.add(
            name=name,
            input_type=request,
            output_type=response,
            client_streaming=streams[0],
            server_streaming=streams[1],
        )
    return file


def file_of_secret() -> FileDescriptorProto:
    """Imported by nothing; only an Any holds its message."""
    file = FileDescriptorProto(name="secret.proto", package="probe", syntax="proto3")
    field = file.message_type.add(name="Secret").field
    field.add(name="hidden_word", number=1, type=FieldDescriptorProto.TYPE_STRING)
    return file


POOL = DescriptorPool()
for each in (any_pb2, timestamp_pb2):
    POOL.AddSerializedFile(each.DESCRIPTOR.serialized_pb)
for proto in (file_of_words(), file_of_probe(), file_of_secret()):
    POOL.AddSerializedFile(proto.SerializeToString())
Word: Any = message_factory.GetMessageClass(POOL.FindMessageTypeByName("probe.Word"))
Secret: Any = message_factory.GetMessageClass(POOL.FindMessageTypeByName("probe.Secret"))


def echo(request: Any, context: grpc.ServicerContext) -> Any:
    match request.the_text:
        case "busy":
            context.abort(grpc.StatusCode.UNAVAILABLE, "come back later")
        case "escape":
            context.abort(grpc.StatusCode.INTERNAL, "\x1b[31mred\nline")
        case "late":
            context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the database is slow")
        case "slow":
            time.sleep(3)
        case "metadata":
            seen = {name: value for name, value in context.invocation_metadata() if name.startswith("x-")}
            return Word(the_text=repr(sorted(seen.items())))
        case "big":
            return Word(the_text="x" * request.count * MEBIBYTE)
    return request


def repeat(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
    number = 0
    while context.is_active() and (not request.count or number < request.count):
        number += 1
        yield Word(the_text=request.the_text, count=number)


def join(requests: Iterable[Any], context: grpc.ServicerContext) -> Any:
    return Word(the_text="+".join(each.the_text for each in requests))


def chat(requests: Iterable[Any], context: grpc.ServicerContext) -> Iterator[Any]:
    for request in requests:
        if request.the_text == "bye":
            return
        if request.the_text == "fail":
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now")
        yield Word(the_text=request.the_text.upper())


def wrap(request: Any, context: grpc.ServicerContext) -> Message:
    wrapped = any_pb2.Any(type_url="type.example/probe.Unheard", value=b"\x0a\x00")
    if request.the_text:
        wrapped.Pack(Secret(hidden_word=request.the_text))
    return wrapped


def unwrap(request: any_pb2.Any, context: grpc.ServicerContext) -> Any:
    return Word(the_text=Secret.FromString(request.value).hidden_word)


def probe_handlers() -> grpc.GenericRpcHandler:
    def handler(kind: Callable[..., Any], behaviour: Callable[..., Any], *, reads: Any = Word) -> Any:
        return kind(
            behaviour, request_deserializer=reads.FromString, response_serializer=type(Word()).SerializeToString
        )

    serialize: Any = {"response_serializer": lambda message: message.SerializeToString()}
    unary = grpc.unary_unary_rpc_method_handler
    handlers = {
        "Echo": handler(unary, echo),
        "Repeat": handler(grpc.unary_stream_rpc_method_handler, repeat),
        "Join": handler(grpc.stream_unary_rpc_method_handler, join),
        "Chat": handler(grpc.stream_stream_rpc_method_handler, chat),
        "Wrap": unary(wrap, request_deserializer=Word.FromString, **serialize),
        "Unwrap": handler(unary, unwrap, reads=any_pb2.Any),
        "Date": unary(lambda request, _: request),
        "Garbage": unary(lambda _request, _: b"\xff\xff\xff"),
        "Twice": grpc.unary_stream_rpc_method_handler(lambda _request, _: iter([b"", b""])),
        "Never": grpc.unary_stream_rpc_method_handler(lambda _request, _: iter([])),
    }
    return grpc.method_handlers_generic_handler("probe.Probe", handlers)


@pytest.fixture(scope="module")
def socket_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("unix socket") / "the socket"


@pytest.fixture(scope="module")
def port(socket_path: Path) -> Iterator[int]:
    server = grpc.server(futures.ThreadPoolExecutor(16), options=[("grpc.max_send_message_length", -1)])
    server.add_generic_rpc_handlers([probe_handlers()])
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    POOL.AddSerializedFile(health_pb2.DESCRIPTOR.serialized_pb)
    names = ["probe.Probe", "grpc.health.v1.Health"]
    servicer = reflection.ReflectionServicer(names, pool=POOL)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    server.add_insecure_port(f"unix:{socket_path}")
    number = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield number
    server.stop(0).wait()


@pytest.fixture(scope="module")
def target(port: int) -> str:
    return f"127.0.0.1:{port}"


class TestKinds:
    def test_unary_is_indented(self, target: str) -> None:
        done = call(target, "probe.Probe/Echo", '{"the_text": "a", "count": 3}')
        assert (done.returncode, done.stdout) == (0, '{\n  "the_text": "a",\n  "count": 3\n}\n')
        assert done.stderr == PLAIN

    def test_compact_is_one_line(self, target: str) -> None:
        done = call(target, "probe.Probe/Echo", "--compact", '{"theText": "a"}')
        assert (done.returncode, done.stdout) == (0, '{"the_text": "a"}\n')

    def test_no_message_is_the_empty_message(self, target: str) -> None:
        assert call(target, "probe.Probe/Echo").stdout == "{}\n"

    def test_a_dash_reads_one_message(self, target: str) -> None:
        done = call(target, "probe.Probe/Echo", "-", "--compact", stdin='{\n\n"the_text":\n"a"}\n')
        assert done.stdout == '{"the_text": "a"}\n'

    def test_method_after_a_dot(self, target: str) -> None:
        assert call(target, "probe.Probe.Echo", "--compact", '{"count": 1}').stdout == '{"count": 1}\n'

    def test_generated_service(self, target: str) -> None:
        done = call(target, "grpc.health.v1.Health/Check", "--compact")
        assert (done.returncode, done.stdout) == (0, '{"status": "SERVING"}\n')

    def test_server_streaming_is_one_line_a_message(self, target: str) -> None:
        done = call(target, "probe.Probe/Repeat", '{"the_text": "a", "count": 3}')
        assert done.returncode == 0
        assert [json.loads(line)["count"] for line in done.stdout.splitlines()] == [1, 2, 3]

    def test_client_streaming_from_arguments(self, target: str) -> None:
        done = call(target, "probe.Probe/Join", "--compact", '{"the_text":"a"}', '{"the_text":"b"}')
        assert (done.returncode, done.stdout) == (0, '{"the_text": "a+b"}\n')

    @pytest.mark.parametrize("words", [(), ("-",)])
    def test_client_streaming_from_standard_input(self, target: str, words: tuple[str, ...]) -> None:
        stdin = '{"the_text":"a"}\n\n{"the_text":"b"}'
        done = call(target, "probe.Probe/Join", "--compact", *words, stdin=stdin)
        assert (done.returncode, done.stdout) == (0, '{"the_text": "a+b"}\n')

    def test_client_streaming_of_nothing(self, target: str) -> None:
        assert json.loads(call(target, "probe.Probe/Join").stdout) == {"the_text": ""}

    def test_many_lines(self, target: str) -> None:
        done = call(target, "probe.Probe/Chat", stdin='{"the_text":"a"}\n' * 2000)
        assert done.stdout == '{"the_text": "A"}\n' * 2000

    def test_bidirectional_from_arguments(self, target: str) -> None:
        done = call(target, "probe.Probe/Chat", '{"the_text":"a"}', '{"the_text":"b"}')
        assert (done.returncode, done.stdout) == (0, '{"the_text": "A"}\n{"the_text": "B"}\n')


class TestInteraction:
    def test_each_answer_comes_before_the_next_question(self, target: str) -> None:
        with start(target, "probe.Probe/Chat") as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for word in ("one", "two", "three"):
                process.stdin.write(json.dumps({"the_text": word}) + "\n")
                process.stdin.flush()
                assert json.loads(process.stdout.readline()) == {"the_text": word.upper()}
            process.stdin.close()
            assert process.wait(20) == 0

    @pytest.mark.parametrize("_", range(5))
    def test_ends_when_the_server_ends_though_input_stays_open(self, target: str, _: int) -> None:
        with start(target, "probe.Probe/Chat") as process:
            assert process.stdin is not None
            assert process.stderr is not None
            process.stdin.write('{"the_text": "bye"}\n')
            process.stdin.flush()
            assert process.wait(20) == 0
            assert process.stderr.read() == PLAIN

    def test_a_failure_ends_it_though_input_stays_open(self, target: str) -> None:
        with start(target, "probe.Probe/Chat") as process:
            assert process.stdin is not None
            assert process.stderr is not None
            process.stdin.write('{"the_text": "fail"}\n')
            process.stdin.flush()
            assert process.wait(20) == 1
            assert process.stderr.read() == PLAIN + "adyton call: FAILED_PRECONDITION: not now\n"

    def test_a_line_that_does_not_fit_cancels_the_call(self, target: str) -> None:
        done = call(target, "probe.Probe/Join", stdin='{"the_text":"a"}\n{"the_text":1}\n{"the_text":"b"}\n')
        code, message = refusal(done)
        assert (code, done.stdout) == (2, "")
        assert message.startswith("line 2 does not fit probe.Word: Failed to parse the_text field: ")

    @pytest.mark.parametrize("_", range(3))
    def test_output_closed_early(self, target: str, _: int) -> None:
        with start(target, "probe.Probe/Repeat", '{"the_text": "a"}') as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert json.loads(process.stdout.readline())["count"] == 1
            process.stdout.close()
            assert process.wait(20) == 141
            assert process.stderr.read() == PLAIN

    def test_head(self, target: str) -> None:
        script = '"$@" | head -n 1'
        words = ["sh", "-c", script, "sh", *COMMAND, target, "probe.Probe/Repeat", '{"the_text": "a"}']
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=ENVIRONMENT, check=True)
        assert (done.stdout, done.stderr) == ('{"the_text": "a", "count": 1}\n', PLAIN)

    def test_closed_standard_input(self, target: str) -> None:
        words = ["sh", "-c", '"$@" <&-', "sh", *COMMAND, target, "probe.Probe/Join"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=ENVIRONMENT, check=False)
        assert refusal(done) == (2, "standard input is closed")


class TestList:
    def test_services(self, target: str) -> None:
        done = call(target, "--list")
        assert (done.returncode, done.stdout, done.stderr) == (0, "grpc.health.v1.Health\nprobe.Probe\n", PLAIN)

    def test_methods_with_their_types(self, target: str) -> None:
        done = call(target, "--list", "probe.Probe")
        assert done.stdout.splitlines()[:4] == [
            "probe.Probe/Echo(probe.Word) returns (probe.Word)",
            "probe.Probe/Repeat(probe.Word) returns (stream probe.Word)",
            "probe.Probe/Join(stream probe.Word) returns (probe.Word)",
            "probe.Probe/Chat(stream probe.Word) returns (stream probe.Word)",
        ]

    def test_unknown_service(self, target: str) -> None:
        message = f"{target} has no service probe.Nothing (it has grpc.health.v1.Health, probe.Probe)"
        assert refusal(call(target, "probe.Nothing", "--list")) == (2, message)

    def test_takes_no_message(self, target: str) -> None:
        assert refusal(call(target, "--list", "a.B", "{}")) == (2, "--list calls nothing and takes no message")


class TestMessages:
    def test_text_is_readable_and_can_not_move_the_cursor(self, target: str) -> None:
        text = "héllo \x9b31m \x7f \u202e \U000e0001 👍"
        done = call(target, "probe.Probe/Echo", "--compact", json.dumps({"the_text": text}))
        assert json.loads(done.stdout) == {"the_text": text}
        assert done.stdout == '{"the_text": "héllo \\u009b31m \\u007f \\u202e \\udb40\\udc01 👍"}\n'

    def test_output_that_can_not_hold_the_text(self, target: str) -> None:
        ascii_only = {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
        done = call(target, "probe.Probe/Echo", "--compact", '{"the_text": "\\u00e9"}', environment=ascii_only)
        assert done.stdout == '{"the_text": "\\u00e9"}\n'

    def test_an_any_of_a_type_that_nothing_imports(self, target: str) -> None:
        done = call(target, "probe.Probe/Wrap", "--compact", '{"the_text": "open sesame"}')
        assert json.loads(done.stdout) == {"@type": "type.googleapis.com/probe.Secret", "hidden_word": "open sesame"}
        assert call(target, "probe.Probe/Unwrap", "--compact", done.stdout).stdout == '{"the_text": "open sesame"}\n'

    def test_an_any_of_an_unknown_type(self, target: str) -> None:
        code, message = refusal(call(target, "probe.Probe/Wrap"))
        assert code == 1
        assert message.startswith(f"INTERNAL: what {target} sent can't be used: TypeError: Can not find message desc")

    def test_well_known_type(self, target: str) -> None:
        assert call(target, "probe.Probe/Date", '"2026-01-02T03:04:05Z"').stdout == '"2026-01-02T03:04:05Z"\n'

    def test_up_to_64_mebibytes(self, target: str) -> None:
        done = call(target, "probe.Probe/Echo", '{"the_text": "big", "count": 63}')
        assert (done.returncode, len(done.stdout) // MEBIBYTE) == (0, 63)
        code, message = refusal(call(target, "probe.Probe/Echo", '{"the_text": "big", "count": 64}'))
        assert code == 1
        assert message.startswith("RESOURCE_EXHAUSTED: ")

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("{", "Failed to load JSON: Expecting property name"),
            ("", "Failed to load JSON: Expecting value"),
            ("[1]", "Failed to parse"),
            ("null", "Failed to parse JSON"),
            ('{"nothing": 1}', 'Message type "probe.Word" has no field named "nothing"'),
            ('{"count": "many"}', "Failed to parse count field"),
            ('{"count": 4294967296}', "Failed to parse count field: Value out of range: 4294967296"),
            ('{"the_text": "\\ud800"}', "Failed to parse the_text field"),
            ('{"the_text":' + "[" * 5000, "Failed to load JSON"),
        ],
    )
    def test_json_that_does_not_fit(self, target: str, text: str, why: str) -> None:
        code, message = refusal(call(target, "probe.Probe/Echo", text))
        assert code == 2
        assert message.startswith(f"message 1 does not fit probe.Word: {why}")

    def test_bytes_that_are_not_text(self, target: str) -> None:
        code, message = refusal(call(target, "probe.Probe/Echo", "-", stdin=b"\xff"))
        assert code == 2
        assert message.startswith("standard input does not fit probe.Word: 'utf-8' codec can't decode byte 0xff")

    def test_a_required_field(self, target: str) -> None:
        code, message = refusal(call(target, "probe.Probe/Demand"))
        assert code == 2
        assert message.startswith("the empty message does not fit probe.Strict: ")
        assert "needed" in message

    def test_one_message_too_many(self, target: str) -> None:
        done = call(target, "probe.Probe/Echo", "{}", "{}")
        assert refusal(done) == (2, "/probe.Probe/Echo takes one message, and there are 2")

    def test_all_arguments_are_checked_before_the_first_is_sent(self, target: str) -> None:
        done = call(target, "probe.Probe/Chat", '{"the_text":"a"}', "{")
        assert (done.returncode, done.stdout) == (2, "")
        assert "message 2 does not fit" in done.stderr


class TestServiceErrors:
    @pytest.mark.parametrize(
        ("word", "code", "message"),
        [
            ("busy", 1, "UNAVAILABLE: come back later"),
            ("escape", 1, "INTERNAL: \\u001b[31mred\nline"),
            ("late", 5, "the database is slow"),
        ],
    )
    def test_status(self, target: str, word: str, code: int, message: str) -> None:
        assert refusal(call(target, "probe.Probe/Echo", json.dumps({"the_text": word}))) == (code, message)

    def test_answers_before_the_error_are_printed(self, target: str) -> None:
        done = call(target, "probe.Probe/Chat", '{"the_text":"a"}', '{"the_text":"fail"}')
        assert done.stdout == '{"the_text": "A"}\n'
        assert refusal(done) == (1, "FAILED_PRECONDITION: not now")

    def test_a_method_that_is_described_and_not_there(self, target: str) -> None:
        done = call(target, "probe.Probe/Demand", '{"needed": ""}')
        assert refusal(done) == (1, "UNIMPLEMENTED: Method not found!")

    def test_deadline(self, target: str) -> None:
        done = call(target, "probe.Probe/Echo", '{"the_text":"slow"}', "--timeout", "1")
        assert refusal(done) == (5, f"{target} was not done in 1 s")

    def test_unknown_method(self, target: str) -> None:
        code, message = refusal(call(target, "probe.Probe/Nothing"))
        assert code == 2
        assert message.startswith("probe.Probe has no method Nothing (it has Chat, Date, Demand, Echo, ")

    @pytest.mark.parametrize("name", ["probe.Word/Echo", "nothing/Echo", "a b/c"])
    def test_unknown_service(self, target: str, name: str) -> None:
        service = name.partition("/")[0]
        message = f"{target} has no service {service} (it has grpc.health.v1.Health, probe.Probe)"
        assert refusal(call(target, name)) == (2, message)

    def test_a_response_that_is_no_message(self, target: str) -> None:
        code, message = refusal(call(target, "probe.Probe/Garbage"))
        assert code == 1
        assert message.startswith(f"INTERNAL: what {target} sent can't be used: DecodeError: ")

    @pytest.mark.parametrize(("method", "count"), [("Twice", 2), ("Never", 0)])
    def test_responses_other_than_one(self, target: str, method: str, count: int) -> None:
        message = f"INTERNAL: /probe.Probe/{method} gave {count} responses where one was due"
        assert refusal(call(target, f"probe.Probe/{method}")) == (1, message)

    def test_nothing_of_a_failed_call_is_left_for_the_exit(self, target: str) -> None:
        """A gRPC call object that only Python's exit finalizes can hang the process, once in some hundred runs."""
        script = """if True:
            import gc, sys
            gc.disable()
            from adyton.cli.main import main
            code = main(["call", "--plaintext", *sys.argv[1:]])
            import grpc
            left = [each for each in gc.get_objects() if issubclass(type(each), grpc.Call | grpc.Channel)]
            sys.exit(repr(left) if left else code)
        """
        for words in (["probe.Probe/Demand", '{"needed": ""}'], ["probe.Probe/Nothing"], ["probe.Probe/Echo", "{"]):
            command = [sys.executable, "-c", script, target, *words]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=ENVIRONMENT, check=False)
            assert done.stderr.startswith(PLAIN + "adyton call: ")
            assert "object at" not in done.stderr


class TestConnection:
    def test_localhost(self, port: int) -> None:
        assert call(f"localhost:{port}", "probe.Probe/Echo").returncode == 0

    def test_unix_socket(self, port: int, socket_path: Path) -> None:
        assert call(f"unix:{socket_path}", "probe.Probe/Echo").returncode == 0
        assert call(f"unix://{socket_path}", "probe.Probe/Echo").returncode == 0

    def test_ipv6_loopback(self) -> None:
        code, message = refusal(call("[::1]:1", "a.B/C"))
        assert code == 5
        assert message.startswith("can't reach [::1]:1: ")

    def test_nobody_there(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as closing:
            target = f"127.0.0.1:{closing.getsockname()[1]}"
        assert refusal(call(target, "a.B/C")) == (5, f"can't reach {target}: Connection refused")

    def test_no_such_socket(self, tmp_path: Path) -> None:
        target = f"unix:{tmp_path}/none"
        assert refusal(call(target, "a.B/C")) == (5, f"can't reach {target}: No such file or directory")

    def test_somebody_who_closes(self) -> None:
        def accept_and_close() -> None:
            listener.accept()[0].close()

        with socket.create_server(("127.0.0.1", 0)) as listener, futures.ThreadPoolExecutor(1) as pool:
            listener.settimeout(30)
            pool.submit(accept_and_close)
            target = f"127.0.0.1:{listener.getsockname()[1]}"
            assert refusal(call(target, "a.B/C", "--timeout", "2"))[0] == 5

    def test_somebody_who_says_nothing(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            target = f"127.0.0.1:{listener.getsockname()[1]}"
            assert refusal(call(target, "a.B/C", "--timeout", "1")) == (5, f"{target} was not done in 1 s")

    def test_another_machine(self) -> None:
        done = call("nothing.invalid:1", "a.B/C", "--timeout", "5")
        assert done.returncode == 5
        assert done.stderr.startswith(PLAIN)

    @pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
    def test_proxies_are_ignored(self, port: int, name: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as dead:
            proxy = f"http://127.0.0.1:{dead.getsockname()[1]}"
        done = call(f"{name}:{port}", "probe.Probe/Echo", environment=dict.fromkeys(PROXIES[:6], proxy))
        assert (done.returncode, done.stdout) == (0, "{}\n")

    def test_no_reflection(self) -> None:
        server = grpc.server(futures.ThreadPoolExecutor(2))
        target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        done = call(target, "a.B/C")
        server.stop(0).wait()
        mend = "(enclave.toml: reflection = true under [server])"
        assert refusal(done) == (6, f"{target} does not offer server reflection {mend}")


class TestArguments:
    @pytest.mark.parametrize(
        "target",
        ["nothing", "localhost", ":1", "localhost:", "localhost:0", "localhost:99999", "localhost:+1", "unix:"],
    )
    def test_target(self, target: str) -> None:
        message = f"'{target}' is not HOST:PORT, [IPV6]:PORT or unix:PATH"
        assert refusal(call(target, "a.B/C")) == (2, message)

    @pytest.mark.parametrize("target", ["dns:///localhost:1", "ipv4:192.0.2.1:1,127.0.0.1:1", "a@localhost:1", "a b:1"])
    def test_target_in_another_notation(self, target: str) -> None:
        assert call(target, "a.B/C").returncode == 2

    def test_no_method(self) -> None:
        assert refusal(call("localhost:1")) == (2, "which method? (--list shows what there is)")

    @pytest.mark.parametrize("method", ["Echo", "/Echo", "probe.Probe/", "."])
    def test_half_a_method(self, method: str) -> None:
        code, message = refusal(call("localhost:1", method))
        assert code == 2
        assert message.startswith(f"'{method}' is not package.Service/Method")

    @pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "1e30", "soon"])
    def test_timeout(self, value: str) -> None:
        code, message = refusal(call("localhost:1", "a.B/C", f"--timeout={value}"))
        assert code == 2
        assert "is not a number of seconds between 0 and" in message

    def test_metadata(self, target: str) -> None:
        pairs = ("X-Name=a=b", "x-empty=", "x-raw-bin=AP8=")
        words = [word for pair in pairs for word in ("--metadata", pair)]
        done = call(target, "probe.Probe/Echo", *words, '{"the_text": "metadata"}')
        seen = [("x-empty", ""), ("x-name", "a=b"), ("x-raw-bin", b"\x00\xff")]
        assert json.loads(done.stdout) == {"the_text": repr(seen)}

    @pytest.mark.parametrize("pair", ["x", "=y", "a b=c", "x=é", "x=a\nb", ":path=/", "x-bin=*"])
    def test_metadata_that_is_none(self, pair: str) -> None:
        code, message = refusal(call("localhost:1", "a.B/C", "--metadata", pair))
        assert code == 2
        assert message.startswith("--metadata ")

    def test_options_may_stand_anywhere(self, target: str) -> None:
        done = call("--compact", target, "--timeout", "9", "probe.Probe/Echo", "--metadata", "a=b", '{"count": 1}')
        assert (done.returncode, done.stdout) == (0, '{"count": 1}\n')

    def test_help_does_not_import_grpc(self) -> None:
        script = "import sys, adyton.cli.call; sys.exit('grpc' in sys.modules or 'google.protobuf' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


# A hostile server: its reflection answers what the metadatum "case" names.

Answers = Callable[[ServerReflectionRequest], Iterable[bytes]]


def files(*protos: FileDescriptorProto | bytes) -> list[bytes]:
    answer = ServerReflectionResponse()
    for proto in protos:
        data = proto if isinstance(proto, bytes) else proto.SerializeToString()
        answer.file_descriptor_response.file_descriptor_proto.append(data)
    return [answer.SerializeToString()]


def listing(*names: str) -> list[bytes]:
    answer = ServerReflectionResponse()
    for name in names:
        answer.list_services_response.service.add(name=name)
    return [answer.SerializeToString()]


def refused(code: int) -> list[bytes]:
    answer = ServerReflectionResponse()
    answer.error_response.error_code = code
    return [answer.SerializeToString()]


def importing(name: str, *imports: str) -> FileDescriptorProto:
    return FileDescriptorProto(name=name, syntax="proto3", dependency=imports)


def chain(request: ServerReflectionRequest) -> list[bytes]:
    name = request.file_by_filename or "x"
    return files(importing(name, name + "x"))


def silence(request: ServerReflectionRequest) -> list[bytes]:
    time.sleep(3)
    return []


def undescribed(request: ServerReflectionRequest) -> list[bytes]:
    return refused(5) if request.file_containing_symbol else listing("x.Y", "\x1b[2J\x7f", "é")


def missing_import(request: ServerReflectionRequest) -> list[bytes]:
    return files(importing("a.proto", "b.proto")) if request.file_containing_symbol else refused(5)


def service_of(*messages: FileDescriptorProto, type_name: str) -> list[bytes]:
    file = FileDescriptorProto(name="x.proto", package="x", dependency=[each.name for each in messages])
    file.service.add(name="Y").method.add(name="Z", input_type=type_name, output_type=type_name)
    return files(file, *messages)


def fake_timestamp() -> FileDescriptorProto:
    file = FileDescriptorProto(name="google/protobuf/timestamp.proto", package="google.protobuf")
    file.message_type.add(name="Timestamp")
    return file


HOSTILE: dict[str, Answers] = {
    "no-protobuf": lambda _: [b"\xff\xff\xff"],
    "no-answer": lambda _: [],
    "empty-answer": lambda _: [b""],
    "no-descriptor": lambda _: files(b"\xff"),
    "another-kind": lambda _: listing("x.Y"),
    "cycle": lambda _: files(importing("a.proto", "b.proto"), importing("b.proto", "a.proto")),
    "own-import": lambda _: files(importing("a.proto", "a.proto")),
    "missing-import": missing_import,
    "wrong-import": lambda _: files(importing("a.proto", "b.proto")),
    "endless-imports": chain,
    "import-not-utf8": lambda _: files(importing("a.proto").SerializeToString() + b"\x1a\x01\xff"),
    "unknown-type": lambda _: service_of(type_name=".x.Nothing"),
    "bad-name": lambda _: files(FileDescriptorProto(name="a.proto", package="\x1b[2J")),
    "undescribed": undescribed,
    "silence": silence,
    "refuses-all": lambda _: refused(13),
    "fake-timestamp": lambda _: service_of(fake_timestamp(), type_name=".google.protobuf.Timestamp"),
}


def lie(requests: Iterable[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    metadata: dict[str, Any] = dict(context.invocation_metadata())
    for request in requests:
        yield from (answers := list(HOSTILE[metadata["case"]](ServerReflectionRequest.FromString(request))))
        if not answers:
            return


@pytest.fixture(scope="module")
def hostile() -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    name = "grpc.reflection.v1alpha.ServerReflection"
    handlers: dict[str, Any] = {"ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(lie)}
    service: dict[str, Any] = {"Z": grpc.unary_unary_rpc_method_handler(lambda request, _: request)}
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(name, handlers), grpc.method_handlers_generic_handler("x.Y", service)]
    )
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield target
    server.stop(0).wait()


class TestHostileReflection:
    @pytest.mark.parametrize(
        ("case", "why"),
        [
            ("no-protobuf", "DecodeError: "),
            ("no-answer", "it ended without an answer"),
            ("empty-answer", "an answer of another kind than was asked for"),
            ("no-descriptor", "DecodeError: "),
            ("another-kind", "an answer of another kind than was asked for"),
            ("cycle", "files import one another: "),
            ("own-import", "files import one another: a.proto → a.proto"),
            ("missing-import", "it does not have b.proto, which another file imports"),
            ("wrong-import", "it does not have b.proto, which another file imports"),
            ("endless-imports", "more than 1000 files"),
            ("import-not-utf8", "UnicodeDecodeError: "),
            ("unknown-type", "TypeError: Couldn't build proto file"),
            ("bad-name", "TypeError: Couldn't build proto file into descriptor pool: invalid name: "),
            ("undescribed", "it lists x.Y and does not describe it"),
            ("refuses-all", "it does not list its services"),
        ],
    )
    def test_ends_with_a_clear_error(self, hostile: str, case: str, why: str) -> None:
        code, message = refusal(call(hostile, "x.Y/Z", "--metadata", f"case={case}"))
        assert code == 1
        assert message.startswith(f"INTERNAL: what {hostile} sent can't be used: {why}")
        assert "\x1b" not in message

    def test_silence(self, hostile: str) -> None:
        done = call(hostile, "x.Y/Z", "--metadata", "case=silence", "--timeout", "1")
        assert refusal(done) == (5, f"{hostile} was not done in 1 s")

    def test_names_can_not_move_the_cursor(self, hostile: str) -> None:
        done = call(hostile, "--list", "--metadata", "case=undescribed")
        assert (done.returncode, done.stdout) == (0, "\\u001b[2J\\u007f\n\\u00e9\nx.Y\n")

    def test_a_well_known_type_that_is_not(self, hostile: str) -> None:
        done = call(hostile, "x.Y/Z", "--metadata", "case=fake-timestamp")
        code, message = refusal(done)
        assert (code, done.stdout) == (1, "")
        assert message.startswith(f"INTERNAL: what {hostile} sent can't be used: AttributeError: ")
        assert call(hostile, "x.Y/Z", '"2026-01-02T03:04:05Z"', "--metadata", "case=fake-timestamp").returncode == 2
