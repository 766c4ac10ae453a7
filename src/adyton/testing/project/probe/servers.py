"""The probe service, on both kinds of server."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import grpc
import grpc.aio

import adyton
from probe import probe_pb2, probe_pb2_grpc

Text = probe_pb2.Text
_log = logging.getLogger("probe")


def _fail(text: str) -> None:
    raise ValueError(f"secret of the request: {text}")


async def _leave() -> None:
    raise SystemExit(3)


async def _fail_later(text: str) -> None:
    _fail(text)


class Probe(probe_pb2_grpc.ProbeServicer):
    """For grpc.server(). Counts the RPCs that it began and logs the count when the server is finalized."""

    def __init__(self) -> None:
        self.begun = 0
        self._guard = threading.Lock()

    def Echo(self, request: Text, context: grpc.ServicerContext) -> Text:
        with self._guard:
            self.begun += 1
        time.sleep(request.milliseconds / 1000)
        return Text(text=request.text)

    def Count(self, request: Text, context: grpc.ServicerContext) -> Iterator[Text]:
        for number in range(int(request.text)):
            time.sleep(request.milliseconds / 1000)
            yield Text(text=str(number))

    def Collect(self, request_iterator: Iterator[Text], context: grpc.ServicerContext) -> Text:
        return Text(text=" ".join(request.text for request in request_iterator))

    def Chat(self, request_iterator: Iterator[Text], context: grpc.ServicerContext) -> Iterator[Text]:
        for request in request_iterator:
            yield Text(text=request.text.upper())

    def Fail(self, request: Text, context: grpc.ServicerContext) -> Text:
        if request.text == "abort":
            context.abort(grpc.StatusCode.OUT_OF_RANGE, "as asked")
        if request.text == "unavailable":
            context.abort(grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses; as asked")
        if request.text == "status":
            raise adyton.ApplicationError(adyton.StatusCode.DATA_LOSS, "as asked")
        if request.text == "leave":
            raise SystemExit(request.text)
        if request.text == "thread":
            thread = threading.Thread(target=_fail, args=(request.text,))
            thread.start()
            thread.join()
        raise ValueError(f"secret of the request: {request.text}")

    def Who(self, request: Text, context: grpc.ServicerContext) -> Text:
        return Text(text=f"{os.getpid()} {sorted(os.sched_getaffinity(0))}")


class AioProbe(probe_pb2_grpc.ProbeServicer):
    """For grpc.aio.server()."""

    def __init__(self) -> None:
        self.begun = 0

    async def Echo(self, request: Text, context: Any) -> Text:
        self.begun += 1
        if request.text == "leave":
            raise SystemExit(request.text)
        if request.text == "leave later":
            self.forgotten = asyncio.create_task(_leave())
        if request.text == "block":
            time.sleep(request.milliseconds / 1000)
        if request.text == "forget":
            self.forgotten = asyncio.create_task(_fail_later(request.text))
        await asyncio.sleep(request.milliseconds / 1000)
        return Text(text=request.text)

    async def Count(self, request: Text, context: Any) -> AsyncIterator[Text]:
        for number in range(int(request.text)):
            await asyncio.sleep(request.milliseconds / 1000)
            yield Text(text=str(number))

    async def Collect(self, request_iterator: AsyncIterator[Text], context: Any) -> Text:
        return Text(text=" ".join([request.text async for request in request_iterator]))

    async def Chat(self, request_iterator: AsyncIterator[Text], context: Any) -> AsyncIterator[Text]:
        async for request in request_iterator:
            yield Text(text=request.text.upper())

    async def Fail(self, request: Text, context: Any) -> Text:
        if request.text == "abort":
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, "as asked")
        if request.text == "unavailable":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses; as asked")
        if request.text == "status":
            raise adyton.ApplicationError(adyton.StatusCode.DATA_LOSS, "as asked")
        raise ValueError(f"secret of the request: {request.text}")

    async def Who(self, request: Text, context: Any) -> Text:
        return Text(text=f"{os.getpid()} {sorted(os.sched_getaffinity(0))}")


class MarkInterceptor(grpc.ServerInterceptor):
    """Logs that it was asked."""

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        _log.info("intercepted", extra={"rpc": handler_call_details.method})
        return continuation(handler_call_details)


class ProbeServer(adyton.GrpcApplication):
    """The servicer in a server with threads."""

    def __init__(self) -> None:
        super().__init__()
        self.probe = Probe()

    def add_servicers(self, server: grpc.Server) -> None:
        probe_pb2_grpc.add_ProbeServicer_to_server(self.probe, server)

    def interceptors(self) -> Sequence[Any]:
        return [MarkInterceptor()]

    def initialize(self, config: adyton.EnclaveConfig) -> None:
        super().initialize(config)
        if config.Extensions[probe_pb2.behaviour] == "twice":
            super().initialize(config)

    def finalize(self, final: adyton.EnclaveFinal) -> None:
        super().finalize(final)
        _log.info("begun", extra={"begun": self.probe.begun})


class AioProbeServer(adyton.AioGrpcApplication):
    """The servicer in an asyncio server."""

    def __init__(self) -> None:
        super().__init__()
        self.probe = AioProbe()

    def add_servicers(self, server: grpc.aio.Server) -> None:
        probe_pb2_grpc.add_ProbeServicer_to_server(self.probe, server)

    def finalize(self, final: adyton.EnclaveFinal) -> None:
        super().finalize(final)
        _log.info("begun", extra={"begun": self.probe.begun})


class Forgetful(adyton.GrpcApplication):
    """Does not override add_servicers."""
