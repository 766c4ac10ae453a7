"""A server behind TLS that writes down what it carries out, and an opener of sessions that can connect to it once.

Sessions here prove nothing: what is tested with them is what becomes of calls when connections come and go.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import grpc.experimental
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from adyton.atls.attestation import Attestation, BindingLevel
from adyton.atls.binding import Purpose
from adyton.atls.certificates import key_pem
from adyton.atls.never_sent import ANSWERED_KEY
from adyton.atls.one_dial import ARGUMENT, OneDial
from adyton.atls.question import Question
from adyton.atls.session import Session
from adyton.errors import DeadlineError, UnreachableError
from adyton.policy.appraisal import Appraisal

HOST = "one-shot.test"
SERVICE = "one.Shot"
NO_CONNECTION = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Connection refused"
START_SECONDS = 20.0

_QUESTION = Question(purpose=Purpose.INSTANCE, nonce=bytes(32), audience=HOST, pinned=b"", client_sha256=b"")


def _certificate(
    subject: str, key: ec.EllipticCurvePrivateKey, issuer: str, issuer_key: ec.EllipticCurvePrivateKey
) -> bytes:
    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    builder = x509.CertificateBuilder().subject_name(named(subject)).issuer_name(named(issuer))
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - day).not_valid_after(now + day)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(subject)]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=subject == issuer, path_length=None), critical=True)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(Encoding.PEM)


@functools.cache
def _ca() -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    return key, _certificate("ca.test", key, "ca.test", key)


@functools.cache
def tls() -> dict[str, str]:
    """What a server needs: `key`, `certificate` and `ca`, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    certificate = _certificate(HOST, key, "ca.test", _ca()[0])
    return {"key": private.decode(), "certificate": certificate.decode(), "ca": _ca()[1].decode()}


