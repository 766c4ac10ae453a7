"""The servers that are compared: the translator on bare grpcio, in three ways, and in an enclave.

    python benchmarks/parties.py insecure | tls | mtls    one of the bare ones, until its standard input ends
    python benchmarks/parties.py slow MILLISECONDS        an enclave's server over simulated hardware that is so slow

Each prints a line of JSON: its port and, if it has one, the certificate to connect under.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

import adyton
from adyton.atls.batch import BatchedQuotes, DeviceQuotes
from adyton.atls.certificates import DEFAULT_AUDIENCE, issue_open_client, key_pem, open_client_ca, pem
from adyton.atls.channel import AttestedChannel
from adyton.atls.connect import connector
from adyton.atls.connector import BlockingConnector, Connector
from adyton.atls.identity import LocalIdentity, chain_pem
from adyton.policy.document import Policy
from adyton.proto import grpc_application_pb2 as extensions
from adyton.testing.policies import launcher_policy

ROOT = Path(__file__).resolve().parent.parent
PROJECT = ROOT / "examples" / "translator"
sys.path += [str(PROJECT), str(ROOT / "tests")]

INSECURE, TLS, MTLS, OURS = "insecure", "TLS", "mTLS", "ours"
KINDS = (INSECURE, TLS, MTLS, OURS)
NAME = ("grpc.ssl_target_name_override", DEFAULT_AUDIENCE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """A server that runs. `root` is what its clients connect under, `policy` what they accept, where it has one."""

    kind: str
    port: int
    pids: tuple[int, ...]
    root: bytes | None = None
    policy: Policy | None = None

    def cpu_seconds(self) -> float:
        """CPU time that all processes of the server, and those that they have started, have used."""
        return sum(process_seconds(pid) for pid in self.pids)

    def connector(self) -> Connector:
        """How a client attests it."""
        assert self.policy is not None
        return connector(f"127.0.0.1:{self.port}", self.policy, allow_insecure=["simulated"])

    def channel(self) -> grpc.Channel:
        """What an ordinary client has."""
        address = f"127.0.0.1:{self.port}"
        if self.kind == INSECURE:
            return grpc.insecure_channel(address)
        if self.kind == OURS:
            return AttestedChannel(BlockingConnector(self.connector()))
        key = ec.generate_private_key(ec.SECP256R1()) if self.kind == MTLS else None
        pair = (None, None) if key is None else (key_pem(key), pem(issue_open_client(key)))
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(self.root, *pair), [NAME])


# --- processes


def process_seconds(pid: int) -> float:
    """CPU time of a process, with all its threads: its CPU clock, which /proc/<pid>/stat shows in steps of 10 ms."""
    return time.clock_gettime((~pid << 3) | 2)  # as clock_getcpuclockid(3) makes it


def descendants(pid: int) -> set[int]:
    children: set[int] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # that thread has ended
            children.update(map(int, path.read_text().split()))
    return children.union(*map(descendants, children))


@contextlib.contextmanager
def on_cpus(cpus: set[int]) -> Iterator[None]:
    """This thread on those CPUs, and for good whatever it starts meanwhile."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def script(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """Run this file until the end; the process, and what it says first.

    In a session of its own, as an enclave is: Linux schedules sessions against each other, which counts on a busy CPU.
    """
    command = [sys.executable, __file__, *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield process, heard(process)
        finally:
            process.kill()


def heard(process: subprocess.Popen[str]) -> dict[str, str]:
    """What it says next."""
    assert process.stdout is not None
    said: dict[str, str] = json.loads(process.stdout.readline())
    return said


# --- servers


@contextlib.contextmanager
def bare(kind: str) -> Iterator[Party]:
    with script(kind) as (process, said):
        yield Party(kind=kind, port=int(said["port"]), pids=(process.pid,), root=said["root"].encode() or None)


@contextlib.contextmanager
def slow(milliseconds: float) -> Iterator[tuple[Party, Callable[[], int]]]:
    """An enclave's server over slow hardware, and what tells how many quotes that has made."""
    with script("slow", str(milliseconds)) as (process, said):

        def quotes() -> int:
            assert process.stdin is not None
            print(file=process.stdin, flush=True)
            return int(heard(process)["quotes"])

        policy = Policy.parse(said["policy"].encode())
        yield Party(kind=OURS, port=int(said["port"]), pids=(process.pid,), policy=policy), quotes


def enclave(manager: adyton.EnclaveManager, bundle: adyton.Bundle, *, workers: int = 1, port: int = 0) -> Party:
    """The translator in an enclave; it ends with the manager."""
    config = adyton.EnclaveConfig()
    config.Extensions[extensions.server_address] = "127.0.0.1"
    config.Extensions[extensions.port] = port
    config.Extensions[extensions.workers] = workers
    before = descendants(os.getpid())
    loaded = manager.load(f"workers-{workers}", bundle, config)
    actual = loaded.enter_and_run().Extensions[extensions.actual_server_port]
    pids = tuple(descendants(os.getpid()) - before)
    return Party(kind=OURS, port=actual, pids=pids, policy=launcher_policy(bundle))


@contextlib.contextmanager
def client_certificate() -> Iterator[Path]:
    """A file with a key and a certificate under the open client CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        file.write(key_pem(key) + pem(issue_open_client(key)))
        file.flush()
        yield Path(file.name)


def serve_bare(kind: str) -> None:
    """The same servicer and as many threads as in the enclave; no option of gRPC's is set."""
    from translator import translator_pb2_grpc
    from translator.service import Translator

    server = grpc.server(futures.ThreadPoolExecutor(10))
    translator_pb2_grpc.add_TranslatorServicer_to_server(Translator.from_file(), server)
    root = ""
    if kind == INSECURE:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        identity = LocalIdentity(names=(DEFAULT_AUDIENCE,), claims=b"").current()
        pair = (key_pem(identity.leaf.key), chain_pem(identity))
        roots = pem(open_client_ca().certificate) if kind == MTLS else None
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair], roots, roots is not None))
        root = pem(identity.ca.certificate).decode()
    server.start()
    print(json.dumps({"port": str(port), "root": root}), flush=True)
    sys.stdin.read()


def serve_slowly(milliseconds: float) -> None:
    """An enclave's server, without an enclave around it, over hardware that makes one quote after the other."""
    import channel_parties

    with (
        tempfile.TemporaryDirectory() as folder,
        channel_parties.slow_device(Path(folder), milliseconds / 1000) as (device, hardware),
        channel_parties.serving(BatchedQuotes(DeviceQuotes(device))) as target,
    ):
        policy = channel_parties.policy_text(hardware.root.fingerprint(hashes.SHA256())).decode()
        print(json.dumps({"port": target.rpartition(":")[2], "policy": policy}), flush=True)
        while sys.stdin.readline():
            print(json.dumps({"quotes": str(hardware.quotes)}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "slow":
        serve_slowly(float(sys.argv[2]))
    else:
        serve_bare(sys.argv[1])
