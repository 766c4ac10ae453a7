"""Calls of methods that a server does not have, among them such whose path is no text; asyncio beside threads."""

from __future__ import annotations

import time
from typing import Any

import grpc
import pytest
from attested import open_channel
from probe import probe_pb2, probe_pb2_grpc

from adyton.host.manager import EnclaveManager
from adyton.testing.probes import AIO_SERVER, SERVER, probe_bundle, server_config

UNKNOWN = (b"/probe.Probe/No", b"/\xff", b"/probe.Probe/\xff\xfe", b"/")


@pytest.mark.parametrize("application", [SERVER, AIO_SERVER])
def test_no_path_ends_a_server(manager: EnclaveManager, application: str) -> None:
    """One that is no UTF-8 ends grpc.aio.server()."""
    enclave = manager.load("server", probe_bundle(application), server_config())
    with open_channel(enclave) as before, open_channel(enclave) as attacker:
        for path in UNKNOWN * 3:
            rpc: Any = attacker.unary_unary(path)  # type: ignore[arg-type]  # gRPC sends bytes as they are
            with pytest.raises(grpc.RpcError) as caught:
                rpc(b"", timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        with open_channel(enclave) as after:
            for channel in (before, after):
                stub = probe_pb2_grpc.ProbeStub(channel)
                assert stub.Echo(probe_pb2.Text(text="served"), timeout=10).text == "served"
        begun = time.monotonic()
        enclave.destroy()
        assert time.monotonic() - begun < 5
