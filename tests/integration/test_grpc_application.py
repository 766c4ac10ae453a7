"""Every status and message of a server in an enclave, by real gRPC clients, for both kinds of server."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from attested import open_channel, port_of
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from observing import eventually
from probe import probe_pb2, probe_pb2_grpc

from adyton.atls.never_sent import never_sent
from adyton.enclave.serving import probe_bind
from adyton.errors import ApplicationError, StatusCode
from adyton.host.manager import EnclaveClient, EnclaveManager
from adyton.proto import grpc_application_pb2 as extensions
from adyton.proto.enclave_pb2 import EnclaveConfig
from adyton.testing.probes import AIO_SERVER, SERVER, config, probe_bundle, server_config


def why_no_ipv6() -> str:
    try:
        probe_bind("::1", 0).close()
    except OSError as problem:
        return f"this machine has no IPv6: {problem}"
    return ""


needs_ipv6 = pytest.mark.skipif(bool(why_no_ipv6()), reason=why_no_ipv6())
Text = probe_pb2.Text
Serve = Callable[..., tuple[EnclaveClient, probe_pb2_grpc.ProbeStub]]


@pytest.fixture(params=[SERVER, AIO_SERVER], ids=["threads", "asyncio"])
def application(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def serve(manager: EnclaveManager, application: str) -> Iterator[Serve]:
    channels: list[grpc.Channel] = []

    def start(
        settings: str = "", configuration: EnclaveConfig | None = None
    ) -> tuple[EnclaveClient, probe_pb2_grpc.ProbeStub]:
        enclave = manager.load("server", probe_bundle(application, settings), configuration or server_config())
        channels.append(open_channel(enclave))
        return enclave, probe_pb2_grpc.ProbeStub(channels[-1])

    yield start
    for channel in channels:
        channel.close()


def refused(manager: EnclaveManager, application: str, configuration: EnclaveConfig) -> ApplicationError:
    with pytest.raises(ApplicationError) as caught:
        manager.load("server", probe_bundle(application), configuration)
    return caught.value


def test_no_address(manager: EnclaveManager, application: str) -> None:
    error = refused(manager, application, config())
    assert error.status is StatusCode.INVALID_ARGUMENT
    assert error.message == "Expected the extension adyton.server_address on EnclaveConfig"


def test_no_port(manager: EnclaveManager, application: str) -> None:
    configuration = config()
    configuration.Extensions[extensions.server_address] = "localhost"
    error = refused(manager, application, configuration)
    assert error.status is StatusCode.INVALID_ARGUMENT
    assert error.message == "Expected the extension adyton.port on EnclaveConfig"


@pytest.mark.parametrize("port", [-1, 65536, 99999])
def test_a_port_that_is_none(manager: EnclaveManager, port: int) -> None:
    error = refused(manager, SERVER, server_config(port=port))
    assert error.status is StatusCode.INVALID_ARGUMENT
    assert error.message == f"the extension adyton.port is {port}; it may be 0 to 65535"


@pytest.mark.parametrize("address", ["192.0.2.1", "203.0.113.7"])
def test_an_address_that_this_machine_does_not_have(manager: EnclaveManager, address: str) -> None:
    error = refused(manager, SERVER, server_config(address=address))
    assert error.status is StatusCode.INTERNAL
    assert error.message.startswith(f"Failed to start server: can't listen on {address}:0: ")


@pytest.mark.parametrize("address", ["0.0.0.0", pytest.param("::", marks=needs_ipv6)])
def test_every_address_of_the_machine(manager: EnclaveManager, address: str) -> None:
    enclave = manager.load("server", probe_bundle(SERVER), server_config(address=address))
    with open_channel(enclave) as channel:
        assert probe_pb2_grpc.ProbeStub(channel).Echo(Text(text="here"), timeout=10).text == "here"


@pytest.mark.parametrize("address", ["", "example.org", "127.0.0.1:80", "unix:/tmp/x"])
def test_an_address_that_is_none(manager: EnclaveManager, address: str) -> None:
    error = refused(manager, SERVER, server_config(address=address))
    assert error.status is StatusCode.INVALID_ARGUMENT
    assert "is no IP address" in error.message


@pytest.mark.parametrize(
    ("extension", "value", "message"),
    [
        (extensions.workers, 0, "adyton.workers is 0; it may be 1 to 256"),
        (extensions.shutdown_grace_ms, -1, "adyton.shutdown_grace_ms is -1"),
        (extensions.server_max_lifetime_ms, -5, "adyton.server_max_lifetime_ms is -5"),
    ],
)
def test_other_numbers_out_of_bounds(manager: EnclaveManager, extension: object, value: int, message: str) -> None:
    configuration = server_config()
    configuration.Extensions[extension] = value  # type: ignore[index]
    assert message in refused(manager, SERVER, configuration).message


def test_a_second_start(manager: EnclaveManager) -> None:
    error = refused(manager, SERVER, server_config(behaviour="twice"))
    assert (error.status, error.message) == (StatusCode.ALREADY_EXISTS, "Server is already started")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_busy_port(manager: EnclaveManager, application: str, workers: int) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # so that sharing it would be possible
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        configuration = server_config(port=port)
        configuration.Extensions[extensions.workers] = workers
        error = refused(manager, application, configuration)
    assert error.status is StatusCode.INTERNAL
    assert error.message == f"Failed to start server: can't listen on 127.0.0.1:{port}: Address already in use"


def test_no_servicers(manager: EnclaveManager) -> None:
    error = refused(manager, "probe.servers:Forgetful", server_config())
    assert error.status is StatusCode.INVALID_ARGUMENT
    assert error.message.startswith("Forgetful does not override add_servicers(self, server)")


@pytest.mark.parametrize(
    "address", ["localhost", "127.0.0.1", *(pytest.param(each, marks=needs_ipv6) for each in ("::1", "[::1]"))]
)
def test_it_listens_where_it_was_told(manager: EnclaveManager, address: str) -> None:
    enclave = manager.load("server", probe_bundle(SERVER), server_config(address=address))
    target = f"[::1]:{port_of(enclave)}" if ":" in address else f"127.0.0.1:{port_of(enclave)}"
    with open_channel(enclave, address=target) as channel:
        assert probe_pb2_grpc.ProbeStub(channel).Echo(Text(text="here"), timeout=10).text == "here"


def test_a_fixed_port(manager: EnclaveManager) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert port_of(manager.load("server", probe_bundle(SERVER), server_config(port=port))) == port


def test_all_four_kinds_of_rpc(serve: Serve) -> None:
    _, stub = serve()
    assert stub.Echo(Text(text="hello"), timeout=10).text == "hello"
    assert [each.text for each in stub.Count(Text(text="3"), timeout=10)] == ["0", "1", "2"]
    assert stub.Collect((Text(text=word) for word in ("a", "b")), timeout=10).text == "a b"
    assert [each.text for each in stub.Chat((Text(text=word) for word in ("a", "b")), timeout=10)] == ["A", "B"]


def test_health_and_reflection(serve: Serve) -> None:
    enclave, _ = serve()
    with open_channel(enclave) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "probe.Probe"):
            response = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
            assert response.status == health_pb2.HealthCheckResponse.SERVING
        services = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    standard = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert services == {"probe.Probe", "adyton.atls.Attestation", *standard}


def test_health_and_reflection_can_be_left_out(serve: Serve) -> None:
    enclave, stub = serve("[server]\nhealth = false\nreflection = false\n")
    assert stub.Echo(Text(text="hello"), timeout=10).text == "hello"
    with open_channel(enclave) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_errors_of_a_servicer(serve: Serve) -> None:
    enclave, stub = serve()
    wanted = {
        "abort": (grpc.StatusCode.OUT_OF_RANGE, "as asked"),
        "status": (grpc.StatusCode.DATA_LOSS, "as asked"),
        "a secret word": (grpc.StatusCode.INTERNAL, "uncaught ValueError"),
    }
    for text, answer in wanted.items():
        with pytest.raises(grpc.RpcError) as caught:
            stub.Fail(Text(text=text), timeout=10)
        assert (caught.value.code(), caught.value.details()) == answer
    enclave.destroy()
    log = "\n".join(enclave.log_tail())
    assert "servers.py" in log
    assert "a secret word" not in log


def test_an_unavailable_of_the_servicer_can_be_told_from_one_of_the_connection(serve: Serve) -> None:
    _, stub = serve()
    with pytest.raises(grpc.RpcError) as caught:
        stub.Fail(Text(text="unavailable"), timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not never_sent(caught.value)
    _, call = stub.Echo.with_call(Text(text="fine"), timeout=10)
    assert not call.trailing_metadata()


def test_a_servicer_can_not_end_the_server(serve: Serve, application: str) -> None:
    enclave, stub = serve()
    method = stub.Fail if application == SERVER else stub.Echo
    with pytest.raises(grpc.RpcError) as caught:
        method(Text(text="leave"), timeout=10)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INTERNAL, "uncaught SystemExit")
    assert stub.Echo(Text(text="still here"), timeout=10).text == "still here"
    enclave.destroy()


def test_a_task_can_not_end_the_server_either(manager: EnclaveManager) -> None:
    enclave = manager.load("server", probe_bundle(AIO_SERVER), server_config())
    with open_channel(enclave) as channel:
        stub = probe_pb2_grpc.ProbeStub(channel)
        stub.Echo(Text(text="leave later", milliseconds=100), timeout=10)
        assert stub.Echo(Text(text="still here"), timeout=10).text == "still here"
    enclave.destroy()
    assert "a task tried to end the event loop" in "".join(enclave.log_tail())


def test_what_nobody_awaits_is_logged_without_what_it_says(manager: EnclaveManager) -> None:
    for kind, text in ((SERVER, "thread"), (AIO_SERVER, "forget")):
        enclave = manager.load(text, probe_bundle(kind), server_config())
        with open_channel(enclave) as channel:
            stub = probe_pb2_grpc.ProbeStub(channel)
            if kind == SERVER:
                with pytest.raises(grpc.RpcError):
                    stub.Fail(Text(text=text), timeout=10)
            else:
                stub.Echo(Text(text=text, milliseconds=100), timeout=10)
                stub.Echo(Text(text="forget", milliseconds=100), timeout=10)  # the first task is collected now
                stub.Echo(Text(text="more", milliseconds=100), timeout=10)
        enclave.destroy()
        log = "\n".join(enclave.log_tail())
        assert '"exception": "ValueError"' in log
        assert f"secret of the request: {text}" not in log


def test_a_client_that_goes_away_is_no_uncaught_exception(serve: Serve) -> None:
    enclave, stub = serve()
    call = stub.Chat(_slowly(), timeout=10)
    next(call)
    call.cancel()
    assert stub.Echo(Text(text="next", milliseconds=500), timeout=10).text == "next"
    enclave.destroy()
    assert "uncaught" not in "".join(enclave.log_tail())


def _slowly() -> Iterator[Text]:
    while True:
        time.sleep(0.2)
        yield Text(text="x")


def test_an_event_loop_that_is_blocked_is_not_waited_for(manager: EnclaveManager) -> None:
    configuration = server_config()
    configuration.Extensions[extensions.server_max_lifetime_ms] = 500
    enclave = manager.load("server", probe_bundle(AIO_SERVER), configuration)
    with open_channel(enclave) as channel:
        probe_pb2_grpc.ProbeStub(channel).Echo.future(Text(text="block", milliseconds=60_000), timeout=90)
        assert enclave.wait_stop_requested(10) == "the server's maximum lifetime is over"
        begun = time.monotonic()
        enclave.destroy()
        assert time.monotonic() - begun < 8


def test_watches_and_reflection_hold_no_thread_of_the_application(manager: EnclaveManager) -> None:
    enclave = manager.load("server", probe_bundle(SERVER, "[server]\nthreads = 2\n"), server_config())
    with open_channel(enclave) as channel:
        watches = [health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()) for _ in range(5)]
        assert [next(watch).status for watch in watches] == [health_pb2.HealthCheckResponse.SERVING] * 5
        reflect: Any = channel.stream_stream(f"/{reflection.SERVICE_NAME}/ServerReflectionInfo")
        held = [reflect(_slowly()) for _ in range(5)]
        assert probe_pb2_grpc.ProbeStub(channel).Echo(Text(text="served"), timeout=10).text == "served"
        for call in (*watches, *held):
            call.cancel()


def test_an_unknown_method(serve: Serve) -> None:
    enclave, _ = serve()
    with open_channel(enclave) as channel:
        call: Any = channel.unary_unary("/probe.Probe/Nothing")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_exception_messages_are_logged_where_enclave_toml_says_so(serve: Serve) -> None:
    enclave, stub = serve("[logging]\nexception_messages = true\naccess = true\n")
    with pytest.raises(grpc.RpcError):
        stub.Fail(Text(text="loud"), timeout=10)
    stub.Echo(Text(text="quiet"), timeout=10)
    enclave.destroy()
    lines = [json.loads(line) for line in enclave.log_tail()]
    failure = next(line for line in lines if line["message"] == "uncaught exception in a servicer")
    assert failure["exception_message"] == "secret of the request: loud"
    access = {line["rpc"]: line["status"] for line in lines if line["message"] == "rpc"}
    attest = {"/adyton.atls.Attestation/Attest": "OK"}
    assert access == {"/probe.Probe/Fail": "INTERNAL", "/probe.Probe/Echo": "OK", **attest}
    assert "quiet" not in "\n".join(enclave.log_tail())


def test_messages_over_the_limit_are_refused(serve: Serve) -> None:
    _, stub = serve("[server]\nmax_message_bytes = 2048\n")
    assert stub.Echo(Text(text="x" * 1000), timeout=10).text == "x" * 1000
    with pytest.raises(grpc.RpcError) as caught:
        stub.Echo(Text(text="x" * 3000), timeout=10)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_rpcs_over_the_limit_are_refused_and_the_others_go_on(serve: Serve) -> None:
    _, stub = serve("[server]\nmax_concurrent_rpcs = 2\n")
    slow = [stub.Echo.future(Text(text="slow", milliseconds=1500), timeout=20) for _ in range(2)]
    time.sleep(0.5)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Echo(Text(text="more"), timeout=10)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert [each.result().text for each in slow] == ["slow", "slow"]


def test_an_rpc_over_its_time_is_ended(serve: Serve, application: str) -> None:
    _, stub = serve("[server]\nmax_rpc_ms = 300\n")
    assert stub.Echo(Text(text="quick"), timeout=10).text == "quick"
    begun = time.monotonic()
    wanted = grpc.StatusCode.CANCELLED if application == SERVER else grpc.StatusCode.DEADLINE_EXCEEDED
    for call in (lambda: stub.Echo(Text(milliseconds=3000), timeout=10), lambda: list(_slow_count(stub))):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is wanted
    assert time.monotonic() - begun < 3


def _slow_count(stub: probe_pb2_grpc.ProbeStub) -> Iterator[Text]:
    return iter(stub.Count(Text(text="100", milliseconds=100), timeout=10))


def test_the_end_gives_rpcs_in_flight_their_time_and_refuses_new_ones(serve: Serve) -> None:
    configuration = server_config()
    configuration.Extensions[extensions.shutdown_grace_ms] = 3000
    enclave, stub = serve(configuration=configuration)
    in_flight = stub.Echo.future(Text(text="made it", milliseconds=1500), timeout=20)
    time.sleep(0.5)
    destroying = threading.Thread(target=enclave.destroy)
    destroying.start()
    eventually(lambda: "Server shutting down" in "".join(enclave.log_tail()))
    with pytest.raises(grpc.RpcError) as caught:
        stub.Echo(Text(text="too late"), timeout=1)
    refusals = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
    assert caught.value.code() in refusals
    assert in_flight.result().text == "made it"
    destroying.join()


def test_a_handler_that_ignores_the_end_is_not_waited_for(serve: Serve) -> None:
    enclave, stub = serve()
    stuck = stub.Echo.future(Text(milliseconds=30_000), timeout=60)
    time.sleep(0.5)
    begun = time.monotonic()
    enclave.destroy()
    assert 0.4 < time.monotonic() - begun < 3
    failure: Any = stuck.exception()
    assert failure.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def test_the_lifetime_ends_the_server_and_the_host_hears_of_it(serve: Serve) -> None:
    configuration = server_config()
    configuration.Extensions[extensions.server_max_lifetime_ms] = 1000
    enclave, stub = serve(configuration=configuration)
    assert stub.Echo(Text(text="young"), timeout=10).text == "young"
    assert enclave.wait_stop_requested(10) == "the server's maximum lifetime is over"
    with pytest.raises(grpc.RpcError) as caught:
        stub.Echo(Text(text="old"), timeout=2)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    enclave.destroy()


def test_interceptors_are_asked(manager: EnclaveManager) -> None:
    enclave = manager.load("server", probe_bundle(SERVER), server_config())
    with open_channel(enclave) as channel:
        probe_pb2_grpc.ProbeStub(channel).Echo(Text(text="hello"), timeout=10)
    eventually(lambda: "intercepted" in "".join(enclave.log_tail()))


def test_a_client_that_sends_rubbish_harms_nobody(serve: Serve) -> None:
    enclave, stub = serve()
    for rubbish in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 4096, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 1000):
        with socket.create_connection(("127.0.0.1", port_of(enclave)), 5) as connection:
            connection.sendall(rubbish)
    assert stub.Echo(Text(text="unharmed"), timeout=10).text == "unharmed"
