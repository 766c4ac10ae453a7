"""Owners of enclaves, the projects of their enclaves, and orders as they send them: attest, sign, call."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import keeping
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from adyton.atls.certificates import parse_certificate, spki_sha256
from adyton.atls.connect import PolicySource, connector
from adyton.atls.connector import BlockingConnector
from adyton.atls.owner import METHOD, SERVICE, sign_order
from adyton.atls.session import Session
from adyton.host.bundles import LOCK, runtime_lock
from adyton.proto.secrets_pb2 import ListOrder, Order, OrderReply, PutOrder, RotateIdentityOrder

SECRET = b"correct horse battery staple"
ORDER = f"/{SERVICE}/{METHOD}"
LIST = Order(list=ListOrder())
ROTATE_IDENTITY = Order(rotate_identity=RotateIdentityOrder())


def put(name: str, value: bytes, *, replace: bool = False) -> Order:
    return Order(put=PutOrder(name=name, value=value, replace=replace))


def write_keeping_project(
    folder: Path, *owners: ec.EllipticCurvePrivateKey, application: str = "Keeping", settings: str = ""
) -> Path:
    """A project of an application of `keeping`; `settings` is more TOML for its enclave.toml.

    Its code is that of no other folder: the machine's simulated hardware remembers the stores of each code.
    """
    folder.mkdir()
    shutil.copy(keeping.__file__, folder / "keeping.py")
    (folder / LOCK).write_bytes(runtime_lock())
    ids = ", ".join(f'"{spki_sha256(each.public_key()).hex()}"' for each in owners)
    text = f'name = "keeping"\napplication = "keeping:{application}"\ninclude = ["keeping.py"]\n'
    (folder / "enclave.toml").write_text(f"# {folder}\n{text}[secrets]\nowners = [{ids}]\n{settings}")
    return folder


@contextlib.contextmanager
def attested(target: str, policy: PolicySource) -> Iterator[Session[grpc.Channel]]:
    session = BlockingConnector(connector(target, policy, allow_insecure=["simulated"])).open(20)
    try:
        yield session
    finally:
        session.channel.close()


def signed(session: Session[grpc.Channel], key: ec.EllipticCurvePrivateKey, order: Order) -> bytes:
    leaf_sha256 = spki_sha256(parse_certificate(session.question.pinned)[1])
    return sign_order(key, order, leaf_sha256=leaf_sha256, client_sha256=session.question.client_sha256)


def ask(channel: grpc.Channel, path: str, request: bytes = b"") -> bytes:
    """One call, on a connection that is there, or soon will be."""
    call: Any = channel.unary_unary(path)
    answer: bytes = call(request, timeout=30)
    return answer


def refusal(channel: grpc.Channel, request: bytes) -> grpc.StatusCode:
    """What an order is refused with. What is said names nothing that was sent."""
    with pytest.raises(grpc.RpcError) as caught:
        ask(channel, ORDER, request)
    assert SECRET.decode() not in str(caught.value)
    code: grpc.StatusCode = caught.value.code()
    return code


def send(target: str, policy: PolicySource, key: ec.EllipticCurvePrivateKey, order: Order) -> OrderReply:
    with attested(target, policy) as session:
        return OrderReply.FromString(ask(session.channel, ORDER, signed(session, key, order)))


def told(target: str, policy: PolicySource, name: str, method: str = "Tell") -> bytes:
    """What the application has by that name, or `keeping.NOTHING`."""
    with attested(target, policy) as session:
        return ask(session.channel, f"/{keeping.SERVICE}/{method}", name.encode())


def described(target: str, policy: PolicySource) -> dict[str, Any]:
    """What the application says of its process."""
    facts: dict[str, Any] = json.loads(told(target, policy, "", "Describe"))
    return facts
