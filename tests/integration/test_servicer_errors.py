"""What becomes of an exception of a servicer's: the caller's answer and the log's line, in real enclaves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from attested import open_channel
from probe import probe_pb2, probe_pb2_grpc

from adyton.errors import ApplicationError, StatusCode
from adyton.host.manager import EnclaveClient, EnclaveManager
from adyton.testing.probes import server_config, write_probe_project

APPLICATION = """
import grpc
import adyton
from adyton.atls.failures import rpc_failure
from probe import probe_pb2, probe_pb2_grpc
from probe.servers import AioProbe, Probe

WORDS = " ".join(("of", "another", "server"))  # the log has lines of code

def fail(context, how):
    if how == "its own":
        raise adyton.ApplicationError(adyton.StatusCode.NOT_FOUND, "no such note")
    if how == "unseal":
        adyton.unseal(adyton.seal(b"a secret", context=b"c"), context=b"d")
    if how == "store":
        context.store("notes")
    if how == "policy":
        raise adyton.errors.PolicyError(WORDS)
    raise rpc_failure(adyton.ApplicationError(adyton.StatusCode.NOT_FOUND, WORDS))

class Failing(probe_pb2_grpc.ProbeServicer):
    def __init__(self, application):
        self.application = application

    def Fail(self, request, context):
        fail(self.application.context, request.text)

    def Count(self, request, context):
        yield request
        fail(self.application.context, request.text)

    def fail_of_adyton(self, request, context):
        fail(self.application.context, request.decode())

    def echo(self, request, context):
        return request

    def repeat(self, request, context):
        yield request

class AioFailing(Failing):
    async def Fail(self, request, context):
        fail(self.application.context, request.text)

    async def Count(self, request, context):
        yield request
        fail(self.application.context, request.text)

    async def fail_of_adyton(self, request, context):
        fail(self.application.context, request.decode())

    async def echo(self, request, context):
        return request

    async def repeat(self, request, context):
        yield request

def quote(response):
    raise ValueError(f"{response} {WORDS}")

def unserializable(servicer):
    return {
        "Once": grpc.unary_unary_rpc_method_handler(servicer.echo, None, quote),
        "Each": grpc.unary_stream_rpc_method_handler(servicer.repeat, None, quote),
    }

def add(application, servicer, server):
    probe_pb2_grpc.add_ProbeServicer_to_server(servicer, server)
    handler = grpc.method_handlers_generic_handler("tests.Unserializable", unserializable(servicer))
    server.add_generic_rpc_handlers((handler,))
    own = {"Fail": grpc.unary_unary_rpc_method_handler(servicer.fail_of_adyton)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("adyton.Secrets", own),))

class Threads(adyton.GrpcApplication):
    def add_servicers(self, server):
        add(self, Failing(self), server)

class Asyncio(adyton.AioGrpcApplication):
    def add_servicers(self, server):
        add(self, AioFailing(self), server)

class CoroutinesInThreads(adyton.GrpcApplication):
    def add_servicers(self, server):
        probe_pb2_grpc.add_ProbeServicer_to_server(AioProbe(), server)

class ThreadsInAsyncio(adyton.AioGrpcApplication):
    def add_servicers(self, server):
        probe_pb2_grpc.add_ProbeServicer_to_server(Probe(), server)

class Dynamic(grpc.GenericRpcHandler):
    def service(self, handler_call_details):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: request)

class DynamicInAsyncio(adyton.AioGrpcApplication):
    def add_servicers(self, server):
        server.add_generic_rpc_handlers((Dynamic(),))

class DynamicInThreads(adyton.GrpcApplication):
    def add_servicers(self, server):
        server.add_generic_rpc_handlers((Dynamic(),))

class Raising(grpc.ServerInterceptor):
    def intercept_service(self, continuation, handler_call_details):
        if handler_call_details.method.endswith("Count"):
            raise adyton.ApplicationError(adyton.StatusCode.UNAUTHENTICATED, "no token")
        raise ValueError(WORDS)

