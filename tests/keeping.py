"""An application that owners send secrets to, and one that would pass their orders on; they run from a bundle.

So this imports nothing of the tests. `tests/owners.py` starts them and speaks to them.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import resource
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc

import adyton
from adyton.proto.secrets_pb2 import OrderReply

SERVICE = "tests.Keeping"
NOTHING = b"\0none"
_PR_GET_DUMPABLE = 3


def add_methods(
    server: Any, application: adyton.TrustedApplication, form: Callable[[Any], Any] = lambda method: method
) -> None:
    """Each method in the form that the server takes."""
    secrets = application.context.secrets

    def tell(request: bytes, context: Any) -> bytes:
        return secrets.get(request.decode(), NOTHING)

    def wait(request: bytes, context: Any) -> bytes:
        return secrets.wait(request.decode(), 20)

    def describe(request: bytes, context: Any) -> bytes:
        facts = {
            "pid": os.getpid(),
            "dumpable": ctypes.CDLL(None).prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0),
            "core": resource.getrlimit(resource.RLIMIT_CORE),
            "environment": dict(os.environ),
            "shown": repr(secrets),
        }
        return json.dumps(facts).encode()

    def die(request: bytes, context: Any) -> bytes:
        os.kill(os.getpid(), int(signal.Signals[request.decode()]))
        raise AssertionError

    methods = {"Tell": tell, "Wait": wait, "Describe": describe, "Die": die}
    handlers: dict[str, Any] = {name: grpc.unary_unary_rpc_method_handler(form(each)) for name, each in methods.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


class Keeping(adyton.GrpcApplication):
    def add_servicers(self, server: grpc.Server) -> None:
        add_methods(server, self)


class AioKeeping(adyton.AioGrpcApplication):
    def add_servicers(self, server: grpc.aio.Server) -> None:
        add_methods(server, self, lambda method: partial(asyncio.to_thread, method))


class Listening(adyton.GrpcApplication):
    """Takes owners' orders, answers as if it had carried them out, and gives them away."""

    def add_servicers(self, server: grpc.Server) -> None:
        heard: list[bytes] = []

        def order(request: bytes, context: Any) -> bytes:
            heard.append(request)
            return OrderReply(durable=True).SerializeToString()

        def overheard(request: bytes, context: Any) -> bytes:
            return heard[-1]

        for service, methods in (("adyton.Secrets", {"Order": order}), (SERVICE, {"Overheard": overheard})):
            handlers: dict[str, Any] = {
                name: grpc.unary_unary_rpc_method_handler(each) for name, each in methods.items()
            }
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
