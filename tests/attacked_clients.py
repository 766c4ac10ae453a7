"""Clients that tell an enclave a secret; as a program, with the environment and the addresses that a test gives it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import Any, Protocol
from unittest import mock

import grpc
import grpc.aio
from attacked_servers import TELL
from conversing import converse

import adyton
import adyton.aio
from adyton.atls.certificates import DEFAULT_AUDIENCE
from adyton.atls.connect import PolicySource
from adyton.errors import AdytonError

SECONDS = 20.0


class Tell(Protocol):
    """Connect, attest, tell the secret, and return what comes back. `options` are those of `adyton.connect`."""

    def __call__(
        self, target: str, policy: PolicySource, secret: bytes, *, timeout: float = SECONDS, **options: Any
    ) -> bytes: ...


def tell(target: str, policy: PolicySource, secret: bytes, *, timeout: float = SECONDS, **options: Any) -> bytes:
    options.setdefault("allow_insecure", ["simulated"])
    with adyton.connect(target, policy, timeout=timeout, **options) as channel:
        call: Any = channel.unary_unary(TELL)
        answer: bytes = call(secret, timeout=timeout)
    return answer


def tell_on_asyncio(
    target: str, policy: PolicySource, secret: bytes, *, timeout: float = SECONDS, **options: Any
) -> bytes:
    """Without `async with`: the call itself connects, so nothing but the attestation keeps the secret back."""

    async def run() -> bytes:
        options.setdefault("allow_insecure", ["simulated"])
        channel = adyton.aio.connect(target, policy, **options)
        try:
            call: Any = channel.unary_unary(TELL)
            answer: bytes = await call(secret, timeout=timeout)
        finally:
            await channel.close()
        return answer

    return asyncio.run(run())


TELLERS: dict[str, Tell] = {"threads": tell, "asyncio": tell_on_asyncio}


def ordinarily(target: str) -> str:
    """What an ordinary client does in this process's environment: the status of an RPC; and a context of `ssl`."""
    ssl.create_default_context()
    options = [("grpc.ssl_target_name_override", DEFAULT_AUDIENCE)]
    with grpc.secure_channel(target, grpc.ssl_channel_credentials(), options) as channel:
        call: Any = channel.unary_unary(TELL)
        try:
            call(b"no secret", timeout=1)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code.name
    return "OK"


def resolving(addresses: list[str]) -> Any:
    """A resolver that gives these for every name, in this order."""

    def getaddrinfo(_host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    return mock.patch.object(socket, "getaddrinfo", getaddrinfo)


def main() -> None:
    def answer(
        *,
        target: str,
        how: str = "",
        policy: str = "",
        secret: str = "",
        addresses: list[str] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        if not how:
            return {"code": ordinarily(target)}
        with resolving(addresses) if addresses else contextlib.nullcontext():
            try:
                return {"answer": TELLERS[how](target, policy.encode(), secret.encode(), **options).decode()}
            except AdytonError as error:
                return {"error": type(error).__name__, "message": str(error)}

    converse(answer)


if __name__ == "__main__":
    main()
