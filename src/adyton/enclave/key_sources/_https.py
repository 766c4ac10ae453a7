"""One HTTPS request with an end in sight: so many seconds from the first byte to the last, so many bytes of answer."""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_ANSWER_BYTES: Final = 64 * 1024
"""With its headers."""
PARENT_CID: Final = 3
"""The instance, as its Nitro enclaves see it."""
VSOCK_PROXY_PORT: Final = 8000

Connect = Callable[[float], socket.socket]
"""Makes a connected stream socket within so many seconds, or raises `OSError`."""


class Deadline:
    """A point in time, so many seconds from now."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until then; `TimeoutError` if it has passed."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time is over")
        return left


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpsServer:
    """Whom to ask: who has a certificate for `host` of a root in `context`, at the other end of `connect`'s socket."""

    host: str
    context: ssl.SSLContext
    connect: Connect

    def post(self, headers: Mapping[str, str], body: bytes, *, seconds: float) -> tuple[int, bytes]:
        """The status and the body of the answer to one `POST /`. Raises `OSError` or `http.client.HTTPException`."""
        deadline = Deadline(seconds)
        with contextlib.ExitStack() as stack:
            plain = stack.enter_context(self.connect(seconds))
            plain.settimeout(deadline.left())
            secured = stack.enter_context(
                self.context.wrap_socket(plain, server_hostname=self.host, do_handshake_on_connect=False)
            )
            secured.settimeout(deadline.left())
            secured.do_handshake()
            connection: Any = HTTPConnection(self.host)
            connection.sock = _Wire(secured, deadline)
            connection.request("POST", "/", body, dict(headers))
            with connection.getresponse() as response:
                # Never `read()`: it makes room for whatever length the other side claims.
                answer = response.read(MAX_ANSWER_BYTES)
                if response.length:
                    raise OSError("the answer is cut off, or too long")
                return response.status, answer


def tls_context(roots_pem: str) -> ssl.SSLContext:
    """Who is believed to be who: these roots, or the system's if there are none. `ssl.SSLError` if it is no PEM."""
    # Not create_default_context: it would write keys to the file that SSLKEYLOGFILE names.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if roots_pem:
        context.load_verify_locations(cadata=roots_pem)
    else:
        context.load_default_certs()
    return context


def tcp(host: str, port: int) -> Connect:
    """To the first address of that name that answers. Looking the name up takes the resolver's own time."""

    def connect(seconds: float) -> socket.socket:
        deadline = Deadline(seconds)
        problem = OSError("no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(deadline.left())
                connection.connect(address)
            except OSError as error:
                connection.close()
                problem = error
            else:
                return connection
        raise problem

    return connect


def vsock_proxy(seconds: float) -> socket.socket:
    """To where AWS' vsock-proxy listens by its own example: port 8000 of the instance. It passes on what TLS hides."""
    connection = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        connection.settimeout(seconds)
        connection.connect((PARENT_CID, VSOCK_PROXY_PORT))
    except BaseException:
        connection.close()
        raise
    return connection


class _Wire:
    """What an HTTPConnection wants of its socket; every call ends at the deadline."""

    def __init__(self, connection: socket.socket, deadline: Deadline) -> None:
        self._connection = connection
        self._deadline = deadline

    def sendall(self, data: bytes) -> None:
        """Not the socket's own: TLS' counts its time anew for each record."""
        rest = memoryview(data)
        while rest:
            self._connection.settimeout(self._deadline.left())
            rest = rest[self._connection.send(rest) :]

    def makefile(self, _mode: str) -> io.BufferedReader:
        """For the one answer."""
        return io.BufferedReader(_Incoming(self._connection, self._deadline))

    def close(self) -> None:
        """Whoever made the connection closes it."""


class _Incoming(io.RawIOBase):
    """What comes from the connection, up to the bound."""

    def __init__(self, connection: socket.socket, deadline: Deadline) -> None:
        self._connection = connection
        self._deadline = deadline
        self._room = MAX_ANSWER_BYTES

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """0 at the end; `OSError` beyond the bound."""
        self._connection.settimeout(self._deadline.left())
        count = self._connection.recv_into(buffer)
        self._room -= count
        if self._room < 0:
            raise OSError(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
        return count