class _Counting(grpc.GenericRpcHandler):
    """Requests are `ID VERB ARGUMENT`; each RPC's first ID is written to the journal before anything else."""

    def __init__(self, journal: Path) -> None:
        self._journal = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Attest": grpc.unary_unary_rpc_method_handler(lambda request, _: request),
            "Once": grpc.unary_unary_rpc_method_handler(self._once),
            "Down": grpc.unary_stream_rpc_method_handler(self._down),
            "Up": grpc.stream_unary_rpc_method_handler(self._up),
            "Both": grpc.stream_stream_rpc_method_handler(self._both),
        }

    def service(self, handler_call_details: Any) -> Any:
        _, service, method = handler_call_details.method.split("/")
        return self._handlers.get(method) if service == SERVICE else None

    def _begun(self, request: bytes) -> list[str]:
        words = [*request.decode().split(), "", ""]
        os.write(self._journal, f"{words[0]}\n".encode())
        return words

    def _once(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        name, verb, argument, *_ = self._begun(request)
        if verb == "sleep":
            time.sleep(float(argument))
        elif verb == "answered":
            context.set_trailing_metadata(((ANSWERED_KEY, "1"),))
            context.abort(grpc.StatusCode.UNAVAILABLE, NO_CONNECTION)
        elif verb == "unavailable":
            context.abort(grpc.StatusCode.UNAVAILABLE, "not today")
        elif verb == "headers":
            headers = {key: str(value) for key, value in context.invocation_metadata()}
            return json.dumps({**headers, "left": context.time_remaining()}).encode()
        context.set_trailing_metadata((("served", name),))
        return name.encode()

    def _down(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        name, verb, argument, *_ = self._begun(request)
        context.send_initial_metadata((("begun", name),))
        for number in range(int(argument or 3)):
            yield f"{name} {number}".encode()
        while verb == "hang" and context.is_active():
            time.sleep(0.01)

    def _up(self, requests: Iterator[bytes], _context: grpc.ServicerContext) -> bytes:
        return b",".join(self._received(requests))

    def _both(self, requests: Iterator[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
        yield from self._received(requests)

    def _received(self, requests: Iterator[bytes]) -> Iterator[bytes]:
        for number, request in enumerate(requests):
            if number == 0:
                self._begun(request)
            yield request


def start(
    journal: Path,
    certificates: dict[str, str],
    port: int = 0,
    options: Any = (),
    add: Callable[[grpc.Server], object] = lambda server: None,
) -> tuple[grpc.Server, int]:
    """A server in this process, and its port."""
    server = grpc.server(futures.ThreadPoolExecutor(16), options=list(options))
    server.add_generic_rpc_handlers((_Counting(journal),))
    add(server)
    pair = (certificates["key"].encode(), certificates["certificate"].encode())
    secured = grpc.ssl_server_credentials([pair], certificates["ca"].encode(), require_client_auth=True)
    bound = server.add_secure_port(f"127.0.0.1:{port}", secured)
    server.start()
    return server, bound


class ServerProcess:
    """The server in a process of its own, to be killed and started again on the same port."""

    def __init__(self, journal: Path, **options: int) -> None:
        self.journal = journal
        self.port = 0
        self._options = list(options.items())
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        settings = json.dumps([str(self.journal), tls(), self.port, self._options])
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(settings.encode() + b"\n")
        self._process.stdin.flush()
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        """As if by the power's failure: nothing is said to anybody."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.communicate()
            self._process = None


def carried_out(journal: Path) -> list[str]:
    """The first ID of each RPC that a server has begun, in order."""
    return journal.read_text().split()


class OneShotOpener:
    """Opens plain TLS connections that can't be made twice, and counts them.

    `problems` are raised first, by `open` and by `renew`; while `gate` is not set, both hang.
    """

    def __init__(self, port: int, renew_after: float = 3600.0) -> None:
        self.port = port
        self.renew_after = renew_after
        self.attempts = 0
        self.renewals = 0
        self.opened: list[Session[grpc.Channel]] = []
        self.problems: deque[BaseException] = deque()
        self.gate = threading.Event()
        self.gate.set()

    def open(self, timeout_seconds: float) -> Session[grpc.Channel]:
        self.attempts += 1
        self._pass(timeout_seconds)
        once = OneDial()
        channel = one_shot_channel(self.port, once)
        self._attest(channel, timeout_seconds)
        renew_at = time.monotonic() + self.renew_after
        session = Session(channel, attestation(len(self.opened) + 1), renew_at, _QUESTION, once)
        self.opened.append(session)
        return session

    def renew(self, session: Session[grpc.Channel], timeout_seconds: float) -> None:
        self.renewals += 1
        self._pass(timeout_seconds)
        self._attest(session.channel, timeout_seconds)
        session.renew_at = time.monotonic() + self.renew_after

    def _pass(self, timeout_seconds: float) -> None:
        if not self.gate.wait(timeout_seconds):
            raise DeadlineError("no answer in time")
        if self.problems:
            raise self.problems.popleft()

    def _attest(self, channel: grpc.Channel, timeout_seconds: float) -> None:
        attest: Any = channel.unary_unary(f"/{SERVICE}/Attest")
        try:
            attest(b"", timeout=timeout_seconds)
        except grpc.RpcError as problem:
            channel.close()
            raise UnreachableError(f"127.0.0.1:{self.port}: {problem.details()}") from problem


def one_shot_channel(port: int, once: OneDial) -> grpc.Channel:
    """A channel that connects once."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate("client.test", key, "ca.test", _ca()[0])
    credentials = grpc.ssl_channel_credentials(_ca()[1], key_pem(key), certificate)
    options = [
        ("grpc.ssl_target_name_override", HOST),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        (ARGUMENT, once),
    ]
    return grpc.secure_channel(f"ipv4:127.0.0.1:{port}", credentials, options)


def attestation(number: int) -> Attestation:
    """One that says which session it is of."""
    appraisal = Appraisal(
        policy_sha256=b"",
        rule="test",
        evidence_sha256=b"",
        anchor_sha256=b"",
        tee="none",
        measurement=b"",
        tcb="",
        platform="",
        insecurities=(),
        report_data_compared=False,
        time=datetime.datetime.now(datetime.UTC),
    )
    claims = {"session": number}
    return Attestation(
        appraisal=appraisal, level=BindingLevel.CONNECTION, audience=HOST, claims=claims, anchor_certificate=b""
    )


def main() -> None:
    """Serve until killed, or until whoever started this is gone."""
    journal, certificates, port, options = json.loads(sys.stdin.readline())
    _, bound = start(Path(journal), certificates, port, options)
    print(bound, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        sys.stdin.read()


if __name__ == "__main__":
    main()
