"""Mutual attestation between real enclaves: the example's demonstration, and two enclaves of one bundle as friends."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import pytest
from attested import open_channel, policy_of
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from observing import eventually

import adyton
from adyton.proto import grpc_application_pb2 as extensions

EXAMPLE = Path(__file__).parents[2] / "examples" / "secure_translator"

APPLICATION = '''
import asyncio

import grpc

import adyton
from adyton.atls.membership import join


def terms(context):
    return {
        "policy": context.policy("friends.policy.toml"),
        "identity": context.identity(role="friend"),
        "allow_insecure": ["simulated"],
    }


def who(request, context):
    peer = adyton.peer(context)
    return f"{peer.rule} {peer.tee}".encode()


def visit(context, target):
    """By the mesh port, over new connections, which several processes may serve."""
    member = join(target, **terms(context))
    answers = set()
    for _ in range(8):
        with member.channel() as channel:
            answers.add(channel.unary_unary("/tests.Friend/Who")(b"", timeout=10))
    return b", ".join(answers)


def add(server, **methods):
    handlers = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("tests.Friend", handlers),))


class Friend(adyton.GrpcApplication):
    def add_servicers(self, server):
        def ask(request, context):
            try:
                with adyton.connect(request.decode(), **terms(self.context)) as channel:
                    return channel.unary_unary("/tests.Friend/Who")(b"", timeout=10)
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())

        add(server, Who=who, Ask=ask, Visit=lambda request, context: visit(self.context, request.decode()))


class AioFriend(adyton.AioGrpcApplication):
    def add_servicers(self, server):
        async def ask(request, context):
            options = await asyncio.to_thread(terms, self.context)
            async with adyton.aio.connect(request.decode(), **options) as channel:
                return await channel.unary_unary("/tests.Friend/Who")(b"", timeout=10)

        async def visiting(request, context):
            return await asyncio.to_thread(visit, self.context, request.decode())

        async def who_calls(request, context):
            return who(request, context)

        add(server, Who=who_calls, Ask=ask, Visit=visiting)
'''

SETTINGS = """
name = "friend"
application = "friend:{application}"
include = ["friend.py", "friends.policy.toml"]

[network]
outbound = true

[server]
workers = {workers}
mesh = true

[access]
policy = "friends.policy.toml"
allow_insecure = ["simulated"]

[access.methods]
"/tests.Friend/Who" = {{ rule = "friend" }}
"""


@pytest.fixture(scope="module")
def demo() -> Iterator[ModuleType]:
    """The demonstration's own functions."""
    before = list(sys.path)
    spec = importlib.util.spec_from_file_location("secure_translator_demo", EXAMPLE / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before


def friends_bundle(demo: ModuleType, folder: Path, owner: Ed25519PrivateKey, application: str, workers: int) -> Any:
    folder.mkdir()
    (folder / "friend.py").write_text(APPLICATION, encoding="utf-8")
    (folder / "enclave.toml").write_text(SETTINGS.format(application=application, workers=workers), encoding="utf-8")
    demo.write_policy(folder / "friends.policy.toml", "friend", owner)
    shutil.copy(demo.TRANSLATOR / "requirements.lock", folder)
    return adyton.Bundle.build(folder)


def start(manager: adyton.EnclaveManager, name: str, bundle: adyton.Bundle, *documents: bytes) -> adyton.EnclaveClient:
    config = adyton.EnclaveConfig()
    config.Extensions[extensions.server_address] = "localhost"
    config.Extensions[extensions.port] = 0
    config.Extensions[extensions.reference_values].extend(documents)
    return manager.load(name, bundle, config)


def ask(enclave: adyton.EnclaveClient, method: str, target: str) -> bytes:
    with open_channel(enclave, policy=policy_of(enclave)) as channel:
        rpc: Any = channel.unary_unary(f"/tests.Friend/{method}")
        answer: bytes = rpc(target.encode(), timeout=30)
        return answer


def address_of(enclave: adyton.EnclaveClient) -> str:
    return enclave.address_of(enclave.enter_and_run().Extensions[extensions.actual_server_port])


@pytest.mark.slow
def test_the_demonstration_shows_what_it_says() -> None:
    command = [sys.executable, str(EXAMPLE / "demo.py")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (
        "asylo → sanctuary",
        "kubernetes → helmsman",
        "asylo → PERMISSION_DENIED: this caller may not call this method",
        "the client's enclave: PERMISSION_DENIED: ",
        "the server's log: rule 'translation-client': measurement is ",
        "nothing here protects a secret",
    ):
        assert line in done.stdout, done.stdout
    for number in range(1, 7):
        assert f"\n{number}. " in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("application", "workers"), [("Friend", 1), ("Friend", 2), ("AioFriend", 1), ("AioFriend", 2)])
def test_two_enclaves_of_one_bundle_know_each_other(
    demo: ModuleType, manager: adyton.EnclaveManager, tmp_path: Path, application: str, workers: int
) -> None:
    owner = Ed25519PrivateKey.generate()
    bundle = friends_bundle(demo, tmp_path / "friend", owner, application, workers)
    document = demo.sign_values(bundle, owner)
    anna, berta = (start(manager, name, bundle, document) for name in ("anna", "berta"))
    for one, other in ((anna, berta), (berta, anna)):
        for _ in range(workers * 2):
            assert ask(one, "Ask", address_of(other)) == b"friend simulated"
        assert ask(one, "Visit", address_of(other)) == b"friend simulated"
        with pytest.raises(grpc.RpcError) as caught:
            ask(one, "Who", "")
        refused: Any = caught.value
        assert refused.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.slow
def test_without_the_values_that_the_owner_signed_nobody_is_a_friend(
    demo: ModuleType, manager: adyton.EnclaveManager, tmp_path: Path
) -> None:
    owner = Ed25519PrivateKey.generate()
    bundle = friends_bundle(demo, tmp_path / "friend", owner, "Friend", 1)
    forged = demo.sign_values(bundle, Ed25519PrivateKey.generate())
    trusting = start(manager, "anna", bundle, demo.sign_values(bundle, owner))
    given_none, given_forged = start(manager, "berta", bundle), start(manager, "carla", bundle, forged)
    for distrustful in (given_none, given_forged):
        with pytest.raises(grpc.RpcError) as caught:
            ask(trusting, "Ask", address_of(distrustful))
        refused: Any = caught.value
        assert refused.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "does not enrol this enclave" in refused.details()
    eventually(lambda: "are not used" in "".join(given_forged.log_tail()))
