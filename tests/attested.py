"""Attested connections to enclaves, for tests that are about something else: the bare inner channel of one session."""

from __future__ import annotations

from datetime import UTC, datetime

import grpc
from cryptography.hazmat.primitives import hashes

from adyton.atls.connect import connector
from adyton.atls.connector import BlockingConnector, Options
from adyton.host.manager import EnclaveClient
from adyton.policy.document import Policy
from adyton.proto import grpc_application_pb2 as extensions
from adyton.tee.registry import tee
from adyton.tee.simulated.platform import SimulatedPlatform


def port_of(enclave: EnclaveClient) -> int:
    return enclave.enter_and_run().Extensions[extensions.actual_server_port]


def policy_of(enclave: EnclaveClient, channel: str = "") -> Policy:
    """What accepts that very enclave's code, by its own evidence."""
    anchor = SimulatedPlatform.open().root.fingerprint(hashes.SHA256())
    evidence = enclave.collect_evidence(bytes(64))
    verified = tee(evidence.tee).verifier()(evidence, anchors={anchor}, now=datetime.now(UTC))
    text = f"""
        version = 1
        [anchors]
        simulated = ["{anchor.hex()}"]
        [channel]
        {channel}
        [[simulated]]
        name = "this enclave"
        measurement = ["{verified.measurement.hex()}"]
        max_age_seconds = 300
    """
    return Policy.parse(text.encode())


def open_channel(
    enclave: EnclaveClient, *, address: str = "", policy: Policy | None = None, options: Options = ()
) -> grpc.Channel:
    """One attested connection. It is not made again when it is lost."""
    target, policy = address or enclave.address_of(port_of(enclave)), policy or policy_of(enclave)
    return open_session(target, policy, options)


def open_session(target: str, policy: Policy, options: Options = ()) -> grpc.Channel:
    """The same by an address."""
    made = connector(target, policy, allow_insecure=["simulated"], options=options)
    return BlockingConnector(made).open(20).channel
