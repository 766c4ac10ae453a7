"""A client that is cheap enough to keep a server busy from one CPU: HTTP/2 frames that are made beforehand.

The same for every server: over a plain socket, over TLS, over TLS with a client certificate. Each connection has one
RPC under way at a time, and every answer is compared with what it has to be. It speaks as much HTTP/2 as short unary
RPCs need: no flow control, and it reads no header. It verifies nobody, for it only makes work.
"""

from __future__ import annotations

import array
import contextlib
import select
import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

DATA, HEADERS, RESET, SETTINGS, PING, GO_AWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK = END_STREAM = 0x1
END_HEADERS = 0x4
WINDOW = (1 << 31) - 1 - 65535
PATIENCE_SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rpc:
    """A unary method, a request's bytes, and the answer's that alone will do."""

    path: str
    request: bytes
    answer: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What was done: RPCs, in so many seconds, and how long each of them took."""

    count: int
    seconds: float
    latencies: Sequence[float]


def client_context(certificate: Path | None) -> ssl.SSLContext:
    """TLS 1.3 for a client who shows that certificate; the file has its key too."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    if certificate is not None:
        context.load_cert_chain(certificate)
    return context


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def header_block(path: str, authority: str) -> bytes:
    """RFC 7541, and nothing that a server has to remember: names from the static table, values as they are."""
    words = [(b"\x04", path), (b"\x01", authority), (b"\x0f\x10", "application/grpc"), (b"\x00\x02te", "trailers")]
    return b"\x83\x87" + b"".join(name + bytes((len(value),)) + value.encode() for name, value in words)


def prefixed(message: bytes) -> bytes:
    """A message as gRPC sends it: not compressed, its length, itself."""
    return b"\0" + len(message).to_bytes(4) + message


PREFACE = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, b"") + frame(WINDOW_UPDATE, 0, 0, WINDOW.to_bytes(4))
)


class Connection:
    """One HTTP/2 connection. `busy` while an RPC is under way, which has `begun` then, by time.perf_counter()."""

    def __init__(self, port: int, rpc: Rpc, tls: ssl.SSLContext | None, name: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            self._socket = tls.wrap_socket(self._socket, server_hostname=name)
        self._socket.sendall(PREFACE)
        self._socket.setblocking(False)
        self._headers = header_block(rpc.path, name)
        self._message = prefixed(rpc.request)
        self._answer = prefixed(rpc.answer)
        self._stream = -1
        self._unread = b""
        self._got = b""
        self.busy = False
        self.begun = 0.0

    def fileno(self) -> int:
        """The socket's."""
        return self._socket.fileno()

    def close(self) -> None:
        """Let the server see that nobody is there any more."""
        self._socket.close()

    def begin(self) -> None:
        """Send a request."""
        self._stream += 2
        self._got, self.busy = b"", True
        self.begun = time.perf_counter()
        self._send(
            frame(HEADERS, END_HEADERS, self._stream, self._headers)
            + frame(DATA, END_STREAM, self._stream, self._message)
        )

    def read(self) -> None:
        """Take what has come; `busy` tells whether the answer is complete."""
        with contextlib.suppress(ssl.SSLWantReadError):
            while True:
                came = self._socket.recv(65536)
                if not came:
                    raise ConnectionError("the server closed the connection")
                self._unread += came
                if not isinstance(self._socket, ssl.SSLSocket) or not self._socket.pending():
                    break
        for kind, flags, payload in self._frames():
            self._take(kind, flags, payload)

    def _frames(self) -> Iterator[tuple[int, int, bytes]]:
        unread, at = self._unread, 0
        while len(unread) - at >= 9:
            end = at + 9 + int.from_bytes(unread[at : at + 3])
            if end > len(unread):
                break
            yield unread[at + 3], unread[at + 4], unread[at + 9 : end]
            at = end
        self._unread = unread[at:]

    def _take(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == DATA:
            self._got += payload
        elif kind == HEADERS and flags & END_STREAM:
            if self._got != self._answer:
                raise ConnectionError(f"an answer of {len(self._got)} bytes, not the right one")
            self.busy = False
        elif kind in (SETTINGS, PING) and not flags & ACK:
            self._send(frame(kind, ACK, 0, payload if kind == PING else b""))
        elif kind in (RESET, GO_AWAY):
            raise ConnectionError(f"the server ended it with a frame of type {kind}")

    def _send(self, content: bytes) -> None:
        if self._socket.send(content) != len(content):
            raise ConnectionError("the server does not read")


@contextlib.contextmanager
def connections(count: int, port: int, rpc: Rpc, tls: ssl.SSLContext | None, name: str) -> Iterator[list[Connection]]:
    """So many of them, each of which has had one answer."""
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            made.append(Connection(port, rpc, tls, name))
            stack.callback(made[-1].close)
        drive(made, 0.0)
        yield made


def drive(made: Iterable[Connection], seconds: float) -> Work:
    """On each connection one RPC after the other, for so long; those under way then are waited for."""
    with select.epoll() as epoll:
        by_number = {each.fileno(): each for each in made}
        for number in by_number:
            epoll.register(number, select.EPOLLIN)
        latencies = array.array("d")
        begun = time.perf_counter()
        for each in by_number.values():
            each.begin()
        busy = len(by_number)
        while busy:
            events = epoll.poll(PATIENCE_SECONDS)
            if not events:
                raise TimeoutError("the server does not answer")
            for number, _ in events:
                each = by_number[number]
                was_busy = each.busy
                each.read()
                if not was_busy or each.busy:
                    continue
                now = time.perf_counter()
                latencies.append(now - each.begun)
                if now - begun < seconds:
                    each.begin()
                else:
                    busy -= 1
        return Work(count=len(latencies), seconds=time.perf_counter() - begun, latencies=latencies)
