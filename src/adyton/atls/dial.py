"""Where a server is: one address, and the certificate that it shows there. Nothing here is trusted."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
import ssl
import time
import urllib.parse
from dataclasses import dataclass

from adyton.errors import ConfigurationError, DeadlineError, EvidenceError, UnreachableError

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_FORMS = "HOST:PORT, [IPV6]:PORT or unix:PATH"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a user names: a host and a port, or a Unix socket's path (then `host` is empty and `port` 0)."""

    text: str
    host: str
    port: int
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read HOST:PORT, [IPV6]:PORT or unix:PATH. Raises ConfigurationError."""
        scheme, _, path = text.partition(":")
        if scheme == "unix" and path:
            return cls(text=text, host="", port=0, path=path.removeprefix("//") if path.startswith("///") else path)
        host, _, port = text.rpartition(":")
        if re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 65536:
            if _HOST.fullmatch(host):
                return cls(text=text, host=host, port=int(port))
            if host.startswith("[") and host.endswith("]"):
                with contextlib.suppress(ValueError):
                    return cls(text=text, host=str(ipaddress.IPv6Address(host[1:-1])), port=int(port))
        raise ConfigurationError(f"{text[:300]!r} is not {_FORMS}")

    def resolve(self) -> list[Address]:
        """Its addresses, in the system's order; one or more. Raises UnreachableError."""
        if self.path:
            return [Address(family=socket.AF_UNIX, sockaddr=self.path, uri=f"unix:{urllib.parse.quote(self.path)}")]
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as problem:
            raise UnreachableError(f"{self.text}: {_reason(problem)}") from problem
        return [
            Address(family=family, sockaddr=sockaddr, uri=_uri(family, str(sockaddr[0]), self.port))
            for family, _, _, _, sockaddr in found
        ]


def find(target: Target, audience: str, timeout_seconds: float) -> tuple[Address, bytes]:
    """The first address of the target that answers, and the certificate that it shows.

    One address is all that is dialled afterwards: gRPC, given several, would begin several handshakes. Raises as
    `Address.probe`.
    """
    deadline = time.monotonic() + timeout_seconds
    refused: UnreachableError | None = None
    for address in target.resolve():
        try:
            return address, address.probe(audience, max(0.001, deadline - time.monotonic()))
        except UnreachableError as problem:
            refused = problem
    assert refused is not None
    raise refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """One address, for a socket and for gRPC, so that both go to the same place."""

    family: int
    sockaddr: tuple[str | int, ...] | str | tuple[int, bytes]
    uri: str

    def probe(self, audience: str, timeout_seconds: float) -> bytes:
        """The DER certificate that a server shows there for that name, over TLS 1.3. Nothing of it is verified.

        Raises `UnreachableError`, `DeadlineError`, or `EvidenceError` where what answers does not speak TLS 1.3.
        """
        deadline = time.monotonic() + timeout_seconds
        with contextlib.ExitStack() as stack:
            try:
                plain = stack.enter_context(socket.socket(self.family, socket.SOCK_STREAM))
                # Wrapped before it connects: `wrap_socket` leaks one whose peer has just reset it.
                secured = stack.enter_context(
                    _context().wrap_socket(plain, server_hostname=audience, do_handshake_on_connect=False)
                )
                secured.settimeout(timeout_seconds)
                secured.connect(self.sockaddr)
                secured.settimeout(max(0.001, deadline - time.monotonic()))
                secured.do_handshake()
                certificate = secured.getpeercert(binary_form=True)
            except TimeoutError as problem:
                raise DeadlineError(f"{self.uri}: no answer in {timeout_seconds:.3g} s") from problem
            except ssl.SSLError as problem:
                said = problem.reason or "the connection was closed"
                raise EvidenceError(f"{self.uri} does not speak TLS 1.3: {said}") from problem
            except OSError as problem:
                raise UnreachableError(f"{self.uri}: {_reason(problem)}") from problem
        if not certificate:
            raise EvidenceError(f"{self.uri} shows no certificate")
        return certificate


def _context() -> ssl.SSLContext:
    # Not create_default_context: it would write keys to the file that SSLKEYLOGFILE names.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    return context


def _uri(family: int, host: str, port: int) -> str:
    if family == socket.AF_INET:
        return f"ipv4:{host}:{port}"
    return f"ipv6:[{urllib.parse.quote(host, safe=':')}]:{port}"


def _reason(problem: Exception) -> str:
    return getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