class AioRaising(grpc.aio.ServerInterceptor):
    async def intercept_service(self, continuation, handler_call_details):
        if handler_call_details.method.endswith("Chat"):
            return grpc.stream_stream_rpc_method_handler(lambda requests, context: iter(()))
        return Raising().intercept_service(continuation, handler_call_details)

class InterceptedInThreads(Threads):
    def interceptors(self):
        return [Raising()]

class InterceptedInAsyncio(Asyncio):
    def interceptors(self):
        return [AioRaising()]
"""
Text = probe_pb2.Text
INTERNAL = grpc.StatusCode.INTERNAL

#: What the servicer does, and what its caller is told.
ANSWERS = {
    "its own": (grpc.StatusCode.NOT_FOUND, "no such note"),
    "unseal": (INTERNAL, "uncaught UnsealError"),
    "store": (INTERNAL, "uncaught StorageError"),
    "policy": (INTERNAL, "uncaught PolicyError"),
    "a call of the servicer's own": (INTERNAL, "uncaught ApplicationError"),
}


def load(manager: EnclaveManager, folder: Path, application: str, settings: str = "") -> EnclaveClient:
    project = write_probe_project(folder / "project", f"probe.failing:{application}", settings)
    (project / "probe" / "failing.py").write_text(APPLICATION)
    return manager.load("server", project, server_config())


@pytest.fixture(params=["Threads", "Asyncio"])
def enclave(manager: EnclaveManager, tmp_path: Path, request: pytest.FixtureRequest) -> EnclaveClient:
    return load(manager, tmp_path, request.param)


@pytest.fixture
def channel(enclave: EnclaveClient) -> Iterator[grpc.Channel]:
    with open_channel(enclave) as opened:
        yield opened


def answer_to(rpc: Any, request: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        list(rpc(request, timeout=10))
    error: Any = caught.value
    return error.code(), error.details()


def uncaught(enclave: EnclaveClient) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in enclave.log_tail()]
    return [line for line in lines if line["message"] == "uncaught exception in a servicer"]


@pytest.mark.parametrize("method", ["Fail", "Count"])
def test_only_what_the_application_says_itself_reaches_the_caller(
    enclave: EnclaveClient, channel: grpc.Channel, method: str
) -> None:
    rpc = getattr(probe_pb2_grpc.ProbeStub(channel), method)
    for how, answer in ANSWERS.items():
        assert answer_to(rpc, Text(text=how)) == answer
    enclave.destroy()
    lines = uncaught(enclave)
    internal = [answer for code, answer in ANSWERS.values() if code is INTERNAL]
    assert [f"uncaught {line['exception']}" for line in lines] == internal
    assert all("failing.py" in line["frames"] and line["rpc"] == f"/probe.Probe/{method}" for line in lines)
    assert "another server" not in "".join(enclave.log_tail())


def test_an_error_right_after_a_response_reaches_the_caller(channel: grpc.Channel) -> None:
    count = probe_pb2_grpc.ProbeStub(channel).Count
    for _ in range(200):
        assert answer_to(count, Text(text="its own")) == ANSWERS["its own"]


def test_services_of_adytons_own_answer_with_the_status_of_its_errors(
    enclave: EnclaveClient, channel: grpc.Channel
) -> None:
    rpc: Any = channel.unary_unary("/adyton.Secrets/Fail")
    assert answer_to(rpc, b"policy") == (grpc.StatusCode.PERMISSION_DENIED, "of another server")
    assert answer_to(rpc, b"store")[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    enclave.destroy()
    assert uncaught(enclave) == []


def test_the_setting_that_shows_messages_is_named_once(enclave: EnclaveClient, channel: grpc.Channel) -> None:
    stub = probe_pb2_grpc.ProbeStub(channel)
    for _ in range(2):
        answer_to(stub.Fail, Text(text="policy"))
    enclave.destroy()
    first, second = uncaught(enclave)
    assert "logging.exception_messages" in first["hint"]
    assert "hint" not in second


def test_the_setting_is_not_named_where_it_is_set(manager: EnclaveManager, tmp_path: Path) -> None:
    enclave = load(manager, tmp_path, "Threads", "[logging]\nexception_messages = true\n")
    with open_channel(enclave) as channel:
        answer_to(probe_pb2_grpc.ProbeStub(channel).Fail, Text(text="policy"))
    enclave.destroy()
    (line,) = uncaught(enclave)
    assert line["exception_message"] == "of another server"
    assert "hint" not in line


@pytest.mark.parametrize("method", ["Once", "Each"])
def test_what_a_serializer_raises_stays_inside(enclave: EnclaveClient, channel: grpc.Channel, method: str) -> None:
    path = f"/tests.Unserializable/{method}"
    rpc: Any = channel.unary_unary(path) if method == "Once" else channel.unary_stream(path)
    code, said = answer_to(rpc, b"a request")
    assert code in {INTERNAL, grpc.StatusCode.UNKNOWN}
    assert "serializ" in said
    enclave.destroy()
    log = "".join(enclave.log_tail())
    (line,) = (json.loads(each) for each in enclave.log_tail() if "does not serialize" in each)
    assert (line["exception"], line["rpc"]) == ("ValueError", path)
    assert "another server" not in said + log
    assert "a request" not in said + log


def test_a_method_that_the_servicer_leaves_out(channel: grpc.Channel) -> None:
    stub = probe_pb2_grpc.ProbeStub(channel)
    for rpc, request in ((stub.Echo, Text()), (stub.Chat, iter([Text()]))):
        assert answer_to(rpc, request) == (grpc.StatusCode.UNIMPLEMENTED, "this service does not have this method")


@pytest.mark.parametrize("application", ["InterceptedInThreads", "InterceptedInAsyncio"])
def test_what_an_interceptor_raises(manager: EnclaveManager, tmp_path: Path, application: str) -> None:
    enclave = load(manager, tmp_path, application)
    with open_channel(enclave) as channel:
        stub = probe_pb2_grpc.ProbeStub(channel)
        assert answer_to(stub.Echo, Text()) == (INTERNAL, "uncaught ValueError")
        assert answer_to(stub.Collect, iter([Text()])) == (INTERNAL, "uncaught ValueError")
        assert answer_to(stub.Count, Text()) == (grpc.StatusCode.UNAUTHENTICATED, "no token")
        blocking = "uncaught ConfigurationError" if application == "InterceptedInAsyncio" else "uncaught ValueError"
        assert answer_to(stub.Chat, iter([Text()])) == (INTERNAL, blocking)
    enclave.destroy()
    assert len(uncaught(enclave)) == 3
    assert "another server" not in "".join(enclave.log_tail())


REFUSED = {
    "CoroutinesInThreads": "/probe.Probe/Echo is an 'async def', and a GrpcApplication serves with threads",
    "ThreadsInAsyncio": "/probe.Probe/Echo is no 'async def', and an AioGrpcApplication serves on an event loop",
    "DynamicInAsyncio": "a generic handler that finds its methods itself can't be served on asyncio",
}


@pytest.mark.parametrize("application", REFUSED)
def test_a_servicer_of_the_other_kind_is_refused(manager: EnclaveManager, tmp_path: Path, application: str) -> None:
    with pytest.raises(ApplicationError) as caught:
        load(manager, tmp_path, application)
    assert caught.value.status is StatusCode.INVALID_ARGUMENT
    assert caught.value.message.startswith(REFUSED[application])
    other = "GrpcApplication" if application.endswith("Asyncio") else "AioGrpcApplication"
    assert f"adyton.{other}" in caught.value.message


def test_a_generic_handler_that_finds_its_methods_itself_is_served_by_threads(
    manager: EnclaveManager, tmp_path: Path
) -> None:
    with open_channel(load(manager, tmp_path, "DynamicInThreads")) as channel:
        rpc: Any = channel.unary_unary("/any.Service/Method")
        assert rpc(b"echo", timeout=10) == b"echo"
