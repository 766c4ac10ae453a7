"""The translator's server in an enclave beside the same servicer on bare grpcio: `python3 dev.py bench`.

h2load (Debian, Ubuntu: apt install nghttp2-client) asks; it is far faster than any client in Python. The variants take
turns in one run, so that what else the machine does meets all of them; medians and spread are printed.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import adyton
from adyton.proto import grpc_application_pb2 as extensions

ROUNDS, REQUESTS, CONNECTIONS = 9, 8000, 8
PROJECT = Path(__file__).resolve().parent.parent / "examples" / "translator"
METHOD = "examples.grpc_server.Translator/GetTranslation"
BARE = """
import sys
from concurrent import futures
import grpc
sys.path.append(sys.argv[1])
from translator import translator_pb2_grpc
from translator.service import Translator
server = grpc.server(futures.ThreadPoolExecutor(10))
translator_pb2_grpc.add_TranslatorServicer_to_server(Translator.from_file(), server)
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
server.wait_for_termination()
"""


def load(manager: adyton.EnclaveManager, workers: int) -> int:
    config = adyton.EnclaveConfig()
    config.Extensions[extensions.server_address] = "127.0.0.1"
    config.Extensions[extensions.port] = 0
    config.Extensions[extensions.workers] = workers
    enclave = manager.load(f"workers-{workers}", PROJECT, config)
    return enclave.enter_and_run().Extensions[extensions.actual_server_port]


def ask(port: int, request: Path) -> float:
    """Requests a second; every one of them must succeed."""
    headers = ("-H", "content-type: application/grpc", "-H", "te: trailers")
    counts = ("-n", str(REQUESTS), "-c", str(CONNECTIONS), "-m", "1")
    command = ["h2load", *counts, "-d", str(request), *headers, f"http://127.0.0.1:{port}/{METHOD}"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if f"{REQUESTS} succeeded" not in said:
        raise SystemExit(said)
    found = re.search(r"([\d.]+) req/s", said)
    assert found is not None
    return float(found[1])


def main() -> int:
    if shutil.which("h2load") is None:
        print("h2load is missing. Debian, Ubuntu: apt install nghttp2-client", file=sys.stderr)
        return 6
    message = b"\n\x05asylo"
    with tempfile.TemporaryDirectory() as folder, adyton.EnclaveManager() as manager:
        request = Path(folder) / "request"
        request.write_bytes(b"\0" + struct.pack(">I", len(message)) + message)
        bare = subprocess.Popen([sys.executable, "-c", BARE, PROJECT], stdout=subprocess.PIPE, text=True)
        assert bare.stdout is not None
        ports = {"bare grpcio": int(bare.stdout.readline())}
        ports |= {f"enclave, {workers} worker(s)": load(manager, workers) for workers in (1, 2)}
        rates: dict[str, list[float]] = {name: [] for name in ports}
        for _ in range(ROUNDS):
            for name, port in ports.items():
                rates[name].append(ask(port, request))
        bare.kill()
        bare.communicate()
    print(f"unary, {CONNECTIONS} connections, {REQUESTS} requests a round, {ROUNDS} rounds, {os.cpu_count()} CPUs\n")
    print("| server | median requests/s | min to max | median ratio to bare |\n|---|---|---|---|")
    for name, values in rates.items():
        ratio = statistics.median(value / base for value, base in zip(values, rates["bare grpcio"], strict=True))
        print(f"| {name} | {statistics.median(values):.0f} | {min(values):.0f} to {max(values):.0f} | {ratio:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
